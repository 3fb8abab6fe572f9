"""Builds the Ψ, the network, the optimizer and the data set that a configuration describes."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from wcjax import data, models, optim
from wcjax.data.dataset import num_full_batches
from wcjax.errors import InputError
from wcjax.params import Reparameterized, is_reparameterized
from wcjax.psi import Psi
from wcjax.reparam import BY_NAME

INT32 = 2**31 - 1  # steps and images are counted in int32


def make_psi(config: ConfigDict) -> Psi | None:
    """The Ψ that config.reparam names: Arctan, Arsinh, Erf, PowerProp, WeightNorm or None.

    Raises ValueError for a number that is out of range.
    """
    if config.reparam.name == "none":
        return None
    cls = BY_NAME[config.reparam.name]
    return cls(**{f.name: config.reparam[f.name] for f in dataclasses.fields(cls) if f.name in config.reparam})


def make_model(config: ConfigDict, num_classes: int, plain: bool = False) -> nn.Module:
    """The network of config. plain=True omits Ψ, for folded weights."""
    options = {name: config[name] for name in models.options(config.model) if config[name] is not None}
    psi, learn = (None, "none") if plain else (make_psi(config), config.reparam.learn)
    return models.create(config.model, num_classes, psi, learn, jnp.dtype(config.dtype), **options)


def load_dataset(config: ConfigDict) -> data.Dataset:
    """The data set of config.

    Raises InputError if it cannot be read or is smaller than a batch, or if its steps in all epochs exceed int32.
    """
    dataset = data.load(
        config.dataset,
        config.data_dir or None,
        val_fraction=config.val_fraction,
        train_images=config.train_images,
        seed=config.split_seed,
    )
    if (n := dataset.train.num_images) < config.batch_size:
        raise InputError(f"config.batch_size is {config.batch_size}, but {config.dataset} has {n} training images.")
    steps = num_full_batches(n, config.batch_size)
    if config.epochs * steps > INT32:
        raise InputError(
            f"config.epochs is {config.epochs} with {steps} steps each, but a run has at most {INT32} steps: choose at "
            f"most {INT32 // steps} epochs."
        )
    return dataset


def learning_rate_schedule(config: ConfigDict, steps_per_epoch: int) -> optax.Schedule:
    """Step count -> learning rate, multiplied by schedule.factor at the start of each epoch in schedule.milestones.

    Milestones after the last epoch are omitted, because JAX takes no boundary beyond int32.
    """
    milestones = [epoch for epoch in config.schedule.milestones if epoch < config.epochs]
    boundaries = {epoch * steps_per_epoch: config.schedule.factor for epoch in milestones}
    return optax.piecewise_constant_schedule(config.learning_rate, boundaries)


def make_optimizer(config: ConfigDict, steps_per_epoch: int) -> optax.GradientTransformation:
    """The optimizer of config, with decay on w. Adam's steps on w are scaled by Ψ′(v)."""
    schedule = learning_rate_schedule(config, steps_per_epoch)
    mask = None if config.decay_norm_and_bias else _weights_alone
    decay_on_w = optim.add_decayed_weights(config.weight_decay, mask)
    if config.optimizer == "sgd":
        return optax.chain(decay_on_w, optax.sgd(schedule, momentum=config.momentum))
    adam = optax.adam(schedule)
    if config.reparam.learn == "none":  # the same as below, without multiplying by Ψ′ first and dividing by it again
        return optim.scale_by_derivative(optax.chain(optax.add_decayed_weights(config.weight_decay, mask), adam))
    return optax.chain(decay_on_w, optim.scale_by_derivative(adam))


def _weights_alone(params):
    """Which leaves decay if biases and batch norm do not: v or the kernel, but not the a, b and g of a v."""

    def decays(x):
        if is_reparameterized(x):
            return Reparameterized(jax.tree.map(lambda _: True, x.v), jax.tree.map(lambda _: False, x.psi))
        return jnp.ndim(x) > 1

    return jax.tree.map(decays, params, is_leaf=is_reparameterized)
