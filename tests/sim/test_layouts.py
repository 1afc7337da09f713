"""Operators at level aclnn of numbers that lie otherwise than contiguous, and gradients beside what autograd saved."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

torch_npu = pytest.importorskip(
    "torch_npu", reason="torch_npu does not load: run it by `make test-sim`", exc_type=Exception
)

ALL = [torch.float32, torch.float16, torch.bfloat16]


def rand(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def same(function: Callable[[Tensor], Tensor], value: Tensor) -> None:
    """Assert that a function gives the CPU's numbers, data type and shape on the NPU."""
    expected, found = function(value), function(value.npu())
    assert found.device.type == "npu"
    assert found.dtype == expected.dtype
    assert torch.equal(found.cpu(), expected)


def gradient(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return the function of the gradient, without a graph of its own: with one, torch takes another formula."""

    def found(value: Tensor) -> Tensor:
        leaf = value.detach().requires_grad_()
        function(leaf).float().pow(2).sum().backward()
        assert leaf.grad is not None
        return leaf.grad

    return found


@pytest.mark.parametrize("order", [(3, 0, 2, 1), (0, 2, 1, 3), (0, 3, 1, 2), (1, 0, 3, 2)], ids=str)
@pytest.mark.parametrize("name", ["tril", "triu"])
def test_a_triangle_of_permuted_scores(name: str, order: tuple[int, ...]) -> None:
    """torch's kernels take the strides of a result of more than two dimensions as a contiguous one's."""
    for diagonal in (-1, 0, 2):
        same(lambda x: getattr(x.permute(order), name)(diagonal), rand(5, 3, 4, 6))  # noqa: B023
        same(lambda x: getattr(x.permute(order).clone(), f"{name}_")(diagonal), rand(5, 3, 4, 6))  # noqa: B023
    placed = torch.zeros(3, 4, 2, 5).npu().permute(3, 2, 1, 0)
    value = rand(2, 3, 4, 5).permute(3, 0, 2, 1)
    assert torch.equal(
        getattr(torch, name)(value.npu(), out=placed[:, :2]).cpu(), getattr(torch, name)(value[:, :2])
    )


@pytest.mark.parametrize("dtype", ALL, ids=str)
@pytest.mark.parametrize("mode", ["replicate", "reflect", "constant", "circular"])
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_padding_of_channels_that_lie_last(dimensions: int, mode: str, dtype: torch.dtype) -> None:
    value = rand(2, *(4, 5, 6)[:dimensions], 3).to(dtype)

    def pad(x: Tensor) -> Tensor:
        return F.pad(x.movedim(-1, 1), (1, 2) * dimensions, mode=mode)

    same(pad, value)
    same(gradient(pad), value)


@pytest.mark.parametrize("dtype", ALL, ids=str)
@pytest.mark.parametrize("eps", [None, 1e-6, 0.2])
def test_the_gradient_of_logit(eps: float | None, dtype: torch.dtype) -> None:
    same(gradient(lambda x: torch.special.logit(x, eps)), torch.tensor([0.1, 0.3, 0.5, 0.9], dtype=dtype))


@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
@pytest.mark.parametrize("dtype", ALL, ids=str)
@pytest.mark.parametrize(
    "make",
    [
        lambda affine: nn.LayerNorm(8, elementwise_affine=affine),
        lambda affine: nn.BatchNorm2d(3, affine=affine),
        lambda affine: nn.BatchNorm2d(3, affine=affine).eval(),
        lambda affine: nn.BatchNorm2d(3, affine=affine, track_running_stats=False),
        lambda affine: nn.InstanceNorm2d(3, affine=affine),
        lambda affine: nn.GroupNorm(3, 3, affine=affine),
    ],
    ids=["layer", "batch", "frozen batch", "batch without statistics", "instance", "group"],
)
def test_gradients_of_norms_whose_weights_have_the_inputs_type(
    make: Callable[[bool], nn.Module], dtype: torch.dtype, affine: bool
) -> None:
    """torch_npu saves float32 statistics, whatever the data type of the rest is."""
    module = make(affine).to(dtype)
    weights = [copy.deepcopy(module), copy.deepcopy(module).npu()]

    def run(x: Tensor) -> Tensor:
        result: Tensor = weights[x.device.type == "npu"](x)
        return result

    same(gradient(run), rand(2, 3, 4, 8).to(dtype))
    for expected, found in zip(weights[0].parameters(), weights[1].parameters(), strict=True):
        assert expected.grad is not None
        assert found.grad is not None
        assert torch.equal(found.grad.cpu(), expected.grad)


@pytest.mark.parametrize("dtype", ALL[1:], ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["training", "frozen"])
def test_batch_norm_under_autocast(training: bool, dtype: torch.dtype) -> None:
    """What detectors with frozen statistics do: 16-bit features beside float32 parameters."""

    def run(x: Tensor) -> Tensor:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)).train(training).to(x.device)
        with torch.autocast(x.device.type, dtype):
            result: Tensor = model(x)
        return result

    same(gradient(run), rand(2, 3, 4, 4))


def test_fmod_of_integers_and_a_fraction_is_held_back() -> None:
    same(lambda x: torch.fmod(x, 1.5), torch.arange(5) - 2)
    same(lambda x: torch.fmod(x, 2), torch.arange(5) - 2)
    same(lambda x: torch.fmod(x, 1.5), rand(5))
