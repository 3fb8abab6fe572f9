"""Batches of streamed images: their images and order, which seed and step alone decide."""

import multiprocessing
import os
import signal

import chex
import numpy as np
import pytest

from tests.data import pictures
from wcjax import data
from wcjax.data.dataset import num_batches
from wcjax.data.streaming import batches, decode
from wcjax.data.streaming.source import Encoded
from wcjax.errors import InputError

N, BATCH = 42, 8  # an epoch has five batches and omits two images
EPOCH = N // BATCH
SIZE = 16
LOADING = batches.Loading(BATCH, SIZE)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """42 training and 15 val images in three classes."""
    return data.load("imagenet", pictures.class_folders(tmp_path_factory.mktemp("pictures") / "set"))


def take(iterator, count):
    try:
        return [next(iterator) for _ in range(count)]
    finally:
        iterator.close()


def train(dataset, count=EPOCH, loading=LOADING, **options):
    return take(batches.train_batches(dataset.train, loading, **options), count)


class Numbers:
    """A source whose i-th image shows the number i, and which records the images that are read."""

    num_images = N

    def __init__(self):
        self.reads = []

    def __len__(self):
        return N

    def __getitem__(self, i):
        self.reads.append(i)
        return Encoded(str(i), pictures.encode(np.full((2, 2, 3), i, np.uint8), "PNG"), i)


def test_each_epoch_shows_images_once_in_its_own_order():
    steps = take(batches.train_batches(Numbers(), LOADING._replace(size=2), seed=5), 3 * EPOCH)
    epochs = np.array([batch.labels for batch in steps]).reshape(3, EPOCH * BATCH)
    assert all(len(set(epoch)) == EPOCH * BATCH for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert any(set(epochs[0]) != set(epoch) for epoch in epochs[1:]), "other images are omitted"
    for batch in steps:
        np.testing.assert_array_equal(batch.images[:, 0, 0, 0], batch.labels)


def test_a_seed_repeats_itself_and_draws_new_crops(dataset):
    first, again, other = (train(dataset, 2 * EPOCH, seed=seed) for seed in (0, 0, 1))
    chex.assert_trees_all_equal(first, again)
    images = {image.tobytes() for batch in first + other for image in batch.images}
    assert len(images) > 0.95 * 4 * EPOCH * BATCH, "nearly every crop is new"
    assert (first[0].images.shape, first[0].images.dtype) == ((BATCH, SIZE, SIZE, 3), np.uint8)
    assert (first[0].labels.shape, first[0].labels.dtype) == ((BATCH,), np.int32)


def test_a_later_start_continues_with_the_same_batches(dataset):
    whole, first_step = train(dataset, EPOCH + 7), EPOCH + 3
    chex.assert_trees_all_equal(train(dataset, 4, first_step=first_step), whole[first_step:])
    iterator = batches.train_batches(dataset.train, LOADING)
    for _ in range(first_step):
        next(iterator)
    state = iterator.get_state()
    iterator.close()
    iterator = batches.train_batches(dataset.train, LOADING)
    iterator.set_state(state)
    chex.assert_trees_all_equal(take(iterator, 4), whole[first_step:])


def test_images_before_the_first_step_are_not_decoded():
    numbers = Numbers()
    take(batches.train_batches(numbers, LOADING._replace(size=2), first_step=1_000_003), 1)
    assert len(numbers.reads) <= 4 * BATCH, "one batch, and those that are read ahead"


@pytest.mark.long
def test_signals_do_not_change_the_batches_of_workers(dataset):
    iterator = batches.train_batches(dataset.train, LOADING._replace(workers=2))
    first = [next(iterator) for _ in range(2)]  # one of each worker
    for worker in multiprocessing.active_children():
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(worker.pid, number)
    chex.assert_trees_all_equal(first + take(iterator, 20), train(dataset, 22))


def test_processes_share_the_images_of_the_same_steps(dataset):
    shards = [train(dataset, 6, LOADING._replace(process_index=i, process_count=4)) for i in range(4)]
    assert all(len(batch.labels) == BATCH // 4 for shard in shards for batch in shard)
    for step, whole in enumerate(train(dataset, 6)):
        for part in ("images", "labels"):
            joined = np.concatenate([getattr(shard[step], part) for shard in shards])
            np.testing.assert_array_equal(joined, getattr(whole, part))
    with pytest.raises(InputError, match=r"^batch_size 8 cannot be shared by 3 processes: choose a multiple of 3\.$"):
        batches.train_batches(dataset.train, LOADING._replace(process_count=3))


@pytest.mark.parametrize("batch_size, process_count, length", [(4, 2, 4), (14, 1, 2), (64, 2, 1)])
def test_evaluation_shows_every_image_once_a_pass(dataset, batch_size, process_count, length):
    val = dataset.val
    expected = sorted((decode.eval_image(*val[i][:2], SIZE).tobytes(), val[i].label) for i in range(val.num_images))
    assert num_batches(val.num_images, batch_size) == length
    shards = []
    for i in range(process_count):
        loading = batches.Loading(batch_size, SIZE, process_index=i, process_count=process_count)
        shards.append(take(batches.eval_batches(val, loading), 2 * length))
    for start in (0, length):
        shown = [batch for shard in shards for batch in shard[start : start + length]]
        assert {batch.images.shape for batch in shown} == {(batch_size // process_count, SIZE, SIZE, 3)}
        images, labels = (np.concatenate([batch[part] for batch in shown]) for part in (0, 1))
        real = labels != batches.PADDING_LABEL
        assert sorted((x.tobytes(), int(y)) for x, y in zip(images[real], labels[real], strict=True)) == expected
        assert not images[~real].any()
