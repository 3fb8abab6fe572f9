"""Residual networks at inference in NumPy float64, with the paddings and strides of torchvision as plain numbers."""

import numpy as np

PADDING = {1: 0, 3: 1, 7: 3}  # of a convolution of this size


def convolve(x, kernel, stride):
    """x: (n, h, w, inputs); kernel: (size, size, inputs, outputs)."""
    size = len(kernel)
    pad = PADDING[size]
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    height, width = ((length - size) // stride + 1 for length in x.shape[1:3])
    out = np.empty((len(x), height, width, kernel.shape[-1]))
    for i in range(height):
        for j in range(width):
            window = x[:, i * stride : i * stride + size, j * stride : j * stride + size]
            out[:, i, j] = np.tensordot(window, kernel, axes=3)
    return out


def max_pool_3x3_stride_2(x):
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    height, width = ((length - 3) // 2 + 1 for length in x.shape[1:3])
    rows = [
        [np.max(x[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3], axis=(1, 2)) for j in range(width)] for i in range(height)
    ]
    return np.moveaxis(np.array(rows), 2, 0)


def relu(x):
    return np.maximum(x, 0)


class Block:
    """The layers of one module of `variables`, found by their names."""

    def __init__(self, params, batch_stats):
        self.params, self.batch_stats = params, batch_stats

    def conv(self, name, x, stride=1):
        return convolve(x, self.params[name]["kernel"], stride)

    def norm(self, name, x):
        own, moving = self.params[name], self.batch_stats[name]
        return (x - moving["mean"]) / np.sqrt(moving["var"] + 1e-5) * own["scale"] + own["bias"]

    def shortcut(self, x, stride):
        if "shortcut" not in self.params:
            return x
        return self.norm("shortcut_norm", self.conv("shortcut", x, stride))

    def basic(self, x, stride):
        y = relu(self.norm("norm1", self.conv("conv1", x, stride)))
        y = self.norm("norm2", self.conv("conv2", y))
        return relu(y + self.shortcut(x, stride))

    def bottleneck(self, x, stride):
        y = relu(self.norm("norm1", self.conv("conv1", x)))
        y = relu(self.norm("norm2", self.conv("conv2", y, stride)))
        y = self.norm("norm3", self.conv("conv3", y))
        return relu(y + self.shortcut(x, stride))


def logits(variables, images, stem, kind):
    """kind: 'basic' or 'bottleneck'. The first block of each stage after the first halves the image."""
    params, batch_stats = variables["params"], variables["batch_stats"]
    top = Block(params, batch_stats)
    if stem == "cifar":
        x = relu(top.norm("stem_norm", top.conv("stem", images, 1)))
    else:
        x = max_pool_3x3_stride_2(relu(top.norm("stem_norm", top.conv("stem", images, 2))))
    for name in sorted(name for name in params if name.startswith("stage")):
        stride = 2 if name.endswith("_block1") and not name.startswith("stage1") else 1
        x = getattr(Block(params[name], batch_stats[name]), kind)(x, stride)
    return x.mean(axis=(1, 2)) @ params["head"]["kernel"] + params["head"]["bias"]
