"""What WC costs in a training step, for each network, batch and dtype."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import wcjax
from benchmarks.timing import in_turn, summary
from wcjax import models, optim
from wcjax.system.unoptimized import jit_unoptimized
from wcjax.training import compilation, sharding

PSI = wcjax.Arctan(1.0, 0.6)
DECAY = 1e-4
# (network, batch, dtype)
CPU_FULL = [("resnet18", 16, "float32"), ("vgg16_bn", 16, "float32")]  # with all variants
CPU = [
    ("resnet8", 16, "float32"),
    ("resnet50", 16, "float32"),
    ("wrn28_10", 16, "float32"),
    ("resnet8", 128, "float32"),
    ("resnet18", 128, "float32"),
    ("vgg16_bn", 128, "float32"),
]


def variants(full: bool):
    """{name: (reparam of the layers, learn, optimizer)}: three variants of SGD, or all variants if full."""
    sgd, adam = optax.sgd(0.1, momentum=0.9), optax.adam(1e-3)
    plain, on_w = optax.add_decayed_weights(DECAY), optim.add_decayed_weights(DECAY)
    some = {
        "plain": (None, "none", optax.chain(plain, sgd)),
        "layers": (PSI, "none", optax.chain(on_w, sgd)),
        "compand": (None, "none", wcjax.compand(sgd, PSI, weight_decay=DECAY)),
    }
    more = {
        "layers, learned": (PSI, "fine", optax.chain(on_w, sgd)),
        "compand, learned": (None, "none", wcjax.compand(sgd, PSI, weight_decay=DECAY, learn="fine")),
        "Adam plain": (None, "none", optax.chain(plain, adam)),
        "Adam layers": (PSI, "none", optim.scale_by_derivative(optax.chain(plain, adam))),
        "Adam compand": (None, "none", wcjax.compand(adam, PSI, adaptive=True, weight_decay=DECAY)),
    }
    return some | more if full else some


def batch_of(size):
    """(images (size, 32, 32, 3), labels (size,)), always the same."""
    images = np.random.default_rng(0).normal(size=(size, 32, 32, 3))
    return jnp.asarray(images, jnp.float32), jnp.arange(size) % 10


def init(model, images):
    """The first variables, by a program that takes little time to compile."""
    return jit_unoptimized(model.init)(jax.random.key(0), images[:1])


def compile_train_step(model, tx, images, labels):
    """(compiled step, its first state): a step takes and gives (params, batch_stats, opt_state)."""
    variables = init(model, images)
    state = (variables["params"], variables["batch_stats"], tx.init(variables["params"]))

    def step(state, images, labels):
        params, batch_stats, opt_state = state

        def loss_fn(params):
            variables, key = {"params": params, "batch_stats": batch_stats}, jax.random.key(1)
            logits, new = model.apply(variables, images, train=True, mutable=["batch_stats"], rngs={"dropout": key})
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), new["batch_stats"]

        grads, batch_stats = jax.grad(loss_fn, has_aux=True)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), batch_stats, opt_state

    options = compilation.compiler_options(sharding.one_device())
    return jax.jit(step, donate_argnums=0).lower(state, images, labels).compile(options), state


class Stepper:
    """A compiled step together with the state that it moves, as a call without arguments."""

    def __init__(self, step, state, *batch):
        self.step, self.state, self.batch = step, state, batch

    def __call__(self):
        self.state = self.step(self.state, *self.batch)
        return self.state


def measure_steps(name, batch, dtype, repeats, full):
    """One record for each variant of a training step."""
    images, labels = batch_of(batch)
    steppers = {}
    for variant, (reparam, learn, tx) in variants(full).items():
        model = models.create(name, 10, reparam, learn, jnp.dtype(dtype))
        steppers[variant] = Stepper(*compile_train_step(model, tx, images, labels), images, labels)
    seconds = in_turn(steppers, repeats)
    sgd = {k: v for k, v in seconds.items() if not k.startswith("Adam")}
    adam = {k: v for k, v in seconds.items() if k.startswith("Adam")}
    times = summary(sgd) | (summary(adam) if adam else {})
    for variant, stepper in steppers.items():
        case = {"group": "steps", "model": name, "batch": batch, "dtype": dtype, "variant": variant}
        yield case | times[variant] | sizes(stepper.step, stepper.state[0])


def sizes(step, params) -> dict:
    """The memory of a compiled step, and the number of weights that it trains."""
    memory = step.memory_analysis()
    return {
        "num_weights": sum(x.size for x in jax.tree.leaves(params) if x.ndim > 1),
        "arguments_mib": memory.argument_size_in_bytes / 2**20,
        "temporary_mib": memory.temp_size_in_bytes / 2**20,
    }


def compile_forward(model, images):
    """A call that computes the logits of images, compiled like a step of evaluation of `wcjax.training`."""
    variables = init(model, images)
    options = compilation.compiler_options(sharding.one_device())
    return functools.partial(jax.jit(model.apply).lower(variables, images).compile(options), variables, images)
