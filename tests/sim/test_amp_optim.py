"""Mixed precision and torch_npu's fused optimizers: training on the simulated NPU against torch on the CPU."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

torch_npu = pytest.importorskip(
    "torch_npu", reason="torch_npu does not load: run it by `make test-sim`", exc_type=Exception
)

F = torch.nn.functional
HALVES = [torch.float16, torch.bfloat16]


def mlp() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.GELU(), torch.nn.Linear(16, 2))


def batches(steps: int) -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        yield torch.randn(4, 8, generator=generator)


def assert_equal_parameters(model: torch.nn.Module, expected: torch.nn.Module) -> None:
    for (name, ours), theirs in zip(model.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(
            ours.detach().cpu(),
            theirs.detach(),
            rtol=0,
            atol=0,
            msg=lambda text, name=name: f"{name}: {text}",
        )


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_autocast_and_scaler_train_as_casts_written_out(dtype: torch.dtype) -> None:
    """autocast runs linear layers in half precision, the rest as it comes; the scaler skips the step that overflows."""
    model, expected = mlp().npu(), mlp()
    optimizer, plain = (torch.optim.SGD(m.parameters(), 0.1) for m in (model, expected))
    scaler = torch.amp.GradScaler("npu", init_scale=2.0**10, growth_interval=3)
    scale, since_overflow = 2.0**10, 0
    for step, batch in enumerate(batches(6)):
        factor = float("inf") if step == 2 else 1.0
        with torch.autocast("npu", dtype=dtype):
            out = model(batch.npu())
            assert out.dtype == dtype
            loss = (out.float() * factor).square().mean()
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

        first, last = expected[0], expected[2]
        hidden = F.linear(batch.to(dtype), first.weight.to(dtype), first.bias.to(dtype))
        wanted = F.linear(F.gelu(hidden), last.weight.to(dtype), last.bias.to(dtype))
        assert torch.equal(out.detach().cpu(), wanted.detach())
        plain.zero_grad()
        (scale * (wanted.float() * factor).square().mean()).backward()
        if step == 2:
            scale, since_overflow = scale / 2, 0
        else:
            for parameter in expected.parameters():
                assert parameter.grad is not None
                parameter.grad /= scale  # a power of two: exact
            plain.step()
            since_overflow += 1
        if since_overflow == 3:
            scale, since_overflow = scale * 2, 0
        assert scaler.get_scale() == scale
        assert_equal_parameters(model, expected)


def test_torch_npus_own_amp_is_the_same() -> None:
    """Ports write torch_npu.npu.amp; its default dtype is float16."""
    weights = []
    for autocast, scaler in (
        (torch_npu.npu.amp.autocast(), torch_npu.npu.amp.GradScaler(init_scale=1024.0)),
        (torch.autocast("npu", dtype=torch.float16), torch.amp.GradScaler("npu", init_scale=1024.0)),
    ):
        model = mlp().npu()
        optimizer = torch.optim.AdamW(model.parameters())
        for batch in batches(3):
            with autocast:
                loss = model(batch.npu()).float().square().mean()
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
        weights.append(torch.cat([p.detach().flatten().cpu() for p in model.parameters()]))
    assert torch.equal(*weights)


def test_autocast_can_be_left_and_nested() -> None:
    model, batch = mlp().npu(), torch.randn(4, 8).npu()
    with torch.autocast("npu", dtype=torch.bfloat16):
        assert torch.is_autocast_enabled("npu")
        with torch.autocast("npu", enabled=False):
            assert model(batch).dtype == torch.float32
        assert model(batch).dtype == torch.bfloat16
        assert F.softmax(model(batch), -1).dtype == torch.float32  # on torch_npu's list of float32 operators
    assert model(batch).dtype == torch.float32


# torch_npu's name, arguments, torch's optimizer of the same rule. The others that torch_npu has (AdamP, Lamb, BertAdam,
# RMSpropTF) have no counterpart in torch; test_fused_optimizers_without_a_counterpart runs them.
FUSED: dict[str, tuple[dict[str, Any], Callable[..., torch.optim.Optimizer]]] = {
    "NpuFusedSGD": ({"momentum": 0.9, "weight_decay": 0.01, "nesterov": True}, torch.optim.SGD),
    "NpuFusedAdam": ({"weight_decay": 0.01, "amsgrad": False}, torch.optim.Adam),
    "NpuFusedAdamW": ({"weight_decay": 0.05}, torch.optim.AdamW),
    "NpuFusedRMSprop": ({"momentum": 0.9, "weight_decay": 0.01}, torch.optim.RMSprop),
    "NpuFusedAdadelta": ({"rho": 0.8, "weight_decay": 0.01}, torch.optim.Adadelta),
}


def train(optimizer: torch.optim.Optimizer, model: torch.nn.Module, device: str) -> None:
    for batch in batches(4):
        optimizer.zero_grad()
        model(batch.to(device)).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("name", FUSED)
def test_fused_optimizers_follow_torchs_rule(name: str) -> None:
    options, counterpart = FUSED[name]
    model, expected = mlp().npu(), mlp()
    fused = getattr(torch_npu.optim, name)(model.parameters(), lr=0.01, **options)
    train(fused, model, "npu")
    train(counterpart(expected.parameters(), lr=0.01, **options), expected, "cpu")
    for ours, theirs in zip(model.parameters(), expected.parameters(), strict=True):
        # One fused tensor sums and divides in another order than torch's: the last digits of float32 may differ.
        torch.testing.assert_close(ours.detach().cpu(), theirs.detach(), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["NpuFusedAdamP", "NpuFusedLamb", "NpuFusedBertAdam", "NpuFusedRMSpropTF"])
def test_fused_optimizers_without_a_counterpart(name: str) -> None:
    """On one batch the loss falls, and every parameter takes part."""
    model, (batch,) = mlp().npu(), batches(1)
    before = copy.deepcopy(model.state_dict())
    optimizer = getattr(torch_npu.optim, name)(model.parameters(), lr=0.002)
    losses = []
    for _ in range(6):
        loss = model(batch.npu()).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.97 * losses[0]
    assert all(not torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_a_fused_optimizers_state_goes_into_a_checkpoint() -> None:
    """Save after two steps, go on in another process's place: the same weights as without the stop."""
    straight, stopped = mlp().npu(), mlp().npu()
    whole = torch_npu.optim.NpuFusedAdamW(straight.parameters(), lr=0.01)
    train(whole, straight, "npu")
    train(whole, straight, "npu")
    first = torch_npu.optim.NpuFusedAdamW(stopped.parameters(), lr=0.01)
    train(first, stopped, "npu")
    resumed = copy.deepcopy(stopped)
    second = torch_npu.optim.NpuFusedAdamW(resumed.parameters(), lr=0.01)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    train(second, resumed, "npu")
    assert_equal_parameters(resumed, straight.cpu())


