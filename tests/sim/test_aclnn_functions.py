"""aclnn functions that are written by hand, at their edges: results, shapes and what is refused."""

from __future__ import annotations

import pytest
import torch
from cann_sim import counters

torch_npu = pytest.importorskip(
    "torch_npu", reason="torch_npu does not load: run it by `make test-sim`", exc_type=Exception
)

HALVES = [torch.float16, torch.bfloat16]


def rand(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


# ---- unique rows ----

ROWS = torch.tensor([[2, 1], [-1, 2], [2, 1], [0, 5], [-1, 2]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.uint8, *HALVES], ids=str)
@pytest.mark.parametrize("dim", [0, 1, -1, -2])
def test_unique_rows_their_places_and_counts(dim: int, dtype: torch.dtype) -> None:
    values = ROWS.abs().to(dtype)
    expected = torch.unique(values, dim=dim, return_inverse=True, return_counts=True)
    counters.start()
    found = torch.unique(values.npu(), dim=dim, return_inverse=True, return_counts=True)
    assert counters.snapshot()["launches"] == {"aclnnUniqueDim": 1}
    counters.stop()
    for e, f in zip(expected, found, strict=True):
        assert torch.equal(e, f.cpu())
        assert f.is_contiguous()


@pytest.mark.parametrize(
    ("values", "dim"),
    [
        (ROWS[:1], 0), (ROWS[:0], 0), (ROWS[:, :0], 1), (torch.ones(4, 3), 0), (torch.tensor([3.0, -1, 3]), 0),
        (rand(3, 4, 2)[[0, 1, 0]], 0), (rand(3, 4, 2)[:, [1, 3, 3, 1]], 1), (ROWS.t(), 1), (torch.ones(2, 3) > 0, 1),
    ],
)  # fmt: skip
def test_unique_rows_at_the_edges(values: torch.Tensor, dim: int) -> None:
    expected = torch.unique(values, dim=dim, return_inverse=True, return_counts=True)
    found = torch.unique(values.npu(), dim=dim, return_inverse=True, return_counts=True)
    for e, f in zip(expected, found, strict=True):
        assert torch.equal(e, f.cpu())


def test_unique_of_two_empty_dimensions_is_refused() -> None:
    with pytest.raises(RuntimeError, match="zero sized dimensions"):
        torch.unique(torch.empty(0, 0, device="npu"), dim=0)


# ---- QR ----


@pytest.mark.parametrize("mode", ["reduced", "complete", "r"])
@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4), (2, 3, 5, 4), (1, 1), (0, 3), (3, 0)])
def test_qr_is_the_cpus(shape: tuple[int, ...], mode: str) -> None:
    x = rand(*shape)
    expected, found = torch.linalg.qr(x, mode=mode), torch.linalg.qr(x.npu(), mode=mode)
    for e, f in zip(expected, found, strict=True):
        assert e.shape == f.shape
        torch.testing.assert_close(f.cpu(), e, rtol=1e-5, atol=1e-6)
    if mode == "reduced":
        torch.testing.assert_close((found[0] @ found[1]).cpu(), x, rtol=1e-5, atol=1e-5)


def test_qr_has_half_precision_that_the_cpu_has_not() -> None:
    x = rand(5, 3)
    q, r = torch.linalg.qr(x.half().npu())
    assert (q.dtype, r.dtype) == (torch.float16, torch.float16)
    expected = torch.linalg.qr(x.half().float())
    torch.testing.assert_close(q.cpu(), expected.Q.half(), rtol=2e-3, atol=1e-3)
    torch.testing.assert_close(r.cpu(), expected.R.half(), rtol=2e-3, atol=1e-3)


def test_qr_has_a_gradient_and_out() -> None:
    gradients = []
    for device in ("cpu", "npu"):
        x = rand(5, 3).to(device).requires_grad_()
        q, r = torch.linalg.qr(x)
        (q.square().sum() + r.sum()).backward()
        assert x.grad is not None
        gradients.append(x.grad.cpu())
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-5)
    out = torch.empty(5, 3, device="npu"), torch.empty(3, 3, device="npu")
    torch.linalg.qr(rand(5, 3).npu(), out=out)
    torch.testing.assert_close((out[0] @ out[1]).cpu(), rand(5, 3), rtol=1e-5, atol=1e-5)


# ---- masked softmax ----


def masked_softmax(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = torch._masked_softmax(x, mask, -1, 2)
    return result


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
@pytest.mark.parametrize("columns", [1, 5, 16, 65])
def test_masked_softmax_is_the_cpus(columns: int, dtype: torch.dtype) -> None:
    x, mask = rand(2, 3, 4, columns).to(dtype) * 9, rand(2, 3, 4, columns) > 0.3
    mask[..., 0] = False
    counters.start()
    found = masked_softmax(x.npu(), mask.npu())
    torch.npu.synchronize()
    assert counters.snapshot()["launches"] == {"aclnnScaledMaskedSoftmax": 1}
    counters.stop()
    assert torch.equal(found.cpu(), masked_softmax(x, mask))


def test_what_is_masked_counts_as_minus_ten_thousand() -> None:
    """So a row of nothing else is even, and numbers that are as low share with what is masked: CANN's, not torch's."""
    x = torch.tensor([[1.0, 2, 3, 4], [-10000, -10000, -20000, 0]]).view(1, 1, 2, 4)
    mask = torch.tensor([[True] * 4, [False, False, False, True]]).view(1, 1, 2, 4)
    found = masked_softmax(x.npu(), mask.npu()).cpu()[0, 0]
    assert torch.equal(found[0], torch.full((4,), 0.25))
    torch.testing.assert_close(found[1], torch.tensor([1, 1, 0, 1]) / 3)
    assert masked_softmax(x, mask)[0, 0, 0].isnan().all()


def test_masked_softmax_of_another_form_falls_back_to_the_cpu() -> None:
    x, mask = rand(3, 4), rand(3, 4) > 0.5
    mask[:, 0] = False
    assert torch.equal(masked_softmax(x.npu(), mask.npu()).cpu(), masked_softmax(x, mask))


# ---- the gradient of repeat_interleave ----


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
@pytest.mark.parametrize(
    ("shape", "repeats", "dim"),
    [
        ((3, 4), [2, 0, 3], 0), ((3, 4), [1, 0, 2, 5], -1), ((2, 3), [0, 1, 2, 3, 4, 5], None),
        ((2, 3, 2), [4, 1, 1], 1), ((3, 4), [2], 1), ((3,), [0, 0, 1], 0),
    ],
)  # fmt: skip
def test_the_gradient_of_repeat_interleave(
    shape: tuple[int, ...], repeats: list[int], dim: int | None, dtype: torch.dtype
) -> None:
    gradients = []
    for device in ("cpu", "npu"):
        x = rand(*shape).to(device, dtype).requires_grad_()
        y = x.repeat_interleave(torch.tensor(repeats).to(device), dim)
        (y * torch.arange(y.numel(), device=device).view(y.shape)).sum().backward()
        assert x.grad is not None
        gradients.append(x.grad.cpu())
    if len(repeats) == 1:  # torch_npu sums these itself
        torch.testing.assert_close(gradients[1], gradients[0])
    else:
        assert torch.equal(*gradients)
