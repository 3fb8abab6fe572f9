"""Checkpoints come back bit by bit, and a damaged one is noticed and skipped."""

import contextlib
import gc
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests.training.runs import assert_same_bits
from wcjax.errors import InputError
from wcjax.run_folder.checkpoints import Checkpoints, array_checksum, load_tree, save_tree
from wcjax.run_folder.schema import COUNT, NON_NEGATIVE

# Of coroutines that Orbax leaves behind when a file cannot be read.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def collect_garbage():
    yield
    gc.collect()  # so that they complain here and not at the exit of the process


def state(epoch):
    """A tree with a leaf of each kind that a training state holds, different in each epoch."""
    rng = np.random.default_rng(epoch)
    return {
        "params": {"v": jnp.asarray(rng.normal(size=(64, 64)), jnp.float32), "a": jnp.float32(rng.normal())},
        "trace": [jnp.asarray(rng.normal(size=(7, 3)), jnp.bfloat16), ()],
        "step": jnp.int32(epoch),
        "key": jnp.asarray(rng.integers(0, 2**32, 2), jnp.uint32),
        "flag": jnp.asarray(rng.integers(0, 2, 5), bool),
    }


LIKE = jax.tree.map(jnp.zeros_like, state(0))


def record(epoch):
    return {"epoch": epoch, "best_val_accuracy": 0.1 * epoch}


def opened(folder, **options):
    return contextlib.closing(Checkpoints(folder, **options))


def save(folder, accuracies, **options):
    with opened(folder, **options) as checkpoints:
        for epoch, accuracy in enumerate(accuracies, start=1):
            checkpoints.save(epoch, state(epoch), record(epoch), accuracy)


def restore_newest(folder):
    """The epoch of the newest checkpoint that can be read, whose state and record are bit by bit those saved."""
    with opened(folder) as checkpoints:
        tree, numbers = checkpoints.restore_newest(LIKE)
    assert_same_bits(tree, state(numbers["epoch"]))
    assert numbers == record(numbers["epoch"])
    return numbers["epoch"]


