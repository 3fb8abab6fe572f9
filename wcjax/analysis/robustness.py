"""Accuracy of the folded networks of runs after changes of their weights and of the test images.

python -m wcjax.analysis.robustness RUNS [RUNS ...] [--images N] [--data_dir DIR]
"""

import argparse
import pathlib
import sys

import numpy as np
import tqdm

from wcjax import run_folder
from wcjax.analysis import changes
from wcjax.analysis.document import Table
from wcjax.analysis.runs import RunRecord, find_runs
from wcjax.analysis.significance import Comparison, compare, holm
from wcjax.analysis.tables import format_difference, format_p
from wcjax.commands import command, program
from wcjax.data import Split
from wcjax.data.streaming.source import Spread
from wcjax.errors import InputError
from wcjax.run_folder.fingerprint import checked_dataset
from wcjax.system.devices import check_devices
from wcjax.system.paths import check_writable
from wcjax.training import compilation, feed, sharding
from wcjax.training.evaluate import evaluate, load_dataset_of_run
from wcjax.training.result import load_folded

EXPLANATION = """Prunes, rounds and disturbs the weights of finished runs, and adds noise, blur, contrast and brightness
to the test images; writes the accuracy after each change to robustness.json in the run folder. wcjax.analysis.report
then draws the curves. A run that was already measured on as many images is skipped."""


@command
def main(argv=None):
    parser = argparse.ArgumentParser(program("wcjax.analysis.robustness"), description=EXPLANATION)
    parser.add_argument("runs", nargs="+", metavar="RUNS", help="run folders, or folders that contain run folders")
    parser.add_argument("--images", type=int, default=0, metavar="N", help="test images to use (default: all)")
    parser.add_argument("--data_dir", metavar="DIR", help="path of the data set, if it has moved since training")
    args = parser.parse_args(argv)
    if args.images < 0:
        raise InputError(f"--images must be at least 0, found {args.images}.")
    check_devices()
    runs, _ = find_runs(args.runs)
    measure_runs([run for run in runs if run.summary], args.images, args.data_dir)


def measure_runs(runs: list[RunRecord], num_images: int = 0, data_dir: str | None = None) -> None:
    """Writes robustness.json to the folder of each finished run that has none for as many images.

    Raises InputError if there is no run, if a folder is read-only, and if the data are not the data of the runs.
    """
    if not runs:
        raise InputError("no run is finished; give folders of finished runs.")
    for run in runs:
        check_writable(run.path, "run folder")
    datasets, eval_steps = {}, {}
    with tqdm.tqdm(runs, unit=" runs", dynamic_ncols=True) as bar:
        for run in bar:
            bar.set_description(str(run.path))
            content = run_folder.read(run.path, "robustness.json")
            measured_images = None if content is None else content["images"]
            if measured_images == num_images:  # without reading the data set
                continue
            config = run_folder.read_config(run.path)
            path = config.data_dir if data_dir is None else data_dir
            key = config.dataset, path, config.val_fraction, config.split_seed, config.train_images
            if key not in datasets:
                datasets[key] = load_dataset_of_run(run.path, data_dir)
            if measured_images != _subset(datasets[key].test, num_images).num_images:
                run_folder.write(run.path, "robustness.json", measure(run.path, datasets[key], num_images, eval_steps))


def measure(folder, dataset, num_images: int = 0, eval_steps: dict | None = None) -> dict:
    """The content of robustness.json of a finished run.

    Args:
      folder: the run folder. What is drawn at random depends on the seed of the run.
      dataset: the data set of the run.
      num_images: the number of test images to use; 0 for all. They are the first ones, or of a streamed data set, which
        may be sorted by class, images at equal distances.
      eval_steps: the compiled steps of earlier runs, to which this one adds its own.

    Returns:
      {'images': number, 'accuracy': without a change, 'curves': {name in `changes`: [[level, accuracy], ...]}}. The
      images of a streamed data set are not changed.
    """
    config = run_folder.read_config(folder)
    eval_steps = {} if eval_steps is None else eval_steps
    dataset, _ = checked_dataset(folder, dataset, ("test",))
    model, variables = load_folded(folder, dataset.num_classes)
    params = variables["params"]
    mesh = sharding.one_device()
    test = _subset(dataset.test, num_images)

    def accuracy(params, split_feed):
        shapes = str(split_feed.eval_input_shapes())
        key = model, split_feed.num_images, shapes, config.batch_size, dataset.mean.tobytes(), dataset.std.tobytes()
        on_device = sharding.replicate(mesh, (params, variables["batch_stats"]))
        if key not in eval_steps:
            eval_steps[key] = compilation.compile_eval_step(model, split_feed, *on_device)
        return evaluate(eval_steps[key], *on_device, split_feed)["accuracy"]

    def accuracy_on(images):
        with feed.evaluation(Split(images, test.labels), dataset, config, mesh) as changed:
            return accuracy(params, changed)

    rng = lambda level: np.random.default_rng((config.seed, round(100 * level)))
    curves = {}
    with feed.evaluation(test, dataset, config, mesh) as unchanged:  # one for all levels: a stream starts slowly
        original = accuracy(params, unchanged)
        for name, (change, levels) in changes.WEIGHT_CHANGES.items():
            curves[name] = [[level, accuracy(change(params, level, rng(level)), unchanged)] for level in levels]
    for name, (change, levels) in {} if dataset.streamed else changes.IMAGE_CHANGES.items():
        curves[name] = [[level, accuracy_on(change(test.images, level, rng(level)))] for level in levels]
    return {"images": test.num_images, "accuracy": original, "curves": curves}


