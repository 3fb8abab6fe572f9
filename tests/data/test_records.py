"""imagenet2012 as tensorflow_datasets prepares it: written here by its own builder, without TensorFlow."""

import pickle
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from tests.data import pictures
from wcjax import data
from wcjax.data.streaming import batches as stream
from wcjax.errors import InputError

tfds = pytest.importorskip("tensorflow_datasets", reason="needs pip install 'wcjax[data]'")

CLASSES = (3, 999, 0)


def contents(split, number=5, classes=CLASSES):
    """{file name: (bytes of a JPEG, class)} of a split."""
    rng = np.random.default_rng(len(split))
    jpeg = lambda: pictures.encode(pictures.smooth(rng, 20, 24))
    return {f"{split}_{i}.JPEG": (jpeg(), classes[i % len(classes)]) for i in range(number)}


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """A data_dir with a tiny imagenet2012. Read only."""
    return prepare(tmp_path_factory.mktemp("prepared"))


def prepare(root, number=5, shards=None, classes=CLASSES):
    written = root / "written"
    written.mkdir()

    def examples(split):
        for name, (content, label) in contents(split, number, classes).items():
            (written / name).write_bytes(content)
            yield name, {"file_name": name, "image": written / name, "label": label}

    with tfds.core.registered.skip_registration():

        class Prepared(tfds.builder_cls("imagenet2012")):
            def _split_generators(self, dl_manager):
                return {split: examples(split) for split in ("train", "validation")}

    Prepared.name = "imagenet2012"
    config = tfds.download.DownloadConfig(num_shards=shards)
    Prepared(data_dir=root, file_format="array_record").download_and_prepare(
        download_dir=root / "unused", download_config=config
    )
    return root


def test_every_record_gives_the_bytes_that_were_written_with_their_class(prepared):
    dataset = data.load("imagenet", prepared)
    assert (dataset.train.num_images, dataset.val.num_images, dataset.num_classes) == (5, 5, 1000)
    assert dataset.test is dataset.val
    for source, split in ((dataset.train, "train"), (dataset.val, "validation")):
        found = [source[i] for i in range(5)]
        expected = contents(split)
        assert {encoded.name.rsplit(" ", 1)[1] for encoded in found} == set(expected)
        for name, content, label in found:
            assert (content, label) == expected[name.rsplit(" ", 1)[1]]


def test_records_are_streamed_by_workers_that_open_the_files_themselves(prepared):
    val = data.load("imagenet", prepared).val
    assert len(pickle.dumps(val)) < 1000
    batches = stream.eval_batches(val, 3, size=16, workers=1)
    labels = np.concatenate([next(batches).labels for _ in range(2)])
    batches.close()
    assert sorted(labels) == [-1, 0, 3, 3, 999, 999]


def test_a_class_that_there_is_not_is_named_with_the_record(prepared, monkeypatch):
    val = data.load("imagenet", prepared).val
    monkeypatch.setattr(type(val), "num_classes", 999)
    with pytest.raises(
        InputError, match=r"imagenet2012/.*, validation, validation_\d.JPEG: class 999; allowed are 0..998"
    ):
        [val[i] for i in range(5)]


def test_damaged_records_are_reported_with_the_directory(prepared, tmp_path):
    shutil.copytree(prepared / "imagenet2012", tmp_path / "imagenet2012")
    (version,) = (tmp_path / "imagenet2012").iterdir()
    for shard in version.glob("*train*array_record*"):
        shard.write_bytes(shard.read_bytes()[:64])
    with pytest.raises(InputError, match=r"imagenet2012/\d\.\d\.\d: cannot be read; a file is missing, truncated or"):
        data.load("imagenet", tmp_path).train[0]


READ_ALL = """
import os, resource, sys
from wcjax import data
from wcjax.errors import InputError
dataset = data.load("imagenet", sys.argv[1])
exec(sys.argv[2])
try:
    read = [source[i].label for source in dataset[:2] for i in range(80)]
    still_open = [os.readlink(entry.path) for entry in os.scandir("/proc/self/fd") if os.path.exists(entry.path)]
    print(len(read), sum(".array_record" in path for path in still_open))
except InputError as error:
    print(error)
"""


def read_all(root, before):
    """What a process prints that loads root, runs `before`, reads every record, and counts the files still open."""
    command = [sys.executable, "-c", READ_ALL, str(root), before]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_a_set_of_more_files_than_may_be_open_is_read(tmp_path):
    root = prepare(tmp_path, number=80, shards=80)
    assert read_all(root, "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 4096))") == "160 160\n", (
        "the limit is raised"
    )
    count, still_open = map(int, read_all(root, "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))").split())
    assert count == 160 and still_open <= 16, "fewer are open at once"
    limit = "dataset.train[0]; dataset.val[0]; number = len(os.listdir('/proc/self/fd')) - 1"
    line = read_all(root, f"{limit}; resource.setrlimit(resource.RLIMIT_NOFILE, (number, number))")
    assert re.fullmatch(
        rf"{root}/imagenet2012/5\.1\.0: too many open files\. This process may open \d+\. "
        r"Raise that limit \(ulimit -n, LimitNOFILE\)\.\n",
        line,
    )


def test_the_fingerprint_of_records_changes_with_their_files_and_labels(prepared, tmp_path):
    found = data.load("imagenet", prepared).fingerprint()
    assert (found["classes"], found["train"]["images"]) == (1000, 5)
    assert data.load("imagenet", prepared).fingerprint() == found
    (tmp_path / "labels").mkdir()
    other = data.load("imagenet", prepare(tmp_path / "labels", classes=(4, 998, 0))).fingerprint()
    assert other["train"]["labels"] != found["train"]["labels"]
    (tmp_path / "files").mkdir()
    other = data.load("imagenet", prepare(tmp_path / "files", shards=5)).fingerprint()
    assert other["train"]["content"] != found["train"]["content"]


def test_a_directory_that_vanished_is_reported_as_damaged(prepared, tmp_path):
    shutil.copytree(prepared / "imagenet2012", tmp_path / "imagenet2012")
    val = data.load("imagenet", tmp_path).val
    shutil.rmtree(tmp_path / "imagenet2012")
    with pytest.raises(InputError, match=r"imagenet2012/\d\.\d\.\d: cannot be read; a file is missing, truncated or"):
        val[0]
