"""The networks of `wcjax.models`, written in PyTorch in the usual way."""

import torch
from torch import nn

from wcjax import models


def network(name: str) -> nn.Module:
    """The network called `name` for 32x32 images and 10 classes, with the stages and the width of ours."""
    ours = models.create(name, 10)
    build = {"ResNet": _resnet, "WideResNet": _wide_resnet, "VGG": _vgg}[type(ours).__name__]
    return build(ours)


def _conv(inputs, outputs, size, stride=1):
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)


class Block(nn.Module):
    """Convolutions, each before batch norm, and a shortcut."""

    def __init__(self, inputs, width, stride, bottleneck):
        super().__init__()
        out = 4 * width if bottleneck else width
        sizes = [(inputs, width, 3, stride), (width, width, 3, 1)]
        if bottleneck:
            sizes = [(inputs, width, 1, 1), (width, width, 3, stride), (width, out, 1, 1)]
        layers = []
        for i, o, size, s in sizes:
            layers += [_conv(i, o, size, s), nn.BatchNorm2d(o), nn.ReLU(inplace=True)]
        self.body = nn.Sequential(*layers[:-1])
        self.shortcut = nn.Identity()
        if stride != 1 or inputs != out:
            self.shortcut = nn.Sequential(_conv(inputs, out, 1, stride), nn.BatchNorm2d(out))

    def forward(self, x):
        return torch.relu(self.body(x) + self.shortcut(x))


def _resnet(ours):
    layers = [_conv(3, ours.width, 3), nn.BatchNorm2d(ours.width), nn.ReLU(inplace=True)]
    inputs = ours.width
    for stage, blocks in enumerate(ours.stages):
        for i in range(blocks):
            width = ours.width * 2**stage
            layers.append(Block(inputs, width, 2 if stage and i == 0 else 1, ours.block.expansion == 4))
            inputs = width * ours.block.expansion
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))


class PreactivationBlock(nn.Module):
    """Two convolutions, each after batch norm and ReLU, dropout between them, and a shortcut."""

    def __init__(self, inputs, width, stride, dropout):
        super().__init__()
        self.start = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(inplace=True))
        middle = nn.BatchNorm2d(width), nn.ReLU(inplace=True), nn.Dropout(dropout)
        self.body = nn.Sequential(_conv(inputs, width, 3, stride), *middle, _conv(width, width, 3))
        same = stride == 1 and inputs == width
        self.shortcut = None if same else _conv(inputs, width, 1, stride)

    def forward(self, x):
        y = self.start(x)
        return (x if self.shortcut is None else self.shortcut(y)) + self.body(y)


def _wide_resnet(ours):
    layers, inputs = [_conv(3, 16, 3)], 16
    for stage in range(3):
        for i in range((ours.depth - 4) // 6):
            width = 16 * ours.widen * 2**stage
            layers.append(PreactivationBlock(inputs, width, 2 if stage and i == 0 else 1, ours.dropout))
            inputs = width
    end = nn.BatchNorm2d(inputs), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10)
    return nn.Sequential(*layers, *end)


def _vgg(ours):
    layers, inputs = [], 3
    for stage, convolutions in enumerate(ours.stages):
        width = ours.width * min(2**stage, 8)
        for _ in range(convolutions):
            layers += [nn.Conv2d(inputs, width, 3, 1, 1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            inputs = width
        layers.append(nn.MaxPool2d(2))
    layers.append(nn.Flatten())
    for _ in range(2):
        layers += [nn.Dropout(ours.dropout), nn.Linear(inputs, inputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Linear(inputs, 10))
