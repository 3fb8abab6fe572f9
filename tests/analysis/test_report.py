"""The tables, the figures and the text of a report."""

import csv
import json
import re

import numpy as np
import pytest
from matplotlib import image
from scipy import stats

from wcjax.analysis import history, paper, plots, report, tables
from wcjax.analysis.runs import differences, find_runs, group_by_setting
from wcjax.errors import InputError

PLAIN, WC = [0.9401, 0.9390, 0.9412], [0.9440, 0.9431, 0.9452]


@pytest.fixture
def cifar(tmp_path, write_run, write_runs):
    """CIFAR-10 ResNet18: 3 plain, 3 WC with its pair, one other pair, two learned; and on digits, one that failed."""
    cifar = {"dataset": "cifar10", "model": "resnet18"}
    write_runs("plain", "plain", PLAIN, **cifar)
    write_runs("[a*]?/wc", "wc", WC, reparam={"b": 0.6}, **cifar)
    write_run("other", "wc", 0, 0.95, val_accuracy=0.99, reparam={"b": 0.9}, **cifar)
    write_run("learned", "learned", 0, 0.942, **cifar)
    write_run("channel", "channel", 0, 0.943, **cifar)
    failed = write_run("failed", "wc", train_images=None)
    failure = {"reason": "it does not fit", "config": json.loads((failed / "config.json").read_text())}
    (failed / "config.json").unlink()
    (failed / "failed.json").write_text(json.dumps(failure))
    return tmp_path / "runs"


@pytest.fixture
def write_report(tmp_path):
    """The text of a report on folders, by default all runs of the test, without figures, which take seconds."""

    def write(*folders):
        for path in tmp_path.rglob("*s.jsonl"):  # what they draw
            path.unlink()
        return report.write_report(folders or [tmp_path / "runs"], tmp_path / "out").read_text()

    return write


def test_a_row_has_the_numbers_of_runs_and_of_the_paper(cifar):
    settings = group_by_setting(find_runs([cifar])[0])
    rows = tables.result_rows([setting for setting in settings if setting.dataset == "cifar10"])
    by_name = {(row.model, row.method): row for row in rows}
    assert len(by_name) == len(rows)
    wc = by_name["resnet18", "WC"]
    assert (wc.n, wc.reparam, wc.tuning) == (3, "arctan(a=1, b=0.6)", "0.1, 0.0001")
    assert (wc.paper_mean, wc.paper_std, wc.paired) == (94.44, 0.12, False)
    np.testing.assert_allclose([wc.mean, wc.std], [100 * np.mean(WC), 100 * np.std(WC, ddof=1)])
    np.testing.assert_allclose(wc.difference, 100 * (np.mean(WC) - np.mean(PLAIN)))
    assert wc.low < wc.difference < wc.high
    np.testing.assert_allclose([wc.p, wc.p_holm], 2 / 20)  # the only test of the table
    learned = by_name["resnet18", "WC learned fine"]
    assert (learned.n, learned.std, learned.low, learned.p) == (1, None, None, None)
    channel = by_name["resnet18", "WC learned channel"]  # which the paper does not have
    assert (channel.mean, channel.reparam) == (94.3, "arctan(a=0.5, b=1, learned channel)")
    assert channel.paper_mean is None
    assert (
        "| vgg19_bn | WC |  |  | 0 |  | 93.33 ± 0.25 |  |  |  |" in tables.results_table(rows).markdown().splitlines()
    )
    for model, methods in paper.ACCURACY["cifar10"].items():
        for method, cell in methods.items():
            assert (by_name[model, method].paper_mean, by_name[model, method].paper_std) == cell
    assert sum(len(row) for models in paper.ACCURACY.values() for row in models.values()) == 52


def test_runs_whose_settings_differ_are_not_mixed(tmp_path, write_run, write_report):
    write_run("a", "plain", 0, 0.94)
    write_run("b", "plain", 1, 0.95, momentum=0.5)
    write_run("c", "wc", 1, 0.96, momentum=0.5, data_dir="elsewhere")
    write_run("d", "plain", 1, 0.97, momentum=0.7, learning_rate=0.3)
    settings = group_by_setting(find_runs([tmp_path / "runs"])[0])
    methods = sorted([run.method for run in setting.runs] for setting in settings)
    assert methods == [["plain"], ["plain"], ["plain", "WC"]]
    assert differences(settings) == {"momentum": ["0.5", "0.7", "0.9"]}
    text = write_report()
    assert "| resnet8 (A) | plain | none | 0.1, 0.0001 | 1 | 95.00 |" in text
    assert "| resnet8 (C) | plain | none | 0.1, 0.0001 | 1 | 94.00 |" in text
    assert "| momentum | 0.5 | 0.7 | 0.9 |\n| runs | 2 | 1 | 1 |" in text


