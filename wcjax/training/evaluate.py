"""Prints the accuracy and the loss of the folded network of a run, on val and test.

python -m wcjax.training.evaluate RUN [--data_dir DIR]
"""

import argparse
import os
import pathlib
import sys
from collections.abc import Callable

import jax

from wcjax import run_folder
from wcjax.commands import command, program
from wcjax.config.build import load_dataset
from wcjax.data import Dataset
from wcjax.errors import InputError
from wcjax.run_folder.fingerprint import checked_dataset
from wcjax.system.devices import check_devices
from wcjax.system.paths import local_path
from wcjax.training import compilation, feed, sharding
from wcjax.training.in_flight import InFlight
from wcjax.training.result import load_folded
from wcjax.training.train_state import zero_totals


def evaluate(
    eval_step: Callable, params, batch_stats, split_feed: feed.Feed, after_batch: Callable = lambda: None
) -> dict:
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


def load_dataset_of_run(folder, data_dir: str | None = None) -> Dataset:
    """The data set of a run folder, from data_dir if it is not None.

    Raises InputError if it cannot be read. The message says so if the path that the run has stored does not exist.
    """
    config = run_folder.read_config(folder)
    if data_dir is not None:
        config.data_dir = data_dir
    try:
        return load_dataset(config)
    except InputError as error:
        if data_dir is not None or not config.data_dir or os.path.exists(os.path.expanduser(config.data_dir)):
            raise
        raise InputError(
            f"{pathlib.Path(folder, 'config.json')}: data_dir is {config.data_dir}, which does not exist (the current "
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
    parser.add_argument("run", metavar="RUN", help="folder of a finished run")
    parser.add_argument("--data_dir", metavar="DIR", help="path of the data set, if it has moved since training")
    args = parser.parse_args(argv)
    check_devices()
    result = evaluate_folded(local_path(args.run, "RUN"), data_dir=args.data_dir)
    print("| split | accuracy | loss |\n| --- | --- | --- |")
    for name, numbers in result.items():
        print(f"| {name} | {numbers['accuracy']:.2%} | {numbers['loss']:.4f} |")


if __name__ == "__main__":
    sys.exit(main())
