"""The jitted work of a run: initial state, one training step, one evaluation batch. Nothing here touches the host."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from wcjax import optim
from wcjax.data import augment
from wcjax.reparam import WeightNorm


class TrainState(NamedTuple):
    """All that a run needs to go on, as JAX arrays and trees of them, so that it can be donated and saved."""

    step: jax.Array  # steps done, int32, shape ()
    key: jax.Array  # random key data of the run, uint32, shape (2,): with step it decides order and augmentation
    params: Any
    batch_stats: Any
    opt_state: Any


class Totals(NamedTuple):
    """Sums over the images of an epoch or of a split, kept on the device."""

    loss: jax.Array  # sum over images, float32, shape ()
    correct: jax.Array  # int32, shape ()
    seen: jax.Array  # int32, shape ()
    first_bad_step: jax.Array  # the first step whose loss was not finite, or -1; int32, shape ()

    @classmethod
    def zero(cls):
        return cls(jnp.float32(0), jnp.int32(0), jnp.int32(0), jnp.int32(-1))

    def means(self) -> dict:
        """{'loss', 'accuracy'} as Python numbers; this waits for the device."""
        loss, correct, seen, _ = (np.asarray(x) for x in self)
        return {"loss": float(loss) / int(seen), "accuracy": int(correct) / int(seen)}


class Images(NamedTuple):
    """A split on the device."""

    images: jax.Array  # uint8 (n, height, width, channels)
    labels: jax.Array  # int32 (n,)


def learning_rate_schedule(config, steps_per_epoch: int) -> optax.Schedule:
    """Step count -> learning rate: times schedule.factor from the start of each epoch in schedule.milestones on."""
    boundaries = {epoch * steps_per_epoch: config.schedule.factor for epoch in config.schedule.milestones}
    return optax.piecewise_constant_schedule(config.learning_rate, boundaries)


def make_optimizer(config, psi, steps_per_epoch: int) -> optax.GradientTransformation:
    """The optimizer of config, with decay on w and, for the adaptive ones, steps on w scaled by Ψ′(v)."""
    schedule = learning_rate_schedule(config, steps_per_epoch)
    elementwise = psi is not None and not isinstance(psi, WeightNorm)
    mask = None if config.decay_norm_and_bias else functools.partial(jax.tree.map, lambda p: jnp.ndim(p) > 1)
    if elementwise:
        decay = optim.add_decayed_weights(config.weight_decay, psi, mask)
    else:
        decay = optax.add_decayed_weights(config.weight_decay, mask)
    if config.optimizer == "sgd":
        return optax.chain(decay, optax.sgd(schedule, momentum=config.momentum))
    adam = optax.adam(schedule)
    return optax.chain(decay, optim.scale_by_derivative(adam, psi) if elementwise else adam)


def init_state(model, tx, image_shape, seed: int) -> TrainState:
    """The state before the first step. image_shape: (height, width, channels)."""

    def init(key):
        weights_key, run_key = jax.random.split(key)
        variables = model.init(weights_key, jnp.zeros((1, *image_shape)), train=False)
        params = variables["params"]
        return TrainState(
            step=jnp.int32(0),
            key=jax.random.key_data(run_key),
            params=params,
            batch_stats=variables.get("batch_stats", {}),
            opt_state=tx.init(params),
        )

    # Most of the time to compile this goes into optimizing random draws that run once.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.jit(init, compiler_options=options)(jax.random.key(seed))


def start_epoch(state: TrainState, num_images: int, steps_per_epoch: int):
    """(order, totals) of the epoch that state is in: the order of the images, int32 (num_images,), and zero totals."""
    key, _ = jax.random.split(jax.random.wrap_key_data(state.key))
    order = jax.random.permutation(jax.random.fold_in(key, state.step // steps_per_epoch), num_images)
    return order, Totals.zero()


def train_step(state: TrainState, totals: Totals, data: Images, order, *, model, tx, config, mean, std):
    """One step on the next config.batch_size images of order.

    Returns (state, totals, loss): loss is the mean over the batch, float32, shape ().
    """
    steps_per_epoch = order.shape[0] // config.batch_size
    index = jax.lax.dynamic_slice_in_dim(order, state.step % steps_per_epoch * config.batch_size, config.batch_size)
    _, key = jax.random.split(jax.random.wrap_key_data(state.key))
    augment_key, dropout_key = jax.random.split(jax.random.fold_in(key, state.step))
    images = augment.random_crop_and_flip(augment_key, data.images[index], **config.augment)
    images = augment.normalize(images, mean, std, jnp.dtype(config.dtype))
    labels = data.labels[index]

    def loss_fn(params):
        logits, updated = model.apply(
            {"params": params, "batch_stats": state.batch_stats},
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": dropout_key},
        )
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), (logits, updated)

    (loss, (logits, updated)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    is_bad = ~jnp.isfinite(loss) & (totals.first_bad_step < 0)
    totals = Totals(
        loss=totals.loss + loss * config.batch_size,
        correct=totals.correct + jnp.sum(jnp.argmax(logits, -1) == labels, dtype=jnp.int32),
        seen=totals.seen + config.batch_size,
        first_bad_step=jnp.where(is_bad, state.step, totals.first_bad_step),
    )
    state = state._replace(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        batch_stats=updated.get("batch_stats", {}),
        opt_state=opt_state,
    )
    return state, totals, loss


def eval_step(params, batch_stats, totals: Totals, data: Images, *, model, batch_size: int, mean, std, dtype) -> Totals:
    """Adds the next batch_size images of data, those from totals.seen on; a short last batch counts its images once."""
    n = data.labels.shape[0]
    index = totals.seen + jnp.arange(batch_size)
    real = index < n
    index = jnp.minimum(index, n - 1)
    images = augment.normalize(data.images[index], mean, std, dtype)
    labels = data.labels[index]
    logits = model.apply({"params": params, "batch_stats": batch_stats}, images, train=False)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return totals._replace(
        loss=totals.loss + jnp.sum(jnp.where(real, loss, 0)),
        correct=totals.correct + jnp.sum(real & (jnp.argmax(logits, -1) == labels), dtype=jnp.int32),
        seen=jnp.minimum(totals.seen + batch_size, n),
    )


def compile_eval_step(model, config, dataset, params, batch_stats, data: Images):
    """`eval_step` compiled for one split: (params, batch_stats, totals, data) -> totals."""
    step = functools.partial(
        eval_step,
        model=model,
        batch_size=config.batch_size,
        mean=dataset.mean,
        std=dataset.std,
        dtype=jnp.dtype(config.dtype),
    )
    return jax.jit(step).lower(params, batch_stats, Totals.zero(), data).compile()
