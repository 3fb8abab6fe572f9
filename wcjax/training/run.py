"""Builds what a run needs from its config and data set: Ψ, the network, the schedule and the optimizer."""

import dataclasses
import functools
import pathlib

import flax.linen as nn
import jax
import optax
from ml_collections import ConfigDict

from wcjax.config.build import learning_rate_schedule, make_model, make_optimizer, make_psi
from wcjax.data import Dataset, image_shape
from wcjax.data.dataset import num_full_batches
from wcjax.psi import Psi


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """Everything that stays the same from the first step of a run to its last.

    Attributes:
      config: from `wcjax.config.check_config`.
      folder: the run folder.
      mesh: the devices, see `wcjax.training.sharding`.
      dataset: with the mean and std that the run normalizes its images with.
    """

    config: ConfigDict
    folder: pathlib.Path
    mesh: jax.sharding.Mesh
    dataset: Dataset

    @functools.cached_property
    def psi(self) -> Psi | None:
        """The Ψ of the network, None for a plain one."""
        return make_psi(self.config)

    @functools.cached_property
    def model(self) -> nn.Module:
        """The network, whose layers compute w = Ψ(v)."""
        return make_model(self.config, self.dataset.num_classes)

    @functools.cached_property
    def steps_per_epoch(self) -> int:
        return num_full_batches(self.dataset.train.num_images, self.config.batch_size)

    @functools.cached_property
    def schedule(self) -> optax.Schedule:
        """Step -> learning rate."""
        return learning_rate_schedule(self.config, self.steps_per_epoch)

    @functools.cached_property
    def tx(self) -> optax.GradientTransformation:
        """The optimizer of v."""
        return make_optimizer(self.config, self.steps_per_epoch)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return image_shape(self.config.dataset, self.config.image_size)