# Numbers that float32 holds: torch_npu hands them to the kernel in it.
ADAMW: dict[str, Any] = {"lr": 2**-7, "betas": (0.875, 1 - 2**-8), "eps": 2**-20, "weight_decay": 2**-6}


def step_adamw(device: str, dtype: torch.dtype, shape: tuple[int, ...], **options: Any) -> list[torch.Tensor]:
    """Return the parameter and the optimizer's state after three steps of torch's own fused AdamW."""
    generator = torch.Generator().manual_seed(1)
    parameter = torch.randn(shape, generator=generator).to(device, dtype).requires_grad_()
    optimizer = torch.optim.AdamW([parameter], fused=True, **options)
    for _ in range(3):
        parameter.grad = torch.randn(shape, generator=generator).to(device, dtype)
        optimizer.step()
    return [parameter.detach().cpu(), *(value.cpu() for value in optimizer.state[parameter].values())]


@pytest.mark.parametrize("shape", [(7, 5), (1,), (0,), (3, 400)])
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
@pytest.mark.parametrize(
    "options",
    [{}, {"amsgrad": True}, {"maximize": True}, {"weight_decay": 0.0, "amsgrad": True, "maximize": True}],
)
def test_torchs_fused_adamw_is_the_cpus(
    options: dict[str, Any], dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    expected = step_adamw("cpu", dtype, shape, **ADAMW | options)
    found = step_adamw("npu", dtype, shape, **ADAMW | options)
    for e, f in zip(expected, found, strict=True):
        assert torch.equal(e, f)


def test_fused_adamw_of_what_float32_does_not_hold_is_as_near_as_float32() -> None:
    for e, f in zip(*(step_adamw(device, torch.float32, (7, 5)) for device in ("cpu", "npu")), strict=True):
        torch.testing.assert_close(f, e, rtol=1e-6, atol=1e-6)


def test_fused_adamw_writes_to_a_parameter_that_is_not_contiguous() -> None:
    found = []
    for device in ("cpu", "npu"):
        tensors = [torch.full((4, 6), value).to(device).t() for value in (1.0, 0.5, 0.0, 0.0)]
        step = torch.ones((), device=device)
        torch._fused_adamw_(
            *([tensor] for tensor in tensors), [], [step], lr=0.5, beta1=0.5, beta2=0.75, weight_decay=0.25, eps=0.0,
            amsgrad=False, maximize=False,
        )  # fmt: skip
        found.append([tensor.cpu() for tensor in tensors])
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


@pytest.mark.parametrize("overflow", [0.0, 1.0, 3.0])
@pytest.mark.parametrize(("scale", "since"), [(8.0, 0), (8.0, 2), (2.0**127, 2), (1.0, 1)])
def test_the_scale_grows_backs_off_and_stays_finite(scale: float, since: int, overflow: float) -> None:
    found = []
    for device in ("cpu", "npu"):
        value, tracker = torch.tensor([scale]).to(device), torch.tensor([since], dtype=torch.int32).to(device)
        result = torch._amp_update_scale_(value, tracker, torch.tensor([overflow]).to(device), 2.0, 0.5, 3)
        assert result.data_ptr() == value.data_ptr()
        found.append((value.item(), tracker.item()))
    assert found[0] == found[1]
    if overflow:
        assert found[1] == (scale / 2, 0)
