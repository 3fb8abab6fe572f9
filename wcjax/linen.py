"""Flax Linen layers that hold v and compute w = Ψ(v) wherever the plain layer reads its kernel.

    Dense(10, reparam=Arctan(0.6, 0.6))                      a and b are constants
    Dense(10, reparam=Arctan(0.5, 1.0), learn='fine')        the layer learns its own a and b
    Dense(10, reparam=Arctan(0.5, 1.0), learn='channel')     a pair for each output channel
    Dense(10, reparam=LearnedPair(Arctan(0.5, 1.0)))         the pair of a module that layers share
    Dense(10, reparam=WeightNorm())                          a norm g for each output channel
    Dense(10)                                                exactly flax.linen.Dense

The parameter 'kernel' is a `wcjax.Reparameterized`. The initial w is the one that the plain layer would draw from the
same key, up to the rounding of Ψ(Ψ⁻¹(w)). If a drawn w is beyond the bound of Ψ, its v is nan, because no error can be
raised inside jit. `wcjax.reparameterize` raises one.

Flax's modules that transform the parameters of others (nn.WeightNorm, nn.SpectralNorm, nn.map_variables) would get v.
Inside them, use the plain layer and `wcjax.compand`.
"""

import copyreg
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wcjax import checks, serialization
from wcjax.extras import needs
from wcjax.params import Reparameterized, is_reparameterized, reparameterize_leaf, unboxed
from wcjax.psi import Psi
from wcjax.reparam import BY_NAME, Scaled, WeightNorm

needs("wcjax.linen", "flax")

import flax.linen as nn  # noqa: E402

OWN_KERNEL = (nn.Conv, nn.ConvLocal, nn.ConvTranspose, nn.Dense, nn.DenseGeneral, nn.Einsum)


class SharedPsi(NamedTuple):
    """The Ψ of a LearnedPair, in the form that layers get."""

    psi: Psi


class LearnedPair(nn.Module):
    """One learned (a, b), shared by all layers that get this module as their reparam (the paper's coarse form).

    Make it once in the parent module and hand it to every layer. Its parameter 'psi' is the Ψ, whose a and b have
    shape (), in float64 if param_dtype is float64 and in float32 otherwise. Under nn.scan or nn.vmap hand `pair()` to
    the module as an argument, with in_axes=nn.broadcast or None. A pair that is an attribute of that module would not
    be shared: ValueError.
    """

    psi: Scaled
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self) -> SharedPsi:
        """The Ψ with the learned a and b, for the reparam of a layer."""
        checks.check_learn(self.psi, "fine")
        if self.psi.learned:
            raise ValueError(f"LearnedPair starts from numbers a and b, found {self.psi!r}.")
        initial_psi = lambda: self.psi.for_weight(jnp.zeros((), self.param_dtype), "fine", ())
        # self.param would draw a key, so that the initial weights would differ from the plain network's.
        psi = self.variable("params", "psi", initial_psi).value
        if any(map(jnp.ndim, jax.tree.leaves(psi))):
            raise ValueError(
                f"{'/'.join(self.path)}: the pair has the shape {jnp.shape(psi.a)}, but layers share a scalar a and "
                "b. A module under nn.scan or nn.vmap has this LearnedPair as an attribute: hand `pair()` to that "
                "module instead, as an argument that is broadcast."
            )
        return SharedPsi(psi)


class _Companded(type):
    """The metaclass of the classes that `companded` makes, and of their subclasses."""


def _reduce(cls: _Companded) -> Any:
    """Pickles a class as the call that made it, and a subclass by its name, like any other class."""
    return (companded, cls.__bases__) if "companded_class" in vars(cls) else cls.__qualname__


copyreg.pickle(_Companded, _reduce)


