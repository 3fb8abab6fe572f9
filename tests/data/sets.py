"""Small data sets: the arrays of CIFAR, and directories that the builders of tensorflow_datasets write."""

import io

import numpy as np
from PIL import Image

from tests.data import pictures

IMAGENET_CLASSES = (3, 999, 0)


def cifar_arrays(num_train=40, num_test=6, num_classes=10):
    rng = np.random.default_rng(12345)
    return {
        "x_train": rng.integers(0, 256, (num_train, 32, 32, 3), np.uint8),
        "y_train": np.append(rng.integers(0, num_classes, num_train - 1, np.int32), np.int32(num_classes - 1)),
        "x_test": rng.integers(0, 256, (num_test, 32, 32, 3), np.uint8),
        "y_test": rng.integers(0, num_classes, num_test, np.int32),
    }


def pairs(*splits):
    """Every image with its label, sorted."""
    return sorted((image.tobytes(), int(label)) for split in splits for image, label in zip(*split, strict=True))


def prepare(name, data_dir, examples, shards=None):
    """Writes {split: [(key, example)]} as the official builder `name` does. Returns the directory of the version."""
    import tensorflow_datasets as tfds  # here, because many tests make arrays alone

    official = tfds.builder_cls(name)
    with tfds.core.registered.skip_registration():

        class Builder(official):
            def _split_generators(self, dl_manager):
                return examples

    Builder.name = name
    Builder(data_dir=data_dir, file_format="array_record").download_and_prepare(
        download_dir=data_dir / "unused", download_config=tfds.download.DownloadConfig(num_shards=shards)
    )
    (version,) = (data_dir / name).iterdir()
    return version


def prepare_cifar(name, data_dir, arrays):
    def example(split, i):
        # An image of Pillow, because encoding an array takes TensorFlow.
        image, label = Image.fromarray(arrays[f"x_{split}"][i]), int(arrays[f"y_{split}"][i])
        coarse = {"coarse_label": label % 20} if name == "cifar100" else {}
        return i, {"id": f"{split}_{i}", "image": image, "label": label} | coarse

    examples = {split: [example(split, i) for i in range(len(arrays[f"x_{split}"]))] for split in ("train", "test")}
    return prepare(name, data_dir, examples)


def imagenet_images(split, number=5, classes=IMAGENET_CLASSES):
    """{file name: (bytes of a JPEG, class)}."""
    rng = np.random.default_rng(len(split))
    jpeg = lambda: pictures.encode(pictures.smooth(rng, 20, 24))
    return {f"{split}_{i}.JPEG": (jpeg(), classes[i % len(classes)]) for i in range(number)}


def prepare_imagenet(data_dir, number=5, shards=None, classes=IMAGENET_CLASSES):
    examples = {}
    for split in ("train", "validation"):
        images = imagenet_images(split, number, classes).items()
        examples[split] = [
            (name, {"file_name": name, "image": io.BytesIO(content), "label": label})
            for name, (content, label) in images
        ]
    return prepare("imagenet2012", data_dir, examples, shards)
