"""The first samples of every operator in torch's own database, in float32 where it has it, equal the CPU's results.

`make sim-coverage` runs all samples, all dtypes and gradients; this is its fast part. Operators that do not pass are
listed: they differ in a way that differences.toml knows to be torch_npu's or torch's own, or CANN refuses the call. One
that passes although it is listed fails: the list stays true.
"""

from __future__ import annotations

import dataclasses

import pytest

pytest.importorskip(
    "torch_npu", reason="torch_npu does not load: run it by `make test-sim`", exc_type=Exception
)
from cann_sim import gate, opinfo  # it imports torch_npu

SAMPLES = 2

EXPECTED = {
    "double", "float_power", "to", "sparse.mm.reduce", "sparse.sampled_addmm", "tensor_split",
    "native_dropout_backward", "native_layer_norm",
    "nn.functional.adaptive_max_pool3d", "nn.functional.gelu", "nn.functional.max_pool1d",
    "nn.functional.max_pool2d", "nn.functional.max_pool3d",
    "nn.functional.silu.complex",
}  # fmt: skip
KNOWN = gate.differences()

# The first dtype of each operator: float32 where it has it.
DTYPES = {name: dtype for name, dtype, mode in reversed(opinfo.jobs()) if mode == "forward"}


@pytest.mark.parametrize("name", DTYPES)
def test_first_samples_equal_the_cpus(name: str) -> None:
    dtype = DTYPES[name]
    result = opinfo.compare(name, dtype, "forward", limit=SAMPLES)
    failed = f"{result.reasons} for {result.example}" if result.passed < result.samples else ""
    assert not gate.unexplained(dataclasses.asdict(result), KNOWN), failed
    assert bool(failed) == (name in EXPECTED), failed or "it passes now: take it off the list"


def test_the_list_names_operators() -> None:
    assert set(DTYPES) >= EXPECTED