def epochs(folder):
    return sorted(int(path.name) for path in folder.iterdir())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with the checkpoints of epochs 1, 2 and 3; not to be changed."""
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    save(folder, [0.3, 0.1, 0.2])
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "checkpoints")


def test_the_state_may_be_donated_as_soon_as_save_returns(tmp_path):
    large = jnp.asarray(np.random.default_rng(0).normal(size=(1024, 1024)), jnp.float32)
    expected = np.array(large)
    with opened(tmp_path) as checkpoints:
        checkpoints.save(1, {"x": large}, {}, 0.5)
        overwritten = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)(large)
        tree, _ = checkpoints.restore(1, {"x": overwritten})
    np.testing.assert_array_equal(tree["x"], expected)


@pytest.mark.parametrize(
    "accuracies, options, expected",
    [
        ([0.9, 0.8, 0.3, 0.4, 0.5], {}, [1, 2, 4, 5]),
        ([0.5, 0.5, 0.5, 0.5, 0.5, 0.5], {}, [1, 2, 5, 6]),  # the first of equals is the best
        ([0.9, 0.8, 0.3, 0.4, 0.5, 0.6], {"keep": 3}, [1, 2, 4, 5, 6]),
        ([None] * 4, {"unit": "step", "keep_best": 0}, [3, 4]),
    ],
)
def test_the_newest_and_the_two_best_are_kept(tmp_path, accuracies, options, expected):
    save(tmp_path / "at once", accuracies, **options)
    for epoch, accuracy in enumerate(accuracies, start=1):  # as runs that are stopped and resumed save them
        known = dict(enumerate(accuracies[: epoch - 1], start=1)) if accuracy is not None else {}
        with opened(tmp_path / "resumed", val_accuracies=known, **options) as checkpoints:
            checkpoints.save(epoch, state(epoch), record(epoch), accuracy)
    assert epochs(tmp_path / "at once") == epochs(tmp_path / "resumed") == expected


def test_a_checkpoint_survives_a_read_that_fails_once(copy, monkeypatch):
    real, failures = ocp.CheckpointManager.restore, [OSError(116, "Stale file handle")]

    def restore(self, number, args):
        if failures:
            raise failures.pop()
        return real(self, number, args=args)

    monkeypatch.setattr(ocp.CheckpointManager, "restore", restore)
    assert restore_newest(copy) == 3
    assert epochs(copy) == [1, 2, 3] and not failures


def flip(content, bit):
    """content with one bit flipped, if it has that bit."""
    content = bytearray(content)
    if bit < 8 * len(content):
        content[bit // 8] ^= 1 << bit % 8
    return bytes(content)


DAMAGE = {
    "cut in half": lambda content: content[: len(content) // 2],
    "with a flipped bit": lambda content: flip(content, 4 * len(content)),
}


@pytest.mark.parametrize("damage", [*DAMAGE, "deleted"])
def test_a_damaged_file_gives_its_bits_or_the_previous_epoch(saved, tmp_path, damage, caplog):
    files = sorted(path.relative_to(saved) for path in (saved / "3").rglob("*") if path.is_file())
    fell_back = set()
    for i, file in enumerate(files):
        folder = shutil.copytree(saved, tmp_path / str(i))
        content = (folder / file).read_bytes()
        (folder / file).unlink()
        if damage in DAMAGE:
            (folder / file).write_bytes(DAMAGE[damage](content))
        caplog.clear()
        if (epoch := restore_newest(folder)) != 3:
            assert epoch == 2, file
            assert "the checkpoint of epoch 3 " in caplog.text, file
            assert epochs(folder) == [1, 2], "the damaged one is deleted, so that its epoch can be saved again"
            fell_back.add(file.parts[1])
    assert fell_back >= {"state", "record"}


def other_arrays(folder):
    shutil.rmtree(folder / "3" / "state")
    shutil.copytree(folder / "2" / "state", folder / "3" / "state")


def other_digit(folder):
    path = folder / "3" / "record" / "metadata"
    path.write_text(path.read_text().replace("0.30000000000000004", "0.31000000000000004"))


def unfinished(folder):
    (folder / "3").rename(folder / "3.orbax-checkpoint-tmp")


@pytest.mark.parametrize("change", [other_arrays, other_digit, unfinished])
def test_a_readable_checkpoint_that_was_altered_is_skipped(copy, change):
    change(copy)
    assert restore_newest(copy) == 2


def test_a_record_of_another_schema_is_refused(copy):
    message = "the record of the checkpoint of epoch 3, seconds: expected a finite number of at least 0"
    with (
        opened(copy, schema={"epoch": COUNT, "seconds": NON_NEGATIVE}) as checkpoints,
        pytest.raises(InputError, match=message),
    ):
        checkpoints.restore(3, LIKE)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "bool"])
def test_the_checksum_changes_with_every_bit_and_place(dtype):
    numbers = np.random.default_rng(0).normal(size=(2, 5, 8))
    first, second = jnp.asarray(numbers > 0 if dtype == "bool" else numbers, dtype)
    whole = int(array_checksum([first, second]))
    assert int(array_checksum([jnp.array(first), jnp.array(second)])) == whole
    raw, width = np.asarray(second).tobytes(), 8 * first.dtype.itemsize
    bits = [width * index + bit for index in (0, 17, 39) for bit in range(1 if dtype == "bool" else width)]
    flipped = [np.frombuffer(flip(raw, bit), first.dtype).reshape(first.shape) for bit in bits]
    values = np.array(first).reshape(-1)
    other = int(np.flatnonzero(values != values[0])[0])
    values[[0, other]] = values[[other, 0]]
    trees = [[second, first], [values.reshape(first.shape), second], *([first, leaf] for leaf in flipped)]
    assert whole not in {int(array_checksum(jax.tree.map(jnp.asarray, tree))) for tree in trees}


def test_a_saved_tree_replaces_the_one_before(tmp_path):
    for epoch in (1, 2):
        tree = {"params": state(epoch)["params"], "batch_stats": {}}
        save_tree(tmp_path / "tree", tree)
        assert_same_bits(load_tree(tmp_path / "tree"), tree)
        assert load_tree(tmp_path / "tree")["batch_stats"] == {}
