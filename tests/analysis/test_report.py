"""The tables, figures and the report of run folders."""

import csv
import json
import re

import numpy as np
import pytest
from matplotlib import image

from wcjax.analysis import course, paper, report, tables
from wcjax.analysis.runs import differences, find_runs, settings
from wcjax.errors import InputError

PLAIN, WC = [0.9401, 0.9390, 0.9412], [0.9440, 0.9431, 0.9452]


@pytest.fixture
def folder(tmp_path, write_run):
    """CIFAR-10 ResNet18: 3 plain, 3 WC at its pair, one other pair; two learned; another that diverged, on digits."""
    cifar = {"dataset": "cifar10", "model": "resnet18"}
    for seed in range(3):
        write_run(tmp_path / "runs" / f"plain{seed}", "plain", seed, PLAIN[seed], **cifar)
        write_run(tmp_path / "runs" / "deep" / f"wc{seed}", "wc", seed, WC[seed], reparam={"b": 0.6}, **cifar)
    write_run(tmp_path / "runs" / "other", "wc", 0, 0.95, val_accuracy=0.99, reparam={"b": 0.9}, **cifar)
    write_run(tmp_path / "runs" / "learned", "learned", 0, 0.942, **cifar)
    write_run(tmp_path / "runs" / "channel", "channel", 0, 0.943, **cifar)
    failed = write_run(tmp_path / "runs" / "failed", "wc", 0)
    config = json.loads((failed / "config.json").read_text())
    (failed / "config.json").unlink()
    (failed / "data.json").unlink()
    (failed / "failed.json").write_text(json.dumps({"reason": "it does not fit", "config": config}))
    return tmp_path / "runs"


def row_of(rows, model, method):
    (row,) = [row for row in rows if (row.model, row.method) == (model, method)]
    return row


def test_a_table_has_what_was_found_beside_the_papers_number(folder):
    (cifar,) = [s for s in settings(find_runs([folder])) if s.dataset == "cifar10"]
    rows = tables.table([cifar])
    wc = row_of(rows, "resnet18", "WC")
    assert (wc.n, wc.reparam, wc.paper_mean, wc.paper_std) == (3, "arctan(a=1, b=0.6)", 94.44, 0.12)
    np.testing.assert_allclose([wc.mean, wc.std], [100 * np.mean(WC), 100 * np.std(WC, ddof=1)])
    np.testing.assert_allclose(wc.difference, 100 * (np.mean(WC) - np.mean(PLAIN)))
    assert wc.low < wc.difference < wc.high
    np.testing.assert_allclose([wc.p, wc.p_holm], 2 / 20)  # the only test of the table
    learned = row_of(rows, "resnet18", "WC learned fine")
    assert (learned.n, learned.std, learned.low, learned.p) == (1, None, None, None)
    channel = row_of(rows, "resnet18", "WC learned channel")
    assert (channel.n, channel.mean, channel.reparam) == (1, 94.3, "arctan(a=0.5, b=1, learned channel)")
    assert channel.paper_mean is None, "the paper has no pair per channel"
    empty = row_of(rows, "resnet50", "WC")
    assert (empty.n, empty.mean, empty.paper_mean) == (0, None, 94.06)


def test_a_cell_without_runs_is_empty_and_says_that_n_is_zero(folder):
    (cifar,) = [s for s in settings(find_runs([folder])) if s.dataset == "cifar10"]
    lines = tables.markdown(tables.table([cifar])).splitlines()
    assert "| vgg19_bn | WC |  | 0 |  | 93.33 ± 0.25 |  |  |  |" in lines
    assert {line.count("|") for line in lines} == {10}


def test_every_number_of_the_paper_has_a_row(folder):
    (cifar,) = [s for s in settings(find_runs([folder])) if s.dataset == "cifar10"]
    found = {(row.model, row.method): (row.paper_mean, row.paper_std) for row in tables.table([cifar])}
    expected = {(m, method): cell for m, row in paper.ACCURACY["cifar10"].items() for method, cell in row.items()}
    assert expected.items() <= found.items()
    assert sum(map(len, (row for of in paper.ACCURACY.values() for row in of.values()))) == 52


