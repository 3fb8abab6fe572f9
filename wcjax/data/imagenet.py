"""ImageNet from a local path. It is streamed, and evaluated on its official validation split."""

from wcjax.data.formats import folder, tfds
from wcjax.data.formats.records import Records
from wcjax.errors import InputError


def read(name, data_dir):
    """(train, val, num_classes) of ImageNet, or of a folder with train/<class>/<image> and val/<class>/<image>.

    Raises:
      InputError: the data do not exist, or cannot be used.
    """
    path = folder.streamed_directory(name, data_dir, _how_to_get)
    if version := tfds.newest_version(path / "imagenet2012"):
        train, val = Records(str(version), "train"), Records(str(version), "validation")
        return train, val, train.num_classes
    if (path / "train").is_dir():
        return folder.read_class_folders(path)
    raise InputError(
        f"{name}: {path} contains neither train/ nor imagenet2012/<version>/dataset_info.json. {_how_to_get(path)}"
    )


def _how_to_get(directory):
    return (
        "Pass as data_dir a folder with train/<class>/<image> and val/<class>/<image>. Or download the ILSVRC 2012 "
        "archives from image-net.org into downloads/manual below the directory and prepare them once (needs "
        "TensorFlow):\n"
        "    pip install 'wcjax[prepare]'\n"
        f"    {tfds.prepare_command('imagenet2012', directory)}\n"
        f"and pass data_dir='{directory}'."
    )
