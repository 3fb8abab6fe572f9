"""Checkpoints of a run; the only file that knows Orbax."""

import contextlib
import json
import logging
import pathlib
import zlib

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from wcjax.checks import path_str
from wcjax.errors import InputError, cause
from wcjax.exchange import check_like
from wcjax.files import check_readable, reading, saving
from wcjax.run_folder.forms import OBJECT, check_form

log = logging.getLogger(__name__)

# A folder that is made in the background and cannot be leaves threads that wait for it for 20 minutes at the exit.
IN_BACKGROUND = ocp.options.AsyncOptions(create_directories_asynchronously=False)


class Checkpoints:
    """The checkpoints in one folder, one for each finished epoch; the newest `keep` and the two best on val are kept.

    With unit="step" they are those within an epoch, numbered by steps, of which the newest `keep` are kept.

    A checkpoint is a pytree of arrays (`state`) and a dict of plain values (`record`). It appears in the folder by one
    rename after everything in it is written, and carries a fingerprint of both that is checked when it is read. The
    record must have `form`, see `wcjax.run_folder.forms`.
    What cannot be written raises SaveError, at the latest when the next is saved or all are closed. What cannot be read
    for lack of permission raises InputError at once: Orbax takes it for damaged, and damaged ones are deleted.
    """

    def __init__(self, folder, unit: str = "epoch", keep: int = 2, form=OBJECT):
        policies = ocp.checkpoint_managers
        kept = [policies.LatestN(n=keep)]
        if unit == "epoch":
            kept.append(policies.BestN(get_metric_fn=lambda m: (m["val_accuracy"], -m["epoch"]), n=2))
        self._unit, self._folder, self._form = unit, pathlib.Path(folder).absolute(), form
        check_readable(self._folder)
        with saving(self._folder):
            self._manager = _Manager(
                self._folder,
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=policies.AnyPreservationPolicy(kept),
                    async_options=IN_BACKGROUND,
                    # Processes that save an epoch in the background may at the same time save within the next.
                    multiprocessing_options=ocp.options.MultiprocessingOptions(barrier_sync_key_prefix=unit),
                ),
                item_names=("state", "record"),
            )

    def save(self, number: int, state, record: dict, val_accuracy: float | None = None) -> None:
        """Saves in the background; state may be donated as soon as this returns. An older save is waited for.

        Does nothing if this number is there already.
        """
        record = record | {"fingerprint": _fingerprint_of_both(state, record)}
        with saving(self._folder / str(number)):
            self._manager.save(
                number,
                args=ocp.args.Composite(state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record)),
                metrics=None if val_accuracy is None else {"val_accuracy": val_accuracy, "epoch": number},
            )

    def restore(self, number: int, like):
        """(state, record) of one epoch or step, with the structure, dtypes and shardings of `like`.

        Raises InputError where it cannot be read or is not what was saved.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), record=ocp.args.JsonRestore())
        try:
            found = self._manager.restore(number, args=args)
        except Exception as error:  # Orbax and TensorStore raise many types for files that are damaged
            raise InputError(f"the checkpoint of {self._unit} {number} cannot be read: {cause(error)}") from error
        check_form(found.record, self._form, f"the record of the checkpoint of {self._unit} {number}", then="")
        record = dict(found.record)
        if record.pop("fingerprint", None) != _fingerprint_of_both(found.state, record):
            raise InputError(f"the checkpoint of {self._unit} {number} is damaged: it is not what was saved.")
        return found.state, record

    def restore_newest(self, like):
        """(state, record) of the newest that can be read, or None where there is none yet.

        A damaged one is reported, and the one before it is tried; once one can be read, the damaged ones are deleted.
        Raises InputError if all are damaged, and deletes none; those within an epoch are no loss, and give None.
        """
        numbers = sorted(self._manager.all_steps(), reverse=True)
        for i, number in enumerate(numbers):
            try:
                found = self.restore(number, like)
            except InputError as error:
                log.warning("%s Falling back to the one before.", error)
                continue
            for damaged in numbers[:i]:
                self._manager.delete(damaged)
            return found
        if numbers and self._unit == "epoch":
            raise InputError(f"none of the checkpoints in {self._folder} can be read. Start in a new workdir.")
        return None

    def delete_all(self) -> None:
        for number in self._manager.all_steps():
            self._manager.delete(number)

    def close(self) -> None:
        """Waits until everything is written."""
        with saving(self._folder):
            self._manager.wait_until_finished()
            self._manager.close()


class _Manager(ocp.CheckpointManager):
    def reached_preemption(self, step):
        """Not asked here: JAX would take the numbers of epochs for what `wcjax.training.preemption` counts."""
        return False


def save_tree(path, tree) -> None:
    """Writes a pytree of arrays to the folder `path`, which appears by one rename; replaces what was there."""
    with saving(path), ocp.StandardCheckpointer(async_options=IN_BACKGROUND) as checkpointer:
        checkpointer.save(pathlib.Path(path).absolute(), tree, force=True)


def load_tree(path, like=None):
    """The pytree that `save_tree` wrote, as nested dicts of arrays on this process's first device.

    like: shapes and dtypes; where given, the tree must have exactly these, and neither nan nor inf. They are checked
    before the arrays are read, because forged ones could ask for all memory. Raises InputError.
    """
    with _opened(path) as (checkpointer, stored):
        if like is not None:
            check_like(stored, like, f"the weights in {path}")
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])  # not that of the devices that wrote it
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), stored)
        tree = checkpointer.restore(pathlib.Path(path).absolute(), target)
    if like is not None:
        check_like(tree, like, f"the weights in {path}")
    return tree


def stored_shapes(path) -> dict[str, tuple[int, ...]]:
    """{'params/stem/kernel': shape} of what `save_tree` wrote, without reading it."""
    with _opened(path) as (_, stored):
        return {path_str(at): tuple(leaf.shape) for at, leaf in jax.tree_util.tree_leaves_with_path(stored)}


@contextlib.contextmanager
def _opened(path):
    """(checkpointer, shapes and dtypes of the tree in path); what it raises in the block becomes an InputError."""
    with reading(path):
        if not pathlib.Path(path).is_dir():
            raise InputError(f"{path} does not exist: the run has not ended yet, or this is no run folder.")
    check_readable(path)
    if "\\" in str(pathlib.Path(path).absolute()):
        raise InputError(f"{path} cannot be read: TensorStore takes no path with a backslash. Rename the folder.")
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            stored = checkpointer.metadata(pathlib.Path(path).absolute()).item_metadata.tree
            yield checkpointer, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), stored)
    except InputError:
        raise
    except Exception as error:  # Orbax and TensorStore raise many types for files that are damaged
        raise InputError(f"{path} cannot be read: {cause(error)}. Train again, or give another folder.") from error


def _fingerprint_of_both(state, record) -> int:
    return zlib.crc32(json.dumps(record, sort_keys=True).encode(), int(fingerprint(state)))


@jax.jit
def fingerprint(tree):
    """A sum over the bits of all arrays, weighted by position: uint32, shape (). The same on any number of devices."""
    total = jnp.uint32(0)
    for i, leaf in enumerate(jax.tree.leaves(tree)):
        leaf = jnp.asarray(leaf)
        leaf = leaf.astype(jnp.uint8) if leaf.dtype == bool else leaf
        width = max(8, min(32, 8 * leaf.dtype.itemsize))
        bits = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{width}")).astype(jnp.uint32).reshape(-1)
        odd = 2 * jax.lax.iota(jnp.uint32, bits.size) + 1
        total += jnp.uint32(2 * i + 1) * jnp.sum(bits * odd, dtype=jnp.uint32)
    return total
