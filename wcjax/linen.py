"""Flax Linen layers that hold v and compute w = Ψ(v) wherever the plain layer reads its kernel.

    Dense(10, reparam=Arctan(0.6, 0.6))                      'v' in place of 'kernel'
    Dense(10, reparam=Arctan(0.5, 1.0), learn='fine')        'v', 'a', 'b': a pair of its own, shape ()
    Dense(10, reparam=LearnedPair(Arctan(0.5, 1.0)))         'v', and the pair of a module that layers share
    Dense(10, reparam=WeightNorm())                          'v', 'g'
    Dense(10)                                                exactly flax.linen.Dense

The initial w is what the plain layer would draw from the same key, up to the rounding of Ψ(Ψ⁻¹(w)). A drawn w beyond
the bound of Ψ gives nan in v, because nothing can be raised inside jit; `wcjax.reparameterize` raises there.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from wcjax.params import check_learnable
from wcjax.reparam import Arctan, Arsinh, Erf, PowerProp, WeightNorm

Psi = Arctan | Arsinh | Erf | PowerProp


class LearnedPair(nn.Module):
    """One learned (a, b), shared by all layers that get this module as their reparam (the paper's coarse form).

    Make it once in the parent module and hand it to every layer. Parameters: 'a' and 'b', of param_dtype, shape ().
    Under nn.scan hand `pair()`, the Ψ, to the scanned module as an argument with in_axes=nn.broadcast: as an attribute
    of it each layer would get a pair of its own.
    """

    psi: Arctan | Arsinh | Erf
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self) -> Psi:
        """psi with the learned a and b."""
        check_learnable(self.psi, "fine")
        return _learned(self, self.psi, self.param_dtype)


def companded(cls: type[nn.Module]) -> type[nn.Module]:
    """The Flax layer class `cls`, with two more arguments. It needs a parameter 'kernel' of its own.

    reparam: Arctan, Arsinh, Erf, PowerProp, WeightNorm (over the kernel's last axis), a LearnedPair, or None for the
      plain layer.
    learn: 'none', or 'fine' for a learned (a, b) of this layer, which starts at reparam's.

    The class keeps its name, so that automatic module names equal the plain network's. Initializing or applying a layer
    raises ValueError for an unknown reparam or learn, and for learn='fine' of a Ψ without a and b.
    """

    def param(self, name, init_fn, *args, unbox=True, **kwargs):
        if name == "kernel" and self.reparam is None:
            check_learnable(None, self.learn)
        if name != "kernel" or self.reparam is None:
            return super(layer, self).param(name, init_fn, *args, unbox=unbox, **kwargs)
        psi = self.reparam
        if not isinstance(psi, Psi | WeightNorm | LearnedPair):
            raise ValueError(f"reparam must be a Ψ, WeightNorm(), a LearnedPair or None, found {psi!r}.")
        if isinstance(psi, LearnedPair) and self.learn != "none":
            raise ValueError(f"a LearnedPair is learned and shared already: use learn='none', found {self.learn!r}.")
        check_learnable(psi, self.learn)
        start = psi.psi if isinstance(psi, LearnedPair) else psi

        def init_v(*args, **kwargs):
            w = init_fn(*args, **kwargs)  # perhaps boxed with the names of its axes, as nn.with_partitioning does
            return w if isinstance(start, WeightNorm) else jax.tree.map(start.inverse, w)

        boxed = super(layer, self).param("v", init_v, *args, unbox=False, **kwargs)
        v = nn.meta.unbox(boxed)
        if isinstance(psi, WeightNorm):
            w = psi(v, self.variable("params", "g", lambda: psi.inverse(v)[1]).value)
        elif isinstance(psi, LearnedPair):
            w = psi()(v)
        elif self.learn == "fine":
            w = _learned(self, psi, v.dtype)(v)
        else:
            w = psi(v)
        return w if unbox else nn.meta.replace_boxed(boxed, w)

    layer = type(
        cls.__name__,
        (cls,),
        {
            "__annotations__": {"reparam": Psi | WeightNorm | LearnedPair | None, "learn": str},
            "__doc__": f"flax.linen.{cls.__name__} with w = Ψ(v): see `wcjax.linen.companded`.",
            "__module__": __name__,
            "reparam": None,
            "learn": "none",
            "param": nn.nowrap(param),
        },
    )
    return layer


def _learned(module, psi, dtype):
    # Not module.param: it would draw a key, and the bias after it would differ from the plain layer's.
    return dataclasses.replace(
        psi, **{k: module.variable("params", k, lambda k=k: jnp.asarray(getattr(psi, k), dtype)).value for k in "ab"}
    )


Conv = companded(nn.Conv)
Dense = companded(nn.Dense)
