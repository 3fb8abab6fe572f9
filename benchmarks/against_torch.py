"""The same training step in PyTorch, plain and with WC by torch.nn.utils.parametrize, in turn with ours."""

import math

import jax
import numpy as np

from benchmarks.steps import DECAY, PSI, Stepper, batch_of, train_step, variants
from benchmarks.timing import in_turn, summary
from wcjax import models

CPU = [
    ("resnet8", 128, "float32"),
    ("resnet18", 32, "float32"),
    ("resnet18", 128, "float32"),
    ("resnet50", 16, "float32"),
]
GPU = [("resnet18", 128, "bfloat16"), ("resnet50", 128, "bfloat16"), ("resnet18", 128, "float32")]


def network(name):
    """The ResNet called `name` with the CIFAR stem, as usual in PyTorch."""
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self, inputs, width, stride, bottleneck):
            super().__init__()
            out = 4 * width if bottleneck else width
            sizes = [(inputs, width, 1, 1), (width, width, 3, stride), (width, out, 1, 1)]
            if not bottleneck:
                sizes = [(inputs, width, 3, stride), (width, width, 3, 1)]
            layers = []
            for i, o, size, s in sizes:
                layers += [nn.Conv2d(i, o, size, s, size // 2, bias=False), nn.BatchNorm2d(o), nn.ReLU(inplace=True)]
            self.body = nn.Sequential(*layers[:-1])
            self.shortcut = nn.Identity()
            if stride != 1 or inputs != out:
                self.shortcut = nn.Sequential(nn.Conv2d(inputs, out, 1, stride, bias=False), nn.BatchNorm2d(out))

        def forward(self, x):
            return torch.relu(self.body(x) + self.shortcut(x))

    ours = models.create(name, 10)
    bottleneck = ours.block.expansion == 4
    layers = [nn.Conv2d(3, ours.width, 3, 1, 1, bias=False), nn.BatchNorm2d(ours.width), nn.ReLU(inplace=True)]
    inputs = ours.width
    for stage, blocks in enumerate(ours.stages):
        for i in range(blocks):
            width = ours.width * 2**stage
            layers.append(Block(inputs, width, 2 if stage and i == 0 else 1, bottleneck))
            inputs = width * ours.block.expansion
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))


def compand(model):
    """w = a·arctan(v/b) for every convolution and linear weight of a PyTorch model."""
    import torch
    from torch.nn.utils import parametrize

    class WC(torch.nn.Module):
        def forward(self, v):
            return PSI.a * torch.arctan(v / PSI.b)

        def right_inverse(self, w):
            return PSI.b * torch.tan(w / PSI.a)

    for module in list(model.modules()):
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            parametrize.register_parametrization(module, "weight", WC())
    return model


def torch_step(model, batch, dtype, channels_last, compiled=False):
    """A call that does one step and waits for it."""
    import torch
    from torch.nn import functional as F

    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    layout = torch.channels_last if channels_last else torch.contiguous_format
    images, labels = batch_of(batch)
    images = torch.tensor(np.asarray(images)).permute(0, 3, 1, 2).to(device, memory_format=layout)
    labels = torch.tensor(np.asarray(labels), dtype=torch.long, device=device)
    model = model.to(device, memory_format=layout)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=DECAY)
    forward = torch.compile(model) if compiled else model

    def step():
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = F.cross_entropy(forward(images), labels)
        loss.backward()
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return step


def measure(name, batch, dtype, repeats):
    """One record for each of our variants and PyTorch's; the ratio is to plain PyTorch, the faster of its layouts."""
    try:
        import torch
    except ImportError:
        return
    images, labels = batch_of(batch)
    calls = {"PyTorch": None}
    layouts = {last: torch_step(network(name), batch, dtype, last) for last in (False, True)}
    found = in_turn(layouts, repeats, pause=0.3)
    last = min(found, key=lambda last: min(found[last]))
    calls["PyTorch"] = layouts[last]
    calls["PyTorch, WC"] = torch_step(compand(network(name)), batch, dtype, last)
    for label, make in (("PyTorch, compiled", network), ("PyTorch, WC, compiled", lambda n: compand(network(n)))):
        step = torch_step(make(name), batch, dtype, last, compiled=True)
        try:
            step()
        except Exception as error:  # torch.compile needs a C++ compiler, and fails in many ways
            print(f"{label}: {type(error).__name__}, left out")
        else:
            calls[label] = step
    for variant in ("plain", "layers", "compand"):
        reparam, learn, tx = variants(full=False)[variant]
        model = models.create(name, 10, reparam, learn, jax.numpy.dtype(dtype))
        calls[f"wcjax, {variant}"] = Stepper(*train_step(model, tx, images, labels), images, labels)
    case = {"group": "torch", "model": name, "batch": batch, "dtype": dtype, "threads": torch.get_num_threads()}
    case["layout"] = "channels last" if last else "channels first"
    parameters = sum(p.numel() for p in network(name).parameters())
    ours = sum(math.prod(x.shape) for x in jax.tree.leaves(calls["wcjax, plain"].state[0]))
    assert parameters == ours, "the networks differ"
    for variant, times in summary(in_turn(calls, repeats, pause=0.3)).items():
        yield case | {"variant": variant} | times
