"""Many devices and many processes: one mesh, and how the arrays of a run are sharded over it.

The mesh has two axes, `config.mesh = {"data": -1, "fsdp": 1}`. Batches are sharded by rows over both. The training
state is replicated. With fsdp > 1 its large arrays, parameters and moments of the optimizer alike, are sharded over
'fsdp'. The steps are the same programs as on one device, and jax.jit partitions them, so that batch norm takes its mean
over the batch of all devices. Results on different meshes differ only by rounding.

Every device holds all images of a small data set (digits, CIFAR), so that a step gathers the rows of its batch without
any communication, and the host has nothing to do within an epoch.
"""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from wcjax.errors import InputError
from wcjax.system.devices import check_devices

AXES = ("data", "fsdp")
MIN_FSDP_SIZE = 2**14  # elements: a smaller array takes longer to gather than its memory is worth


def make_mesh(config: ConfigDict) -> Mesh:
    """The mesh that config.mesh asks for; -1 stands for all devices that the other axis leaves.

    A single process may use the first few of its devices. Several processes use all of theirs.

    Raises InputError if there are too few devices, or if they cannot share config.batch_size.
    """
    check_devices()
    data, fsdp, num_devices = config.mesh.data, config.mesh.fsdp, len(jax.devices())
    request = f"config.mesh asks for data={data} x fsdp={fsdp} devices"
    if -1 in (data, fsdp):
        other = fsdp if data == -1 else data
        if num_devices % other:
            raise InputError(
                f"{request}, but there are {num_devices}: choose a divisor of {num_devices} instead of {other}."
            )
        data, fsdp = (num_devices // other if size == -1 else size for size in (data, fsdp))
    size = data * fsdp
    if size > num_devices:
        raise InputError(f"{request}, but there are {num_devices}: choose smaller numbers, or -1 for all others.")
    if size < num_devices and jax.process_count() > 1:
        raise InputError(
            f"{request}, but {jax.process_count()} processes have {num_devices} and must use all: set data=-1."
        )
    if config.batch_size % size:
        raise InputError(
            f"config.batch_size is {config.batch_size}, which {size} devices cannot share: choose a multiple of "
            f"{size}, or fewer devices by config.mesh.data."
        )
    return jax.make_mesh((data, fsdp), AXES, axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:size])


def one_device() -> Mesh:
    """A mesh of this process's first device."""
    return jax.make_mesh((1, 1), AXES, axis_types=(AxisType.Auto,) * 2, devices=jax.local_devices()[:1])


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def by_rows(mesh: Mesh) -> NamedSharding:
    """The first axis over all devices."""
    return NamedSharding(mesh, P(AXES))


def state_sharding(mesh: Mesh, state):
    """The sharding of each array of a training state, or one for all of them if fsdp is 1.

    Arrays with two or more axes and at least MIN_FSDP_SIZE elements are sharded over 'fsdp' along their largest axis
    that it divides, the last one if several are equally long. All others, among them learned a and b, are replicated.
    state: arrays, or their shapes.
    """
    fsdp = mesh.shape["fsdp"]
    if fsdp == 1:
        return replicated(mesh)

    def sharding(leaf):
        axes = [axis for axis, length in enumerate(leaf.shape) if length % fsdp == 0]
        if leaf.ndim < 2 or leaf.size < MIN_FSDP_SIZE or not axes:
            return replicated(mesh)
        largest = max(axes, key=lambda axis: (leaf.shape[axis], axis))
        return NamedSharding(mesh, P(*(None,) * largest, "fsdp"))

    return jax.tree.map(sharding, state)


def replicate(mesh: Mesh, tree):
    """Replicates host arrays, which every process has, on all devices of the mesh."""

    def place(x):
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, replicated(mesh), lambda index: x[index])

    return jax.tree.map(place, tree)


def gather_in_step(mesh: Mesh, tree, dtype):
    """All-gathers arrays that are sharded as by `state_sharding`, inside a jitted step.

    Sharded arrays are cast to dtype before they are sent. Each gradient is sharded like its array, so that a device
    gets the sum for its shard alone (reduce-scatter).
    """
    shardings = state_sharding(mesh, tree)

    @jax.custom_vjp
    def gathered(tree):
        return jax.lax.with_sharding_constraint(tree, replicated(mesh))

    gathered.defvjp(
        lambda tree: (gathered(tree), None), lambda _, grads: (jax.lax.with_sharding_constraint(grads, shardings),)
    )
    cast = lambda x, s: x if s.is_fully_replicated else jax.lax.with_sharding_constraint(x.astype(dtype), s)
    return gathered(jax.tree.map(cast, tree, shardings))


def unshard(mesh: Mesh, tree):
    """Replicates device arrays, so that each process can read all of them."""
    return jax.device_put(tree, replicated(mesh))


def share_batch(mesh: Mesh, batch):
    """Puts a batch on the devices from the rows that each process has: arrays (n / processes, ...) -> (n, ...).

    The transfer runs in the background while the devices work on earlier steps.
    """
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(by_rows(mesh), x), batch)
