"""torch_npu's own functions that become operators by ACL name, against the same formula in torch on the CPU."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import RunPython

torch_npu = pytest.importorskip(
    "torch_npu", reason="torch_npu does not load: run it by `make test-sim`", exc_type=Exception
)

from cann_sim import npu_functions  # noqa: E402  # it imports torch_npu

F = torch.nn.functional
Tensors = tuple[torch.Tensor, ...]


def rand(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape))) * 2 - 1


def rotate(x: torch.Tensor, r1: torch.Tensor, r2: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, -1)
    return r1 * x + r2 * torch.cat([-second, first], -1)


def rotate_neighbours(x: torch.Tensor, r1: torch.Tensor, r2: torch.Tensor) -> torch.Tensor:
    return r1 * x + r2 * torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)


def on_npu_neighbours(x: torch.Tensor, r1: torch.Tensor, r2: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = torch_npu.npu_rotary_mul(x, r1, r2, rotary_mode="interleave")
    return found


def masked_softmax(x: torch.Tensor, mask: torch.Tensor, scale: float) -> torch.Tensor:
    return (x * scale).masked_fill(mask, -10000.0).softmax(-1)


MASK = torch.ones(32, 32).triu(1).bool()
LSTM = (rand(5, 2, 3), rand(4 * 4, 3 + 4).t(), rand(16), rand(1, 2, 4), rand(1, 2, 4))
GRU = (rand(5, 2, 3), rand(1, 2, 4), rand(3, 12), rand(4, 12), rand(12), rand(12) / 2)


def on_npu_lstm(
    x: torch.Tensor, w: torch.Tensor, b: torch.Tensor, h: torch.Tensor, c: torch.Tensor
) -> Tensors:
    empty = torch.empty(0, device="npu")
    y, *states = torch_npu.npu_lstm(x, w, b, empty, h, c, True, 1, 0.0, True, False, False, False, False)
    return y, states[0][-1], states[1][-1]  # torch_npu takes the gradient of the last states only


def lstm(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor, h: torch.Tensor, c: torch.Tensor) -> Tensors:
    steps = []
    for step in x:
        h, c = torch.lstm_cell(step, (h.view(2, 4), c.view(2, 4)), w[:3].t(), w[3:].t(), b, torch.zeros(16))
        steps.append(h)
    return torch.stack(steps), h, c


def on_npu_gru(x: torch.Tensor, h: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
    length = torch.tensor([5]).int().npu()
    found: torch.Tensor = torch_npu.npu_gru(x, h, *weights, length, True, 1, 0.0, True, False, False)[0]
    return found


def gru(
    x: torch.Tensor, h: torch.Tensor, wx: torch.Tensor, wh: torch.Tensor, *bias: torch.Tensor
) -> torch.Tensor:
    return torch.gru(x, h, (wx.t(), wh.t(), *bias), True, 1, 0.0, False, False, False)[0]


def on_npu_cell(x: torch.Tensor, wi: torch.Tensor, wh: torch.Tensor, *rest: torch.Tensor) -> Tensors:
    found: Tensors = torch_npu.npu_lstm_cell(x, wi.t(), wh.t(), *rest)
    return found[1:3]


def cell(
    x: torch.Tensor, wi: torch.Tensor, wh: torch.Tensor, h: torch.Tensor, c: torch.Tensor, *bias: torch.Tensor
) -> Tensors:
    return torch.lstm_cell(x, (h, c), wi, wh, *bias)


# Name: (function on the NPU, the same on the CPU, inputs); every input of floating type gets its gradient.
WITH_GRADIENT: dict[str, tuple[Callable[..., Any], Callable[..., Any], Tensors]] = {
    "silu": (torch_npu.npu_silu, F.silu, (rand(4, 5),)),
    "mish": (torch_npu.npu_mish, F.mish, (rand(4, 5),)),
    "fast gelu": (torch_npu.fast_gelu, lambda x: x * torch.sigmoid(1.702 * x), (rand(4, 5) * 4,)),
    "conv3d": (
        lambda x, w, b: torch_npu.npu_convolution(x, w, b, [2, 1, 1], [1, 0, 1], [1, 1, 1], 1),
        lambda x, w, b: F.conv3d(x, w, b, (2, 1, 1), (1, 0, 1)),
        (rand(1, 2, 6, 6, 7), rand(3, 2, 2, 3, 3), rand(3)),
    ),
    "max": (lambda x: torch_npu.npu_max(x, 1)[0], lambda x: x.max(1)[0], (rand(3, 5, 2),)),
    "max, kept": (
        lambda x: torch_npu.npu_max(x, 1, True)[0], lambda x: x.max(1, True)[0], (rand(3, 5, 2),),
    ),
    "min": (lambda x: torch_npu.npu_min(x, 2)[0], lambda x: x.min(2)[0], (rand(3, 5, 2),)),
    "bmm": (lambda a, b: torch_npu.npu_bmmV2(a, b, []), torch.matmul, (rand(4, 3, 5), rand(4, 5, 2))),
    "bmm, broadcast": (
        lambda a, b: torch_npu.npu_bmmV2(a, b, []), torch.matmul, (rand(2, 4, 3, 5), rand(4, 5, 2)),
    ),
    "bmm, transposed": (
        lambda a, b: torch_npu.npu_bmmV2(a, b.transpose(1, 2), []),
        lambda a, b: a @ b.transpose(1, 2),
        (rand(4, 3, 5), rand(4, 2, 5)),
    ),
    "confusion transpose": (
        lambda x: torch_npu.npu_confusion_transpose(x, (0, 2, 1, 3), (2, 4, 18), True),
        lambda x: x.permute(0, 2, 1, 3).reshape(2, 4, 18),
        (rand(2, 3, 4, 6),),
    ),
    "confusion transpose, reshaped first": (
        lambda x: torch_npu.npu_confusion_transpose(x, (0, 2, 1), (2, 12, 6), False),
        lambda x: x.reshape(2, 12, 6).permute(0, 2, 1),
        (rand(2, 3, 4, 6),),
    ),
    "softmax cross entropy": (
        lambda x: torch_npu.npu_softmax_cross_entropy_with_logits(x, rand(6, 4).softmax(-1).to(x.device)),
        lambda x: F.cross_entropy(x, rand(6, 4).softmax(-1), reduction="none"),
        (rand(6, 4) * 3,),
    ),
    "rotary, neighbours": (
        on_npu_neighbours, rotate_neighbours, (rand(2, 2, 5, 64), rand(1, 2, 1, 64), rand(1, 2, 1, 64)),
    ),
    "rotary": (torch_npu.npu_rotary_mul, rotate, (rand(2, 2, 5, 64), rand(1, 2, 1, 64), rand(1, 2, 1, 64))),
    "rotary, another width": (
        torch_npu.npu_rotary_mul, rotate, (rand(2, 2, 5, 6), rand(1, 2, 1, 6), rand(1, 2, 1, 6)),
    ),
    "scaled masked softmax": (
        lambda x: torch_npu.npu_scaled_masked_softmax(x, MASK.to(x.device), 0.5, False),
        lambda x: masked_softmax(x, MASK, 0.5),
        (rand(2, 2, 32, 32) * 4,),
    ),
    "scaled masked softmax, causal": (
        lambda x: torch_npu.npu_scaled_masked_softmax(x, MASK.to(x.device), 2.0, True),
        lambda x: masked_softmax(x, MASK, 2.0),
        (rand(2, 2, 32, 32) * 4,),
    ),
    "lstm": (on_npu_lstm, lstm, LSTM),
    "lstm cell": (
        on_npu_cell, cell, (rand(2, 3), rand(16, 3), rand(16, 4), rand(2, 4), rand(2, 4), rand(16), rand(16) / 2),
    ),
    "gru": (on_npu_gru, gru, GRU),
}  # fmt: skip


def evaluate(function: Callable[..., Any], inputs: Tensors, device: str) -> list[torch.Tensor]:
    leaves = [tensor.detach().clone().to(device).requires_grad_() for tensor in inputs]
    results = function(*leaves)
    results = results if isinstance(results, tuple) else (results,)
    total = sum((r * (torch.arange(r.numel(), device=device).view(r.shape) % 7 + 1)).sum() for r in results)
    gradients = torch.autograd.grad(total, leaves)
    return [tensor.detach().cpu() for tensor in (*results, *gradients)]


@pytest.mark.parametrize("name", WITH_GRADIENT)
def test_values_and_gradients(name: str) -> None:
    on_npu, on_cpu, inputs = WITH_GRADIENT[name]
    found, expected = evaluate(on_npu, inputs, "npu"), evaluate(on_cpu, inputs, "cpu")
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert other.abs().max() > 0, "nothing to compare"
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["silu", "mish", "bmm", "rotary", "rotary, neighbours", "softmax cross entropy"]
)
def test_half_precision_is_the_float_s_rounded(name: str) -> None:
    on_npu, on_cpu, inputs = WITH_GRADIENT[name]
    found = on_npu(*(tensor.half().npu() for tensor in inputs))
    assert found.dtype == torch.float16
    expected = on_cpu(*(tensor.half().float() for tensor in inputs))
    torch.testing.assert_close(found.cpu(), expected.half(), rtol=2e-3, atol=2e-3)


INDEX = torch.tensor([5, 3, 2, 1])


def normalize_batch(x: torch.Tensor, lengths: list[int], every: bool) -> torch.Tensor:
    rows = []
    for part, length in zip(x, lengths, strict=True):
        used = part[:, :length].reshape(1, -1) if every else part[:, :length]
        rows.append((part - used.mean(1, True)) / (used.std(1, keepdim=True) + 1e-5))
    return torch.stack(rows)


def filled(x: torch.Tensor, ranges: list[list[tuple[int, int]]], values: list[float]) -> torch.Tensor:
    x = x.clone()
    for row_ranges, value in zip(ranges, values, strict=True):
        for row, (start, end) in enumerate(row_ranges):
            x[row, ..., max(start, 0) : max(end, 0)] = value
    return x


def on_npu_filled(x: torch.Tensor, ranges: list[list[tuple[int, int]]], values: list[float]) -> torch.Tensor:
    start, end = torch.tensor(ranges).int().npu().unbind(-1)
    return torch_npu.npu_masked_fill_range(x.npu(), start, end, torch.tensor(values).to(x.dtype).npu(), -1)


RANGES = [[(0, 2), (1, 3), (-3, 1)], [(1, 3), (3, 9), (2, 2)]]


def blocks(x: torch.Tensor, offset: int, count: int) -> torch.Tensor:
    padded = F.pad(x, (0, 0, 0, 0, 0, -x.shape[1] % 16))
    return padded[:, 16 * offset : 16 * (offset + count)]


VALUES: dict[str, tuple[Callable[[], torch.Tensor], Callable[[], torch.Tensor]]] = {
    "one hot": (
        lambda: torch_npu.npu_one_hot(INDEX.int().npu(), depth=5, on_value=2, off_value=1),
        lambda: F.one_hot(INDEX, 6)[:, :5].float() + 1,
    ),
    "fast gelu": (
        lambda: torch_npu.npu_fast_gelu(rand(4, 5).npu()), lambda: rand(4, 5) * torch.sigmoid(1.702 * rand(4, 5)),
    ),
    "conv3d": (
        lambda: torch_npu.npu_conv3d(
            rand(1, 4, 4, 5, 6).npu(), rand(6, 2, 2, 3, 3).npu(), None, [1, 1, 1], [0, 0, 0], [2, 1, 1], 2
        ),
        lambda: F.conv3d(rand(1, 4, 4, 5, 6), rand(6, 2, 2, 3, 3), None, 1, 0, (2, 1, 1), 2),
    ),
    "pad": (
        lambda: torch_npu.npu_pad(rand(2, 3).npu(), [1, 0, 2, 1]), lambda: F.pad(rand(2, 3), (2, 1, 1, 0)),
    ),
    "indexing": (
        lambda: torch_npu.npu_indexing(rand(6, 7).npu(), [1, 2], [6, 7], [2, 1]), lambda: rand(6, 7)[1:6:2, 2:7],
    ),
    "arg max": (lambda: torch_npu.npu_max(rand(3, 5).npu(), 1)[1].long(), lambda: rand(3, 5).argmax(1)),
    "arg min": (lambda: torch_npu.npu_min(rand(3, 5).npu(), 0)[1].long(), lambda: rand(3, 5).argmin(0)),
    "layer norm for inference": (
        lambda: torch_npu.npu_layer_norm_eval(rand(3, 8).npu(), (8,), rand(8).npu(), (rand(8) / 2).npu()),
        lambda: F.layer_norm(rand(3, 8), (8,), rand(8), rand(8) / 2),
    ),
    "layer norm for inference, without weight": (
        lambda: torch_npu.npu_layer_norm_eval(rand(2, 3, 8).npu(), (3, 8)), lambda: F.layer_norm(rand(2, 3, 8), (3, 8)),
    ),
    "sort": (
        lambda: torch_npu.npu_sort_v2(rand(3, 5).npu(), 1, True), lambda: rand(3, 5).sort(1, descending=True)[0],
    ),
    "normalize batch": (
        lambda: torch_npu.npu_normalize_batch(rand(3, 4, 6).npu(), torch.tensor([2, 6, 3]).int().npu(), 0),
        lambda: normalize_batch(rand(3, 4, 6), [2, 6, 3], False),
    ),
    "normalize batch, over all features": (
        lambda: torch_npu.npu_normalize_batch(rand(3, 4, 6).npu(), torch.tensor([2, 6, 3]).int().npu(), 1),
        lambda: normalize_batch(rand(3, 4, 6), [2, 6, 3], True),
    ),
    "fill of ranges": (
        lambda: on_npu_filled(rand(4, 5), RANGES, [1, 2]), lambda: filled(rand(4, 5), RANGES, [1, 2]),
    ),
    "fill of ranges, in three dimensions": (
        lambda: on_npu_filled(rand(3, 2, 5).half(), RANGES, [1, 2]),
        lambda: filled(rand(3, 2, 5).half(), RANGES, [1, 2]),
    ),
    "fill of ranges, of integers": (
        lambda: on_npu_filled(torch.arange(20).view(4, 5).to(torch.int8), RANGES, [1, 2]),
        lambda: filled(torch.arange(20).view(4, 5).to(torch.int8), RANGES, [1, 2]),
    ),
    "fill of ranges, in a vector": (
        lambda: on_npu_filled(rand(9), [[(2, 4)], [(3, 5)]], [1, 2]),
        lambda: filled(rand(9)[None], [[(2, 4)], [(3, 5)]], [1, 2])[0],
    ),
    "stride add, the documentation's": (
        lambda: torch_npu.npu_stride_add(torch.ones(1, 1, 1, 1, 1).npu(), torch.ones(1, 1, 1, 1, 1).npu(), 0, 0, 1),
        lambda: F.pad(torch.full((1, 1, 1, 1, 1), 2.0), (0, 0, 0, 0, 0, 0, 0, 15)),
    ),
    "stride add": (
        lambda: torch_npu.npu_stride_add(rand(2, 40, 3, 3).npu(), rand(2, 64, 3, 3).npu(), 1, 2, 2),
        lambda: blocks(rand(2, 40, 3, 3), 1, 2) + blocks(rand(2, 64, 3, 3), 2, 2),
    ),
    "scatter": (
        lambda: torch_npu.npu_scatter(
            torch.zeros(3, 4).npu(), torch.tensor([1, 0, 3]).int().npu(), rand(3).npu(), 1
        ),
        lambda: torch.zeros(3, 4).scatter(1, torch.tensor([[1], [0], [3]]), rand(3)[:, None]),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", VALUES)
def test_values(name: str) -> None:
    on_npu, on_cpu = VALUES[name]
    found = on_npu()
    assert found.device.type == "npu"
    torch.testing.assert_close(found.cpu(), on_cpu(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("keep", [1.0, 0.75])
def test_softmax_with_dropout(keep: float) -> None:
    """The mask that comes back is the one of the gradient; what it keeps is scaled."""
    scores, bias = rand(4, 8, 128, 128), rand(4, 8, 128, 128) / 2
    on_npu = scores.clone().npu().requires_grad_()
    mask, softmax, output = torch_npu.npu_dropout_with_add_softmax(on_npu, bias.npu(), 0.5, 1 - keep, -1)
    expected = (bias + 0.5 * scores).requires_grad_().softmax(-1)
    torch.testing.assert_close(softmax.detach().cpu(), expected.detach())
    drawn = mask.cpu()[: scores.numel()].view(scores.shape).float()
    assert drawn.mean().item() == pytest.approx(keep, abs=0.01)
    torch.testing.assert_close(output.detach().cpu(), (expected * drawn / keep).detach())
    output.sum().backward()
    on_cpu = scores.clone().requires_grad_()
    ((bias + 0.5 * on_cpu).softmax(-1) * drawn / keep).sum().backward()
    torch.testing.assert_close(on_npu.grad.cpu(), on_cpu.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("axis", [-2, 2])
def test_scatter_update(axis: int) -> None:
    """A cache of keys: each batch gets its new rows at its own position."""
    cache, new, at = torch.zeros(3, 2, 8, 4), rand(3, 2, 1, 4), torch.tensor([0, 5, 7])
    expected = cache.clone()
    for batch, position in enumerate(at.tolist()):
        expected[batch, :, position] = new[batch, :, 0]
    moved = cache.npu()
    assert torch.equal(torch_npu.scatter_update(moved, at.npu(), new.npu(), axis).cpu(), expected)
    assert not moved.any()
    torch_npu.scatter_update_(moved, at.npu(), new.npu(), axis)
    assert torch.equal(moved.cpu(), expected)


# -- optimizers --


def test_adam_w_is_torch_s() -> None:
    parameter = rand(30).requires_grad_()
    var, m, v = parameter.detach().npu(), torch.zeros(30).npu(), torch.zeros(30).npu()
    optimizer = torch.optim.AdamW([parameter], lr=0.01, betas=(0.9, 0.99), eps=1e-6, weight_decay=0.1)
    for step in range(4):
        parameter.grad = rand(30) * (step - 1.5)
        optimizer.step()
        powers = 0.9**step, 0.99**step
        torch_npu.npu_apply_adam_w(
            *powers, 0.01, 0.1, 0.9, 0.99, 1e-6, parameter.grad.npu(), None, False, False, out=(var, m, v)
        )
    torch.testing.assert_close(var.cpu(), parameter.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(v.cpu(), optimizer.state[parameter]["exp_avg_sq"], rtol=1e-5, atol=1e-7)


def test_adam_of_bert() -> None:
    var, m, v, gradient = rand(20), rand(20) / 2, rand(20).abs(), rand(20) * 2
    moved = var.npu(), m.npu(), v.npu()
    torch_npu.npu_bert_apply_adam(0.1, 0.9, 0.99, 1e-6, gradient.npu(), -1.0, 0.0, 0.01, None, 0, out=moved)
    m, v = 0.9 * m + 0.1 * gradient, 0.99 * v + 0.01 * gradient**2
    expected = var - 0.1 * (m / (v.sqrt() + 1e-6) + 0.01 * var)
    for one, other in zip(moved, (expected, m, v), strict=True):
        torch.testing.assert_close(one.cpu(), other)


def test_the_flag_of_overflows_stays_down_in_inf_nan_mode() -> None:
    status = torch_npu.npu_alloc_float_status(torch.zeros(8).npu())
    assert (torch.tensor([40000.0]).half().npu() * 2).isinf().item()
    assert torch_npu.npu_get_float_status(status).cpu().tolist() == [0] * 8
    torch_npu.npu_clear_float_status(status)
    torch_npu.npu_clear_float_status(status, 1)  # the one for debugging, which cannot be read here


# -- norms --


@pytest.mark.parametrize("shape", [(8,), (5, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_gradient_of_layer_norm_by_the_variance(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """The operator's third input is the variance, which torch_npu passes on from the argument that it calls rstd."""
    x, gradient, gamma = (
        rand(3, 5, 8).to(dtype),
        rand(8, 5, 3).view(3, 5, 8).to(dtype),
        rand(*shape).to(dtype),
    )
    leaves = [each.float().clone().requires_grad_() for each in (x, gamma, gamma)]
    F.layer_norm(leaves[0], shape, *leaves[1:], eps=1e-12).backward(gradient.float())
    over = tuple(range(3 - len(shape), 3))
    mean, variance = x.float().mean(over, True), x.float().var(over, unbiased=False, keepdim=True)
    found = torch_npu.npu_layernorm_grad(
        gradient.npu(),
        x.npu(),
        shape,
        mean.to(dtype).npu(),
        variance.to(dtype).npu(),
        gamma.npu(),
        gamma.npu(),
    )
    rtol = 1e-4 if dtype == torch.float32 else 5e-3
    for one, leaf in zip(found, leaves, strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one.cpu().float(), leaf.grad, rtol=rtol, atol=rtol)


