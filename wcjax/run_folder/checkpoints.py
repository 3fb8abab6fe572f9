"""Checkpoints of a run. Only this file knows Orbax."""

import json
import logging
import pathlib
import time
import zlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from wcjax.errors import InputError, cause
from wcjax.exchange import check_like
from wcjax.run_folder.schema import OBJECT, check_schema
from wcjax.system.files import reading, saving
from wcjax.system.paths import check_readable, is_utf8
from wcjax.system.unoptimized import jit_unoptimized

log = logging.getLogger(__name__)

WRITE_ERRORS = (OSError, ValueError, RuntimeError)  # TensorStore raises the last two

REWRITE_HINT = "To write it again from the best checkpoint, remove summary.json and run the training command."

# If a folder is made in the background and cannot be made, threads wait 20 minutes for it when the process exits.
IN_BACKGROUND = ocp.options.AsyncOptions(create_directories_asynchronously=False)


class Checkpoints:
    """The checkpoints in one folder, numbered by epochs or steps. It keeps the newest `keep` and the best `keep_best`.

    A checkpoint is a pytree of arrays (`state`) and a dict of plain values (`record`). It appears in the folder by one
    rename after everything in it is written, and carries a checksum of both that is checked when it is read.

    A checkpoint that cannot be written raises SaveError, at the latest when the next one is saved or the folder is
    closed. Missing permission to read raises InputError at once, because Orbax would report the checkpoint as damaged,
    and damaged checkpoints are deleted.
    """

    def __init__(
        self,
        folder,
        unit: str = "epoch",
        keep: int = 2,
        keep_best: int = 2,
        schema=OBJECT,
        val_accuracies: Mapping[int, float] | None = None,
    ):
        """unit: what messages call a number. keep_best: how many of the best on val are kept; of equals, the first.

        schema: of the records, see `wcjax.run_folder.schema`. val_accuracies: of the checkpoints already in the folder.
        """
        self._val_accuracies = dict(val_accuracies or {})
        rules = [ocp.checkpoint_managers.LatestN(n=keep)]
        if keep_best:
            rules.append(_Best(keep_best, self._val_accuracies))
        self._unit, self._folder, self._schema = unit, pathlib.Path(folder).absolute(), schema
        check_readable(self._folder)
        with saving(self._folder, WRITE_ERRORS):
            self._manager = _Manager(
                self._folder,
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=ocp.checkpoint_managers.AnyPreservationPolicy(rules),
                    async_options=IN_BACKGROUND,
                    # While processes save an epoch in the background, they may also save within the next epoch.
                    multiprocessing_options=ocp.options.MultiprocessingOptions(barrier_sync_key_prefix=unit),
                ),
                item_names=("state", "record"),
            )

    def save(self, number: int, state, record: dict, val_accuracy: float | None = None) -> None:
        """Saves in the background, after an older save has ended. state may be donated as soon as this returns.

        Does nothing if the folder has a checkpoint with this number.
        """
        record = record | {"fingerprint": _checksum(state, record)}
        if val_accuracy is not None:
            self._val_accuracies[number] = val_accuracy
        with saving(self._folder / str(number), WRITE_ERRORS):
            self._manager.save(
                number,
                args=ocp.args.Composite(state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record)),
            )

    def restore(self, number: int, like):
        """(state, record) of one epoch or step, with the structure, dtypes and shardings of `like`.

        Raises InputError if it cannot be read, or differs from what was saved.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), record=ocp.args.JsonRestore())
        try:
            checkpoint = self._manager.restore(number, args=args)
        except Exception as error:  # Orbax and TensorStore raise many types for files that are damaged
            raise InputError(f"the checkpoint of {self._unit} {number} cannot be read: {cause(error)}") from error
        check_schema(checkpoint.record, self._schema, f"the record of the checkpoint of {self._unit} {number}", hint="")
        record = dict(checkpoint.record)
        if record.pop("fingerprint", None) != _checksum(checkpoint.state, record):
            raise InputError(f"the checkpoint of {self._unit} {number} is damaged: it differs from what was saved.")
        return checkpoint.state, record

    def _restore_with_retry(self, number, like):
        """restore(number, like), tried twice in case a network file system fails once.

        Processes that share a run try once, because they restore together.
        """
        try:
            return self.restore(number, like)
        except InputError:
            if jax.process_count() > 1:
                raise
        time.sleep(0.2)
        return self.restore(number, like)

    def restore_newest(self, like):
        """(state, record) of the newest checkpoint that can be read, or None if there is no checkpoint yet.

        A damaged checkpoint is reported, and the one before it is tried. Once one can be read, the damaged ones are
        deleted. Raises InputError if all are damaged; then none is deleted.
        """
        numbers = self.numbers()[::-1]
        for i, number in enumerate(numbers):
            try:
                checkpoint = self._restore_with_retry(number, like)
            except InputError as error:
                log.warning("%s Falling back to the checkpoint before it.", error)
                continue
            for damaged in numbers[:i]:
                self._manager.delete(damaged)
            return checkpoint
        if numbers:
            raise InputError(f"none of the checkpoints in {self._folder} can be read. Start in a new workdir.")
        return None

    def numbers(self) -> list[int]:
        """The checkpoints that the folder has, whether they can be read or not."""
        return sorted(self._manager.all_steps())

    def delete_all(self) -> None:
        for number in self.numbers():
            self._manager.delete(number)

    def close(self) -> None:
        """Waits until everything is written."""
        with saving(self._folder, WRITE_ERRORS):
            self._manager.wait_until_finished()
            self._manager.close()


class _Best(ocp.checkpoint_managers.PreservationPolicy):
    """Keeps the n best on val. Orbax's own rule would store accuracies in files that cannot be read once damaged."""

    def __init__(self, n, val_accuracies):
        self._n, self._val_accuracies = n, val_accuracies

    def should_preserve(self, checkpoints, *, context):
        unknown = float("inf")  # such a checkpoint is kept
        ranks = [(self._val_accuracies.get(info.step, unknown), -info.step) for info in checkpoints]
        best = sorted(ranks)[-self._n :]
        return [rank in best for rank in ranks]


