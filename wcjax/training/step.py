"""The jitted work of a run: initial state, one training step, one evaluation batch. Nothing here touches the host."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from wcjax.data import augment
from wcjax.params import fold
from wcjax.training import mesh as meshes


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
    """A split on the devices, or a batch of a streamed one."""

    images: jax.Array  # uint8 (n, height, width, channels); of a split filled up by `mesh.share_rows`
    labels: jax.Array  # int32 (n,)


def init_state(model, tx, image_shape, seed: int, mesh=None) -> TrainState:
    """The state before the first step. image_shape: (height, width, channels). mesh: one device if left out."""
    mesh = mesh or meshes.one_device()
    init = _init(model, tx, image_shape)

    # Most of the time to compile this goes into optimizing random draws that run once.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    key = jax.random.key(seed)
    shapes = jax.eval_shape(init, key) if mesh.shape["fsdp"] > 1 else None
    return jax.jit(init, out_shardings=meshes.state_sharding(mesh, shapes), compiler_options=options)(key)


def abstract_state(model, tx, image_shape, mesh) -> TrainState:
    """Shapes, dtypes and shardings of `init_state`, which draws nothing and needs no memory."""
    shapes = jax.eval_shape(_init(model, tx, image_shape), jax.random.key(0))
    return meshes.abstract(shapes, meshes.state_sharding(mesh, shapes))


def _init(model, tx, image_shape):
    """key -> TrainState."""

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

    return init


def start_epoch(state: TrainState, num_images: int, steps_per_epoch: int):
    """(order, totals) of the epoch that state is in: the order of the images, int32 (num_images,), and zero totals."""
    key, _ = jax.random.split(jax.random.wrap_key_data(state.key))
    order = jax.random.permutation(jax.random.fold_in(key, state.step // steps_per_epoch), num_images)
    return order, Totals.zero()


def train_step(
    state: TrainState, totals: Totals, data: Images, order, *, model, tx, config, mean, std, mesh=None, whole=None
):
    """One step on the next config.batch_size images of order, augmented here. data: a split on mesh.

    whole: see `gathered_network`. Returns (state, totals, loss): loss is the mean over the batch, float32, shape ().
    """
    steps_per_epoch = order.shape[0] // config.batch_size
    index = jax.lax.dynamic_slice_in_dim(order, state.step % steps_per_epoch * config.batch_size, config.batch_size)
    augment_key, dropout_key = _step_keys(state)
    images = meshes.take_rows(mesh, data.images, index)
    images = augment.random_crop_and_flip(augment_key, images, **config.augment)
    images = augment.normalize(images, mean, std, jnp.dtype(config.dtype))
    return _update(state, totals, images, data.labels[index], dropout_key, model, tx, whole)


def train_step_on_batch(state: TrainState, totals: Totals, batch: Images, *, model, tx, config, mean, std, whole=None):
    """`train_step` on a batch of a streamed split, which is augmented already."""
    _, dropout_key = _step_keys(state)
    images = augment.normalize(batch.images, mean, std, jnp.dtype(config.dtype))
    return _update(state, totals, images, batch.labels, dropout_key, model, tx, whole)


def gathered_network(mesh, model) -> tuple:
    """(model, whole) to train with where parameters are sharded over fsdp: the plain network, and params -> its params.

    whole folds, w = Ψ(v), each device its shard, and only then puts the whole of w on each. Left to itself, XLA moves
    activations instead of weights where these are larger, as at the head. Else (model, None): layers compute w.
    """
    if mesh.shape["fsdp"] == 1:
        return model, None

    def whole(params):
        plain = params if model.reparam is None else fold(params)
        return jax.lax.with_sharding_constraint(plain, meshes.replicated(mesh))

    return model.clone(reparam=None, learn="none"), whole


def _step_keys(state):
    """(key of the augmentation, key of dropout) of the step that state is at."""
    _, key = jax.random.split(jax.random.wrap_key_data(state.key))
    return jax.random.split(jax.random.fold_in(key, state.step))


def _update(state, totals, images, labels, dropout_key, model, tx, whole):
    """One step of the optimizer: (state, totals, loss) of normalized images."""

    def loss_fn(params):
        logits, updated = model.apply(
            {"params": whole(params) if whole else params, "batch_stats": state.batch_stats},
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
        loss=totals.loss + loss * len(labels),
        correct=totals.correct + jnp.sum(jnp.argmax(logits, -1) == labels, dtype=jnp.int32),
        seen=totals.seen + len(labels),
        first_bad_step=jnp.where(is_bad, state.step, totals.first_bad_step),
    )
    state = state._replace(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        batch_stats=updated.get("batch_stats", {}),
        opt_state=opt_state,
    )
    return state, totals, loss


def eval_step(
    params, batch_stats, totals: Totals, data: Images, *, mesh, model, batch_size: int, mean, std, dtype
) -> Totals:
    """Adds the next batch_size images of data, those from totals.seen on; a short last batch counts its images once."""
    n = data.labels.shape[0]
    index = totals.seen + jnp.arange(batch_size)
    real = index < n
    index = jnp.minimum(index, n - 1)
    batch = Images(meshes.take_rows(mesh, data.images, index), data.labels[index])
    return _count(params, batch_stats, totals, batch, real, model, mean, std, dtype)


def eval_step_on_batch(params, batch_stats, totals: Totals, batch: Images, *, model, mean, std, dtype) -> Totals:
    """Adds a batch of a streamed split; images with a negative label fill it up and are not counted."""
    return _count(params, batch_stats, totals, batch, batch.labels >= 0, model, mean, std, dtype)


def _count(params, batch_stats, totals, batch, real, model, mean, std, dtype):
    """totals and the sums over those images of batch that are real, bool (n,)."""
    images, labels = augment.normalize(batch.images, mean, std, dtype), jnp.maximum(batch.labels, 0)
    logits = model.apply({"params": params, "batch_stats": batch_stats}, images, train=False)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return totals._replace(
        loss=totals.loss + jnp.sum(jnp.where(real, loss, 0)),
        correct=totals.correct + jnp.sum(real & (jnp.argmax(logits, -1) == labels), dtype=jnp.int32),
        seen=totals.seen + jnp.sum(real, dtype=jnp.int32),
    )


def streamed_batch(config, mesh) -> Images:
    """Shapes, dtypes and shardings of the batches of a streamed split."""
    n, size = config.batch_size, config.image_size
    of = functools.partial(jax.ShapeDtypeStruct, sharding=meshes.by_rows(mesh))
    return Images(of((n, size, size, 3), jnp.uint8), of((n,), jnp.int32))


def zero_totals(mesh) -> Totals:
    return meshes.replicate(mesh, Totals.zero())


@jax.jit
def all_finite(tree):
    """Whether no element of tree is nan or inf: bool, shape ()."""
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]))


def jit_train_step(step, mesh, state):
    """step, to be jitted for mesh: (state, totals, ...) -> (state, totals, loss), which takes over their buffers.

    state: arrays, or their shapes. What comes out lies as what went in, so that every step is the same program.
    """
    everywhere = meshes.replicated(mesh)
    shardings = (meshes.state_sharding(mesh, state), everywhere, everywhere)
    return jax.jit(step, donate_argnums=(0, 1), out_shardings=shardings)


def compile_eval_step(model, config, dataset, params, batch_stats, data, mesh=None):
    """The evaluation of config.batch_size images, compiled: (params, batch_stats, totals, images) -> totals.

    images: data, where that is Images, a split on mesh; else a batch of a streamed split. mesh: one device if left out.
    """
    mesh = mesh or meshes.one_device()
    fixed = {"model": model, "mean": dataset.mean, "std": dataset.std, "dtype": jnp.dtype(config.dtype)}
    if isinstance(data, Images):
        step = functools.partial(eval_step, mesh=mesh, batch_size=config.batch_size, **fixed)
    else:
        step, data = functools.partial(eval_step_on_batch, **fixed), streamed_batch(config, mesh)
    jitted = jax.jit(step, out_shardings=meshes.replicated(mesh))
    return jitted.lower(params, batch_stats, zero_totals(mesh), data).compile()
