"""One rank of a torchrun job on backend "hccl": prints what it checked as JSON; test_hccl_torch.py starts it.

Every check compares with what the operation means, computed on the CPU from the ranks' known inputs.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch_npu  # noqa: F401  (registers device "npu" and backend "hccl")
from torch import nn
from torch.nn.parallel import DistributedDataParallel

RANK, SIZE = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
DEVICE = torch.device("npu", int(os.environ["LOCAL_RANK"]))
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.int32, torch.int64, torch.int8]


def values(rank: int, dtype: torch.dtype = torch.float32, count: int = 1000) -> torch.Tensor:
    """What `rank` contributes: small integers, exact in every data type. On the CPU."""
    return ((torch.arange(count) * (rank + 3)) % 7 - 3).to(dtype)


def equal(got: torch.Tensor, expected: torch.Tensor) -> None:
    assert got.device.type == "npu"
    assert torch.equal(got.cpu(), expected), (got.cpu()[:8], expected[:8])


def check_all_reduce() -> None:
    for dtype in DTYPES:
        stacked = torch.stack([values(rank, dtype) for rank in range(SIZE)])
        for op, expected in (
            (dist.ReduceOp.SUM, stacked.sum(0, dtype=dtype)),
            (dist.ReduceOp.MAX, stacked.amax(0)),
            (dist.ReduceOp.MIN, stacked.amin(0)),
        ):
            tensor = values(RANK, dtype).to(DEVICE)
            dist.all_reduce(tensor, op)
            equal(tensor, expected)
    work = [dist.all_reduce(values(RANK).to(DEVICE), async_op=True) for _ in range(20)]
    for item in work:
        item.wait()


def check_broadcast() -> None:
    for dtype in [*DTYPES, torch.uint8, torch.bool, torch.float64]:
        tensor = values(RANK).to(dtype).to(DEVICE)
        dist.broadcast(tensor, SIZE - 1)
        equal(tensor, values(SIZE - 1).to(dtype).to(tensor.dtype))


def check_all_gather() -> None:
    parts = [torch.empty(1000, device=DEVICE) for _ in range(SIZE)]
    dist.all_gather(parts, values(RANK).to(DEVICE))
    for rank, part in enumerate(parts):
        equal(part, values(rank))
    whole = torch.empty(SIZE * 1000, device=DEVICE)
    dist.all_gather_into_tensor(whole, values(RANK).to(DEVICE))
    equal(whole, torch.cat([values(rank) for rank in range(SIZE)]))
    uneven = [torch.empty(10 * (rank + 1), device=DEVICE) for rank in range(SIZE)]
    dist.all_gather(uneven, values(RANK, count=10 * (RANK + 1)).to(DEVICE))
    for rank, part in enumerate(uneven):
        equal(part, values(rank, count=10 * (rank + 1)))


def check_reduce_scatter() -> None:
    total = torch.stack([values(rank, count=SIZE * 500) for rank in range(SIZE)]).sum(0)
    mine = values(RANK, count=SIZE * 500).to(DEVICE)
    expected = total[RANK * 500 : RANK * 500 + 500]
    part = torch.empty(500, device=DEVICE)
    dist.reduce_scatter_tensor(part, mine)
    equal(part, expected)
    part.zero_()
    dist.reduce_scatter(part, list(mine.chunk(SIZE)))
    equal(part, expected)


def check_reduce() -> None:
    tensor = values(RANK).to(DEVICE)
    dist.reduce(tensor, SIZE - 1)
    if RANK == SIZE - 1:
        equal(tensor, torch.stack([values(rank) for rank in range(SIZE)]).sum(0))


def check_gather_and_scatter() -> None:
    parts = [torch.empty(1000, device=DEVICE) for _ in range(SIZE)] if RANK == 0 else None
    dist.gather(values(RANK).to(DEVICE), parts, 0)
    for rank, part in enumerate(parts or []):
        equal(part, values(rank))
    part = torch.empty(1000, device=DEVICE)
    dist.scatter(part, [values(rank).to(DEVICE) for rank in range(SIZE)] if RANK == 0 else None, 0)
    equal(part, values(RANK))


def check_all_to_all() -> None:
    send = torch.arange(SIZE * 4, dtype=torch.float32) + 100 * RANK
    recv = torch.empty(SIZE * 4, device=DEVICE)
    dist.all_to_all_single(recv, send.to(DEVICE))
    origin = [torch.arange(SIZE * 4, dtype=torch.float32) + 100 * rank for rank in range(SIZE)]
    equal(recv, torch.cat([part[RANK * 4 : RANK * 4 + 4] for part in origin]))
    # To rank r go r + 1 elements.
    counts = [rank + 1 for rank in range(SIZE)]
    recv = torch.empty((RANK + 1) * SIZE, device=DEVICE)
    dist.all_to_all_single(recv, values(RANK, count=sum(counts)).to(DEVICE), [RANK + 1] * SIZE, counts)
    begin = sum(counts[:RANK])
    equal(recv, torch.cat([values(r, count=sum(counts))[begin : begin + RANK + 1] for r in range(SIZE)]))
    outputs = [torch.empty(RANK + 1, device=DEVICE) for _ in range(SIZE)]
    dist.all_to_all(outputs, [values(RANK, count=rank + 1).to(DEVICE) for rank in range(SIZE)])
    for rank, output in enumerate(outputs):
        equal(output, values(rank, count=RANK + 1))


def check_send_and_receive() -> None:
    after, before = (RANK + 1) % SIZE, (RANK - 1) % SIZE
    got = torch.empty(300_000, device=DEVICE)
    dist.send(values(RANK, count=300_000).to(DEVICE), after)  # all ranks send first
    dist.recv(got, before)
    equal(got, values(before, count=300_000))
    got.zero_()
    mine = values(RANK, count=300_000).to(DEVICE)
    for work in dist.batch_isend_irecv(
        [dist.P2POp(dist.irecv, got, before), dist.P2POp(dist.isend, mine, after)]
    ):
        work.wait()
    equal(got, values(before, count=300_000))


def check_objects() -> None:
    gathered: list[object] = [None] * SIZE
    dist.all_gather_object(gathered, {"rank": RANK, "text": "x" * (10 * RANK)})
    assert gathered == [{"rank": rank, "text": "x" * (10 * rank)} for rank in range(SIZE)]
    objects: list[object] = [("from", 0), 4711] if RANK == 0 else [None, None]
    dist.broadcast_object_list(objects, 0)
    assert objects == [("from", 0), 4711]
    dist.barrier()


def check_groups() -> None:
    pairs = [dist.new_group([0, SIZE - 1]), dist.new_group(list(range(SIZE))), dist.new_group([SIZE - 1])]
    members = [sorted({0, SIZE - 1}), list(range(SIZE)), [SIZE - 1]]
    for group, ranks in zip(pairs, members, strict=True):
        if RANK in ranks:
            tensor = torch.tensor([10.0**RANK], device=DEVICE)
            dist.all_reduce(tensor, group=group)
            assert tensor.item() == sum(10.0**rank for rank in ranks)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10)
    )


def batch(rank: int) -> torch.Tensor:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(rank))


def check_ddp() -> None:
    """Averaged gradients are the mean of the ranks' own gradients, which each rank computes on the CPU."""
    own = []
    for rank in range(SIZE):
        reference = model()
        reference(batch(rank)).square().mean().backward()
        own.append([parameter.grad for parameter in reference.parameters()])
    for buckets in (25, 0.001):  # all gradients in one message, and one message each
        parallel = DistributedDataParallel(
            model().to(DEVICE), device_ids=[DEVICE.index], bucket_cap_mb=buckets
        )
        for _ in range(2):  # the buckets are rebuilt after the first step
            parallel.zero_grad()
            parallel(batch(RANK).to(DEVICE)).square().mean().backward()
            for index, parameter in enumerate(parallel.parameters()):
                mean = torch.stack([gradients[index] for gradients in own]).mean(0)
                torch.testing.assert_close(parameter.grad.cpu(), mean, rtol=1e-6, atol=1e-6)
    with parallel.no_sync():
        parallel(batch(RANK).to(DEVICE)).square().mean().backward()


