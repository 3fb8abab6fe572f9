"""Batches of streamed images: which images, in which order, and that only seed and step decide it."""

import re

import numpy as np
import pytest

from tests.data import pictures
from wcjax import data
from wcjax.data.streaming import batches as stream
from wcjax.data.streaming import decode
from wcjax.data.streaming.source import Encoded
from wcjax.errors import InputError

N, BATCH = 42, 8  # five batches in an epoch, and two images left out
EPOCH = N // BATCH
SIZE = 16


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """42 training and 15 val images in three classes."""
    return data.load("imagenet", pictures.class_folders(tmp_path_factory.mktemp("pictures") / "set"))


def take(iterator, count):
    try:
        return [next(iterator) for _ in range(count)]
    finally:
        iterator.close()


def train(dataset, count=EPOCH, **options):
    return take(stream.train_batches(dataset.train, BATCH, size=SIZE, **options), count)


def assert_same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.images, other.images)
        np.testing.assert_array_equal(one.labels, other.labels)


class Numbers:
    """A source whose i-th image says that it is the i-th, and counts how often it was read."""

    num_images = N

    def __init__(self):
        self.read = []

    def __len__(self):
        return N

    def __getitem__(self, i):
        self.read.append(i)
        return Encoded(str(i), pictures.encode(np.full((2, 2, 3), i, np.uint8), "PNG"), i)


def test_each_epoch_shows_every_image_once_in_an_order_of_its_own_but_for_those_that_fill_no_batch():
    batches = take(stream.train_batches(Numbers(), BATCH, size=2, seed=5), 3 * EPOCH)
    epochs = np.array([batch.labels for batch in batches]).reshape(3, EPOCH * BATCH)
    assert all(len(set(epoch)) == EPOCH * BATCH for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert any(set(epochs[0]) != set(epoch) for epoch in epochs[1:]), "other images are left out"
    for batch in batches:
        np.testing.assert_array_equal(batch.images[:, 0, 0, 0], batch.labels)


def test_batches_are_uint8_images_and_int32_labels(dataset):
    (batch,) = train(dataset, 1)
    assert (batch.images.shape, batch.images.dtype) == ((BATCH, SIZE, SIZE, 3), np.uint8)
    assert (batch.labels.shape, batch.labels.dtype) == ((BATCH,), np.int32)


def test_seeds_and_epochs_differ_in_order_and_crops_and_a_seed_repeats_itself(dataset):
    first, again, other = (train(dataset, 2 * EPOCH, seed=seed) for seed in (0, 0, 1))
    assert_same(first, again)
    found = {image.tobytes() for batch in first + other for image in batch.images}
    assert len(found) > 0.95 * 4 * EPOCH * BATCH, "nearly every crop is new"


@pytest.mark.parametrize("first_step", [1, EPOCH, EPOCH + 3])
def test_from_a_later_step_on_it_gives_the_same_batches_and_decodes_no_others(dataset, first_step):
    assert_same(train(dataset, 4, first_step=first_step), train(dataset, first_step + 4)[first_step:])
    numbers = Numbers()
    take(stream.train_batches(numbers, BATCH, size=2, first_step=1_000_003), 1)
    assert len(numbers.read) <= 4 * BATCH, "one batch, and what is read ahead"


def test_grains_state_of_the_iterator_goes_on_in_the_same_place(dataset):
    expected = train(dataset, 7)
    iterator = stream.train_batches(dataset.train, BATCH, size=SIZE)
    for _ in range(3):
        next(iterator)
    state = iterator.get_state()
    iterator.close()
    iterator = stream.train_batches(dataset.train, BATCH, size=SIZE)
    iterator.set_state(state)
    assert_same(take(iterator, 4), expected[3:])


def test_worker_processes_give_the_same_batches_and_name_a_broken_image(dataset, tmp_path):
    assert_same(train(dataset, 7, workers=2), train(dataset, 7))
    root = pictures.class_folders(tmp_path / "set", num_train=3)
    broken = root / "train" / "n00000001" / "train_1.JPEG"
    broken.write_bytes(broken.read_bytes()[:200])
    source = data.load("imagenet", root).train
    with pytest.raises(InputError, match=re.escape(f"{broken}: not an image that can be decoded (OSError: ")):
        take(stream.train_batches(source, 9, size=SIZE, workers=1), 1)


@pytest.mark.parametrize("count", [2, 4])
def test_several_processes_share_the_images_of_the_same_steps(dataset, count):
    shards = [train(dataset, 6, process_index=i, process_count=count) for i in range(count)]
    assert all(len(batch.labels) == BATCH // count for shard in shards for batch in shard)
    for step, whole in enumerate(train(dataset, 6)):
        for part in ("images", "labels"):
            joined = np.concatenate([getattr(shard[step], part) for shard in shards])
            np.testing.assert_array_equal(joined, getattr(whole, part))


@pytest.mark.parametrize("process_count", [1, 2])
@pytest.mark.parametrize("batch_size", [2, 4, 14, 16, 64])
def test_evaluation_gives_every_image_once_and_every_process_as_many_batches(dataset, batch_size, process_count):
    val = dataset.val
    expected = [(decode.eval_image(*val[i][:2], SIZE).tobytes(), val[i].label) for i in range(val.num_images)]
    batches = stream.num_eval_batches(val, batch_size)
    assert batches == -(-15 // batch_size)
    rounds = {1: [], 2: []}
    for i in range(process_count):
        options = {"size": SIZE, "process_index": i, "process_count": process_count}
        found = take(stream.eval_batches(val, batch_size, **options), 2 * batches)
        rounds[1] += found[:batches]
        rounds[2] += found[batches:]
    for found in rounds.values():
        assert all(batch.images.shape == (batch_size // process_count, SIZE, SIZE, 3) for batch in found)
        images, labels = (np.concatenate([batch[part] for batch in found]) for part in (0, 1))
        real = labels != stream.FILLING
        pairs = [(x.tobytes(), int(y)) for x, y in zip(images[real], labels[real], strict=True)]
        assert sorted(pairs) == sorted(expected)
        assert not images[~real].any()


def test_a_batch_that_cannot_be_shared_is_refused(dataset):
    with pytest.raises(InputError, match=r"^batch_size 8 cannot be shared by 3 processes: choose a multiple of it\.$"):
        stream.train_batches(dataset.train, BATCH, process_count=3)
