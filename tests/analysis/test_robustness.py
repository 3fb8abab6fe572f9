"""robustness.json of a run, against accuracies of the changed network by hand."""

import functools
import json
import shutil

import jax
import numpy as np

from tests.data import pictures
from tests.training import runs
from wcjax import data, training
from wcjax.analysis import changes, robustness
from wcjax.data.streaming.source import Spread
from wcjax.run_folder import read


def test_each_curve_has_the_accuracy_of_the_changed_network(tiny_run, tmp_path):
    run = shutil.copytree(tiny_run[0], tmp_path / "run")
    assert robustness.main([str(tmp_path), "--images", "100"]) == 0
    result = read(run, "robustness.json")
    assert result["curves"].keys() == {*changes.WEIGHT_CHANGES, *changes.IMAGE_CHANGES}

    dataset = data.load("digits", val_fraction=0.5)
    images, labels = dataset.test.images[:100], dataset.test.labels[:100]
    model, variables = training.load_folded(run)
    params, apply = variables["params"], jax.jit(functools.partial(model.apply, train=False))

    def by_hand(params, images):
        logits = apply(variables | {"params": params}, np.float32((images / 255 - dataset.mean) / dataset.std))
        return np.mean(np.asarray(logits).argmax(axis=1) == labels)

    assert (result["images"], result["accuracy"]) == (100, by_hand(params, images))
    for name, (change, levels) in (changes.WEIGHT_CHANGES | changes.IMAGE_CHANGES).items():
        for level, measured in zip(levels, result["curves"][name], strict=True):
            rng = np.random.default_rng((0, round(100 * level)))
            if name in changes.WEIGHT_CHANGES:
                changed = change(params, level, rng), images
            else:
                changed = params, change(images, level, rng)
            assert measured == [level, by_hand(*changed)], name


def test_a_run_is_measured_once_for_each_number_of_images(tiny_run, tmp_path):
    run = shutil.copytree(tiny_run[0], tmp_path / "run")
    measured = {"images": 20, "accuracy": 0.5, "curves": {"weight_bits": [[8, 0.5]]}}
    (run / "robustness.json").write_text(json.dumps(measured))
    robustness.main([str(run), "--images", "20"])
    assert read(run, "robustness.json") == measured
    robustness.main([str(run), "--images", "21"])
    assert read(run, "robustness.json")["images"] == 21


def test_streamed_runs_may_differ_in_image_size(tmp_path):
    images = pictures.class_folders(tmp_path / "set")
    for size in (16, 24):
        training.train(runs.streamed(images, image_size=size, epochs=1), tmp_path / "runs" / str(size))
    assert robustness.main([str(tmp_path / "runs"), "--images", "4"]) == 0
    assert [read(tmp_path / "runs" / size, "robustness.json")["images"] for size in ("16", "24")] == [4, 4]


def test_a_sample_of_a_stream_has_images_of_all_classes():
    some = Spread("aaabbbccc", 3)  # sorted by class, like the folders of ImageNet
    assert len(some) == some.num_images == 3 and [some[i] for i in range(3)] == ["a", "b", "c"]
