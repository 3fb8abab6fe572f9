"""Directories of tensorflow_datasets: written here by a builder of our own, read back by the official one."""

import fcntl
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from wcjax import data
from wcjax.data.formats import tfds as wcjax_tfds
from wcjax.errors import InputError

tfds = pytest.importorskip("tensorflow_datasets", reason="needs pip install 'wcjax[data]'")
Image = pytest.importorskip("PIL.Image", reason="needs pip install 'wcjax[data]'")


def prepare(name, arrays, data_dir):
    """Writes arrays as the official builder `name` would, without TensorFlow."""

    def examples(split):
        for i, (x, y) in enumerate(zip(arrays[f"x_{split}"], arrays[f"y_{split}"], strict=True)):
            # PIL images, because encoding NumPy ones takes TensorFlow.
            example = {"id": f"{split}_{i}", "image": Image.fromarray(x), "label": int(y)}
            yield i, example | ({"coarse_label": int(y) % 20} if name == "cifar100" else {})

    official = tfds.builder_cls(name)
    with tfds.core.registered.skip_registration():

        class Prepared(official):
            def _split_generators(self, dl_manager):
                return {split: examples(split) for split in ("train", "test")}

    Prepared.name = name
    Prepared(data_dir=data_dir, file_format="array_record").download_and_prepare(download_dir=data_dir / "unused")


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """A data_dir with a tiny CIFAR-10 and CIFAR-100, and the arrays in it by name. Read only."""
    root = tmp_path_factory.mktemp("prepared")
    rng = np.random.default_rng(0)
    written = {}
    # 510 records are more than are read at once.
    for name, num_classes, n in (("cifar10", 10, 30), ("cifar100", 100, 510)):
        written[name] = {
            "x_train": rng.integers(0, 256, (n, 32, 32, 3), np.uint8),
            "y_train": rng.integers(0, num_classes, n),
            "x_test": rng.integers(0, 256, (7, 32, 32, 3), np.uint8),
            "y_test": rng.integers(0, num_classes, 7),
        }
        prepare(name, written[name], root)
    return root, written


@pytest.fixture
def data_dir(prepared, tmp_path):
    """A copy that a test may damage."""
    root, _ = prepared
    shutil.copytree(root / "cifar10", tmp_path / "sets" / "cifar10")
    return tmp_path / "sets"


@pytest.fixture
def version_dir(data_dir):
    (directory,) = (data_dir / "cifar10").iterdir()
    return directory


@pytest.fixture
def decodings(monkeypatch):
    """A list that grows by one with each decoding of a directory."""
    done = []
    decode = wcjax_tfds._decode
    monkeypatch.setattr(wcjax_tfds, "_decode", lambda directory: done.append(directory) or decode(directory))
    return done


def pairs(*splits):
    return sorted((image.tobytes(), int(label)) for split in splits for image, label in zip(*split, strict=True))


def assert_same(one, other):
    for a, b in zip(one[:3], other[:3], strict=True):
        np.testing.assert_array_equal(a.images, b.images)
        np.testing.assert_array_equal(a.labels, b.labels)


def cached_file(cache_home):
    (file,) = (cache_home / "wcjax").iterdir()
    return file


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_every_image_written_is_read_with_its_fine_label(prepared, name):
    root, written = prepared
    dataset = data.load(name, root)
    assert pairs(dataset.train, dataset.val) == pairs((written[name]["x_train"], written[name]["y_train"]))
    assert pairs(dataset.test) == pairs((written[name]["x_test"], written[name]["y_test"]))


def test_the_official_builder_reads_the_same_in_the_same_order(prepared):
    root, _ = prepared
    official = tfds.builder("cifar10", data_dir=root).as_data_source("test")
    test = data.load("cifar10", root).test
    np.testing.assert_array_equal(test.images, [record["image"] for record in official])
    np.testing.assert_array_equal(test.labels, [record["label"] for record in official])