class _Manager(ocp.CheckpointManager):
    def reached_preemption(self, step):
        """Overridden, because JAX would mix up the numbers of epochs with the calls that `preemption` counts."""
        return False


def save_tree(path, tree) -> None:
    """Writes a pytree of arrays to the folder `path`, which appears by one rename and replaces an older one."""
    with saving(path, WRITE_ERRORS), ocp.StandardCheckpointer(async_options=IN_BACKGROUND) as checkpointer:
        checkpointer.save(pathlib.Path(path).absolute(), tree, force=True)


def load_tree(path, like=None):
    """The pytree that `save_tree` wrote, as nested dicts of arrays on this process's first device.

    like: if given, the tree must have its names, shapes and dtypes, and neither nan nor inf. Shapes are checked before
    arrays are read, because a forged file could ask for all memory. Raises InputError.
    """
    _check_tree_path(path)
    absolute = pathlib.Path(path).absolute()
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])  # instead of the devices that wrote it
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            if (metadata := checkpointer.metadata(absolute).item_metadata) is None:
                raise InputError(f"{path} cannot be read: Orbax finds no list of its arrays. {REWRITE_HINT}")
            shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), metadata.tree)
            if like is not None:
                check_like(shapes, like, f"the weights in {path}")
            tree = checkpointer.restore(absolute, shapes)
    except InputError:
        raise
    except Exception as error:  # Orbax and TensorStore raise many types for files that are damaged
        raise InputError(f"{path} cannot be read: {cause(error)}. {REWRITE_HINT}") from error
    if like is not None:
        check_like(tree, like, f"the weights in {path}")
    return tree


def _check_tree_path(path) -> None:
    """Raises InputError for a path that Orbax cannot read, or whose fault it would not name."""
    with reading(path):
        if not pathlib.Path(path).is_dir():
            raise InputError(
                f"{path} does not exist: the run has not ended yet, its weights were removed, or it is not a run. "
                f"{REWRITE_HINT}"
            )
    check_readable(path)
    if not pathlib.Path(path, "_METADATA").is_file():  # Orbax's list of the arrays
        raise InputError(f"{path} holds no weights. {REWRITE_HINT}")
    absolute = pathlib.Path(path).absolute()
    if "\\" in str(absolute):
        raise InputError(f"{path} cannot be read: TensorStore takes no path with a backslash. Rename the folder.")
    if not is_utf8(absolute):
        raise InputError(f"{path} cannot be read: TensorStore takes only paths in UTF-8. Rename the folder.")


def _checksum(state, record) -> int:
    return zlib.crc32(json.dumps(record, sort_keys=True).encode(), int(array_checksum(state)))


@jit_unoptimized
def array_checksum(tree):
    """A sum over the bits of all arrays, weighted by position: uint32, shape (). It does not depend on the devices."""
    total = jnp.uint32(0)
    for i, leaf in enumerate(jax.tree.leaves(tree)):
        leaf = jnp.asarray(leaf)
        leaf = leaf.astype(jnp.uint8) if leaf.dtype == bool else leaf
        width = max(8, min(32, 8 * leaf.dtype.itemsize))
        bits = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{width}")).astype(jnp.uint32).reshape(-1)
        odd = 2 * jax.lax.iota(jnp.uint32, bits.size) + 1
        total += jnp.uint32(2 * i + 1) * jnp.sum(bits * odd, dtype=jnp.uint32)
    return total
