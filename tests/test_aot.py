"""The training step as the compilers for GPU and TPU make it; what compiles needs the extra `aot` and no device."""

import importlib.util
import json

import pytest

from benchmarks import hlo
from tests.processes import ROOT, python

COMPILERS = {"h100": "jax_cuda13_plugin", "v5e": "libtpu"}

GPU = """HloModule step, is_scheduled=true, input_output_alias={ {0}: (0, {}, may-alias), {1}: (1, {}, may-alias) }

%wrapped_computation (p: f32[4]) -> bf16[4] {
  %p = f32[4]{0} parameter(0)
  ROOT %convert = bf16[4]{0} convert(%p)
}

ENTRY %main (a: f32[4], b: f32[256,1024]) -> (f32[4], f32[256,1024]) {
  %a = f32[4]{0} parameter(0)
  %fusion.1 = bf16[4]{0} fusion(%a), kind=kLoop, calls=%wrapped_computation
  %first-start = bf16[1000]{0} all-reduce-start(%fusion.1), channel_id=1, to_apply=%add
  %cudnn.1 = (bf16[8]{0}, u8[0]{0}) custom-call(%fusion.1), custom_call_target="__cudnn$convForward"
  %first-done = bf16[1000]{0} all-reduce-done(%first-start)
  %second-start = (f32[256,128]{1,0}, f32[256,1024]{1,0}) all-gather-start(%a), channel_id=2
  %fusion.2 = bf16[4]{0} fusion(%a), kind=kLoop, calls=%wrapped_computation
  %second-done = f32[256,1024]{1,0} all-gather-done(%second-start)
  %copy.1 = f32[256,1024]{1,0} copy(%second-done)
  ROOT %tuple = (f32[4]{0}, f32[256,1024]{1,0}) tuple(%a, %copy.1)
}
"""

TPU = """HloModule step, is_scheduled=true

%part (p: bf16[500]) -> (bf16[500], u32[]) {
  %p = bf16[500]{0} parameter(0)
  %all-reduce.1 = bf16[500]{0:T(512)(2,1)} all-reduce(%p), channel_id=1, frontend_attributes={chain_id="0"}
  ROOT %custom-call = (bf16[500]{0}, u32[]) custom-call(%all-reduce.1), custom_call_target="X"
}

%all-reduce-scatter.7 (p: bf16[800]) -> bf16[200] {
  %p = bf16[800]{0} parameter(0)
  %all-reduce.2 = bf16[800]{0} all-reduce(%p), channel_id=1, to_apply=%add
  ROOT %dynamic-slice = bf16[200]{0} dynamic-slice(%all-reduce.2, %i), dynamic_slice_sizes={200}
}

%multiply (p: bf16[8,8]) -> bf16[8,8] {
  %p = bf16[8,8]{1,0} parameter(0)
  ROOT %convolution.1 = bf16[8,8]{1,0} convolution(%p, %p), dim_labels=bf_io->bf
}

ENTRY %main (a: bf16[500]) -> bf16[500] {
  %a = bf16[500]{0} parameter(0)
  %copy-start = (bf16[500]{0:S(1)}, bf16[500]{0}, u32[]{:S(2)}) copy-start(%a)
  %copy-done = bf16[500]{0:S(1)} copy-done(%copy-start)
  %async-collective-start = (bf16[500]{0}, u32[]) fusion(%a), kind=kCustom, calls=%part
  %fusion.1 = bf16[8,8]{1,0:T(8,128)(2,1)} fusion(%a), calls=%multiply, backend_config={"estimated_cycles":"700"}
  %async-collective-done = bf16[500]{0} fusion(%async-collective-start), kind=kCustom, calls=%part
  %fusion.2 = bf16[200]{0} fusion(%a), kind=kCustom, calls=%all-reduce-scatter.7
  %all-reduce.3 = f32[]{:T(128)} all-reduce(%loss), channel_id=3, to_apply=%add
  %copy.2 = bf16[500]{0} copy(%a), backend_config={"estimated_cycles":"300"}
  ROOT %bitcast = bf16[500]{0} bitcast(%copy.2)
}
"""