def test_runs_whose_other_settings_differ_are_not_mixed_and_the_report_lists_them(tmp_path, write_run):
    write_run(tmp_path / "runs" / "a", "plain", 0, 0.94)
    write_run(tmp_path / "runs" / "b", "plain", 1, 0.95, momentum=0.5)
    write_run(tmp_path / "runs" / "c", "wc", 1, 0.96, momentum=0.5, data_dir="elsewhere")
    of = settings(find_runs([tmp_path / "runs"]))
    assert sorted(len(s.runs) for s in of) == [1, 2]
    assert differences(of) == {"momentum": ["0.5", "0.9"]}
    text = report.write_report([tmp_path / "runs"], tmp_path / "out").read_text()
    assert "| resnet8 (A) | plain | none | 1 | 95.00 |" in text
    assert "| resnet8 (B) | plain | none | 1 | 94.00 |" in text
    assert "| key | A | B |" in text
    assert "| momentum | 0.5 | 0.9 |" in text


def test_runs_on_different_data_are_in_different_tables(tmp_path, write_run):
    for seed in range(3):
        write_run(tmp_path / "runs" / f"plain{seed}", "plain", seed, PLAIN[seed])
        write_run(tmp_path / "runs" / f"wc{seed}", "wc", seed, WC[seed])
        write_run(tmp_path / "runs" / f"few{seed}", "wc", seed, 0.5, train_images=99)
    write_run(tmp_path / "runs" / "old", "plain", 3, 0.99, train_images=None)
    of = settings(find_runs([tmp_path / "runs"]))
    assert [(s.dataset, len(s.runs)) for s in of] == [("digits-data-1", 3), ("digits-data-2", 6), ("digits-data-3", 1)]
    text = report.write_report([tmp_path / "runs"], tmp_path / "out").read_text()
    tables_of = {part.split("\n")[0]: part for part in text.split("## Test accuracy on ")[1:]}
    assert list(tables_of) == ["digits-data-1", "digits-data-2", "digits-data-3"]
    assert "| resnet8 | WC | arctan(a=1, b=1) | 3 | 50.00 ± 0.00 |" in tables_of["digits-data-1"]
    assert "| resnet8 | plain | none | 3 | 94.01 ± 0.11 |" in tables_of["digits-data-2"]
    assert "| resnet8 | plain | none | 1 | 99.00 |" in tables_of["digits-data-3"]
    assert "- digits-data-2, resnet8, plain: n = 3" in text
    assert "| key | digits-data-1 | digits-data-2 | digits-data-3 |" in text
    assert "| train.images | 99 | 1437 | - |" in text
    assert "| test.images | 360 | 360 | - |" in text
    assert "| runs | 3 | 6 | 1 |" in text
    assert (tmp_path / "out" / "digits-data-1_resnet8_layers.png").exists()


def test_a_run_that_failed_before_it_saw_its_data_is_in_the_table_of_its_setting(tmp_path, write_run):
    write_run(tmp_path / "runs" / "b", "plain", 0, 0.94)
    write_run(tmp_path / "runs" / "a", "wc", 0, train_images=None)
    (setting,) = settings(find_runs([tmp_path / "runs"]))
    assert (setting.dataset, len(setting.runs)) == ("digits", 2)
    assert "## Data that differ" not in report.write_report([tmp_path / "runs"], tmp_path / "out").read_text()


def test_a_tuned_plain_network_stands_beside_the_others_which_are_compared_with_it_too(tmp_path, write_run):
    for seed in range(3):
        write_run(tmp_path / "runs" / f"plain{seed}", "plain", seed, PLAIN[seed])
        write_run(tmp_path / "runs" / f"wc{seed}", "wc", seed, WC[seed])
        write_run(tmp_path / "runs" / f"tuned{seed}", "plain", seed, 0.95 + seed / 1e3, learning_rate=0.3)
    write_run(tmp_path / "runs" / "other", "plain", 0, 0.99, val_accuracy=0.99, weight_decay=0.01)
    of = settings(find_runs([tmp_path / "runs"]))
    assert [len(s.runs) for s in of] == [10]
    tuned = row_of(tables.table(of), "resnet8", "plain tuned")
    assert (tuned.n, tuned.reparam, tuned.baseline) == (3, "none, lr 0.3, decay 0.0001", "plain")
    np.testing.assert_allclose(tuned.difference, 95.1 - 100 * np.mean(PLAIN))
    wc = row_of(tables.table(of, baseline="plain tuned"), "resnet8", "WC")
    np.testing.assert_allclose(wc.difference, 100 * np.mean(WC) - 95.1)
    np.testing.assert_allclose([wc.p, wc.p_holm], [0.1, 0.2])  # plain against the tuned one is a test of the table too
    text = report.write_report([tmp_path / "runs"], tmp_path / "out").read_text()
    assert "| difference to plain (95 % interval) |" in text
    assert "| difference to plain tuned (95 % interval) |" in text
    assert "| resnet8 on digits | none, lr 0.1, decay 0.01 | 1 | 99.00 |" in text
    assert "## Settings that differ" not in text