def test_neither_reading_nor_the_cache_imports_tensorflow(prepared, tmp_path):
    # A package of that name stands ready, so that an import would succeed and be seen.
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text("__version__ = '2.99.0'")
    code = (
        "import sys, wcjax.data\n"
        f"for _ in range(2): wcjax.data.load('cifar10', {str(prepared[0])!r})\n"
        "print('tensorflow_datasets' in sys.modules, 'tensorflow' in sys.modules)"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert run.stdout.split() == ["True", "False"]


def test_the_second_load_is_served_from_the_cache(data_dir, decodings, cache_home):
    first, second = (data.load("cifar10", data_dir) for _ in range(2))
    assert len(decodings) == 1
    assert_same(first, second)
    assert cached_file(cache_home).name.startswith("cifar10-")


@pytest.mark.parametrize("change", ["time", "size", "name"])
def test_a_changed_source_is_decoded_anew(data_dir, version_dir, decodings, change):
    data.load("cifar10", data_dir)
    info = version_dir / "dataset_info.json"
    stat = info.stat()
    if change == "time":
        os.utime(info, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    elif change == "size":
        info.write_text(info.read_text() + "\n")
        os.utime(info, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    else:
        (version_dir / "extra.txt").write_text("")
    data.load("cifar10", data_dir)
    assert len(decodings) == 2


def flip_a_bit(file, pixels):
    content = bytearray(file.read_bytes())
    content[content.index(pixels) + 7] ^= 4
    file.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda file, pixels: flip_a_bit(file, pixels),
        lambda file, pixels: os.truncate(file, file.stat().st_size // 2),
        lambda file, pixels: file.write_bytes(b""),
        lambda file, pixels: np.savez(file, x_train=np.zeros((3, 8, 8, 1), np.uint8)),
    ],
    ids=["flipped bit", "truncated", "empty", "other arrays"],
)
def test_a_damaged_cache_file_is_made_again(data_dir, decodings, cache_home, damage):
    first = data.load("cifar10", data_dir)
    damage(cached_file(cache_home), first.test.images[0].tobytes())
    assert_same(first, data.load("cifar10", data_dir))
    assert len(decodings) == 2
    assert_same(first, data.load("cifar10", data_dir))
    assert len(decodings) == 2


def test_an_unwritable_cache_costs_one_warning_and_nothing_else(prepared, cache_home, caplog):
    cache_home.write_text("a file where the directory should be")
    dataset = data.load("cifar10", prepared[0])
    assert len(dataset.test.labels) == 7
    (record,) = (record for record in caplog.records if record.name.startswith("wcjax"))
    assert record.levelname == "WARNING"
    assert "Could not keep the decoded images" in record.getMessage()


def test_a_write_that_breaks_off_leaves_nothing_in_the_cache(prepared, cache_home, monkeypatch):
    def full_disk(path, **arrays):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full_disk)
    data.load("cifar10", prepared[0])
    assert list((cache_home / "wcjax").iterdir()) == []


def test_a_cache_that_was_killed_while_it_was_written_is_removed_and_one_in_the_making_is_not(prepared, cache_home):
    for name in ("tmpkilled", "tmpwriting"):
        (cache_home / "wcjax" / name).mkdir(parents=True)
        (cache_home / "wcjax" / name / "cifar10-0.npz").write_bytes(b"half")
    descriptor = os.open(cache_home / "wcjax" / "tmpwriting", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    data.load("cifar10", prepared[0])
    os.close(descriptor)
    kept, cached = sorted(path.name for path in (cache_home / "wcjax").iterdir())[::-1]
    assert kept == "tmpwriting" and cached.startswith("cifar10-")


def test_a_process_that_writes_a_cache_holds_its_lock(prepared, monkeypatch):
    def savez(path, **arrays):
        descriptor = os.open(path.parent, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(descriptor)
        tried.append(path)

    tried = []
    monkeypatch.setattr(np, "savez", savez)
    data.load("cifar10", prepared[0])
    assert len(tried) == 1


def test_the_cache_is_where_xdg_cache_home_says_also_with_a_tilde(prepared, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for value, folder in (("~/elsewhere", "home/elsewhere"), (None, "home/.cache")):
        monkeypatch.setenv("XDG_CACHE_HOME", value) if value else monkeypatch.delenv("XDG_CACHE_HOME")
        data.load("cifar10", prepared[0])
        assert cached_file(tmp_path / folder).name.startswith("cifar10-")


def test_without_a_home_nothing_is_cached_and_one_line_says_so(prepared, tmp_path, monkeypatch, caplog, decodings):
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])  # as for a user without an entry
    monkeypatch.chdir(tmp_path)
    assert len(data.load("cifar10", prepared[0]).test.labels) == 7
    assert len(decodings) == 1
    assert list(tmp_path.iterdir()) == [], "no folder called ~"
    (record,) = (record for record in caplog.records if record.name == "wcjax.data.formats.cache")
    assert record.getMessage() == (
        "There is no home directory to keep decoded images in. Set XDG_CACHE_HOME to a directory."
    )


def test_the_same_images_are_held_out_of_an_npz_file_and_of_a_prepared_directory(prepared, tmp_path):
    root, written = prepared
    np.savez(tmp_path / "cifar10.npz", **written["cifar10"])
    one, other = data.load("cifar10", root), data.load("cifar10", tmp_path)
    for split, same in ((one.train, other.train), (one.val, other.val)):
        np.testing.assert_array_equal(split.images, same.images)
        np.testing.assert_array_equal(split.labels, same.labels)
    assert one.fingerprint() == other.fingerprint()
    assert data.load("cifar100", root).fingerprint() != one.fingerprint()


def test_the_newest_finished_version_is_read(data_dir):
    for name in ("2.10.0", "incomplete.ABC_3.0.3"):
        (data_dir / "cifar10" / name).mkdir()
        (data_dir / "cifar10" / name / "dataset_info.json").write_text("{}")
    assert len(data.load("cifar10", data_dir).test.labels) == 7


def test_no_progress_bar_where_stderr_is_not_a_terminal(prepared, capfd):
    data.load("cifar10", prepared[0])
    assert "decoding" not in capfd.readouterr().err


def break_records(directory, damage):
    """Applies damage(file) to the file with the test records."""
    (file,) = directory.glob("*test.array_record*")
    damage(file)


def promise_more_records(directory):
    path = directory / "dataset_info.json"
    info = json.loads(path.read_text())
    for split in info["splits"]:
        split["shardLengths"] = [str(int(length) + 1) for length in split["shardLengths"]]
    path.write_text(json.dumps(info))


def drop_the_test_split(directory):
    path = directory / "dataset_info.json"
    info = json.loads(path.read_text())
    info["splits"] = [split for split in info["splits"] if split["name"] == "train"]
    path.write_text(json.dumps(info))


@pytest.mark.parametrize(
    "damage",
    [
        lambda directory: break_records(directory, lambda file: os.truncate(file, file.stat().st_size - 70_000)),
        lambda directory: break_records(directory, lambda file: os.truncate(file, 0)),
        lambda directory: break_records(directory, os.remove),
        lambda directory: break_records(directory, lambda file: file.write_bytes(os.urandom(file.stat().st_size))),
        lambda directory: (directory / "features.json").unlink(),
        lambda directory: (directory / "dataset_info.json").write_text("{"),
        promise_more_records,
        drop_the_test_split,
    ],
    ids=["truncated", "empty", "missing", "noise", "no features", "broken info", "fewer records", "no test split"],
)
def test_a_damaged_directory_is_named_with_the_command_that_makes_it_again(data_dir, version_dir, damage, cache_home):
    damage(version_dir)
    with pytest.raises(InputError, match="cannot be read; a file is missing, truncated or damaged") as caught:
        data.load("cifar10", data_dir)
    assert str(caught.value).startswith(f"{version_dir}: ")
    assert f"tfds.builder('cifar10', data_dir='{data_dir}', file_format='array_record')" in str(caught.value)
    assert not cache_home.exists()


FEATURES = "tensorflow_datasets.core.features."


@pytest.mark.parametrize(
    "forge",
    [
        lambda json: json.replace(f"{FEATURES}text_feature.Text", "hostile.Feature"),
        lambda json: json.replace(f"{FEATURES}features_dict.FeaturesDict", "hostile.Feature"),
        lambda json: '{"type": "hostile.Feature", "content": {}, ' + json[1:],
        lambda json: json.replace('"text": {}', '"text": {}, "python_class_name": "hostile.Feature"'),
    ],
    ids=["of a feature", "of all", "legacy", "spelt in two ways"],
)
def test_no_module_is_imported_that_features_json_names(data_dir, version_dir, tmp_path, monkeypatch, forge):
    (tmp_path / "hostile.py").write_text("raise SystemExit('it was imported')")
    monkeypatch.syspath_prepend(tmp_path)
    features = (version_dir / "features.json").read_text()
    (version_dir / "features.json").write_text(forge(features))
    assert "hostile" in (version_dir / "features.json").read_text()
    with pytest.raises(InputError, match="cannot be read; a file is missing, truncated or damaged"):
        data.load("cifar10", data_dir)


def test_tfrecord_is_refused_with_the_command_for_array_record(data_dir, version_dir):
    for file in version_dir.glob("*.array_record-*"):
        file.rename(version_dir / file.name.replace("array_record", "tfrecord"))
    info = (version_dir / "dataset_info.json").read_text()
    (version_dir / "dataset_info.json").write_text(info.replace("array_record", "tfrecord"))
    with pytest.raises(InputError, match="prepared as tfrecord, .*; allowed is array_record") as caught:
        data.load("cifar10", data_dir)
    assert f"data_dir='{data_dir}', file_format='array_record').download_and_prepare()" in str(caught.value)


def test_images_of_another_size_are_refused(tmp_path):
    images, labels = np.zeros((4, 28, 30, 3), np.uint8), np.arange(4)
    prepare("cifar10", {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels}, tmp_path)
    with pytest.raises(
        InputError, match=r"/cifar10/3.*, train, train_0: an image of 30 x 28 pixels of mode RGB; allowed"
    ):
        data.load("cifar10", tmp_path)


def test_without_tensorflow_datasets_the_error_gives_the_install_command(prepared, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(InputError, match=r"cannot be imported .* pip install 'wcjax\[data\]'"):
        data.load("cifar10", prepared[0])


def test_a_filled_cache_needs_no_tensorflow_datasets(prepared, monkeypatch):
    first = data.load("cifar10", prepared[0])
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    assert_same(first, data.load("cifar10", prepared[0]))


@pytest.mark.skipif(not os.environ.get("WCJAX_DATA_DIR"), reason="real CIFAR-10: set WCJAX_DATA_DIR to its data_dir")
def test_the_real_cifar10_has_its_known_sizes_classes_and_channel_statistics():
    dataset = data.load("cifar10", os.environ["WCJAX_DATA_DIR"])
    assert [len(split.labels) for split in dataset[:3]] == [45_000, 5_000, 10_000]
    labels = np.concatenate([dataset.train.labels, dataset.val.labels])
    np.testing.assert_array_equal(np.bincount(labels), [5_000] * 10)
    np.testing.assert_array_equal(np.bincount(dataset.test.labels), [1_000] * 10)
    # The published values of the 50,000 official training images; 45,000 of them differ a little.
    np.testing.assert_allclose(dataset.mean, [0.4914, 0.4822, 0.4465], atol=2e-3)
    np.testing.assert_allclose(dataset.std, [0.2470, 0.2435, 0.2616], atol=2e-3)
