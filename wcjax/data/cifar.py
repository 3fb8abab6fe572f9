"""CIFAR-10 and CIFAR-100 from a local path, in either of two formats: .npz or tensorflow_datasets."""

from wcjax.data.dataset import sorted_by_content
from wcjax.data.formats import npz, tfds
from wcjax.errors import InputError
from wcjax.system.paths import local_path

NUM_CLASSES = {"cifar10": 10, "cifar100": 100}


def read(name, data_dir):
    """(train, test, num_classes) of 'cifar10' or 'cifar100' (fine labels), images (n, 32, 32, 3).

    train is in the order of `sorted_by_content`, test in the order of the file.

    Raises:
      InputError: the data do not exist, or cannot be used.
    """
    train, test = _read(name, data_dir)
    return sorted_by_content(train), test, NUM_CLASSES[name]


def _read(name, data_dir):
    if not data_dir:
        raise InputError(f"{name} needs data_dir. {_how_to_get(name, 'DIR')}")
    path = local_path(data_dir, "data_dir")
    if path.suffix == ".npz" and path.is_file():
        return npz.read(path, NUM_CLASSES[name])
    if (path / f"{name}.npz").is_file():
        return npz.read(path / f"{name}.npz", NUM_CLASSES[name])

    if version := tfds.newest_version(path / name):
        return tfds.read(version, NUM_CLASSES[name])

    if path.is_file():
        raise InputError(
            f"{name}: {path} is a file; data_dir must be a directory or an .npz file. {_how_to_get(name, 'DIR')}"
        )
    if path.suffix == ".npz" and not path.is_dir():
        raise InputError(f"{name}: there is no file {path}. {_how_to_get(name, path.parent)}")
    if not path.is_dir():
        raise InputError(f"{name}: there is no directory {path}. {_how_to_get(name, path)}")
    raise InputError(
        f"{name}: {path} contains neither {name}.npz nor {name}/<version>/dataset_info.json. {_how_to_get(name, path)}"
    )


def _how_to_get(name, directory):
    return (
        "Prepare it once (needs TensorFlow and a download):\n"
        "    pip install 'wcjax[prepare]'\n"
        f"    {tfds.prepare_command(name, directory)}\n"
        f"and pass data_dir='{directory}'. Or pass as data_dir an .npz file, or a directory that contains {name}.npz, "
        "with the arrays x_train and x_test (uint8, shape (n, 32, 32, 3)), y_train and y_test (integers "
        f"0..{NUM_CLASSES[name] - 1}, shape (n,))."
    )