# -- bits --


def test_signs_give_the_documentations_examples_and_come_back() -> None:
    x = torch.tensor([5.0, 4, 3, 2, 0, -1, -2, 4, 3, 2, 1, 0, -1, -2])
    for dtype in (torch.float32, torch.float16):
        packed = torch_npu.npu_sign_bits_pack(x.to(dtype).npu(), 2)
        assert packed.tolist() == [[159], [15]]
        signs = torch_npu.npu_sign_bits_unpack(packed.flatten(), 2, dtype)
        assert signs.dtype == dtype
        assert signs.tolist() == [[1, 1, 1, 1, 1, -1, -1, 1], [1, 1, 1, 1, -1, -1, -1, -1]]
    x = rand(1000)
    signs = torch_npu.npu_sign_bits_unpack(
        torch_npu.npu_sign_bits_pack(x.npu(), 5).flatten(), 5, torch.float32
    )
    assert torch.equal(signs.cpu().flatten(), torch.where(x < 0, -1.0, 1.0))


@pytest.mark.parametrize("p", [0.0, 0.25, 1.0])
def test_dropout_by_a_mask_of_its_own_and_its_gradient(p: float) -> None:
    mask = torch_npu.npu_dropout_gen_mask([30, 50], p=p, dtype=torch.float32, device="npu")
    assert (mask.dtype, mask.shape) == (torch.uint8, (1504 // 8 + 4,))  # of 128 bits
    signs = torch_npu.npu_sign_bits_unpack(mask, 1, torch.float32).cpu()[0]
    kept = (signs[:1500] > 0).float().view(30, 50)
    assert kept.mean().item() == pytest.approx(1 - p, abs=0.05)
    another = torch_npu.npu_dropout_gen_mask([30, 50], p=p, dtype=torch.float32, device="npu")
    assert torch.equal(mask, another) == (p in (0.0, 1.0))

    scale = 1 / (1 - p) if p < 1 else 0
    for dtype in (torch.float32, torch.float16):
        x = rand(30, 50).to(dtype).npu().requires_grad_()
        found, same = torch_npu.npu_dropout_do_mask(x, mask, p)
        assert torch.equal(same, mask)
        expected = (rand(30, 50).to(dtype).float() * kept * scale).to(dtype)
        torch.testing.assert_close(found.detach().cpu(), expected, rtol=1e-3, atol=1e-3)
        found.backward(torch.full_like(found, 2))
        torch.testing.assert_close(x.grad.cpu().float(), 2 * kept * scale, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("level", ["aclnn", "aten"])
def test_the_masks_of_dropout_are_one_kind_at_both_levels(level: str, run_forked: RunPython) -> None:
    """16 elements: as many bytes as their mask of 128 bits has."""
    code = """
        import torch, torch_npu
        x = torch.ones(16).npu().requires_grad_()
        mask = torch_npu.npu_dropout_gen_mask([16], p=0.5, dtype=torch.float32, device="npu")
        y, _ = torch_npu.npu_dropout_do_mask(x, mask, 0.5)
        y.sum().backward()
        z, bits = torch_npu._npu_dropout(x.detach(), 0.5)
        back = torch_npu.npu_dropout_backward(torch.ones(16).npu(), bits, 0.5)
        print(torch.equal(x.grad, y.detach()), torch.equal(z, back), 0 < y.sum().item() < 32, bits.shape == (16,))
    """
    done = run_forked(code, CANN_SIM_LEVEL=level)
    assert done.stdout.split() == ["True"] * 4, done.stdout + done.stderr


# -- detection --


def test_anchors_that_are_responsible_for_a_box() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [30, 10, 34, 12], [38, 28, 41, 31], [300, 300, 310, 310]])
    found = torch_npu.npu_anchor_response_flags(boxes.npu(), [4, 5], [8, 8], 3)
    expected = torch.zeros(4, 5, 3, dtype=torch.uint8)
    expected[0, 0] = expected[1, 4] = expected[3, 4] = 1
    assert torch.equal(found.cpu(), expected.view(-1))


@pytest.mark.parametrize("every", [True, False])
def test_positive_anchors_of_a_grid(every: bool) -> None:
    overlaps = torch.tensor([[0.6, 0.3, 0.3, 0.1], [0.1, 0.4, 0.2, 0.4]])
    responsible = torch.tensor([1, 1, 1, 1], dtype=torch.uint8)
    most, which = overlaps.max(0)
    per_truth, best = overlaps.max(1)
    assigned = torch.full((4,), -1.0)
    found = torch_npu.npu_grid_assign_positive(
        assigned.npu(), overlaps.npu(), responsible.npu(), most.npu(), which.int().npu(), per_truth.npu(),
        best.int().npu(), 2, 0.5, 0.0, every,
    )  # fmt: skip
    assert found.cpu().tolist() == ([1, 2, -1, 2] if every else [1, 2, -1, -1])


def test_position_sensitive_pooling_and_its_gradient() -> None:
    """R-FCN's definition, a bin at a time."""
    group, channels, scale = 2, 3, 0.5
    image = rand(2, channels * group * group, 8, 9)
    rois = torch.tensor([[0.0, 2, 1, 11, 9], [1, 0, 4, 15, 15]])
    expected = torch.zeros(2, channels, group, group)
    reference = image.clone().requires_grad_()
    parts = []
    for n, (batch, left, top, right, bottom) in enumerate(rois.tolist()):
        left, top, right, bottom = left * scale, top * scale, (right + 1) * scale, (bottom + 1) * scale
        width, height = (right - left) / group, (bottom - top) / group
        for c, i, j in torch.cartesian_prod(*map(torch.arange, (channels, group, group))).tolist():
            rows = slice(math.floor(top + i * height), min(8, math.ceil(top + (i + 1) * height)))
            columns = slice(math.floor(left + j * width), min(9, math.ceil(left + (j + 1) * width)))
            mean = reference[int(batch), (c * group + i) * group + j, rows, columns].mean()
            parts.append(mean)
            expected[n, c, i, j] = mean.detach()
    torch.stack(parts).square().sum().backward()

    moved = image.npu().requires_grad_()
    found = torch_npu.npu_ps_roi_pooling(moved, rois.view(2, 5, 1).npu(), scale, group, channels)
    torch.testing.assert_close(found.detach().cpu(), expected)


def test_rotated_nms() -> None:
    boxes = torch.tensor([[10.0, 10, 8, 4, 0], [10, 10, 8, 4, 5], [40, 10, 8, 4, 0]]).npu()
    kept, number = torch_npu.npu_nms_rotated(boxes, torch.tensor([0.5, 0.9, 0.7]).npu(), 0.5)
    assert kept.cpu().tolist() == [1, 2]
    assert number.cpu().tolist() == [2]


# -- functions of transformers, whose kernels are cann_sim's own --


def rms_norm(x: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
    return F.rms_norm(x, gamma.shape, gamma, 1e-6)


def geglu(x: torch.Tensor) -> torch.Tensor:
    left, right = x.chunk(2, -1)
    return left * F.gelu(right, approximate="tanh")


TRANSFORMERS: dict[str, tuple[Callable[..., Any], Callable[..., Any], Tensors]] = {
    "rms norm": (lambda x, g: torch_npu.npu_rms_norm(x, g)[0], rms_norm, (rand(3, 5, 8), rand(8))),
    "rms norm over two dimensions": (
        lambda x, g: torch_npu.npu_rms_norm(x, g)[0], rms_norm, (rand(3, 5, 8), rand(5, 8)),
    ),
    "swiglu": (torch_npu.npu_swiglu, lambda x: F.silu(x[..., :4]) * x[..., 4:], (rand(3, 8),)),
    "geglu": (lambda x: torch_npu.npu_geglu(x)[0], geglu, (rand(3, 8),)),
    "gelu": (torch_npu.npu_gelu, F.gelu, (rand(3, 8),)),
    "gelu with tanh": (
        lambda x: torch_npu.npu_gelu(x, approximate="tanh"),
        lambda x: F.gelu(x, approximate="tanh"),
        (rand(3, 8),),
    ),
    "sum with layer norm": (
        lambda a, b, g, c: torch_npu.npu_add_layer_norm(a, b, g, c)[0],
        lambda a, b, g, c: F.layer_norm(a + b, (8,), g, c),
        (rand(3, 8), rand(3, 8) / 2, rand(8), rand(8) / 3),
    ),
    "deep norm": (
        lambda x, g, b, w: torch_npu.npu_deep_norm(x, g, b, w, 0.3)[2],
        lambda x, g, b, w: F.layer_norm(0.3 * x + g, (8,), w, b, 1e-6),
        (rand(3, 8), rand(3, 8) / 2, rand(8) / 3, rand(8)),
    ),
    "group norm with swish": (
        lambda x, w, b: torch_npu.npu_group_norm_swish(x, 3, w, b, swish_scale=1.5)[0],
        lambda x, w, b: F.group_norm(x, 3, w, b) * torch.sigmoid(1.5 * F.group_norm(x, 3, w, b)),
        (rand(2, 6, 4, 4), rand(6), rand(6) / 2),
    ),
    "transposed convolution": (
        lambda x, w, b: torch_npu.npu_convolution_transpose(x, w, b, [1, 1], [1, 0], [2, 2], [1, 1], 1),
        lambda x, w, b: F.conv_transpose2d(x, w, b, 2, 1, (1, 0)),
        (rand(1, 2, 5, 5), rand(2, 3, 3, 3), rand(3)),
    ),
    "linear": (torch_npu.npu_linear, F.linear, (rand(3, 8), rand(5, 8), rand(5))),
}  # fmt: skip


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_values_and_gradients_of_transformers(name: str) -> None:
    on_npu, on_cpu, inputs = TRANSFORMERS[name]
    for one, other in zip(evaluate(on_npu, inputs, "npu"), evaluate(on_cpu, inputs, "cpu"), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(("weighted", "smoothing"), [(False, 0.0), (True, 0.0), (True, 0.1)])
def test_cross_entropy_and_its_gradient(weighted: bool, smoothing: float, reduction: str) -> None:
    """With a target that is ignored."""
    logits, target = rand(5, 4) * 3, torch.tensor([0, 3, -100, 1, 1])
    weight = torch.tensor([0.5, 1.0, 0.3, 0.7]) if weighted else None
    on_npu, on_cpu = (logits.detach().clone().to(device).requires_grad_() for device in ("npu", "cpu"))
    found = torch_npu.npu_cross_entropy_loss(
        on_npu, target.npu(), None if weight is None else weight.npu(), reduction, label_smoothing=smoothing
    )[0]
    expected = F.cross_entropy(on_cpu, target, weight, reduction=reduction, label_smoothing=smoothing)
    torch.testing.assert_close(found.detach().cpu().view(expected.shape), expected.detach())
    (found * (torch.arange(found.numel()).npu() + 1)).sum().backward()
    (expected * (torch.arange(found.numel()) + 1).view(expected.shape)).sum().backward()
    torch.testing.assert_close(on_npu.grad.cpu(), on_cpu.grad, rtol=1e-4, atol=1e-6)


def test_multi_head_attention_and_its_gradients() -> None:
    """torch's own layer with the same weights, in half precision."""
    heads, width, batch, length = 16, 16, 2, 16
    w = heads * width
    rows = [rand(batch * length, w).half() for _ in range(3)]
    weights = [(rand(w, w) * (k + 1) / 40).half() for k in range(4)]
    biases = [(rand(w) * (k + 1) / 10).half() for k in range(4)]
    mask = rand(batch, heads, length, length).half()

    def reference(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        w4, b4 = rest[:4], rest[4:]
        parts = [
            F.linear(x, weight, bias).view(batch, length, heads, width).transpose(1, 2)
            for x, weight, bias in zip((q, k, v), w4[:3], b4[:3], strict=True)
        ]
        scores = parts[0] @ parts[1].transpose(2, 3) / width**0.5 + mask.float()
        joined = (scores.softmax(-1) @ parts[2]).transpose(1, 2).reshape(batch * length, w)
        return F.linear(joined, w4[3], b4[3])

    def on_npu(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = torch_npu.npu_multi_head_attention(
            q, k, v, *rest[:3], mask.npu(), rest[3], *rest[4:], None, heads, width, length, length, 0.0, True
        )[0]
        return result

    inputs = (*rows, *weights, *biases)
    leaves = [tensor.npu().requires_grad_() for tensor in inputs]
    references = [tensor.float().requires_grad_() for tensor in inputs]
    found, expected = on_npu(*leaves), reference(*references)
    torch.testing.assert_close(found.detach().cpu().float(), expected.detach(), rtol=5e-3, atol=5e-3)
    found.float().square().sum().backward()
    expected.square().sum().backward()
    for one, other in zip(leaves, references, strict=True):
        largest = other.grad.abs().max().item()  # of the key's bias 0: it moves all scores of a row alike
        torch.testing.assert_close(
            one.grad.cpu().float().view(other.shape), other.grad, rtol=2e-2, atol=1e-2 * largest + 1e-4
        )


def test_norms_of_sums() -> None:
    first, second, gamma, beta = rand(3, 8), rand(3, 8) / 2, rand(8), rand(8) / 3
    y, rstd, total = torch_npu.npu_add_rms_norm(first.npu(), second.npu(), gamma.npu())
    torch.testing.assert_close(y.cpu(), rms_norm(first + second, gamma))
    torch.testing.assert_close(total.cpu(), first + second)
    assert rstd.shape == (3, 1)
    y, mean, _, total = torch_npu.npu_add_layer_norm(
        *(t.npu() for t in (first, second, gamma, beta)), 1e-5, True
    )
    torch.testing.assert_close(y.cpu(), F.layer_norm(first + second, (8,), gamma, beta))
    torch.testing.assert_close(mean.cpu(), (first + second).mean(-1, True))
    torch.testing.assert_close(total.cpu(), first + second)


def test_group_norm_with_silu() -> None:
    x, weight, bias = rand(2, 6, 4, 4), rand(6), rand(6) / 2
    y, mean, rstd = torch_npu.npu_group_norm_silu(x.npu(), weight.npu(), bias.npu(), 3)
    torch.testing.assert_close(y.cpu(), F.silu(F.group_norm(x, 3, weight, bias)))
    assert mean.shape == rstd.shape == (2, 3)


def test_group_norm_takes_a_weight_as_it_lies_and_an_expanded_one() -> None:
    x, table = rand(3, 4, 5), rand(4, 2)
    expanded = torch.full((1,), 0.5).expand(4)
    for weight, bias in ((table[:, 0], table[:, 1]), (expanded, expanded)):
        on_npu = table.npu()[:, 0], table.npu()[:, 1]
        if weight is expanded:
            on_npu = (torch.full((1,), 0.5).npu().expand(4),) * 2
        y = torch_npu.npu_group_norm_silu(x.npu(), *on_npu, 2)[0]
        torch.testing.assert_close(y.cpu(), F.silu(F.group_norm(x, 2, weight, bias)))


@pytest.mark.parametrize("mask_shape", [None, (3, 4, 4), (3, 1, 4, 4), (1, 3, 1, 4, 4)])
@pytest.mark.parametrize("x_shape", [(2, 3, 3, 4, 4), (6, 2, 4, 4), (0, 2, 4, 4)])
def test_softmax_with_a_mask_and_relative_positions(
    x_shape: tuple[int, ...], mask_shape: tuple[int, ...] | None
) -> None:
    """Swin's windows: of [B, W, N, S, S] or [B W, N, S, S]; the mask is a window's, the bias a head's."""
    heads = x_shape[-3]
    x, bias = rand(*x_shape), rand(1, heads, 4, 4)
    mask = None if mask_shape is None else rand(*mask_shape)
    found = torch_npu.npu_masked_softmax_with_rel_pos_bias(
        x.npu(), None if mask is None else mask.npu(), bias.npu(), 0.5
    )
    scores = x.view(-1, 3, heads, 4, 4) * 0.5 + bias
    scores = scores if mask is None else scores + mask.view(3, 1, 4, 4)
    torch.testing.assert_close(found.cpu(), scores.softmax(-1).view(x_shape))


def test_integers_become_numbers_again() -> None:
    x = torch.tensor([[1, -2, 3, 4]], dtype=torch.int8)
    found = torch_npu.npu_anti_quant(x.npu(), torch.tensor([2.0]).npu(), offset=torch.tensor([3.0]).npu())
    assert found.dtype == torch.float16
    assert found.cpu().tolist() == [[8, 2, 12, 14]]


def test_scatter_nd_update() -> None:
    base, indices, updates = rand(4, 5, 2), torch.tensor([[0, 3], [2, 1]]), rand(2, 2)
    expected = base.clone()
    expected[[0, 2], [3, 1]] = updates
    found = torch_npu.npu_scatter_nd_update(base.npu(), indices.npu(), updates.npu())
    assert torch.equal(found.cpu(), expected)


@pytest.mark.parametrize("weight_format", [2, 29], ids=["ND", "FRACTAL_NZ"])
@pytest.mark.parametrize("output", [torch.float16, torch.bfloat16, torch.int32])
def test_products_of_integers_with_scales(
    weight_format: int, output: torch.dtype, run_forked: RunPython
) -> None:
    """By rows and columns, with a bias of integers; int32 is the sum alone. In a process: the format is an option."""
    code = f"""
        import torch, torch_npu
        torch.npu.config.allow_internal_format = True
        x = torch.arange(-64, 64).view(4, 32).to(torch.int8)
        w = (torch.arange(32 * 64).view(32, 64) % 23 - 11).to(torch.int8)
        columns, rows, bias = torch.rand(64), torch.rand(4), torch.arange(64).int()
        whole = {output} == torch.int32
        columns = columns.bfloat16() if {output} == torch.bfloat16 else columns
        expected = x.int() @ w.int() + bias
        if not whole:
            expected = expected.float() * columns.float() * rows[:, None]
        found = torch_npu.npu_quant_matmul(
            x.npu(), torch_npu.npu_format_cast(w.npu(), {weight_format}), columns.npu(),
            pertoken_scale=None if whole else rows.npu(), bias=bias.npu(), output_dtype={output},
        )
        print(found.dtype, torch.equal(found.cpu(), expected.to({output})))
    """
    done = run_forked(code, TASK_QUEUE_ENABLE="0")
    assert done.stdout.split() == [str(output), "True"], done.stdout + done.stderr


def search_scale(
    data: torch.Tensor, with_offset: bool, percentile: float, steps: torch.Tensor
) -> tuple[float, float]:
    """(scale, offset) with the least square error, by op-plugin's definition."""
    least, most = data.min(), data.max()
    share = torch.histc(data, 128, least.item(), most.item()).cumsum(0) / data.numel()
    high = (share < percentile).sum() / 128 * (most - least) + least
    low = (share < 1 - percentile).sum() / 128 * (most - least) + least
    if with_offset:
        high, low = high.clamp_min(0), low.clamp_max(0)
        scale = (high * steps - low) / 255
        offset = -((low / scale).round() + 128)
    else:
        scale = torch.maximum(high.abs(), low.abs()) * steps / 127
        offset = torch.zeros_like(scale)
    restored = ((data / scale[:, None]).round() + offset[:, None]).clamp(-128, 127) - offset[:, None]
    best = (restored * scale[:, None] - data).square().sum(1).argmin()
    return scale[best].item(), offset[best].item()


@pytest.mark.parametrize("with_offset", [True, False])
@pytest.mark.parametrize("percentile", [0.999999, 0.9123])
def test_search_for_a_scale(with_offset: bool, percentile: float) -> None:
    data = rand(500) ** 3 + 0.1
    least, most = data.min().view(1), data.max().view(1)
    bins = torch.histc(data, 128, least.item(), most.item()).cumsum(0).int()
    found = torch_npu.npu_ifmr(
        data.view(5, 100).npu(), least.npu(), most.npu(), bins.npu(), percentile, percentile, 0.7, 1.3, 0.01,
        with_offset,
    )  # fmt: skip
    expected = search_scale(data, with_offset, percentile, torch.arange(60) * 0.01 + 0.7)
    assert found[0].item() == pytest.approx(expected[0], rel=1e-4)
    assert found[1].item() == expected[1]


def test_search_for_a_scale_gives_the_documentations_example() -> None:
    data = torch.tensor([
        0.4508, 0.6513, 0.4734, 0.1924, 0.0402, 0.5502, 0.0694, 0.9032, 0.4844, 0.5361, 0.9369, 0.7874,
        0.5157, 0.1863, 0.4574, 0.8033, 0.5986, 0.8090, 0.7605, 0.8252, 0.4264, 0.8952, 0.2279, 0.9746,
        0.0803, 0.7114, 0.8773, 0.2341, 0.6497, 0.0423, 0.8407, 0.9515, 0.1821, 0.5931, 0.7160, 0.4968,
        0.7977, 0.0899, 0.9572, 0.0146, 0.2804, 0.8569, 0.2292, 0.1118, 0.5747, 0.4064, 0.8370, 0.1611,
    ])  # fmt: skip
    least, most = data.min().view(1), data.max().view(1)
    bins = torch.histc(data, 128, least.item(), most.item()).cumsum(0).int()
    arguments = [each.npu() for each in (data, least, most, bins)]
    scale, offset = torch_npu.npu_ifmr(*arguments, 0.999999, 0.999999, 0.7, 1.3, 0.01, False)
    assert scale.item() == pytest.approx(0.0080, abs=5e-5)
    assert offset.item() == 0


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("biased", [True, False])
def test_convolution_of_integers_with_scales(groups: int, biased: bool) -> None:
    x = (torch.arange(2 * 4 * 6 * 7).view(2, 4, 6, 7) * 37 % 251 - 125).to(torch.int8)
    w = (torch.arange(6 * 4 // groups * 9).view(6, -1, 3, 3) * 11 % 23 - 11).to(torch.int8)
    scale = torch.rand(6, generator=torch.Generator().manual_seed(0)) / 100
    bias = torch.arange(6).int() * 100 if biased else None
    found = torch_npu.npu_quant_conv2d(
        x.npu(), w.npu(), torch_npu.npu_trans_quant_param(scale.npu()), [2, 1], [1, 2], [1, 2], groups, 0, "rint",
        torch.float16, None if bias is None else bias.npu(), None,
    )  # fmt: skip
    whole = None if bias is None else bias.double()
    sums = F.conv2d(x.double(), w.double(), whole, (2, 1), (1, 2), (1, 2), groups)
    assert torch.equal(found.cpu(), (sums.float() * scale.view(-1, 1, 1)).half())


# -- the list --


def test_every_function_of_torch_npu_is_known() -> None:
    """npu_functions.tsv has what each kernel asks for; a function that it lacks would be refused, of unknown need."""
    found = {each.name: each for each in npu_functions.functions()}
    if torch_npu.__version__.startswith("2.8."):  # of which its facts are; 2.9 has further functions
        assert [name for name, each in found.items() if each.missing == ("unknown",)] == []
    assert {each.state for each in found.values()} == set(npu_functions.STATES)
    expected = {"npu_mish": "computes", "npu_rms_norm": "computes", "npu_get_float_status": "in part"}
    assert {name: found[name].state for name in expected} == expected


def test_the_page_has_every_function() -> None:
    """`make sim-coverage` writes it; by hand: append npu_functions.markdown()."""
    page = Path(__file__).parents[2] / "wheels" / "cann_sim" / "COVERAGE.md"
    text = page.read_text(encoding="utf-8")
    if f"torch_npu {torch_npu.__version__}" not in text:
        pytest.skip(f"{page.name} is of another torch_npu than {torch_npu.__version__}")
    assert text.endswith("\n".join(npu_functions.markdown()) + "\n")


# Tells of each of `calls` whether its error names what its key is; another error shows whole.
TELL = """
    for name, call in calls.items():
        try:
            call()
            torch.npu.synchronize()
        except RuntimeError as error:
            print(name in str(error))
            if name not in str(error):
                raise
"""
GOES_ON = "    print(x.sum().item() > 0)\n"

REFUSED = """
    import torch, torch_npu

    x = torch.rand(4, 8).npu()
    calls = {
        "NPUGetFloatDebugStatus": lambda: torch_npu.npu_get_float_status(torch.zeros(8).npu(), 1),
        "aclnnDynamicQuant": lambda: torch_npu.npu_dynamic_quant(x.half()),
        "aclnnMoeGatingTopKSoftmax": lambda: torch_npu.npu_moe_gating_top_k_softmax(x, None, 2),
    }
"""


UNKNOWN = """
    import torch, torch_npu

    x = torch.rand(1, 4, 8).npu()
    ones, bytes = torch.ones(1, 1).int().npu(), torch.ones(1, 4, 6, 6).to(torch.int8).npu()
    scale = torch_npu.npu_trans_quant_param(torch.ones(1).npu())
    calls = {
        "NormalizeBatch: seq_len": lambda: torch_npu.npu_normalize_batch(x, torch.ones(1).int().npu()),
        "MaskedFillRange: axis": lambda: torch_npu.npu_masked_fill_range(x, ones, ones, torch.ones(1).npu(), 1),
        "StrideAdd: c1_len": lambda: torch_npu.npu_stride_add(bytes.float(), bytes.float(), 0, 1, 1),
        "QuantConv2D: offset_x": lambda: torch_npu.npu_quant_conv2d(
            bytes, bytes[..., :3, :3].contiguous(), scale, offset_x=1, output_dtype=torch.float16
        ),
    }
"""


def test_what_is_not_known_of_a_function_is_refused(run_forked: RunPython) -> None:
    """A deviation of one value, other axes, channels that are not there, what CANN reserves."""
    done = run_forked(UNKNOWN + TELL, TASK_QUEUE_ENABLE="0")
    assert done.stdout.split() == ["True"] * 4, done.stdout + done.stderr


def test_a_function_that_is_not_simulated_is_refused_by_name(run_forked: RunPython) -> None:
    """The process goes on."""
    done = run_forked(REFUSED + TELL + GOES_ON, TASK_QUEUE_ENABLE="0")
    assert done.stdout.split() == ["True"] * 4, done.stderr


LIMITS = """
    import torch, torch_npu
    x, index = torch.rand(2, 3).npu(), torch.tensor([0, 1]).npu()
    rows = torch.rand(1, 1, 1, 5000).npu()
    calls = {
        "aclnnCrossEntropyLoss: the z loss": lambda: torch_npu.npu_cross_entropy_loss(
            x, index, lse_square_scale_for_zloss=0.1
        ),
        "aclnnCrossEntropyLoss: reduction must be none, mean or sum, not avg": lambda: torch_npu.npu_cross_entropy_loss(
            x, index, reduction="avg"
        ),
        "relativePosBias must be [N, S1, S2]": lambda: torch_npu.npu_masked_softmax_with_rel_pos_bias(
            torch.rand(6, 2, 4, 4).npu(), None, torch.rand(1, 3, 4, 4).npu()
        ),
        "attenMaskOptional must be": lambda: torch_npu.npu_masked_softmax_with_rel_pos_bias(
            torch.rand(6, 2, 4, 4).npu(), torch.rand(3, 2, 4, 4).npu(), torch.rand(1, 2, 4, 4).npu()
        ),
        "aclnnAscendAntiQuant: of integers only int8": lambda: torch_npu.npu_anti_quant(
            index.int().view(1, 2), x[0, :1]
        ),
        "aclnnInplaceScatterUpdate: axis must not": lambda: torch_npu.scatter_update_(x, index.int(), x.clone(), 0),
        "aclnnScaledMaskedSoftmax: x has 5000 columns": lambda: torch._masked_softmax(rows, rows > 1, -1, 2),
        "aclnnGeluV2: x has data type DT_INT32": lambda: torch_npu.npu_gelu(index.int(), approximate="tanh"),
        "aclnnGeGluV3: self has data type DT_INT32": lambda: torch_npu.npu_geglu(index.int().view(1, 2), -1, 1),
    }
"""


def test_a_limit_is_told_where_the_function_is_called_and_the_task_queue_goes_on(
    run_forked: RunPython,
) -> None:
    done = run_forked(LIMITS + TELL + GOES_ON, TASK_QUEUE_ENABLE="1")
    assert done.stdout.split() == ["True"] * 10, done.stderr


EVERY = """
    import torch, torch_npu
    from cann_sim import npu_functions

    def value(argument):
        kind = str(argument.type)
        if argument.has_default_value():
            return argument.default_value
        if kind == "Tensor":
            return torch.rand(2, 4, 8, 16).npu()
        if kind == "List[Tensor]":
            return [torch.rand(4, 4).npu() for _ in range(3)]
        if kind.startswith("Optional"):
            return None
        lists = {"List[int]": [1, 1], "List[bool]": [True] * 3}
        return {"float": 1.0, "number": 1.0, "bool": False, "str": "x", **lists}.get(kind, 1)

    for function in npu_functions.functions():
        if function.name in ("npu_moe_init_routing_v2",):  # reads what it did not check: torch_npu's own code
            continue
        packet = getattr(torch.ops.npu, function.name)
        for overload in packet.overloads():
            call = getattr(packet, overload)
            arguments = call._schema.arguments
            try:
                call(
                    *(value(each) for each in arguments if not each.kwarg_only),
                    **{each.name: value(each) for each in arguments if each.kwarg_only},
                )
                torch.npu.synchronize()
                answer = ""
            except Exception as error:
                answer = str(error)
            absent = "does not simulate the ACL operator" in answer or "not in libopapi" in answer
            if (function.state == "computes" and absent) or (function.state == "refused" and not answer):
                print(function.name, overload, function.state, answer[:200])
    print("alive", torch.ones(2).npu().sum().item())
"""


def test_no_function_of_torch_npu_ends_the_process_or_is_listed_wrongly(run_forked: RunPython) -> None:
    """Each is called, with arguments that most of them refuse: what counts is how."""
    done = run_forked(EVERY, TASK_QUEUE_ENABLE="0")
    assert done.stdout.splitlines() == ["alive 2.0"], done.stdout + done.stderr[-2000:]