def test_runs_on_different_data_are_in_different_tables(write_run, write_runs, write_report):
    write_runs("plain", "plain", PLAIN)
    write_runs("wc", "wc", WC)
    write_runs("few", "wc", [0.5] * 3, train_images=99)
    write_run("old", "plain", 3, 0.99, train_images=None)
    text = write_report()
    table = {part.split("\n")[0]: part for part in text.split("## Test accuracy on ")[1:]}
    assert list(table) == ["digits-data-1", "digits-data-2", "digits-data-3"]
    assert "| resnet8 | WC | arctan(a=1, b=1) | 0.1, 0.0001 | 3 | 50.00 ± 0.00 |" in table["digits-data-1"]
    assert "| resnet8 | plain | none | 0.1, 0.0001 | 3 | 94.01 ± 0.11 |" in table["digits-data-2"]
    assert "| resnet8 | plain | none | 0.1, 0.0001 | 1 | 99.00 |" in table["digits-data-3"]
    assert "| train.images | 99 | 1437 | - |" in text
    assert "| runs | 3 | 6 | 1 |" in text


def test_each_method_is_compared_with_the_best_plain_network(tmp_path, write_runs, write_report):
    write_runs("plain", "plain", PLAIN, val_accuracy=0.93)
    write_runs("wc", "wc", WC, weight_decay=0.001)
    write_runs("tuned", "plain", [0.95, 0.951, 0.952], val_accuracy=0.94, learning_rate=0.3)
    write_runs("smooth", "plain", [0.96] * 3, label_smoothing=0.1)
    write_runs("other", "plain", [0.99], val_accuracy=0.99, weight_decay=0.01)
    settings = group_by_setting(find_runs([tmp_path / "runs"])[0])
    assert [len(setting.runs) for setting in settings] == [13]
    default, tuned, wc, smooth = tables.result_rows(settings)
    assert [row.tuning for row in (default, tuned, wc)] == ["0.1, 0.0001", "0.3, 0.0001", "0.1, 0.001"]
    assert (smooth.method, smooth.tuning) == ("plain, label smoothing", "0.1, 0.0001, smoothing 0.1")
    np.testing.assert_allclose(default.difference, 100 * np.mean(PLAIN) - 95.1)
    np.testing.assert_allclose(wc.difference, 100 * np.mean(WC) - 95.1)
    assert tuned.difference is None
    np.testing.assert_allclose([wc.p, wc.p_holm], [0.1, 0.3])  # the table has three tests
    text = write_report()
    assert "| resnet8 on digits | plain | none | 0.1, 0.01 | 1 | 99.00 |" in text
    assert "## Settings that differ" not in text


def test_eight_runs_are_compared_seed_by_seed(tmp_path, write_runs):
    ours, plain = ([start + seed / step for seed in range(8)] for start, step in ((0.905, 90), (0.9, 100)))
    write_runs("plain", "plain", plain)
    write_runs("wc", "wc", ours)
    (setting,) = group_by_setting(find_runs([tmp_path / "runs"])[0])
    _, wc = tables.result_rows([setting])
    interval = stats.ttest_rel(ours, plain).confidence_interval()
    np.testing.assert_allclose([wc.low, wc.high, wc.p], [100 * interval.low, 100 * interval.high, 2 / 2**8])
    assert wc.paired and tables.format_difference(wc).endswith(", paired)")
    _, wc = tables.result_rows([setting._replace(runs=[run for run in setting.runs if run.path.name != "wc7"])])
    interval = stats.ttest_ind(ours[:7], plain, equal_var=False).confidence_interval()
    np.testing.assert_allclose([wc.low, wc.high], [100 * interval.low, 100 * interval.high])
    assert not wc.paired


@pytest.fixture
def write_measured(write_run):
    """Makes the folder of a run whose robustness was measured."""

    def write(variant, seed, curves, images=100):
        measured = {"images": images, "accuracy": 0.8, "curves": curves}
        (write_run(f"{variant}{seed}", variant, seed, 0.8) / "robustness.json").write_text(json.dumps(measured))

    return write


