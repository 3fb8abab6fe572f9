"""Wide residual networks for 32x32 images: WRN-28-10.

Source: Zagoruyko and Komodakis, "Wide Residual Networks", BMVC 2016, arXiv 1605.07146.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from wcjax.models import layers


class PreactivationBlock(nn.Module):
    """Two 3x3 convolutions, each after batch norm and ReLU, dropout between them, and a shortcut."""

    features: int
    stride: int
    dropout: float
    conv: Callable[..., Any]
    norm: Callable[..., Any]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = nn.relu(self.norm(name="norm1")(x))
        if x.shape[-1] != self.features or self.stride != 1:
            x = self.conv(self.features, 1, self.stride, name="shortcut")(y)
        y = nn.relu(self.norm(name="norm2")(self.conv(self.features, 3, self.stride, name="conv1")(y)))
        y = nn.Dropout(self.dropout, deterministic=not train)(y)
        return x + self.conv(self.features, 3, name="conv2")(y)


class WideResNet(nn.Module):
    """A 3x3 stem, three stages of blocks, batch norm, global mean, linear head.

    Images (batch, height, width, channels) -> logits (batch, num_classes), float32.
    depth: 6·n + 4 for n blocks per stage. widen: the stages have 16·widen, 32·widen and 64·widen features.
    Variables: 'params' and 'batch_stats'. If train=True, apply with mutable=['batch_stats'], rngs={'dropout': key}.
    """

    num_classes: int
    depth: int
    widen: int
    dropout: float = 0.3
    kernel_init: str = "kaiming"
    reparam: Any = None
    learn: str = "none"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        reparam, learn = layers.layer_reparam(self)
        conv = layers.conv(reparam, learn, self.dtype, layers.KERNEL_INITS[self.kernel_init])
        norm = layers.norm(train, self.dtype)

        x = conv(16, 3, name="stem")(images.astype(self.dtype))
        for stage in range(3):
            for i in range((self.depth - 4) // 6):
                stride = 2 if stage > 0 and i == 0 else 1
                name = f"stage{stage + 1}_block{i + 1}"
                features = 16 * self.widen * 2**stage
                block = PreactivationBlock(features, stride, self.dropout, conv, norm, name=name)
                x = block(x, train)
        x = nn.relu(norm(name="norm")(x))
        x = jnp.mean(x, axis=(1, 2))
        dense = layers.dense(reparam, learn, self.dtype, self.kernel_init)
        return dense(x, self.num_classes, name="head").astype(jnp.float32)


wrn28_10 = functools.partial(WideResNet, depth=28, widen=10)
