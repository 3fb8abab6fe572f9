"""The computations of a run: the initial state, one step of training, one step of evaluation.

`wcjax.training.compilation` compiles the steps, which never touch the host.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from wcjax.params import fold
from wcjax.system.unoptimized import jit_unoptimized
from wcjax.training import sharding
from wcjax.training.feed import Feed
from wcjax.training.run import Run
from wcjax.training.train_state import Totals, TrainState, step_key


def init_state(
    model: nn.Module,
    tx: optax.GradientTransformation,
    image_shape: tuple[int, int, int],
    seed: int,
    mesh: Mesh | None = None,
) -> TrainState:
    """The state before the first step. image_shape: (height, width, channels). mesh: one device by default."""
    mesh, key = mesh or sharding.one_device(), jax.random.key(seed)
    init = initializer(model, tx, image_shape)
    # Without fsdp the sharding does not depend on the shapes, and tracing init for them takes seconds.
    shapes = jax.eval_shape(init, key) if mesh.shape["fsdp"] > 1 else None
    return jit_unoptimized(init, out_shardings=sharding.state_sharding(mesh, shapes))(key)


def initializer(
    model: nn.Module, tx: optax.GradientTransformation, image_shape: tuple[int, int, int]
) -> Callable[[jax.Array], TrainState]:
    """Returns init(key) -> the first TrainState. init can be jitted."""

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


def gathered_network(mesh: Mesh, model: nn.Module) -> tuple[nn.Module, Callable]:
    """(network, gather) to train with: network.apply({'params': gather(params), ...}, images).

    If parameters are sharded over fsdp, `network` is plain, and `gather` first folds each shard, w = Ψ(v), and then
    replicates w in the dtype of the layers. XLA would otherwise move the activations where they are smaller than the
    weights, as at the head. Without fsdp, `network` is `model` and `gather` does nothing.
    """
    if mesh.shape["fsdp"] == 1:
        return model, lambda params: params

    def gather(params):
        plain = params if model.reparam is None else fold(params)
        return sharding.gather_in_step(mesh, plain, model.dtype)

    return model.clone(reparam=None, learn="none"), gather


def train_step(run: Run, feed: Feed, state: TrainState, totals: Totals, inputs) -> tuple[TrainState, Totals, jax.Array]:
    """One step of the optimizer of a run: (state, totals, means).

    means: loss and accuracy of the epoch so far, float32, shape (2,). Unlike totals, the next step does not delete it.
    inputs: what the feed gives for this step, see `wcjax.training.feed`.
    """
    network, gather = gathered_network(run.mesh, run.model)
    augment_key, dropout_key = jax.random.split(step_key(state.key, state.step))
    images, labels = feed.train_batch(inputs, state.step, augment_key)

    def loss_fn(params):
        variables = {"params": gather(params), "batch_stats": state.batch_stats}
        logits, new_variables = network.apply(
            variables, images, train=True, mutable=["batch_stats"], rngs={"dropout": dropout_key}
        )
        return cross_entropy(logits, labels, run.config.label_smoothing), (logits, new_variables)

    (loss, (logits, new_variables)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    updates, opt_state = run.tx.update(grads, state.opt_state, state.params)
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
        batch_stats=new_variables.get("batch_stats", {}),
        opt_state=opt_state,
    )
    return state, totals, jnp.stack([totals.loss, totals.correct]) / totals.seen


def cross_entropy(logits: jax.Array, labels: jax.Array, label_smoothing: float) -> jax.Array:
    """The mean over the batch, shape (). logits: (n, classes). labels: int (n,)."""
    if not label_smoothing:
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), label_smoothing)
    return optax.softmax_cross_entropy(logits, targets).mean()


def eval_step(model: nn.Module, feed: Feed, params, batch_stats, totals: Totals, inputs) -> Totals:
    """Adds the next batch to totals. An image with a negative label is padding and is not counted.

    inputs: what the feed gives for this step, see `wcjax.training.feed`.
    """
    images, labels = feed.eval_batch(inputs, totals.seen)
    is_real, labels = labels >= 0, jnp.maximum(labels, 0)
    logits = model.apply({"params": params, "batch_stats": batch_stats}, images, train=False)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return totals._replace(
        loss=totals.loss + jnp.sum(jnp.where(is_real, loss, 0)),
        correct=totals.correct + jnp.sum(is_real & (jnp.argmax(logits, -1) == labels), dtype=jnp.int32),
        seen=totals.seen + jnp.sum(is_real, dtype=jnp.int32),
    )


@jit_unoptimized
def all_finite(tree) -> jax.Array:
    """Whether all elements of tree are finite: bool, shape ()."""
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]))
