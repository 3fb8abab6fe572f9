"""Run folders from elsewhere, damaged in any way, are read as something of the right form or refused by name."""

import json
import shutil
import warnings

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.ours import mutated, only_our_errors
from tests.run_folder.examples import DATA, LAYER, PAIRS, SUMMARY
from wcjax import models
from wcjax.analysis import compare, history, report, runs, tables
from wcjax.config import default_config
from wcjax.run_folder import read, read_lines
from wcjax.run_folder.checkpoints import save_tree
from wcjax.run_folder.schema import EDGES
from wcjax.training import load_folded

# Of coroutines that Orbax leaves behind when a file cannot be read.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

FEW = settings(max_examples=max(10, settings.default.max_examples // 20))  # of what takes 0.1 s and more

RUN = {
    "data.json": [DATA],
    "config.json": [default_config().to_dict() | {"reparam": {"name": "arctan", "a": 1.0, "learn": "fine"}}],
    "summary.json": [SUMMARY],
    "metrics.jsonl": [{"epoch": epoch, **dict.fromkeys(history.CURVES, 0.5), "pairs": PAIRS} for epoch in (1, 2)],
    "weights.jsonl": [{"epoch": epoch, "layers": {"stem": LAYER, "head": LAYER}} for epoch in (0, 1, 2)],
    "failed.json": [{"reason": "it diverged", "config": {"model": "resnet8"}}],
}

odd = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just([]) | st.just({})
odd |= st.sampled_from((10**400, 1e308, -1, 0, "../../evil", "$x$", "\ud800", "a\n# b", [[1]], {"a": {"b": 1}}))


def changed(draw, value):
    """value, in which something at a random depth is replaced, removed or added."""
    if not isinstance(value, dict | list) or not value or draw(st.integers(0, 4)) == 0:
        return draw(odd)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key, copy = draw(st.sampled_from(keys)), value.copy()
    how = draw(st.sampled_from(("change", "change", "change", "remove", "add")))
    if how == "change":
        copy[key] = changed(draw, value[key])
    elif how == "remove":
        del copy[key]
    elif isinstance(copy, dict):
        copy[draw(st.text(max_size=8) | st.sampled_from(("../evil", "$x$", "tail")))] = copy[key]
    else:
        copy.append(draw(odd))
    return copy


@st.composite
def run_folders(draw):
    """{file name: bytes} of a run folder, one or two files of which are damaged."""
    files = {name: "".join(json.dumps(line) + "\n" for line in lines).encode() for name, lines in RUN.items()}
    for name in draw(st.lists(st.sampled_from(list(RUN)), min_size=1, max_size=2)):
        if draw(st.integers(0, 3)) == 0:
            files[name] = mutated(draw, files[name], st)
        else:
            lines = [json.dumps(changed(draw, line)) for line in RUN[name]]
            files[name] = "".join(line + "\n" for line in lines).encode()
    if draw(st.booleans()):
        del files["failed.json"]
    return files


def written(folder, files):
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


@given(run_folders())
def test_the_files_of_a_run_are_read_or_refused(tmp_path_factory, files):
    folder = written(tmp_path_factory.mktemp("runs") / "run", files)
    for name in RUN:
        with only_our_errors():
            read_lines(folder, name) if name.endswith("l") else read(folder, name)
    with only_our_errors():
        compare.comparison_markdown([folder])
    with only_our_errors():
        found = runs.find_runs([folder])[0]
        tables.results_table(tables.result_rows(runs.group_by_setting(found))).markdown()
        if first := history.first_layer_history(found[0]):
            assert first.counts.shape == (len(first.epochs), len(EDGES) + 1)
            layers = history.final_statistics({"": found})[""]
            assert all(np.isfinite(list(numbers.values())).all() for numbers in layers.values())
        history.pair_history(found[0])
        if curves := history.curves(found):
            assert {curves[name].dtype for name in history.CURVES} == {np.dtype(float)}


@FEW
@given(run_folders())
def test_a_report_is_written_into_its_folder_alone(tmp_path_factory, files):
    root = tmp_path_factory.mktemp("runs")
    written(root / "runs" / "run", files)
    with only_our_errors(), warnings.catch_warnings():
        warnings.simplefilter("error")
        report.write_report([root / "runs"], root / "report")
        assert (root / "report" / "report.md").read_text(encoding="utf-8").startswith("# Weight compander")
    assert {path.name for path in root.iterdir()} <= {"runs", "report"}


@pytest.fixture(scope="module")
def folded(tmp_path_factory):
    """A run folder that holds what load_folded reads."""
    files = {"config.json": b'{"model": "resnet8"}', "data.json": json.dumps(DATA).encode()}
    folder = written(tmp_path_factory.mktemp("folded") / "run", files)
    shapes = jax.eval_shape(models.create("resnet8", 10).init, jax.random.key(0), np.ones((1, 8, 8, 1), np.float32))
    save_tree(folder / "folded", jax.tree.map(lambda x: np.full(x.shape, 0.5, x.dtype), shapes))
    return folder


@FEW
@given(st.data())
def test_folded_weights_are_those_of_the_network_or_refused(tmp_path_factory, folded, draws):
    run = shutil.copytree(folded, tmp_path_factory.mktemp("copy") / "run")
    path = draws.draw(st.sampled_from(sorted(path.relative_to(run) for path in run.rglob("*") if path.is_file())))
    (run / path).write_bytes(mutated(draws.draw, (run / path).read_bytes(), st))
    with only_our_errors():
        _, variables = load_folded(run)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(variables))
        assert variables["params"]["head"]["kernel"].dtype == np.float32
