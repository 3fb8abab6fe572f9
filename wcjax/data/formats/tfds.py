"""Directories prepared by tensorflow_datasets as array_record. They are read without TensorFlow, and cached."""

import contextlib
import io
import json
import os
import re
import resource

import numpy as np

from wcjax.data.formats import cache, npz
from wcjax.errors import InputError, short_repr
from wcjax.system.paths import check_readable

_FEATURES_MODULE = "tensorflow_datasets.core.features."
_FEATURE_KEYS = {"pythonClassName", "description", "text", "image", "classLabel"}  # others could name a second class
FEATURES = {  # of cifar10, cifar100 and imagenet2012
    "image": "image_feature.Image",
    "label": "class_label_feature.ClassLabel",
    "coarse_label": "class_label_feature.ClassLabel",
    "id": "text_feature.Text",
    "file_name": "text_feature.Text",
}


def prepare_command(name, directory):
    """The shell command that downloads `name` and prepares it in `directory` as array_record."""
    return (
        f'python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder('{name}', data_dir='{directory}', file_format='array_record').download_and_prepare()\""
    )


def read(directory, num_classes):
    """(train, test) of a prepared directory `<data_dir>/<name>/<version>`, from the cache if it has them.

    Raises:
      InputError: a needed package is missing, or the directory has another file format, is truncated or damaged.
    """
    cache_file = cache.path(directory)
    if cache_file is not None:
        # A cache file that is missing, damaged or unreadable is replaced.
        with contextlib.suppress(InputError, PermissionError):
            return npz.read(cache_file, num_classes)
    with open_builder(directory) as builder:
        arrays = _decode(builder, directory)
    splits = npz.checked_splits(arrays, directory, num_classes)
    if cache_file is not None:
        cache.write(cache_file, arrays)
    return splits


def newest_version(directory):
    """The prepared directory `directory/<version>` with the highest version, or None if there is none."""
    # Not glob, which finds nothing in a directory that it has no permission to list.
    names = os.listdir(directory) if directory.is_dir() else []
    versions = [
        version
        for version in map(directory.joinpath, names)
        if re.fullmatch(r"\d+\.\d+\.\d+", version.name) and (version / "dataset_info.json").is_file()
    ]
    return max(versions, key=lambda version: [int(number) for number in version.name.split(".")], default=None)


@contextlib.contextmanager
def open_builder(directory):
    """The builder of a prepared directory. An error in the block becomes an InputError that says what to do."""
    try:
        increase_open_file_limit(directory)
        # Imported here because it is an optional dependency, which the cache makes unnecessary.
        import tensorflow_datasets as tfds

        _check_features(directory)
        # Not tfds.builder(name), which chooses the version and asks the network if it does not exist.
        builder = tfds.builder_from_directory(directory)
        formats = [file_format.value for file_format in builder.info.available_file_formats()]
        if "array_record" in formats:
            yield builder
            return
    except ImportError as error:
        raise InputError(
            f"{directory}: reading it needs packages that cannot be imported ({error}). Run: pip install 'wcjax[data]'"
        ) from error
    except InputError:
        raise
    except Exception as error:  # for damaged files RuntimeError, ValueError, IndexError, KeyError and others
        raise damage_error(directory, error) from error
    raise InputError(
        f"{directory}: prepared as {', '.join(formats)}, which cannot be read without TensorFlow; allowed is "
        f"array_record. Remove the directory (or name another data_dir) and prepare it again:\n"
        f"    {_prepare_again(directory)}"
    )


def _check_features(directory):
    """Raises ValueError if features.json names a feature that FEATURES lacks, because tfds imports what it names."""
    content = json.loads((directory / "features.json").read_text(encoding="utf-8"))
    features = content["featuresDict"]["features"]
    outer = {"pythonClassName": f"{_FEATURES_MODULE}features_dict.FeaturesDict", "featuresDict": {"features": features}}
    for name, feature in features.items():
        is_known = feature["pythonClassName"] == _FEATURES_MODULE + FEATURES.get(name, "")
        if content != outer or not is_known or not feature.keys() <= _FEATURE_KEYS:
            raise ValueError(f"features.json has {short_repr(content)}; allowed are {FEATURES}")


def increase_open_file_limit(directory) -> int:
    """Increases this process's limit of open files to what a prepared directory needs, as far as the system allows.

    Returns how many files of a split may be open at once: all of them if the limit suffices, otherwise an eighth of the
    limit, which leaves room for the other splits.
    """
    number = len(os.listdir(directory))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return number
    sufficient = max(soft, number + 1024)
    soft = sufficient if hard == resource.RLIM_INFINITY else min(sufficient, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return number if soft == sufficient else max(1, soft // 8)


def encoded_records(builder, split):
    """The records of a split, whose images are still encoded."""
    import tensorflow_datasets as tfds

    skip = {"image": tfds.decode.SkipDecoding()}
    return builder.as_data_source(split, decoders=skip, file_format="array_record")


def damage_error(directory, error):
    """The InputError for a prepared directory that raised `error` when it was read."""
    if "Too many open files" in str(error):
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return InputError(
            f"{directory}: too many open files. This process may open {limit:,}. "
            "Raise that limit (ulimit -n, LimitNOFILE)."
        )
    check_readable(directory)
    return InputError(
        f"{directory}: cannot be read; a file is missing, truncated or damaged ({type(error).__name__}: {error}). "
        f"Remove the directory and prepare it again:\n    {_prepare_again(directory)}"
    )


def _prepare_again(directory):
    return prepare_command(directory.parent.name, directory.parent.parent)


def _decode(builder, directory):
    """The images and labels of all records as a dict with npz.KEYS."""
    from tqdm import tqdm

    arrays = {}
    # disable=None: no bar unless stderr is a terminal.
    with tqdm(total=builder.info.splits.total_num_examples, desc="decoding", unit=" images", disable=None) as bar:
        for split in ("train", "test"):
            source = encoded_records(builder, split)
            images, labels = [], []
            # Reading many records at once takes half the time of reading them one by one. Threads do not help.
            for start in range(0, len(source), 500):
                records = source.__getitems__(range(start, min(start + 500, len(source))))
                images.append(np.stack([_pixels(record, f"{directory}, {split}") for record in records]))
                labels.append(np.array([record["label"] for record in records], np.int32))
                bar.update(len(records))
            arrays[f"x_{split}"] = np.concatenate(images)
            arrays[f"y_{split}"] = np.concatenate(labels)
    return arrays


def _pixels(record, source):
    """The image of a record. Its size is checked first, because decoding a forged image could take all memory."""
    from PIL import Image

    image = Image.open(io.BytesIO(record["image"]), formats=["PNG"])
    height, width, _ = npz.IMAGE_SHAPE
    if (image.width, image.height, image.mode) != (width, height, "RGB"):
        raise InputError(
            f"{source}, {record['id'].decode(errors='backslashreplace')}: an image of {image.width} x {image.height} "
            f"pixels of mode {image.mode}; allowed are {width} x {height} of RGB. Is it another data set?"
        )
    return np.asarray(image)
