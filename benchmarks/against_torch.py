"""Training and evaluation in PyTorch, in turn with ours: the same networks, batches, optimizer and precision."""

import importlib.util
import math

import jax
import numpy as np

from benchmarks.steps import DECAY, Stepper, batch_of, compile_forward, compile_train_step, variants
from benchmarks.timing import in_turn, summary
from wcjax import models

CPU = [
    ("resnet8", 128, "float32"),
    ("resnet18", 32, "float32"),
    ("resnet18", 128, "float32"),
    ("resnet50", 16, "float32"),
    ("vgg16_bn", 32, "float32"),
    ("wrn28_10", 4, "float32"),
]
GPU = [("resnet18", 128, "bfloat16"), ("resnet50", 128, "bfloat16"), ("resnet18", 128, "float32")]
PAUSE = 0.3  # seconds between the libraries' turns


def measure(name, batch, dtype, repeats):
    """A record for each variant in training, and one in evaluation; ratios are to the faster PyTorch."""
    if not importlib.util.find_spec("torch"):
        print("PyTorch is not installed, so it is not measured")
        return
    for work, ours in (("training", _our_training), ("evaluation", _our_evaluation)):
        calls, facts = _torch_calls(name, batch, dtype, work)
        calls |= ours(name, batch, dtype)
        seconds = in_turn(calls, repeats, PAUSE)
        base = min(("PyTorch", "PyTorch, compiled"), key=lambda call: np.median(seconds.get(call, [math.inf])))
        case = {"group": "torch", "model": name, "batch": batch, "dtype": dtype, "work": work, **facts}
        for variant, times in summary(seconds, base).items():
            yield case | {"variant": variant} | times


def _torch_calls(name, batch, dtype, work):
    """({variant: call}, facts): PyTorch as it is and compiled, in the layout that is faster as it is."""
    import torch

    from benchmarks.torch_networks import network

    torch.compiler.reset()
    step_of = {"training": torch_step, "evaluation": torch_evaluation}[work]
    layouts = {f"PyTorch, channels {x}": step_of(network(name), batch, dtype, x == "last") for x in ("first", "last")}
    seconds = in_turn(layouts, 2, PAUSE)
    layout = min(seconds, key=lambda layout: min(seconds[layout]))
    calls = {"PyTorch": layouts[layout]}
    compiled = step_of(network(name), batch, dtype, layout.endswith("last"), compiled=True)
    try:
        compiled()
    except Exception as error:  # torch.compile needs a C++ compiler, and fails in many ways
        print(f"PyTorch, compiled: {type(error).__name__}, so it is not measured")
    else:
        calls["PyTorch, compiled"] = compiled
    parameters = sum(p.numel() for p in network(name).parameters())
    ours = jax.eval_shape(models.create(name, 10).init, jax.random.key(0), batch_of(1)[0])["params"]
    assert parameters == sum(math.prod(x.shape) for x in jax.tree.leaves(ours)), "the networks differ"
    return calls, {"threads": torch.get_num_threads(), "layout": layout.partition(", ")[2]}


def torch_step(model, batch, dtype, channels_last, compiled=False):
    """A call that does one step and waits for it."""
    import torch
    from torch.nn import functional as F

    device, layout, images = _torch_inputs(batch, channels_last)
    labels = torch.tensor(np.asarray(batch_of(batch)[1]), dtype=torch.long, device=device)
    model = model.to(device, memory_format=layout)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=DECAY)
    forward = torch.compile(model, dynamic=False) if compiled else model

    def step():
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = F.cross_entropy(forward(images), labels)
        loss.backward()
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return step


def torch_evaluation(model, batch, dtype, channels_last, compiled=False):
    """A call that computes the logits of a batch and waits for them."""
    import torch

    device, layout, images = _torch_inputs(batch, channels_last)
    model = model.to(device, memory_format=layout).eval()
    forward = torch.compile(model, dynamic=False) if compiled else model

    def evaluate():
        with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            forward(images)
        if device == "cuda":
            torch.cuda.synchronize()

    return evaluate


def _torch_inputs(batch, channels_last):
    import torch

    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    layout = torch.channels_last if channels_last else torch.contiguous_format
    images = torch.tensor(np.asarray(batch_of(batch)[0])).permute(0, 3, 1, 2)
    return device, layout, images.to(device, memory_format=layout)


def _our_training(name, batch, dtype):
    images, labels = batch_of(batch)
    calls = {}
    for variant, (reparam, learn, tx) in variants(full=False).items():
        model = models.create(name, 10, reparam, learn, jax.numpy.dtype(dtype))
        calls[f"wcjax, {variant}"] = Stepper(*compile_train_step(model, tx, images, labels), images, labels)
    return calls


def _our_evaluation(name, batch, dtype):
    images, _ = batch_of(batch)
    model = models.create(name, 10, dtype=jax.numpy.dtype(dtype))
    return {"wcjax, folded": compile_forward(model, images)}
