"""What WC costs: time and memory of one training step, plain against layers that hold v and against compand.

    python -m benchmarks.step_cost --model resnet8 --batch 16 --repeats 30

All variants run in one process, in turn, so that a noisy machine is equally noisy for each; what counts is the ratio to
plain, the median over the repeats. Memory is XLA's own analysis of the compiled step. Prints Markdown.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import optax

import wcjax
from wcjax import models, optim

PSI = wcjax.Arctan(1.0, 0.6)
DECAY = 1e-4


def variants():
    """{name: (reparam of the layers, learn, optimizer)}"""
    sgd, adam = optax.sgd(0.1, momentum=0.9), optax.adam(1e-3)
    plain, on_w = optax.add_decayed_weights(DECAY), optim.add_decayed_weights(DECAY, PSI)
    return {
        "SGD plain": (None, "none", optax.chain(plain, sgd)),
        "SGD layers": (PSI, "none", optax.chain(on_w, sgd)),
        "SGD layers, learned": (PSI, "fine", optax.chain(on_w, sgd)),
        "SGD compand": (None, "none", wcjax.compand(sgd, PSI, weight_decay=DECAY)),
        "SGD compand, learned": (None, "none", wcjax.compand(sgd, PSI, weight_decay=DECAY, learn="fine")),
        "Adam plain": (None, "none", optax.chain(plain, adam)),
        "Adam layers": (PSI, "none", optax.chain(on_w, optim.scale_by_derivative(adam, PSI))),
        "Adam compand": (None, "none", wcjax.compand(adam, PSI, adaptive=True, weight_decay=DECAY)),
    }


def compiled_step(model, tx, images, labels):
    """(compiled step, its first state)"""
    variables = jax.jit(model.init)(jax.random.key(0), images[:1])
    state = (variables["params"], variables["batch_stats"], tx.init(variables["params"]))

    def step(state, images, labels):
        params, batch_stats, opt_state = state

        def loss_fn(params):
            variables = {"params": params, "batch_stats": batch_stats}
            logits, new = model.apply(variables, images, train=True, mutable=["batch_stats"])
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), new["batch_stats"]

        grads, batch_stats = jax.grad(loss_fn, has_aux=True)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), batch_stats, opt_state

    return jax.jit(step, donate_argnums=0).lower(state, images, labels).compile(), state


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="resnet8", choices=models.NAMES)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=30)
    args = parser.parse_args()

    images = jax.random.normal(jax.random.key(1), (args.batch, 32, 32, 3))
    labels = jnp.arange(args.batch) % 10
    steps, states, seconds = {}, {}, {}
    for name, (reparam, learn, tx) in variants().items():
        model = models.create(args.model, 10, reparam, learn)
        steps[name], states[name] = compiled_step(model, tx, images, labels)
        states[name] = steps[name](states[name], images, labels)
        seconds[name] = []
    for _ in range(args.repeats):
        for name, step in steps.items():
            began = time.perf_counter()
            states[name] = jax.block_until_ready(step(states[name], images, labels))
            seconds[name].append(time.perf_counter() - began)

    device = jax.devices()[0].device_kind
    print(f"{args.model}, batch {args.batch}, float32, {args.repeats} repeats, {device}, jax {jax.__version__}\n")
    print("| variant | ms a step (median) | ratio to plain (quartiles) | arguments, MiB | temporary, MiB |")
    print("| --- | --- | --- | --- | --- |")
    for name, step in steps.items():
        base = seconds[f"{name.split()[0]} plain"]
        ratios = [x / y for x, y in zip(seconds[name], base, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        memory = step.memory_analysis()
        print(
            f"| {name} | {1e3 * statistics.median(seconds[name]):.1f} | {middle:.3f} ({low:.3f} to {high:.3f}) "
            f"| {memory.argument_size_in_bytes / 2**20:.1f} | {memory.temp_size_in_bytes / 2**20:.1f} |"
        )


if __name__ == "__main__":
    main()
