"""Which runs a grid has, and which of them get the other seeds."""

import functools
import json

import pytest

from tests.sweep.command_lines import DIGITS, GRID, TWO_BY_TWO
from wcjax.sweep import __main__ as sweep
from wcjax.sweep import plan

SIX = ("0.5", "0.6", "0.7", "0.8", "0.9", "1.0")
RATES = ["--over", "learning_rate=0.05,0.1", "--over", "weight_decay=0,5e-4"]


@pytest.mark.parametrize(
    "arguments, names, changes",
    [
        (GRID, [f"a{a}_b{b}_seed0" for a in SIX for b in SIX], {"reparam.a": 1.0, "reparam.b": 1.0, "seed": 0}),
        (
            ["grid", "--config", f"{DIGITS}:resnet8,plain", "--seeds", "5", *RATES],
            [f"learning_rate{rate}_weight_decay{decay}_seed5" for rate in ("0.05", "0.1") for decay in ("0", "5e-4")],
            {"learning_rate": 0.1, "weight_decay": 5e-4, "seed": 5, "reparam.name": "none"},
        ),
    ],
)
def test_a_grid_has_all_combinations_of_its_values(arguments, names, changes):
    args = sweep.argument_parser().parse_args([*arguments, "--out", "unused"])
    grid = plan.plan_grid(args.config, [], sweep.grid_space(args.over), args.seeds[0])
    assert list(grid.configs) == names
    last = grid.configs[names[-1]]
    assert {key: functools.reduce(getattr, key.split("."), last) for key in changes} == changes


@pytest.mark.parametrize("ends, a, b", [({}, "0.6", "0.8"), ({"a0.6_b0.8_seed0": "it diverged"}, "0.6", "0.5")])
def test_a_grid_trains_its_best_point_with_the_other_seeds(trainer, tmp_path, capsys, ends, a, b):
    trainer.ends = ends
    assert trainer.sweep(*TWO_BY_TWO, "--config.epochs", "2", "--out", tmp_path, "--config.augment.flip") == 0
    assert set(trainer.trained[:4]) == {f"a{a}_b{b}_seed0" for a in ("0.6", "1") for b in ("0.5", "0.8")}
    assert sorted(trainer.trained[4:]) == [f"a{a}_b{b}_seed1", f"a{a}_b{b}_seed2"]
    assert f"Best on val: reparam.a={a}, reparam.b={b}." in capsys.readouterr().out
    config = json.loads((tmp_path / f"a{a}_b{b}_seed2" / "config.json").read_text())
    assert (config["seed"], config["reparam"]["a"], config["reparam"]["b"]) == (2, 0.6, float(b))
    assert (config["epochs"], config["augment"]["flip"]) == (2, True)
