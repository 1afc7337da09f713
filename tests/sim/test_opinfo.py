"""The first samples of every operator in torch's own database, in float32 where it has it, equal the CPU's results.

`make sim-coverage` runs all samples, all dtypes and gradients; this is its fast part. Operators that do not pass are
listed with their reason, and one that passes although it is listed fails: the list stays true.
"""

from __future__ import annotations

import pytest

pytest.importorskip(
    "torch_npu", reason="torch_npu does not load: run it by `make test-sim`", exc_type=Exception
)
from cann_sim import opinfo  # it imports torch_npu

SAMPLES = 2

# Reason: operators.
EXPECTED: dict[str, tuple[str, ...]] = {
    "torch_npu makes float64 float32: the device has none": ("double", "float_power"),
    "torch_npu makes tensors in no other memory format than contiguous": ("to",),
    "torch_npu has no kernels for sparse CSR tensors": ("sparse.mm.reduce", "sparse.sampled_addmm"),
    "torch wants these indices on the CPU for every device": ("tensor_split",),
}
REASONS = {name: reason for reason, names in EXPECTED.items() for name in names}


# The first dtype of each operator: float32 where it has it.
DTYPES = {name: dtype for name, dtype, mode in reversed(opinfo.jobs()) if mode == "forward"}


@pytest.mark.parametrize("name", DTYPES)
def test_first_samples_equal_the_cpus(name: str) -> None:
    dtype = DTYPES[name]
    result = opinfo.compare(name, dtype, "forward", limit=SAMPLES)
    failed = f"{result.reasons} for {result.example}" if result.passed < result.samples else ""
    if name in REASONS:
        assert failed, f"it passes now: take it off the list ({REASONS[name]})"
    else:
        assert not failed, failed


def test_the_list_names_operators() -> None:
    assert set(REASONS) <= set(DTYPES)
