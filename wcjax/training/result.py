"""What a finished run leaves: its network, folded to plain weights, and the numbers of summary.json."""

import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp

from wcjax import run_folder
from wcjax.config.build import make_model
from wcjax.data import image_shape
from wcjax.errors import InputError
from wcjax.params import fold
from wcjax.run_folder.checkpoints import load_tree, save_tree
from wcjax.training import sharding
from wcjax.training.progress import Progress
from wcjax.training.run import Run
from wcjax.training.train_state import TrainState


def save_folded(run: Run, state: TrainState) -> int:
    """Writes the plain network of a state to the run folder, and returns the number of its parameters."""
    params = sharding.unshard(run.mesh, state.params)
    params = params if run.psi is None else jax.jit(fold)(params)  # one program, not one for each operation
    save_tree(run.folder / "folded", {"params": params, "batch_stats": state.batch_stats})
    return sum(x.size for x in jax.tree.leaves(params))


def load_folded(run, num_classes: int | None = None) -> tuple[nn.Module, dict]:
    """(model, variables) of a finished run: the plain network and its best weights.

    Args:
      run: the run folder.
      num_classes: the number of classes of the data set; by default that of data.json.

    Returns:
      model, and variables = {'params', 'batch_stats'} for model.apply(variables, images, train=False), with images
      normalized as in training.

    Raises:
      InputError: the run has not finished, or its weights have other names, shapes or dtypes than the network of its
        config, or hold nan or inf. Shapes are checked before any weight is read.
    """
    config, folder = run_folder.read_config(run), pathlib.Path(run, "folded")
    if num_classes is None:
        if (data_record := run_folder.read(run, "data.json")) is None:
            raise InputError(
                f"{run} has no data.json, which holds the number of classes. Train in a new folder, or call "
                "wcjax.training.load_folded(run, num_classes)."
            )
        num_classes = data_record["classes"]
    model = make_model(config, num_classes, plain=True)
    images = jax.ShapeDtypeStruct((1, *image_shape(config.dataset, config.image_size)), jnp.float32)
    return model, load_tree(folder, like=jax.eval_shape(model.init, jax.random.key(0), images))


def summary(run: Run, progress: Progress, test: dict, compile_seconds: float, num_parameters: int) -> dict:
    """The content of summary.json. test: {'loss', 'accuracy'} on test."""
    return {
        "best_epoch": progress.best_epoch,
        "best_val_accuracy": progress.best_val_accuracy,
        "test_accuracy": test["accuracy"],
        "test_loss": test["loss"],
        "epochs": run.config.epochs,
        "images_per_second": progress.step * run.config.batch_size / progress.train_seconds,
        "train_seconds": progress.train_seconds,
        "compile_seconds": compile_seconds,
        "num_parameters": num_parameters,
        "device": jax.devices()[0].device_kind,
        "num_devices": run.mesh.size,
        "jax_version": jax.__version__,
    }
