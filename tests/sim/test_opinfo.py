"""The first samples of every operator in torch's own database, in float32 where it has it, equal the CPU's results.

`make sim-coverage` runs all samples, all dtypes and gradients; this is its fast part. Operators that do not pass are
listed by verdict: they differ in a way that differences.toml knows to be torch_npu's or torch's own, or CANN refuses
the data type. One that passes although it is listed fails: the lists stay true. `whole.below` holds the figures of all.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch

pytest.importorskip(
    "torch_npu", reason="torch_npu does not load: run it by `make test-sim`", exc_type=Exception
)
from cann_sim import gate, opinfo  # it imports torch_npu

SAMPLES = 2

# Operators whose first samples do not all equal the CPU's, by the verdict.
EXPECTED = {
    "differs": {
        "double", "float_power", "to", "sparse.mm.reduce", "sparse.sampled_addmm", "native_layer_norm",
        "nn.functional.gelu", "nn.functional.max_pool1d", "nn.functional.max_pool2d",
    },
    "no dtype": {"nn.functional.silu.complex"},
}  # fmt: skip
# CANN has no bfloat16 for these (its document and its source say so): all samples are refused.
NO_BFLOAT16 = [
    "addmv", "bucketize", "grid_sampler_2d", "histc", "mv", "nn.functional.max_unpool1d",
    "nn.functional.max_unpool1d.grad", "nn.functional.max_unpool2d", "nn.functional.max_unpool2d.grad",
    "nn.functional.max_unpool3d", "nn.functional.max_unpool3d.grad", "normal",
]  # fmt: skip
BY_LAYOUT = {"as_strided", "as_strided_copy"}  # they read the memory as it lies
ROUNDED = 1e-3  # a sum in another order
KNOWN = gate.differences()

# The first dtype of each operator: float32 where it has it.
DTYPES = {name: dtype for name, dtype, mode in reversed(opinfo.jobs()) if mode == "forward"}


@pytest.mark.parametrize("name", DTYPES)
def test_first_samples_equal_the_cpus(name: str) -> None:
    result = opinfo.compare(name, DTYPES[name], "forward", limit=SAMPLES)
    verdict = gate.verdict(dataclasses.asdict(result), KNOWN)
    expected = next((verdict for verdict, names in EXPECTED.items() if name in names), "equal")
    assert verdict == expected, f"{result.reasons} for {result.example}"


def across(leaf: object) -> object:
    """A tensor's values with the strides of its transposition, as a permuted prediction of a head has them."""
    if not isinstance(leaf, torch.Tensor) or leaf.layout is not torch.strided or leaf.dim() < 2:
        return leaf
    return leaf.detach().transpose(0, -1).contiguous().transpose(0, -1).requires_grad_(leaf.requires_grad)


@pytest.mark.parametrize("name", [name for name in DTYPES if name not in BY_LAYOUT])
def test_the_strides_of_the_inputs_change_nothing(name: str) -> None:
    """The samples do have strides, but no softmax of permuted numbers: its kernel writes them as if they were not."""
    result = opinfo.compare(name, DTYPES[name], "forward", limit=SAMPLES, lay=across)
    verdict = gate.verdict(dataclasses.asdict(result), KNOWN)
    assert verdict in ("equal", "differs", "no dtype") or result.max_error < ROUNDED, (
        f"{result.reasons} for {result.example}"
    )


@pytest.mark.parametrize("name", NO_BFLOAT16)
def test_cann_refuses_bfloat16_in_every_sample(name: str) -> None:
    result = opinfo.compare(name, "bfloat16", "forward", limit=SAMPLES)
    assert gate.verdict(dataclasses.asdict(result), KNOWN) == "no dtype", result.reasons


def test_the_lists_name_operators() -> None:
    assert set(DTYPES) >= set().union(*EXPECTED.values(), NO_BFLOAT16)


# A mode of torch's dispatcher around the CPU's run would make autograd take other formulas than the NPU's run takes.
@pytest.mark.parametrize("name", ["prod", "cumprod", "mm"])
def test_gradients_are_to_the_last_bit(name: str) -> None:
    result = opinfo.compare(name, "float32", "gradient")
    assert result.equal == result.samples, result.reasons