GATHERED = 4 * 256 * 1024 / 1e6
COUNTS = {  # kernels, convolutions, copies, aliased, cycles; collectives: number, mb, overlapped, overlapped_mb
    GPU: ((6, 1, 1, 2, None), {"all-reduce": (1, 0.002, 1, 0.002), "all-gather": (1, GATHERED, 0, 0)}),
    TPU: ((6, 1, 1, 0, 1000), {"all-reduce": (2, 0.001004, 1, 0.001), "reduce-scatter": (1, 0.0004, 0, 0)}),
}


@pytest.mark.parametrize("program", COUNTS, ids=["gpu", "tpu"])
def test_kernels_and_collectives_of_a_program_are_counted(program):
    counts, sent = COUNTS[program]
    numbers = hlo.describe(program)
    assert tuple(numbers[k] for k in ("kernels", "convolutions", "copies", "aliased", "cycles")) == counts
    assert numbers["cycles_of"] == ({"convolutions": 700, "copies": 300} if program is TPU else {})
    assert {kind: tuple(map(pytest.approx, x.values())) for kind, x in numbers["collectives"].items()} == sent


def compiled(target, model, variants, tmp_path, *arguments):
    """The records of `python -m benchmarks.aot` for a network in bfloat16."""
    compiler = COMPILERS[target.partition(":")[0]]
    if importlib.util.find_spec(compiler) is None:
        pytest.skip(f"needs {compiler}: pip install 'wcjax[aot]'")
    config = ["--config", f"configs/cifar10.py:{model}", "--config.dtype=bfloat16", "--config.batch_size=512"]
    command = ["-m", "benchmarks.aot", "--target", target, *config, "--variants", variants, *arguments]
    out = tmp_path / "out.json"
    variables = {"PYTHONPATH": str(ROOT), "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_SKIP_MDS_QUERY": "1"}
    python(*command, "--out", out, JAX_DISABLE_MOST_OPTIMIZATIONS="0", **variables)
    return json.loads(out.read_text())["records"]


@pytest.mark.long
@pytest.mark.parametrize("target", ["h100", "v5e:1x1"])
def test_wc_adds_no_copy_and_no_kernel_on_accelerators(target, tmp_path):
    plain, *others = compiled(target, "resnet8", "plain,layers,compand", tmp_path)
    assert plain["convolutions"] >= 25  # of the forward and the backward pass, by the library or the compiler's own
    for record in (plain, *others):
        assert record["conditionals"] == 0
        assert record["aliased"] == record["donated"]
        assert record["collectives"] == {}
        assert record["cycles"] is None or record["cycles_of"].get("copies", 0) <= 0.02 * record["cycles"]
    for record in others:
        assert record["convolutions"] == plain["convolutions"]
        assert record["copies"] <= plain["copies"]
        if target == "h100":  # on a TPU, layers write w in bfloat16 before the convolution
            assert record["kernels"] <= plain["kernels"]
            assert record["bytes"] <= 1.002 * plain["bytes"]


@pytest.mark.long
@pytest.mark.parametrize("target, model", [("h100:8", "vgg16_bn"), ("v5e:2x2", "resnet18")])
def test_gradients_are_summed_during_the_backward_pass(target, model, tmp_path):
    (record,) = compiled(target, model, "layers", tmp_path)
    sums = record["collectives"]["all-reduce"]
    assert record["aliased"] == record["donated"]
    assert sums["overlapped_mb"] >= 0.25 * sums["mb"]


@pytest.mark.long
def test_sharded_gradients_are_scattered_in_bfloat16(tmp_path):
    (record,) = compiled("h100:8", "resnet8", "layers", tmp_path, "--config.mesh.fsdp=8")
    sharded = 3 * 3 * 32 * 64 + 3 * 3 * 64 * 64  # the kernels with at least MIN_FSDP_SIZE weights
    assert record["collectives"]["all-gather"]["mb"] == pytest.approx(2 * sharded / 1e6)
    assert record["collectives"]["reduce-scatter"]["mb"] == pytest.approx(2 * sharded / 8 / 1e6)
