"""imagenet2012 as tensorflow_datasets prepares it: written here by its own builder, without TensorFlow."""

import pickle
import shutil

import numpy as np
import pytest

from tests.data import pictures
from wcjax import data
from wcjax.data import stream
from wcjax.errors import InputError

tfds = pytest.importorskip("tensorflow_datasets", reason="needs pip install 'wcjax[data]'")

CLASSES = (3, 999, 0)


def contents(split):
    """{file name: (bytes of a JPEG, class)}, five of a split."""
    rng = np.random.default_rng(len(split))
    jpeg = lambda: pictures.encode(pictures.smooth(rng, 20, 24))
    return {f"{split}_{i}.JPEG": (jpeg(), CLASSES[i % len(CLASSES)]) for i in range(5)}


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """A data_dir with a tiny imagenet2012. Read only."""
    root = tmp_path_factory.mktemp("prepared")
    written = root / "written"
    written.mkdir()

    def examples(split):
        for name, (content, label) in contents(split).items():
            (written / name).write_bytes(content)
            yield name, {"file_name": name, "image": written / name, "label": label}

    with tfds.core.registered.skip_registration():

        class Prepared(tfds.builder_cls("imagenet2012")):
            def _split_generators(self, dl_manager):
                return {split: examples(split) for split in ("train", "validation")}

    Prepared.name = "imagenet2012"
    Prepared(data_dir=root, file_format="array_record").download_and_prepare(download_dir=root / "unused")
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