@functools.cache
def companded(cls: type[nn.Module]) -> type[Any]:
    """The Flax layer class `cls` with two more arguments. The parameter 'kernel' must be its own, not a submodule's.

    The class keeps its name, so that automatic module names equal the plain network's. Its layers take these as well:

    - reparam: Arctan, Arsinh, Erf, PowerProp, WeightNorm, a LearnedPair, or None for the plain layer.
    - learn: 'none'; 'fine', the layer learns its own (a, b), which starts at reparam's; 'channel', it learns a pair for
      each output channel.

    Raises:
      ValueError: at once, if the class is in flax.linen and has no kernel itself (Embed, attention, recurrent cells),
        or is companded already. When a layer is initialized or applied, for an unknown reparam or learn; a kernel that
        does not hold floats; params that do not fit reparam; a nn.Einsum that gets its equation only when it is called,
        if it needs to know its output axes. When it is called, for any other class that has no kernel itself.
    """
    _check_class(cls)

    def param(self, name, init_fn, *args, unbox=True, **kwargs):
        param_of_cls = super(layer_class, self).param
        if name != "kernel":
            return param_of_cls(name, init_fn, *args, unbox=unbox, **kwargs)
        if self.reparam is None:
            kernel = param_of_cls(name, init_fn, *args, unbox=unbox, **kwargs)
            if is_reparameterized(kernel):
                raise ValueError(
                    f"{_kernel_path(self)} is Reparameterized, but the layer has reparam=None: fold the params."
                )
            return kernel
        _check_arguments(self)
        reparam = self.reparam() if isinstance(self.reparam, LearnedPair) else self.reparam
        init = lambda *args, **kwargs: _initial_weight(self, reparam, init_fn(*args, **kwargs))
        weight = param_of_cls(name, init, *args, unbox=False, **kwargs)
        _check_weight(self, reparam, weight)
        w = Reparameterized(weight.v, reparam.psi).w if isinstance(reparam, SharedPsi) else weight.w
        return nn.meta.unbox(w) if unbox else w

    def call(self, *args, **kwargs):
        _check_arguments(self)
        outputs = super(layer_class, self).__call__(*args, **kwargs)
        if self.reparam is not None and not is_reparameterized(self.get_variable("params", "kernel")):
            raise ValueError(f"{cls.__name__} does not have its own parameter 'kernel', so nothing was companded.")
        return outputs

    metaclass: Any = _Companded if type(cls) is type else type(cls)
    layer_class = metaclass(
        cls.__name__,
        (cls,),
        {
            "__annotations__": {"reparam": Psi | LearnedPair | SharedPsi | None, "learn": str},
            "__doc__": f"flax.linen.{cls.__name__} with w = Ψ(v): see `wcjax.linen.companded`.",
            "__module__": __name__,
            "companded_class": cls,
            "reparam": None,
            "learn": "none",
            "param": nn.nowrap(param),
            "__call__": call,
        },
    )
    return layer_class


def _check_class(cls):
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise ValueError(f"companded takes a class of Flax Linen layers, found {cls!r}.")
    if hasattr(cls, "companded_class"):
        raise ValueError(f"{cls.__name__} is companded already: pass the class from flax.linen.")
    if cls.__module__.startswith("flax.linen") and not issubclass(cls, OWN_KERNEL):
        names = ", ".join(own.__name__ for own in OWN_KERNEL)
        raise ValueError(f"flax.linen.{cls.__name__} does not have its own parameter 'kernel'; these do: {names}.")


def _check_arguments(layer):
    if isinstance(layer.reparam, LearnedPair | SharedPsi):
        if layer.learn != "none":
            raise ValueError(f"a LearnedPair is learned and shared: use learn='none', found {layer.learn!r}.")
        return
    checks.check_learn(layer.reparam, layer.learn)
    if layer.reparam is not None:
        checks.check_psi(layer.reparam)


def _initial_weight(layer, reparam, w):
    """A layer's kernel as a Reparameterized with the initial w, which nn.with_partitioning may have put into a box."""
    checks.check_float(_kernel_path(layer), unboxed(w))
    if isinstance(reparam, SharedPsi):
        return Reparameterized(jax.tree.map(reparam.psi.inverse, w), None)
    return reparameterize_leaf(w, reparam, layer.learn, _output_axes(layer, unboxed(w).ndim))


def _check_weight(layer, reparam, weight):
    """Raises ValueError if the layer would not have made a weight of this structure."""
    structure: Any = jax.tree.structure(weight)
    make_weight = functools.partial(_initial_weight, layer, reparam)
    if not is_reparameterized(weight) or structure != jax.tree.structure(jax.eval_shape(make_weight, weight.v)):
        kind = repr(jax.tree.map(jnp.shape, weight.psi)) if is_reparameterized(weight) else "not Reparameterized"
        raise ValueError(
            f"{_kernel_path(layer)} is {kind}, but the layer has reparam={layer.reparam!r} and learn={layer.learn!r}: "
            "fold the params, and reparameterize them for this layer."
        )


def _kernel_path(layer):
    return "/".join((*layer.path, "kernel"))


def _output_axes(layer, ndim):
    """The axes of a layer's kernel that count its outputs."""
    if getattr(layer, "transpose_kernel", False):
        return (-2,)
    if isinstance(layer, nn.DenseGeneral):
        return (*range(np.size(layer.batch_dims)), *range(ndim - np.size(layer.features), ndim))
    if isinstance(layer, nn.Einsum):
        return _output_axes_of_einsum(layer, ndim)
    return (-1,)


def _output_axes_of_einsum(layer, ndim):
    """The axes of an nn.Einsum's kernel whose letters its result has, and those of its ellipsis."""
    if layer.einsum_str is not None:
        operands, result = layer.einsum_str.replace(" ", "").split("->")
        letters = operands.split(",")[1]
        letters = letters.replace("...", "." * (ndim - len(letters.replace("...", ""))))
        return tuple(axis for axis, letter in enumerate(letters) if letter in result)
    if layer.learn == "channel" or (isinstance(layer.reparam, WeightNorm) and layer.reparam.axis is None):
        raise ValueError(
            f"{_kernel_path(layer)}: pass einsum_str to nn.Einsum, not to its call, to tell the output axes."
        )
    return ()


serialization.register(Reparameterized, *BY_NAME.values())
Conv = companded(nn.Conv)
Dense = companded(nn.Dense)
