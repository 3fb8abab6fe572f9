"""Accuracy of the folded network of a run.

python -m wcjax.training.evaluate RUN [--data_dir DIR]
"""

import argparse
import os
import pathlib
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp

from wcjax import run_folder
from wcjax.commands import command, program
from wcjax.config.build import load_dataset, make_model
from wcjax.data import Dataset, image_shape
from wcjax.devices import check_devices
from wcjax.errors import InputError
from wcjax.paths import local_path
from wcjax.run_folder.checkpoints import load_tree
from wcjax.run_folder.fingerprint import checked_dataset
from wcjax.training import compilation, feed, sharding
from wcjax.training.in_flight import InFlight
from wcjax.training.train_state import zero_totals


def evaluate(eval_step, params, batch_stats, split_feed: feed.Feed, after_batch: Callable = lambda: None) -> dict:
    """{'loss', 'accuracy'} over all images of a split, each counted once.

    eval_step: from `compilation.compile_eval_step`.
    after_batch: called after each batch.
    """
    totals, in_flight = zero_totals(split_feed.mesh), InFlight()
    for inputs in split_feed.one_pass():
        totals = eval_step(params, batch_stats, totals, inputs)
        in_flight.add(totals.seen)
        after_batch()
    return totals.means()


def load_folded(run, num_classes: int | None = None):
    """(model, variables) of a finished run: the plain network and its best weights.

    Args:
      run: the run folder.
      num_classes: the number of classes of the data set. If it is omitted, data.json tells it.

    Returns:
      model, and variables = {'params', 'batch_stats'} for model.apply(variables, images, train=False), with images
      normalized as in training.

    Raises:
      InputError: the run has not finished, or its weights have other names, shapes or dtypes than the network of its
        config, or hold nan or inf. Shapes are checked before any weight is read.
    """
    config, folder = run_folder.read_config(run), pathlib.Path(run, "folded")
    if num_classes is None:
        if (data_record := run_folder.read(run, "data.json")) is None:
            raise InputError(
                f"{run} has no data.json, which holds the number of classes. Train in a new folder, or call "
                "wcjax.training.load_folded(run, num_classes)."
            )
        num_classes = data_record["classes"]
    model = make_model(config, num_classes, plain=True)
    images = jax.ShapeDtypeStruct((1, *image_shape(config.dataset, config.image_size)), jnp.float32)
    return model, load_tree(folder, like=jax.eval_shape(model.init, jax.random.key(0), images))


def load_dataset_of_run(run, data_dir: str | None = None) -> Dataset:
    """The data set of a run folder, from data_dir if it is not None.

    Raises InputError if it cannot be read. The message says so if the path that the run has stored does not exist.
    """
    config = run_folder.read_config(run)
    if data_dir is not None:
        config.data_dir = data_dir
    try:
        return load_dataset(config)
    except InputError as error:
        if data_dir is not None or not config.data_dir or os.path.exists(os.path.expanduser(config.data_dir)):
            raise
        raise InputError(
            f"{pathlib.Path(run, 'config.json')}: data_dir is {config.data_dir}, which does not exist (the current "
            f"folder is {os.getcwd()}). Give the path of the data set by --data_dir."
        ) from error


def evaluate_folded(
    run,
    dataset: Dataset | None = None,
    data_dir: str | None = None,
    splits=("val", "test"),
    mesh: jax.sharding.Mesh | None = None,
    after_batch: Callable = lambda: None,
) -> dict:
    """{'val': {'loss', 'accuracy'}, 'test': {...}} of the folded network of a finished run.

    Images are normalized with the mean and std of the run.

    Args:
      run: the run folder.
      dataset: the data set of the run, if it is already in memory.
      data_dir: the path of the data set, if it has moved since training.
      splits: the splits to evaluate.
      mesh: the devices; by default the first one of this process.
      after_batch: called after each batch.

    Raises:
      InputError: the images of splits differ from the images of the run. Their order in a file does not matter.
    """
    config = run_folder.read_config(run)
    dataset, _ = checked_dataset(run, dataset or load_dataset_of_run(run, data_dir), splits)
    model, variables = load_folded(run, dataset.num_classes)
    mesh = mesh or sharding.one_device()
    variables = sharding.replicate(mesh, variables)
    params, batch_stats = variables["params"], variables["batch_stats"]
    result = {}
    for name in splits:
        split = getattr(dataset, name)
        if name == "test" and split is dataset.val and "val" in result:
            result[name] = result["val"]
            continue
        with feed.evaluation(split, dataset, config, mesh) as split_feed:
            eval_step = compilation.compile_eval_step(model, split_feed, params, batch_stats)
            result[name] = evaluate(eval_step, params, batch_stats, split_feed, after_batch)
    return result


@command
def main(argv=None):
    parser = argparse.ArgumentParser(program("wcjax.training.evaluate"), description=__doc__.split("\n")[0])
    parser.add_argument("run", help="folder of a finished run")
    parser.add_argument("--data_dir", help="path of the data set, if it has moved since training")
    args = parser.parse_args(argv)
    check_devices()
    result = evaluate_folded(local_path(args.run, "RUN"), data_dir=args.data_dir)
    print("| split | accuracy | loss |\n| --- | --- | --- |")
    for name, numbers in result.items():
        print(f"| {name} | {numbers['accuracy']:.2%} | {numbers['loss']:.4f} |")


if __name__ == "__main__":
    sys.exit(main())
