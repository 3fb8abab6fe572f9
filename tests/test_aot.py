"""The training step as the compilers for GPU and TPU make it; it needs the extra `aot` and no device."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
TARGETS = {"h100": "jax_cuda13_plugin", "v5e:1x1": "libtpu"}


@pytest.mark.long
@pytest.mark.parametrize("target", TARGETS)
def test_wc_adds_no_copy_and_no_kernel_on_accelerators(target, tmp_path):
    if importlib.util.find_spec(TARGETS[target]) is None:
        pytest.skip(f"needs {TARGETS[target]}: pip install 'wcjax[aot]'")
    config = ["--config", "configs/cifar10.py:resnet8", "--config.dtype=bfloat16", "--config.batch_size=64"]
    command = ["-m", "benchmarks.aot", "--target", target, *config, "--variants", "plain,layers,compand"]
    out = tmp_path / "out.json"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_SKIP_MDS_QUERY": "1"}
    environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "0"
    ended = subprocess.run(
        [sys.executable, *command, "--out", str(out)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    plain, *others = json.loads(out.read_text())["records"]
    assert plain["convolutions"] >= 25  # of the forward and the backward pass, by the library or the compiler's own
    for record in (plain, *others):
        assert record["conditionals"] == 0
        assert record["aliased"] == record["donated"]
    for record in others:
        assert record["convolutions"] == plain["convolutions"]
        assert record["copies"] <= plain["copies"]
        assert record["bytes"] is None or record["bytes"] <= 1.002 * plain["bytes"]
