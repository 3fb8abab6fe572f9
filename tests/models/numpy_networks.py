"""The networks at inference in NumPy float64, with the paddings and strides of torchvision as plain numbers."""

import numpy as np

from tests.truth import convolve, padded, windows

PADDING = {1: 0, 3: 1, 7: 3}  # of a convolution of this size


def max_pool(x, size, padding):
    """The largest value in each window, with stride 2."""
    x = padded(x, ((padding, padding),) * 2, -np.inf)
    return np.max([x[seen] for seen in windows(x, (size, size), (2, 2)).values()], axis=0)


def relu(x):
    return np.maximum(x, 0)


class Block:
    """The layers of one module of `variables`, called by their names."""

    def __init__(self, params, batch_stats):
        self.params, self.batch_stats = params, batch_stats

    def conv(self, name, x, stride=1):
        kernel = self.params[name]["kernel"]
        padding = ((PADDING[len(kernel)],) * 2,) * 2
        return convolve(x, kernel, (stride, stride), padding) + self.params[name].get("bias", 0)

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


def stages(variables, kind, x):
    """x after all blocks of this kind. The first block of each stage after the first halves the image."""
    params, batch_stats = variables["params"], variables["batch_stats"]
    for name in sorted(name for name in params if name.startswith("stage")):
        stride = 2 if name.endswith("_block1") and not name.startswith("stage1") else 1
        x = getattr(Block(params[name], batch_stats[name]), kind)(x, stride)
    return x


def resnet(variables, images, kind, stem="cifar"):
    """kind: 'basic' or 'bottleneck'."""
    top = Block(variables["params"], variables["batch_stats"])
    x = relu(top.norm("stem_norm", top.conv("stem", images, 1 if stem == "cifar" else 2)))
    x = x if stem == "cifar" else max_pool(x, 3, 1)
    return top.linear("head", stages(variables, kind, x).mean(axis=(1, 2)))


def wide_resnet(variables, images):
    top = Block(variables["params"], variables["batch_stats"])
    x = stages(variables, "preactivation", top.conv("stem", images))
    return top.linear("head", relu(top.norm("norm", x)).mean(axis=(1, 2)))


def vgg(variables, images):
    """The max pools follow the last convolution of each stage."""
    top, x = Block(variables["params"], variables["batch_stats"]), images
    for stage in range(1, 6):
        for i in range(1, 5):
            name = "stem" if stage == i == 1 else f"stage{stage}_conv{i}"
            if name in top.params:
                x = relu(top.norm(f"stage{stage}_norm{i}", top.conv(name, x)))
        x = max_pool(x, 2, 0)
    for name in ("linear1", "linear2"):
        x = relu(top.linear(name, x.reshape(len(x), -1)))
    return top.linear("head", x)
