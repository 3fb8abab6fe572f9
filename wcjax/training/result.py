"""What a finished run leaves: its network, folded to plain weights, and the numbers of summary.json."""

import jax

from wcjax.params import fold
from wcjax.run_folder.checkpoints import save_tree
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
