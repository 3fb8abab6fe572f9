"""Residual networks: He et al. 2015, arXiv 1512.03385, as torchvision builds them (stride on the 3x3 convolution).

resnet8 and resnet20 are He et al.'s networks for CIFAR, with three stages of 16, 32 and 64 features, but with a 1x1
convolution instead of zero padding in the shortcuts that change the shape.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from wcjax.models import layers

STEMS = ("cifar", "imagenet")


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    features: int
    stride: int
    conv: Callable[..., Any]
    norm: Callable[..., Any]
    expansion = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.relu(self.norm(name="norm1")(self.conv(self.features, 3, self.stride, name="conv1")(x)))
        y = self.norm(name="norm2")(self.conv(self.features, 3, name="conv2")(y))
        return nn.relu(y + _shortcut(self, x, y))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, the last four times as wide, and a shortcut."""

    features: int
    stride: int
    conv: Callable[..., Any]
    norm: Callable[..., Any]
    expansion = 4

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.relu(self.norm(name="norm1")(self.conv(self.features, 1, name="conv1")(x)))
        y = nn.relu(self.norm(name="norm2")(self.conv(self.features, 3, self.stride, name="conv2")(y)))
        y = self.norm(name="norm3")(self.conv(self.features * self.expansion, 1, name="conv3")(y))
        return nn.relu(y + _shortcut(self, x, y))


def _shortcut(block, x, y):
    if x.shape == y.shape:
        return x
    x = block.conv(y.shape[-1], 1, block.stride, name="shortcut")(x)
    return block.norm(name="shortcut_norm")(x)


class ResNet(nn.Module):
    """Stem, stages of residual blocks, global mean, linear head.

    Images (batch, height, width, channels) -> logits (batch, num_classes), float32.
    stages: residual blocks per stage. width: features of the first stage; each further stage doubles them.
    stem: 'cifar', a 3x3 convolution; 'imagenet', a 7x7 one with stride 2 and a 3x3 max pool with stride 2.
    Variables: 'params' and 'batch_stats'. If train=True, apply with mutable=['batch_stats'].
    """

    num_classes: int
    stages: Sequence[int]
    block: type[nn.Module]
    width: int = 64
    stem: str = "cifar"
    kernel_init: str = "kaiming"
    reparam: Any = None
    learn: str = "none"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        reparam, learn = layers.layer_reparam(self)
        conv = layers.conv(reparam, learn, self.dtype, layers.KERNEL_INITS[self.kernel_init])
        norm = layers.norm(train, self.dtype)

        size, stride = (3, 1) if self.stem == "cifar" else (7, 2)
        x = nn.relu(norm(name="stem_norm")(conv(self.width, size, stride, name="stem")(images.astype(self.dtype))))
        if self.stem == "imagenet":
            x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        for stage, blocks in enumerate(self.stages):
            for i in range(blocks):
                stride = 2 if stage > 0 and i == 0 else 1
                name = f"stage{stage + 1}_block{i + 1}"
                x = self.block(self.width * 2**stage, stride, conv, norm, name=name)(x)
        x = jnp.mean(x, axis=(1, 2))
        dense = layers.dense(reparam, learn, self.dtype, self.kernel_init)
        return dense(x, self.num_classes, name="head").astype(jnp.float32)


resnet8 = functools.partial(ResNet, stages=(1, 1, 1), block=BasicBlock, width=16)
resnet20 = functools.partial(ResNet, stages=(3, 3, 3), block=BasicBlock, width=16)
resnet18 = functools.partial(ResNet, stages=(2, 2, 2, 2), block=BasicBlock)
resnet34 = functools.partial(ResNet, stages=(3, 4, 6, 3), block=BasicBlock)
resnet50 = functools.partial(ResNet, stages=(3, 4, 6, 3), block=Bottleneck)
