"""The networks at inference in NumPy float64, with the paddings and strides of torchvision as plain numbers."""

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
        return convolve(x, self.params[name]["kernel"], stride) + self.params[name].get("bias", 0)

    def linear(self, name, x):
        return x @ self.params[name]["kernel"] + self.params[name]["bias"]

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

    def preactivation(self, x, stride):
        y = relu(self.norm("norm1", x))
        x = self.conv("shortcut", y, stride) if "shortcut" in self.params else x
        y = relu(self.norm("norm2", self.conv("conv1", y, stride)))
        return x + self.conv("conv2", y)


def resnet(variables, images, stem, kind):
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
    return top.linear("head", x.mean(axis=(1, 2)))


def wide_resnet(variables, images):
    params, batch_stats = variables["params"], variables["batch_stats"]
    top = Block(params, batch_stats)
    x = top.conv("stem", images)
    for name in sorted(name for name in params if name.startswith("stage")):
        stride = 2 if name.endswith("_block1") and not name.startswith("stage1") else 1
        x = Block(params[name], batch_stats[name]).preactivation(x, stride)
    return top.linear("head", relu(top.norm("norm", x)).mean(axis=(1, 2)))


def vgg(variables, images):
    """The max pools follow the last convolution of each stage."""
    top, x = Block(variables["params"], variables["batch_stats"]), images
    for stage in range(1, 6):
        for i in range(1, 5):
            name = "stem" if stage == i == 1 else f"stage{stage}_conv{i}"
            if name in top.params:
                x = relu(top.norm(f"stage{stage}_norm{i}", top.conv(name, x)))
        height, width = x.shape[1] // 2, x.shape[2] // 2
        x = x[:, : 2 * height, : 2 * width].reshape(len(x), height, 2, width, 2, -1).max(axis=(2, 4))
    for name in ("linear1", "linear2"):
        x = relu(top.linear(name, x.reshape(len(x), -1)))
    return top.linear("head", x)
