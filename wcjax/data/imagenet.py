"""ImageNet from a local path. It is streamed, and evaluated on its official validation split."""

from pathlib import Path

from wcjax.data.formats import folder, tfds
from wcjax.data.formats.records import Records
from wcjax.errors import InputError
from wcjax.extras import needs
from wcjax.paths import local_path


def read(name, data_dir):
    """(train, val, num_classes) of ImageNet, or of a folder with train/<class>/<image> and val/<class>/<image>.

    Raises:
      InputError: the data do not exist, or cannot be used.
    """
    path = check_directory(name, data_dir, _how_to_get)
    if version := tfds.newest_version(path / "imagenet2012"):
        train, val = Records(str(version), "train"), Records(str(version), "validation")
        return train, val, train.num_classes
    if (path / "train").is_dir():
        return folder.class_per_folder(path)
    raise InputError(
        f"{name}: {path} contains neither train/ nor imagenet2012/<version>/dataset_info.json. {_how_to_get(path)}"
    )


def check_directory(name, data_dir, how_to_get) -> Path:
    """The directory of a streamed data set.

    how_to_get: directory -> the sentences that say how to get the data set.

    Raises:
      InputError: the directory does not exist, or a package that streaming needs is not installed.
    """
    needs(name, "stream")
    if not data_dir:
        raise InputError(f"{name} needs data_dir. {how_to_get('DIR')}")
    path = local_path(data_dir, "data_dir")
    if not path.is_dir():
        raise InputError(f"{name}: there is no directory {path}. {how_to_get(path)}")
    return path


def _how_to_get(directory):
    return (
        "Pass as data_dir a folder with train/<class>/<image> and val/<class>/<image>. Or download the ILSVRC 2012 "
        "archives from image-net.org into downloads/manual below the directory and prepare them once (needs "
        "TensorFlow):\n"
        "    pip install 'wcjax[prepare]'\n"
        f"    {tfds.prepare_command('imagenet2012', directory)}\n"
        f"and pass data_dir='{directory}'."
    )