def test_a_plain_run_that_differs_in_more_than_rate_and_decay_is_no_tuned_one(tmp_path, write_run):
    write_run(tmp_path / "runs" / "wc", "wc", 0, 0.94)
    write_run(tmp_path / "runs" / "plain", "plain", 0, 0.95, learning_rate=0.3, momentum=0.5)
    of = settings(find_runs([tmp_path / "runs"]))
    assert sorted([run.method for run in s.runs] for s in of) == [["WC"], ["plain"]]


def test_the_same_run_in_two_folders_counts_once(tmp_path, write_run):
    for name in "abc":
        write_run(tmp_path / "runs" / name, "plain", int(name == "c"), 0.94)
    (setting,) = settings(find_runs([tmp_path / "runs", tmp_path / "runs" / "a"]))
    assert len(setting.runs) == 3
    assert len(tables.chosen_runs(setting.runs)["plain"]) == 2
    assert f"same config and seed as another run\n\n- {tmp_path / 'runs' / 'b'}" in (
        report.write_report([tmp_path / "runs"], tmp_path / "out").read_text()
    )


def test_the_command_makes_a_folder_that_reads_on_its_own(folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert report.main([str(folder), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out / 'report.md'}\n"
    text = (out / "report.md").read_text()
    assert "- runs: 10, of them 9 finished, 1 failed, 0 unfinished" in text
    assert "- cifar10, resnet18, plain: n = 3" in text
    assert "jax 0.10.2 on cpu" in text
    assert "| resnet8 | WC |  | 0 |  |  |  |  |  |" in text
    assert f"- {folder / 'failed'}: it does not fit" in text
    assert "| resnet18 on cifar10 | arctan(a=1, b=0.9) | 1 | 99.00 |" in text
    names = {"course", "near_zero", "layers", "arctan_fine_pairs", "arctan_channel_pairs"}
    pictures = {"psi.png", *(f"cifar10_resnet18_{name}.png" for name in names)}
    assert {path.name for path in out.iterdir()} == pictures | {"report.md", "results.csv", "runs.csv"}
    for name in pictures:
        assert f"]({name})" in text
        pixels = image.imread(out / name)[..., :3]
        assert min(pixels.shape[:2]) > 300
        assert pixels.std() > 0.05, name  # something is drawn
    with (out / "runs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 10
    assert {row["state"] for row in rows} == {"finished", "it does not fit"}
    assert sorted(float(row["test_accuracy"]) for row in rows if row["method"] == "plain") == sorted(PLAIN)
    with (out / "results.csv").open(newline="") as file:
        assert list(csv.DictReader(file))[0].keys() == set(tables.Row._fields)


def test_a_run_from_before_weights_were_kept_has_tables_and_no_figures(tmp_path, write_run):
    (write_run(tmp_path / "runs" / "a", "plain", 0, 0.94) / "weights.jsonl").unlink()
    text = report.write_report([tmp_path / "runs"], tmp_path / "out").read_text()
    assert "| resnet8 | plain | none | 1 | 94.00 |" in text
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {"psi.png"}


def test_layers_are_in_the_order_of_the_data():
    names = ["block10_0/conv1", "block1_0/conv1", "block1_0/conv0", "head", "stem"]
    assert course.layers_in_order(names) == ["stem", "block1_0/conv0", "block1_0/conv1", "block10_0/conv1", "head"]


def test_the_course_of_a_run_has_its_bound_and_the_density_of_its_weights(folder):
    wc, *_ = [run for run in find_runs([folder]) if run.method == "WC"]
    found = course.first_layer_course(wc)
    np.testing.assert_allclose(found.bound, np.pi / 2)
    assert list(found.epochs) == [0, 1, 2]
    density = found.density(np.linspace(-2, 2, 41))
    np.testing.assert_allclose(density.sum(axis=1) * 0.1, 1)
    np.testing.assert_allclose(found.density(np.array([-2, -1.2, 0, 1.2, 2]))[:, 1:3] * 1.2, 0.5, atol=0.15)
    assert not density[:, :7].any() and not density[:, -7:].any()  # drawn from (−1, 1)


@pytest.mark.parametrize("case, message", [("nowhere", "nowhere is no folder"), ("empty", "no run in .*empty")])
def test_where_there_are_no_runs_the_error_says_so(tmp_path, case, message):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=message):
        find_runs([tmp_path / case])


def test_the_command_says_it_in_one_line(tmp_path, capsys):
    assert report.main([str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'nowhere'} is no folder; give folders of runs.\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "config, message",
    [
        ({"dataset": "../../evil"}, "runs/a: unknown config.dataset '../../evil'. Known: digits, "),
        ({"model": "../evil"}, "runs/a: unknown config.model '../evil'. Known: resnet8, "),
        ({"reparam": {"name": "/evil"}}, "runs/a: unknown config.reparam.name '/evil'. Known: arctan, "),
        ({"reparam": {"learn": "../evil"}}, "runs/a: unknown config.reparam.learn '../evil'. Known: none, "),
    ],
)
def test_a_run_with_names_that_would_lead_out_of_the_report_is_refused(tmp_path, write_run, config, message):
    write_run(tmp_path / "runs" / "a", "wc", 0, 0.94, **config)
    with pytest.raises(InputError, match=re.escape(message)):
        report.write_report([tmp_path / "runs"], tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"runs"}


def test_runs_of_one_model_with_other_layers_are_named(tmp_path, write_run):
    for name in "ab":
        run = write_run(tmp_path / "runs" / name, "wc", ord(name), 0.94)
    lines = (run / "weights.jsonl").read_text().replace('"head"', '"tail"')
    (run / "weights.jsonl").write_text(lines)
    with pytest.raises(InputError, match="runs/b and .*runs/a have the same model, but other layers"):
        report.write_report([tmp_path / "runs"], tmp_path / "out")


def test_a_report_may_go_to_a_folder_of_any_name(tmp_path, write_run):
    write_run(tmp_path / "[runs]" / "a*", "plain", 0, 0.94)
    assert "- runs: 1, of them 1" in report.write_report([tmp_path / "[runs]"], tmp_path / "[out]?").read_text()


def test_links_are_left_out_and_named_with_where_they_lead(tmp_path, write_run, capsys):
    write_run(tmp_path / "runs" / "a", "plain", 0, 0.94)
    elsewhere = write_run(tmp_path / "elsewhere" / "b", "plain", 1, 0.95)
    (tmp_path / "runs" / "link").symlink_to(elsewhere)
    (tmp_path / "runs" / "dangling").symlink_to(tmp_path / "gone")
    text = report.write_report([tmp_path / "runs"], tmp_path / "out").read_text()
    section = text.partition("## Left out: links and what cannot be read\n\n")[2].partition("\n\n")[0]
    then = "give that folder too if its runs belong here"
    dangling = f"- {tmp_path / 'runs' / 'dangling'}: a link to {tmp_path / 'gone'}; {then}"
    assert section.splitlines() == [dangling, f"- {tmp_path / 'runs' / 'link'}: a link to {elsewhere}; {then}"]
    assert "- runs: 1, of them 1 finished" in text
    text = report.write_report([tmp_path / "runs", tmp_path / "runs" / "link"], tmp_path / "out").read_text()
    assert "- runs: 2, of them 2 finished" in text
    assert dangling in text and f"- {tmp_path / 'runs' / 'link'}: a link" not in text


def test_where_only_links_are_found_the_error_says_so(tmp_path, write_run):
    elsewhere = write_run(tmp_path / "elsewhere" / "b", "plain", 1, 0.95)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "link").symlink_to(elsewhere)
    with pytest.raises(
        InputError, match=f"no run in .*runs/link was left out: a link to {elsewhere}; give that folder"
    ):
        find_runs([tmp_path / "runs"])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["{}", "--out", ""], "--out is empty: give a path."),
        (["{}", "--out", "gs://bucket/report"], "--out gs://bucket/report: gs:// is not a local path"),
        (["", "--out", "{}/out"], "RUNS is empty: give a path."),
        (["{}", "--out", "{}/a/config.json"], "config.json is a file; give a folder."),
        (["{}", "--out", "{}/a/config.json/out"], "config.json is a file; give a folder."),
        (["{}", "--out", "/dev/null/out"], "/dev/null is a file; give a folder."),
    ],
)
def test_paths_that_cannot_be_used_are_told_in_one_line(tmp_path, write_run, capsys, monkeypatch, arguments, message):
    write_run(tmp_path / "a", "plain", 0, 0.94)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert report.main([argument.format(tmp_path) for argument in arguments]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and message in errors and errors.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_picture_that_cannot_be_written_is_named(tmp_path, write_run, capsys):
    write_run(tmp_path / "a", "plain", 0, 0.94)
    (tmp_path / "out" / "psi.png").mkdir(parents=True)
    assert report.main([str(tmp_path / "a"), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'out' / 'psi.png'} cannot be written (")
