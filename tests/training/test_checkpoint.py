"""Checkpoints come back bit by bit, and a damaged one is found out and passed over."""

import gc
import logging
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training import runs
from wcjax.errors import InputError
from wcjax.run_folder.checkpoints import Checkpoints, fingerprint, load_tree, save_tree
from wcjax.run_folder.forms import COUNT, POSITIVE

# Of coroutines that Orbax leaves behind when a file cannot be read.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def collected():
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


def save(folder, accuracies, **options):
    checkpoints = Checkpoints(folder, **options)
    for epoch, accuracy in enumerate(accuracies, start=1):
        checkpoints.save(epoch, state(epoch), record(epoch), accuracy)
    checkpoints.close()


def restore_newest(folder):
    checkpoints = Checkpoints(folder)
    try:
        return checkpoints.restore_newest(LIKE)
    finally:
        checkpoints.close()


def kept(folder):
    return sorted(int(path.name) for path in folder.iterdir())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with the checkpoints of epochs 1, 2 and 3; not to be changed."""
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    save(folder, [0.3, 0.1, 0.2])
    return folder


@pytest.fixture
def damaged(saved, tmp_path):
    """A copy of it."""
    return shutil.copytree(saved, tmp_path / "checkpoints")


def test_the_newest_checkpoint_comes_back_bit_by_bit(saved):
    found, extra = restore_newest(saved)
    runs.assert_same_bits(found, state(3))
    assert extra == record(3)
    chosen, extra = Checkpoints(saved).restore(2, LIKE)
    runs.assert_same_bits(chosen, state(2))
    assert extra == record(2)


def test_an_empty_folder_has_no_checkpoint(tmp_path):
    assert restore_newest(tmp_path) is None


def test_the_state_may_be_donated_as_soon_as_save_returns(tmp_path):
    large = jnp.asarray(np.random.default_rng(0).normal(size=(1024, 1024)), jnp.float32)
    expected = np.array(large)
    overwrite = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"x": large}, {}, 0.5)
    overwritten = overwrite(large)
    found, _ = checkpoints.restore(1, {"x": overwritten})
    checkpoints.close()
    np.testing.assert_array_equal(found["x"], expected)


@pytest.mark.parametrize(
    "accuracies, expected",
    [
        ([0.1, 0.2, 0.3, 0.4], [3, 4]),
        ([0.9, 0.8, 0.3, 0.4, 0.5], [1, 2, 4, 5]),
        ([0.1, 0.9, 0.3, 0.4, 0.5], [2, 4, 5]),
        ([0.5, 0.5, 0.5, 0.5, 0.5, 0.5], [1, 2, 5, 6]),  # of equal ones the first is the best
    ],
)
def test_the_newest_two_and_the_best_two_are_kept(tmp_path, accuracies, expected):
    save(tmp_path, accuracies)
    assert kept(tmp_path) == expected


def test_more_than_two_are_kept_where_that_is_asked_for(tmp_path):
    save(tmp_path, [0.9, 0.8, 0.3, 0.4, 0.5, 0.6], keep=3)
    assert kept(tmp_path) == [1, 2, 4, 5, 6]


DAMAGE = {
    "cut in half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "emptied": lambda path: path.write_bytes(b""),
    "overwritten with zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "deleted": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_to_any_file_of_the_newest_gives_its_bits_or_those_of_the_one_before(saved, tmp_path, damage, caplog):
    files = sorted(path.relative_to(saved) for path in (saved / "3").rglob("*") if path.is_file())
    assert len(files) > 5
    fell_back = set()
    for i, file in enumerate(files):
        folder = shutil.copytree(saved, tmp_path / str(i))
        DAMAGE[damage](folder / file)
        caplog.clear()
        found, extra = restore_newest(folder)
        epoch = extra["epoch"]
        assert extra == record(epoch), file
        runs.assert_same_bits(found, state(epoch))
        if epoch != 3:
            assert epoch == 2, file
            (warning,) = [r.getMessage() for r in caplog.records if r.name.startswith("wcjax")]
            assert warning.startswith("the checkpoint of epoch 3 "), file
            assert warning.endswith(" Falling back to the one before."), file
            assert kept(folder) == [1, 2], "the damaged one is deleted, so that its epoch can be saved again"
            fell_back.add(file.parts[1])
    assert fell_back >= {"state", "record"}


def test_a_flipped_bit_in_the_stored_arrays_never_comes_back(saved, tmp_path):
    largest = max((path for path in (saved / "3").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = largest.read_bytes()
    found_out = 0
    for i, position in enumerate(np.linspace(0, len(content) - 1, 12, dtype=int)):
        folder = shutil.copytree(saved, tmp_path / str(i))
        flipped = bytearray(content)
        flipped[position] ^= 1 << (i % 8)
        (folder / largest.relative_to(saved)).write_bytes(flipped)
        found, extra = restore_newest(folder)
        runs.assert_same_bits(found, state(extra["epoch"]))
        found_out += extra["epoch"] == 2
    assert found_out >= 10, "the file holds arrays from end to end, but for a few bytes that nobody reads"


def other_arrays(folder):
    shutil.rmtree(folder / "3" / "state")
    shutil.copytree(folder / "2" / "state", folder / "3" / "state")


def other_digit(folder):
    path = folder / "3" / "record" / "metadata"
    path.write_text(path.read_text().replace("0.30000000000000004", "0.31000000000000004"))


@pytest.mark.parametrize("change", [other_arrays, other_digit])
def test_what_is_not_what_was_saved_is_found_out_though_every_file_can_be_read(damaged, change):
    change(damaged)
    checkpoints = Checkpoints(damaged)
    with pytest.raises(InputError, match="the checkpoint of epoch 3 is damaged: it is not what was saved."):
        checkpoints.restore(3, LIKE)
    assert checkpoints.restore(2, LIKE)[1] == record(2)
    checkpoints.close()


def test_a_record_of_another_form_is_refused(damaged):
    checkpoints = Checkpoints(damaged, form={"epoch": COUNT, "seconds": POSITIVE})
    message = "the record of the checkpoint of epoch 3, seconds is not what a run writes: a finite number of at least 0"
    with pytest.raises(InputError, match=message):
        checkpoints.restore(3, LIKE)
    checkpoints.close()


def test_where_all_are_damaged_the_error_says_so_and_nothing_is_deleted(damaged, caplog):
    for epoch in (1, 2, 3):
        shutil.rmtree(damaged / str(epoch) / "state")
    for _ in range(2):
        with pytest.raises(InputError) as error:
            restore_newest(damaged)
        assert str(error.value) == f"none of the checkpoints in {damaged} can be read. Start in a new workdir."
    assert kept(damaged) == [1, 2, 3]
    assert len([r for r in caplog.records if r.levelno == logging.WARNING and r.name.startswith("wcjax")]) == 6


def test_what_a_process_left_that_died_while_saving_is_passed_over(damaged):
    (newest,) = damaged.glob("3")
    unfinished = pathlib.Path(f"{newest}.orbax-checkpoint-tmp")
    newest.rename(unfinished)
    _, extra = restore_newest(damaged)
    assert extra == record(2)


LEAVES = {
    "float32": lambda rng: jnp.asarray(rng.normal(size=(5, 8)), jnp.float32),
    "bfloat16": lambda rng: jnp.asarray(rng.normal(size=(5, 8)), jnp.bfloat16),
    "int32": lambda rng: jnp.asarray(rng.integers(-100, 100, (5, 8)), jnp.int32),
    "uint8": lambda rng: jnp.asarray(rng.integers(0, 256, (5, 8)), jnp.uint8),
    "bool": lambda rng: jnp.asarray(rng.integers(0, 2, (5, 8)), bool),
}


def flip(leaf, index, bit):
    raw = np.array(leaf)
    raw.reshape(-1)[index : index + 1].view(f"u{raw.itemsize}")[:] ^= 1 << bit
    return jnp.asarray(raw)


@pytest.mark.parametrize("dtype", LEAVES)
def test_the_fingerprint_changes_with_every_single_bit(dtype):
    leaf = LEAVES[dtype](np.random.default_rng(0))
    other = jnp.arange(3.0)
    whole = int(fingerprint([other, leaf]))
    assert whole == int(fingerprint([jnp.array(other), jnp.array(leaf)]))
    bits = [0] if dtype == "bool" else range(8 * leaf.dtype.itemsize)
    found = {int(fingerprint([other, flip(leaf, index, bit)])) for index in (0, 17, leaf.size - 1) for bit in bits}
    assert whole not in found


@pytest.mark.parametrize("dtype", LEAVES)
def test_the_fingerprint_sees_elements_and_leaves_that_changed_places(dtype):
    rng = np.random.default_rng(1)
    first, second = LEAVES[dtype](rng), LEAVES[dtype](rng)
    whole = int(fingerprint([first, second]))
    assert int(fingerprint([second, first])) != whole
    values = np.array(first).reshape(-1)
    j = int(np.flatnonzero(values != values[0])[0])
    values[[0, j]] = values[[j, 0]]
    assert int(fingerprint([jnp.asarray(values).reshape(first.shape), second])) != whole


def test_a_saved_tree_comes_back_and_replaces_the_one_before(tmp_path):
    for epoch in (1, 2):
        save_tree(tmp_path / "tree", {"params": state(epoch)["params"], "batch_stats": {}})
        found = load_tree(tmp_path / "tree")
        runs.assert_same_bits(found, {"params": state(epoch)["params"], "batch_stats": {}})
        assert found["batch_stats"] == {}
