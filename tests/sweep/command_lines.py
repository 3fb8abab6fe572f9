"""Command lines of sweeps, without --out."""

from tests.processes import ROOT

DIGITS = str(ROOT / "configs" / "digits.py")
GRID = ["grid", "--config", f"{DIGITS}:resnet8", "--seeds", "0-2"]
TWO_BY_TWO = [*GRID, "--over", "reparam.a=0.6,1", "--over", "reparam.b=0.5,0.8"]
RUNS = ["runs", "--config", DIGITS, "--models", "resnet8", "--variants", "plain,wc", "--seeds", "0,7"]
NAMES = [f"resnet8_{variant}_seed{seed}" for variant in ("plain", "wc") for seed in (0, 7)]
