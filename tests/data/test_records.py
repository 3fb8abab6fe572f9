"""imagenet2012 of tensorflow_datasets: encoded images and classes, many files, and one clear line for damaged ones."""

import pickle
import re
import shutil

import pytest
import tensorflow_datasets as tfds

from tests.data import pictures, sets
from tests.processes import python
from wcjax import data
from wcjax.errors import InputError


@pytest.fixture
def version_dir(prepared_imagenet, tmp_path):
    """A copy that a test may change, in the data_dir tmp_path."""
    shutil.copytree(prepared_imagenet / "imagenet2012", tmp_path / "imagenet2012")
    (directory,) = (tmp_path / "imagenet2012").iterdir()
    return directory


def file_name(name):
    return name.rpartition(" ")[2]


def test_records_give_bytes_and_classes_in_official_order(prepared_imagenet):
    dataset = data.load("imagenet", prepared_imagenet)
    assert (dataset.train.num_images, dataset.val.num_images, dataset.num_classes) == (5, 5, 1000)
    assert dataset.test is dataset.val
    for source, split in ((dataset.train, "train"), (dataset.val, "validation")):
        images = sets.imagenet_images(split)
        assert {file_name(source[i].name): source[i][1:] for i in range(5)} == images
        official = tfds.builder("imagenet2012", data_dir=prepared_imagenet).as_data_source(split)
        names = [record["file_name"].decode() for record in official]
        assert [file_name(source[i].name) for i in range(5)] == names


@pytest.mark.parametrize("form", ["records", "folder"])
def test_a_pickled_source_has_no_image_and_no_open_file(prepared_imagenet, tmp_path, form):
    val = data.load("imagenet", prepared_imagenet if form == "records" else pictures.class_folders(tmp_path)).val
    content = pickle.dumps(val)
    assert len(content) < 2000 and pickle.loads(content)[4] == val[4]


def test_a_class_out_of_range_is_named_with_the_record(version_dir):
    features = (version_dir / "features.json").read_text()
    assert features.count('"1000"') == 1
    (version_dir / "features.json").write_text(features.replace('"1000"', '"999"'))
    for names in version_dir.glob("*labels.txt"):
        names.unlink()
    val = data.load("imagenet", version_dir.parents[1]).val
    message = r"imagenet2012/.*, validation, validation_\d.JPEG: class 999; allowed are 0..998"
    with pytest.raises(InputError, match=message):
        [val[i] for i in range(5)]


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_directory_damaged_before_or_after_loading_is_named(version_dir, moment):
    if moment == "before":
        for file in version_dir.glob("*array_record*"):
            file.write_bytes(file.read_bytes()[:64])
    with pytest.raises(InputError, match=rf"^{version_dir}: cannot be read; a file is missing, truncated or damaged"):
        source = data.load("imagenet", version_dir.parents[1]).val
        shutil.rmtree(version_dir)
        source[0]


READ_ALL = """
import os, resource, sys
import tensorflow_datasets
from wcjax import data
from wcjax.errors import InputError
for limit in sys.argv[2:]:
    if child := os.fork():
        os.waitpid(child, 0)
        continue
    dataset = data.load("imagenet", sys.argv[1])
    if limit == "few":
        dataset.train[0]; dataset.val[0]
        limit = hard = len(os.listdir("/proc/self/fd")) - 1
    else:
        limit, hard = map(int, limit.split())
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        labels = [source[i].label for source in dataset[:2] for i in range(80)]
        still_open = [os.readlink(entry.path) for entry in os.scandir("/proc/self/fd") if os.path.exists(entry.path)]
        print(len(labels), sum(".array_record" in path for path in still_open), flush=True)
    except InputError as error:
        print(error, flush=True)
    os._exit(0)
"""


def test_a_set_of_more_files_than_may_be_open_is_read(tmp_path):
    version_dir = sets.prepare_imagenet(tmp_path, number=80, shards=80)
    ended = python("-c", READ_ALL, tmp_path, "64 4096", "64 64", "few")
    raised, reopened, refused = ended.stdout.splitlines()
    assert raised == "160 160", "the limit is raised"
    count, still_open = map(int, reopened.split())
    assert count == 160 and still_open <= 16, "fewer files are open at once"
    message = r": too many open files\. This process may open \d+\. Raise that limit \(ulimit -n, LimitNOFILE\)\."
    assert re.fullmatch(re.escape(str(version_dir)) + message, refused)
