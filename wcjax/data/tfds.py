"""Directories prepared by tensorflow_datasets as array_record: read without TensorFlow, decoded once, then cached."""

import contextlib
import re

import numpy as np

from wcjax.data import cache, npz
from wcjax.errors import InputError


def prepare_command(name, directory):
    """Returns the shell command that downloads `name` and prepares it in `directory` as array_record."""
    return (
        f'python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder('{name}', data_dir='{directory}', file_format='array_record').download_and_prepare()\""
    )


def read(directory, num_classes):
    """Returns (train, test) of a prepared directory `<data_dir>/<name>/<version>`, from the cache where it has them.

    Raises:
      InputError: a needed package is missing, or the directory is of another file format, truncated or damaged.
    """
    cached = cache.path(directory)
    try:
        return npz.read(cached, num_classes)
    except InputError:
        pass  # Not there yet, or damaged: both are mended by decoding.
    arrays = _decode(directory)
    splits = npz.check(arrays, directory, num_classes)
    cache.write(cached, arrays)
    return splits


def newest_version(directory):
    """The prepared directory `directory/<version>` with the highest version, or None where there is none."""
    versions = [
        version
        for version in directory.glob("*")
        if re.fullmatch(r"\d+\.\d+\.\d+", version.name) and (version / "dataset_info.json").is_file()
    ]
    return max(versions, key=lambda version: [int(number) for number in version.name.split(".")], default=None)


@contextlib.contextmanager
def reading(directory):
    """The builder of a prepared directory. What it raises in the block becomes an InputError that says what to do."""
    try:
        # Here and not above: an optional dependency, not needed once the cache is there.
        import tensorflow_datasets as tfds

        # Not tfds.builder(name): that picks the version by itself, and asks the network where it is not there.
        builder = tfds.builder_from_directory(directory)
        formats = [file_format.value for file_format in builder.info.available_file_formats()]
        if "array_record" in formats:
            yield builder
            return
    except ImportError as error:
        raise InputError(
            f"{directory}: reading it needs packages that cannot be imported ({error}). Run: pip install 'wcjax[data]'"
        ) from error
    # Damaged files make tfds and array_record raise RuntimeError, ValueError, IndexError, KeyError and others.
    except Exception as error:
        raise damaged(directory, error) from error
    raise InputError(
        f"{directory}: prepared as {', '.join(formats)}, which cannot be read without TensorFlow; allowed is "
        f"array_record. Remove the directory (or name another data_dir) and prepare it again:\n"
        f"    {_prepare_again(directory)}"
    )


def damaged(directory, error):
    """The InputError for a prepared directory whose reading raised `error`."""
    return InputError(
        f"{directory}: cannot be read; a file is missing, truncated or damaged ({type(error).__name__}: {error}). "
        f"Remove the directory and prepare it again:\n    {_prepare_again(directory)}"
    )


def _decode(directory):
    """Returns the images and labels of all records as a dict with npz.KEYS."""
    with reading(directory) as builder:
        return _read_records(builder)


def _prepare_again(directory):
    return prepare_command(directory.parent.name, directory.parent.parent)


def _read_records(builder):
    from tqdm import tqdm

    arrays = {}
    # disable=None: no bar where stderr is not a terminal.
    with tqdm(total=builder.info.splits.total_num_examples, desc="decoding", unit=" images", disable=None) as bar:
        for split in ("train", "test"):
            source = builder.as_data_source(split, file_format="array_record")
            images, labels = [], []
            # Reading many records at once takes half the time of one by one; threads gain nothing.
            for start in range(0, len(source), 500):
                records = source.__getitems__(range(start, min(start + 500, len(source))))
                images.append(np.stack([record["image"] for record in records]))
                labels.append(np.array([record["label"] for record in records], np.int32))
                bar.update(len(records))
            arrays[f"x_{split}"] = np.concatenate(images)
            arrays[f"y_{split}"] = np.concatenate(labels)
    return arrays