Measurements = dict[pathlib.Path, dict]  # {run folder: content of its robustness.json}


def read_measurements(runs: list[RunRecord]) -> Measurements:
    """The measurements of the runs that have them, on as many images as any of them.

    A curve is omitted if its levels are not those of the first run that has it.
    """
    measurements = {run.path: m for run in runs if (m := run_folder.read(run.path, "robustness.json"))}
    most = max((m["images"] for m in measurements.values()), default=0)
    measurements = {path: m for path, m in measurements.items() if m["images"] == most}
    levels_of = lambda curve: [level for level, _ in curve]
    levels = {}
    for content in measurements.values():
        curves = content["curves"]
        levels = {change: levels_of(curve) for change, curve in curves.items()} | levels
        content["curves"] = {change: curve for change, curve in curves.items() if levels_of(curve) == levels[change]}
    return measurements


def curves(runs: list[RunRecord], measurements: Measurements) -> dict[str, tuple[list, np.ndarray]]:
    """{change: (levels, accuracies in % (runs, 1 + levels))} of the runs that have measurements.

    The first accuracy of each run is the one without a change.
    """
    contents = [measurements[run.path] for run in runs if run.path in measurements]
    result = {}
    for name in dict.fromkeys(name for content in contents for name in content["curves"]):
        members = [content for content in contents if name in content["curves"]]
        accuracies = [[content["accuracy"], *(y for _, y in content["curves"][name])] for content in members]
        result[name] = [level for level, _ in members[0]["curves"][name]], 100 * np.array(accuracies)
    return result


def change_table(variants: dict[str, list[RunRecord]], baseline: list[RunRecord], measurements: Measurements) -> Table:
    """The accuracy after each change, as the mean over its levels, and its difference to the accuracy of baseline.

    variants: {label: runs}. baseline: the runs of one of them.
    """
    lines, p_values = [], []
    for change in dict.fromkeys(name for m in measurements.values() for name in m["curves"]):
        curve = {path: m["curves"][change] for path, m in measurements.items() if change in m["curves"]}
        accuracy_after = lambda run, curve=curve: 100 * np.mean([accuracy for _, accuracy in curve[run.path]])
        plain = [run for run in baseline if run.path in curve]
        for label, runs in variants.items():
            if runs := [run for run in runs if run.path in curve]:
                comparison = Comparison() if runs == plain else compare(runs, plain, accuracy_after)
                accuracy = np.mean([accuracy_after(run) for run in runs])
                lost = 100 * np.mean([measurements[run.path]["accuracy"] for run in runs]) - accuracy
                numbers = str(len(runs)), f"{accuracy:.2f}", f"{lost:.2f}", format_difference(comparison)
                lines.append([change.replace("_", " "), label, *numbers])
                p_values.append(comparison.p)
    columns = ["change", "method", "n", "accuracy (%)", "lost (points)"]
    columns += ["difference to plain (95 % interval)", "p (Holm)"]
    return Table(columns, [[*line, format_p(p)] for line, p in zip(lines, holm(p_values), strict=True)])


def _subset(split, num_images):
    """The split, or num_images of its images if that is not 0: see `measure`."""
    if not num_images:
        return split
    if not isinstance(split, Split):
        return Spread(split, min(num_images, split.num_images))
    return Split(split.images[:num_images], split.labels[:num_images])


if __name__ == "__main__":
    sys.exit(main())
