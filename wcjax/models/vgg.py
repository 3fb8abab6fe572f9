"""VGG with batch norm for 32x32 images: 13 or 16 convolutions and three linear layers.

Source: Simonyan and Zisserman, "Very Deep Convolutional Networks", ICLR 2015, arXiv 1409.1556. The linear layers are
512 wide, as is usual for 32x32 images. In Simonyan and Zisserman's networks they are 4096 wide, for 224x224.
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from wcjax.errors import InputError
from wcjax.models import layers

_WIDTH_FACTORS = (1, 2, 4, 8, 8)  # of the stages
_SMALLEST = 2 ** len(_WIDTH_FACTORS)  # every stage halves the image


class VGG(nn.Module):
    """Stages of 3x3 convolutions with batch norm and ReLU, each with a max pool after it; three linear layers.

    Images (batch, height, width, channels) of at least 32x32 -> logits (batch, num_classes), float32.
    stages: convolutions per stage. width: features of the first stage; the linear layers have 8 times as many.
    dropout: before each of the first two linear layers, as in torchvision.
    Initial weights as in the WC paper: convolutions N(0, 2/n) with n = size² · features out; linear Kaiming-uniform.
    Variables: 'params' and 'batch_stats'. If train=True, apply with mutable=['batch_stats'], rngs={'dropout': key}.
    """

    num_classes: int
    stages: Sequence[int]
    width: int = 64
    dropout: float = 0.5
    reparam: Any = None
    learn: str = "none"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        if min(images.shape[1:3]) < _SMALLEST:
            raise InputError(f"VGG needs images of at least {_SMALLEST}x{_SMALLEST} pixels, found {images.shape[1:3]}.")
        reparam, learn = layers.layer_reparam(self)
        fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
        conv = layers.conv(reparam, learn, self.dtype, fan_out, use_bias=True)
        dense = layers.dense(reparam, learn, self.dtype)
        norm = layers.norm(train, self.dtype)

        x = images.astype(self.dtype)
        for stage, (factor, convolutions) in enumerate(zip(_WIDTH_FACTORS, self.stages, strict=True), start=1):
            for i in range(1, convolutions + 1):
                name = "stem" if stage == i == 1 else f"stage{stage}_conv{i}"
                x = nn.relu(norm(name=f"stage{stage}_norm{i}")(conv(factor * self.width, 3, name=name)(x)))
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = x.reshape(len(x), -1)
        for i in (1, 2):
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
            x = nn.relu(dense(x, 8 * self.width, name=f"linear{i}"))
        return dense(x, self.num_classes, name="head").astype(jnp.float32)


vgg16_bn = functools.partial(VGG, stages=(2, 2, 3, 3, 3))
vgg19_bn = functools.partial(VGG, stages=(2, 2, 4, 4, 4))
