"""What WC costs in a training step and in the forward pass, for each network, batch and dtype."""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax

import wcjax
from benchmarks.timing import in_turn, summary
from wcjax import models, optim
from wcjax.models import cpu_convolution
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
CONVOLUTIONS = [("resnet8", 128, "float32"), ("resnet18", 32, "float32"), ("resnet50", 16, "float32")]
FLAGS = {  # of XLA, for a GPU; each alone
    "none": {},
    "latency hiding": {"xla_gpu_enable_latency_hiding_scheduler": True},
    "autotune level 0": {"xla_gpu_autotune_level": 0},
    "no Triton GEMM": {"xla_gpu_enable_triton_gemm": False},
    "no CUDA graphs": {"xla_gpu_graph_min_graph_size": 1_000_000},
}


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


def compile_train_step(model, tx, images, labels, flags=None):
    """(compiled step, its first state): a step takes and gives (params, batch_stats, opt_state).

    flags: of XLA, for the step, besides those of a training step of `wcjax.training`.
    """
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

    options = compilation.compiler_options(sharding.one_device()) | (flags or {})
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


def measure_forward(name, batch, dtype, repeats):
    """One record for the network as it is trained, and one for the folded one."""
    images, _ = batch_of(batch)
    calls = {}
    for variant, reparam in {"folded": None, "layers": PSI}.items():
        model = models.create(name, 10, reparam, dtype=jnp.dtype(dtype))
        calls[variant] = compile_forward(model, images)
    for variant, times in summary(in_turn(calls, repeats)).items():
        yield {"group": "forward", "model": name, "batch": batch, "dtype": dtype, "variant": variant} | times


def measure_convolutions(name, batch, dtype, repeats):
    """One record for a step with XLA's gradients of kernels, one with those of `wcjax.models.cpu_convolution`."""
    images, labels = batch_of(batch)
    plain = variants(full=False)["plain"][2]

    def by_xla(x, w, strides, padding, **others):
        return jax.lax.conv_general_dilated(x, w, strides, padding, dimension_numbers=cpu_convolution.LAYOUT)

    steppers = {}
    for variant, convolve in {"XLA's": by_xla, "ours": cpu_convolution.conv_general_dilated}.items():
        with mock.patch.object(cpu_convolution, "conv_general_dilated", convolve):
            model = models.create(name, 10, dtype=jnp.dtype(dtype))
            steppers[variant] = Stepper(*compile_train_step(model, plain, images, labels), images, labels)
    for variant, times in summary(in_turn(steppers, repeats)).items():
        yield {"group": "convolutions", "model": name, "batch": batch, "dtype": dtype, "variant": variant} | times


def measure_flags(name, batch, dtype, repeats, flags=FLAGS):
    """One record for a step of the layers with each of these flags, except those that this XLA does not know."""
    images, labels = batch_of(batch)
    reparam, learn, tx = variants(full=False)["layers"]
    model, steppers = models.create(name, 10, reparam, learn, jnp.dtype(dtype)), {}
    for variant, options in flags.items():
        try:
            steppers[variant] = Stepper(*compile_train_step(model, tx, images, labels, flags=options), images, labels)
        except jax.errors.JaxRuntimeError as error:
            print(f"{variant}: omitted, {str(error).splitlines()[0]}")
    for variant, times in summary(in_turn(steppers, repeats)).items():
        yield {"group": "flags", "model": name, "batch": batch, "dtype": dtype, "variant": variant} | times