def test_robustness_is_compared_over_the_levels_of_a_change(tmp_path, write_measured, write_report):
    blur = {"image_blur": [[1, 0.7]]}
    for seed in range(8):
        for variant, gain in (("plain", 0), ("wc", 0.02)):
            accuracy = 0.5 + gain * (0.7 if seed % 2 else 1.3) + seed / 999
            write_measured(variant, seed, blur | {"weight_bits": [[8, 0.8], [4, accuracy]]})
    write_measured("erf", 0, blur, images=50)
    text = write_report()
    assert (tmp_path / "out" / "digits_resnet8_robustness.png").exists()
    assert "| weight bits | plain | 8 | 65.18 | 14.82 |  |  |" in text
    assert "| weight bits | WC | 8 | 66.18 | 13.82 | +1.00 (+0.73 to +1.27, paired) | 0.0156 |" in text
    assert "| image blur | WC | 8 | 70.00 | 10.00 | +0.00 | 1 |" in text
    assert "| WC erf | 1 |" not in text  # measured on fewer images


def test_curves_of_other_changes_or_levels_are_not_mixed(write_measured, write_report):
    for seed, levels in enumerate(([[8, 0.8]], [[8, 0.6]], [[4, 0.1], [3, 0.1]])):
        write_measured("plain", seed, {"weight_bits": levels} | ({"image_blur": [[1, 0.7]]} if seed == 1 else {}))
    text = write_report()
    assert "| weight bits | plain | 2 | 70.00 | 10.00 |" in text
    assert "| image blur | plain | 1 | 70.00 | 10.00 |" in text


def test_the_same_run_in_two_folders_counts_once(tmp_path, write_run, write_report):
    for name in "abc":
        write_run(name, "plain", int(name == "c"), 0.94)
    write_run("Unfinished", "plain", 0)  # first by path, but no evidence
    write_run("failed before it saw its data", "wc", 0, train_images=None)
    (setting,) = group_by_setting(find_runs([tmp_path / "runs", tmp_path / "runs" / "a"])[0])
    assert (setting.dataset, len(setting.runs)) == ("digits", 5)
    assert len(tables.chosen_runs(setting.runs)[0]) == 2
    text = write_report()
    assert "digits, resnet8, plain: n = 2\n" in text
    assert f"the same config and seed as another run\n\n- {tmp_path / 'runs' / 'b'}\n" in text
    assert "## Data that differ" not in text


