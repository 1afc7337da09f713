"""Norms on the simulated NPU, also of orders that torch_npu asks for in two operators by ACL name: the CPU's last bit.

The one exception is torch_npu's own: of one number, such a norm is the root of its power (DIFFERENCES.md).
"""

from __future__ import annotations

import math

import pytest
import torch
from cann_sim import counters
from conftest import RunPython

torch_npu = pytest.importorskip(
    "torch_npu", reason="torch_npu does not load: run it by `make test-sim`", exc_type=Exception
)

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
BY_ACL_NAME = [0.5, 1 / 3, 1.5, 2.2, 4, 10, -1, -2.5]
ORDERS = [0, 1, 2, 3, math.inf, -math.inf, *BY_ACL_NAME]
# (shape, dimensions): some, all, none, not the last
REDUCED: list[tuple[tuple[int, ...], int | tuple[int, ...] | None]] = [
    ((3, 4, 5), -1), ((3, 4, 5), 0), ((3, 4, 5), (0, 2)), ((3, 4, 5), None), ((3, 4, 5), ()), ((7,), 0),
    ((2, 1, 6), (1, 2)),
]  # fmt: skip


def rand(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


def launches(order: float, value: torch.Tensor) -> set[str]:
    counters.start()
    torch.linalg.vector_norm(value, order)
    torch.npu.synchronize()
    found = set(counters.snapshot()["launches"])
    counters.stop()
    return found


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("order", ORDERS)
def test_values_and_shapes_are_the_cpus(order: float, dtype: torch.dtype) -> None:
    for shape, dims in REDUCED:
        x = rand(shape).to(dtype)
        for keep in (False, True):
            for norm in (torch.linalg.vector_norm, torch.norm):
                if norm is torch.norm and (dims is None or dims == ()):
                    continue
                expected, found = norm(x, order, dims, keep), norm(x.npu(), order, dims, keep)
                assert torch.equal(found.cpu(), expected), (shape, dims, keep, found, expected)
                assert found.dtype == expected.dtype


def test_large_sums_are_formed_in_one_part_per_thread(run_forked: RunPython) -> None:
    """As the CPU's norm forms them; the task queue's thread has no other beside it."""
    code = f"""
        import torch, torch_npu
        torch.set_num_threads(2)
        x = torch.randn(300, 400)
        for order in {BY_ACL_NAME}:
            for dim in (None, 0, 1):
                expected = torch.linalg.vector_norm(x, order, dim)
                assert torch.equal(torch.linalg.vector_norm(x.npu(), order, dim).cpu(), expected), (order, dim)
        print("equal")
    """
    done = run_forked(code, TASK_QUEUE_ENABLE="0")
    assert done.stdout == "equal\n", done.stderr


def test_only_orders_that_aclnn_lacks_go_by_acl_name() -> None:
    x = rand((4, 5)).npu()
    two_steps = {"acl::LpNormReduceV2", "acl::LpNormUpdateV2"}
    for order in ORDERS:
        found = launches(order, x)
        assert (two_steps <= found) == (order in BY_ACL_NAME), (order, found)
        assert ("aclnnLinalgVectorNorm" in found) == (order not in BY_ACL_NAME), (order, found)


@pytest.mark.parametrize("order", [0.5, 1.5, 4])
@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 3)])
def test_of_nothing_they_are_zero(order: float, shape: tuple[int, ...]) -> None:
    for dim in (None, 0, -1):
        expected = torch.linalg.vector_norm(torch.empty(shape), order, dim)
        found = torch.linalg.vector_norm(torch.empty(shape, device="npu"), order, dim)
        assert torch.equal(found.cpu(), expected)


@pytest.mark.parametrize("order", BY_ACL_NAME)
def test_of_one_number_they_are_the_root_of_its_power(order: float) -> None:
    for x in (rand((16, 1)), torch.tensor(-3.5)):
        expected = torch.linalg.vector_norm(x, order, -1)
        found = torch.linalg.vector_norm(x.npu(), order, -1).cpu()
        assert found.shape == expected.shape
        assert torch.equal(found, x.view(expected.shape).abs().pow(order).pow(1 / order)) or torch.allclose(
            found, expected, rtol=5e-7, atol=0
        )


@pytest.mark.parametrize("order", BY_ACL_NAME)
def test_other_values_of_float_are_the_cpus(order: float) -> None:
    """Zeros, infinities, NaN and numbers whose power is beyond float32."""
    rows = [
        [0.0, 0.0],
        [0.0, 2.0],
        [math.inf, 1.0],
        [-math.inf, 0.0],
        [math.nan, 1.0],
        [1e30, 1e-30],
        [-1e-38, 3e38],
    ]
    x = torch.tensor(rows)
    expected = torch.linalg.vector_norm(x, order, 1)
    found = torch.linalg.vector_norm(x.npu(), order, 1).cpu()
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("order", BY_ACL_NAME)
def test_what_is_not_contiguous_and_out_are_served(order: float) -> None:
    x = rand((6, 8))
    columns, out = x.npu().t()[::2], torch.empty(4, device="npu")
    torch.linalg.vector_norm(columns, order, 1, out=out)
    torch.testing.assert_close(
        out.cpu(), torch.linalg.vector_norm(x.t()[::2].contiguous(), order, 1), rtol=0, atol=0
    )


@pytest.mark.parametrize("order", [1.5, 4, 0.5, 2])
def test_gradients_are_the_cpus(order: float) -> None:
    gradients = []
    for device in ("cpu", "npu"):
        x = rand((3, 4, 5)).to(device).requires_grad_()
        (torch.linalg.vector_norm(x, order, (0, 2)) * torch.arange(1.0, 5, device=device)).sum().backward()
        assert x.grad is not None
        gradients.append(x.grad.cpu())
    assert torch.equal(*gradients)