def layers() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(192, 33), nn.ReLU(), nn.Linear(33, 10))


def train_two_steps(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """On this rank's batch; what shards or averages is the model's or the optimizer's."""
    for _ in range(2):
        optimizer.zero_grad()
        model(batch(RANK).flatten(1).to(DEVICE)).square().mean().backward()
        optimizer.step()


def trained_on_the_mean() -> nn.Module:
    """The same two steps on the CPU, by SGD with momentum on the mean of all ranks' losses."""
    model = layers()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for _ in range(2):
        optimizer.zero_grad()
        torch.stack([model(batch(rank).flatten(1)).square().mean() for rank in range(SIZE)]).mean().backward()
        optimizer.step()
    return model


def close(got: Iterable[torch.Tensor], expected: nn.Module) -> None:
    for ours, theirs in zip(got, expected.parameters(), strict=True):
        torch.testing.assert_close(ours.detach().cpu(), theirs.detach(), rtol=1e-4, atol=1e-5)


def check_fsdp() -> None:
    """Fully sharded training moves the weights as the same steps on the mean gradient do."""
    from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy

    for strategy in (ShardingStrategy.FULL_SHARD, ShardingStrategy.SHARD_GRAD_OP):
        sharded = FullyShardedDataParallel(
            layers().to(DEVICE), device_id=DEVICE, sharding_strategy=strategy, use_orig_params=True
        )
        train_two_steps(sharded, torch.optim.SGD(sharded.parameters(), 0.1, momentum=0.9))
        with FullyShardedDataParallel.summon_full_params(sharded):
            close(sharded.parameters(), trained_on_the_mean())


def check_fsdp2() -> None:
    """The same by `fully_shard`, whose parameters are DTensors."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("npu", (SIZE,))
    sharded = layers().to(DEVICE)
    for layer in (sharded[0], sharded[2], sharded):
        fully_shard(layer, mesh=mesh)
    train_two_steps(sharded, torch.optim.SGD(sharded.parameters(), 0.1, momentum=0.9))
    close([parameter.full_tensor() for parameter in sharded.parameters()], trained_on_the_mean())


def check_zero() -> None:
    """ZeRO's first stage: each rank holds the optimizer's state of its share and broadcasts what it updated."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    parallel = DistributedDataParallel(layers().to(DEVICE), device_ids=[DEVICE.index])
    optimizer = ZeroRedundancyOptimizer(parallel.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9)
    train_two_steps(parallel, optimizer)
    close(parallel.parameters(), trained_on_the_mean())
    held = sum(tensor.numel() for state in optimizer.optim.state.values() for tensor in state.values())
    assert held < sum(parameter.numel() for parameter in parallel.parameters()), "this rank holds all of it"


CHECKS: dict[str, Callable[[], None]] = {
    name.removeprefix("check_"): function
    for name, function in list(globals().items())
    if name.startswith("check_")
}


def fail_absent_call() -> None:
    """The last rank stays away from a collective, as after an uneven number of batches."""
    check_all_reduce()  # the first collective of a group makes its communicator
    if RANK < SIZE - 1:
        dist.all_reduce(values(RANK).to(DEVICE))
        torch.npu.synchronize()
    else:
        time.sleep(30)  # ended by torchrun, because another rank failed


def main() -> None:
    folder = Path(sys.argv[1])
    names = sys.argv[2:] or list(CHECKS)
    checks = CHECKS | {"absent_call": fail_absent_call}
    torch.npu.set_device(DEVICE)
    torch.set_num_threads(1)
    dist.init_process_group("hccl", timeout=timedelta(seconds=60))
    results: dict[str, str] = {}
    for name in names:
        try:
            checks[name]()
            torch.npu.synchronize()
            results[name] = "equal"
        except (AssertionError, RuntimeError, ValueError, NotImplementedError) as error:
            results[name] = f"{type(error).__name__}: {error}"
        (folder / f"rank{RANK}.json").write_text(json.dumps(results))
        if results[name] != "equal":
            sys.exit(1)  # after an error the device's queue is unusable, as it is on the NPU
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