def test_the_command_writes_text_figures_and_numbers(cifar, tmp_path, capsys):
    out = tmp_path / "[out]?"
    assert report.main([str(cifar), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out / 'report.html'}\n"
    text = (out / "report.md").read_text()
    assert "- runs: 10, of them 9 finished, 1 failed, 0 unfinished" in text
    assert "- cifar10, resnet18, plain: n = 3" in text
    assert "| resnet8 | WC |  |  | 0 |  |  |  |  |  |" in text
    assert f"- {cifar / 'failed'}: it does not fit" in text
    assert "| resnet18 on cifar10 | WC | arctan(a=1, b=0.9) | 0.1, 0.0001 | 1 | 99.00 |" in text
    names = ("curves", "history", "near_zero", "layers", "WC_learned_fine_pairs", "WC_learned_channel_pairs")
    pictures = {"psi.png", *(f"cifar10_resnet18_{name}.png" for name in names)}
    assert {path.name for path in out.iterdir()} == pictures | {"report.html", "report.md", "results.csv", "runs.csv"}
    for name in pictures:
        assert f"]({name})" in text
        pixels = image.imread(out / name)[..., :3]
        assert min(pixels.shape[:2]) > 300
        assert pixels.std() > 0.05, name  # something is drawn
    page = (out / "report.html").read_text()
    assert page.count('src="data:image/png;base64,') == len(pictures)
    assert f"<td>{100 * np.mean(WC):.2f} ± {100 * np.std(WC, ddof=1):.2f}</td>" in page
    results, rows = (
        list(csv.DictReader((out / f"{name}.csv").read_text().splitlines())) for name in ("results", "runs")
    )
    assert results[0].keys() == set(tables.Row._fields)
    (wc,) = [row for row in results if (row["model"], row["method"], row["n"]) == ("resnet18", "WC", "3")]
    np.testing.assert_allclose(float(wc["mean"]), 100 * np.mean(WC))
    assert sorted(row["state"] for row in rows) == 9 * ["finished"] + ["it does not fit"]
    assert sorted(float(row["test_accuracy"]) for row in rows if row["method"] == "plain") == sorted(PLAIN)


def test_curves_have_a_gap_where_a_run_has_no_number(tmp_path, write_run):
    metrics = write_run("a", "plain", 0, 0.94) / "metrics.jsonl"
    lines = [{"epoch": 1, "train_loss": 2.5, "val_loss": 1e31}, {"epoch": 3, "train_loss": "2", "learning_rate": 0.1}]
    metrics.write_text("".join(json.dumps(line | {"val_accuracy": 0.5}) + "\n" for line in lines))
    write_run("b", "plain", 1, 0.94)
    curves = history.curves(find_runs([tmp_path / "runs"])[0])
    np.testing.assert_array_equal(curves["epoch"], [1, 2, 3])
    np.testing.assert_array_equal(curves["train_loss"], [[2.5, np.nan, np.nan], [0.5, 0.5, np.nan]])
    np.testing.assert_array_equal(curves["val_loss"], [[np.nan, np.nan, np.nan], [0.6, 0.6, np.nan]])
    np.testing.assert_array_equal(curves["learning_rate"], [[np.nan, np.nan, 0.1], [0.1, 0.1, np.nan]])


def test_a_history_has_the_bound_and_the_density_of_weights(cifar):
    wc, *_ = [run for run in find_runs([cifar])[0] if run.method == "WC"]
    weights = history.first_layer_history(wc)
    np.testing.assert_allclose(weights.bound, np.pi / 2)
    assert list(weights.epochs) == [0, 1, 2]
    density = weights.density(np.array([-2, -1.2, 0, 1.2, 2]))  # of weights that are drawn from (−1, 1)
    np.testing.assert_allclose(density * [0.8, 1.2, 1.2, 0.8], [[0, 0.5, 0.5, 0]] * 3, atol=0.05)


def test_layers_are_sorted_from_input_to_output():
    names = ["block10_0/conv1", "block2_0/conv1", "block2_0/conv0", "head", "stem"]
    assert history.layers_in_order(names) == ["stem", "block2_0/conv0", "block2_0/conv1", "block10_0/conv1", "head"]


@pytest.mark.filterwarnings("error")
def test_curves_of_equal_runs_are_drawn_without_a_warning(tmp_path):
    # The mean of eight times 0.1 differs from 0.1 in the last bit.
    curves = {"epoch": np.array([1, 2])} | {name: np.full((8, 2), 0.1) for name in history.CURVES}
    path = plots.plot_curves(tmp_path / "curves.png", {"plain (n = 8)": curves}, "eight runs")
    assert image.imread(path)[..., :3].std() > 0.05


def test_folders_without_a_run_are_omitted_and_named(tmp_path, write_run, write_report, caplog):
    runs, elsewhere = tmp_path / "runs", write_run("b", "plain", 1, 0.95).rename(tmp_path / "elsewhere")
    (runs / "link").symlink_to(elsewhere)
    fault = f"{runs}/link: a link to {elsewhere}; give that folder too"
    with pytest.raises(InputError, match=f"no run in .* {fault.replace(':', ' was omitted:')}"):
        write_report()
    write_run("a", "plain", 0, 0.94)
    (runs / "dangling").symlink_to("gone")
    (runs / "a_model").mkdir()
    (runs / "a_model" / "config.json").write_text('{"architectures": ["Bert"]}')
    others = f"{runs}/dangling: a link to gone; give", f"{runs}/a_model: unknown config key 'architectures'."
    for folders, count in (([], 1), ([runs, runs / "link"], 2)):
        caplog.clear()
        text = write_report(*folders)
        assert f"- runs: {count}, of them {count} finished" in text
        assert all(f"- {other}" in text and f"omitted: {other}" in caplog.text for other in others)
        assert (f"- {fault}" in text) == (count == 1), "the folder that a link leads to may be given too"


@pytest.mark.parametrize(
    "variant, file, old, new, message",
    [
        ("wc", "config.json", "digits", "../evil", "runs/b: unknown config.dataset '../evil'. Known: digits, "),
        ("wc", "weights.jsonl", '"head"', '"tail"', "runs/a have the same model, but other layers in weights.jsonl"),
        ("plain", "weights.jsonl", '"head"', '"tail"', "have the same model, but other layers in weights.jsonl"),
    ],
)
def test_a_run_with_foreign_names_is_refused(tmp_path, write_run, variant, file, old, new, message):
    good = write_run("a", "wc", 0, 0.94)
    path = write_run("b", variant, 1, 0.94) / file
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(InputError, match=re.escape(message)):
        report.write_report([good, path.parent], tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} <= {"runs", "out"}
