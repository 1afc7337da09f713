"""Time the simulated HCCL's all-reduce beside torch's gloo: 2 and 4 processes, 1 KiB to 64 MiB of float32.

Run it in an environment with torch and cann_sim:  python tests/bench/bench_hccl.py [--json FILE]
Prints the median time of one all-reduce on rank 0 after a warm-up; "tcp" is what two hosts would use.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "sim"))
from hccl_ranks import Rank, find_library, run_ranks, values_of

SIZES = [1 << 10, 1 << 14, 1 << 18, 1 << 20, 1 << 22, 1 << 24, 1 << 26]


def measure(operation: Callable[[], None], size: int, budget: float) -> float:
    """Median seconds of `operation`; its repetitions depend on `size` only, so that ranks agree."""
    repetitions = max(5, min(300, int(budget * 2e9 / (size + 2e6))))
    times = []
    for _ in range(repetitions + 3):
        begin = time.perf_counter()
        operation()
        times.append(time.perf_counter() - begin)
    return statistics.median(times[3:])


def time_hccl(rank: Rank) -> list[float]:
    rank.join()
    times = []
    for size in SIZES:
        buffer = ctypes.create_string_buffer(size)

        def operation(buffer: ctypes.Array[ctypes.c_char] = buffer, size: int = size) -> None:
            rank.call("HcclAllReduce", buffer, buffer, ctypes.c_uint64(size // 4), 4, 0, rank.comm, None)

        times.append(measure(operation, size, 0.3))
    rank.call("HcclCommDestroy", rank.comm)
    return times


def time_gloo(rank: Rank) -> list[float]:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    store = dist.FileStore(str(rank.board / "store"), rank.size)
    dist.init_process_group("gloo", store=store, rank=rank.rank, world_size=rank.size)
    times = []
    for size in SIZES:
        tensor = torch.zeros(size // 4)
        times.append(measure(lambda tensor=tensor: dist.all_reduce(tensor), size, 0.3))
    dist.destroy_process_group()
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the times in seconds to this file")
    options = parser.parse_args()
    # gloo needs no NPU, and torch_npu would need a CANN tree.
    os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
    results: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        library = find_library(Path(folder))
        for processes in (2, 4):
            columns = {
                "hccl": values_of(run_ranks(library, processes, time_hccl, limit=300))[0],
                "hccl tcp": values_of(
                    run_ranks(
                        library, processes, time_hccl, environ={"CANN_SIM_HCCL_TRANSPORT": "tcp"}, limit=300
                    )
                )[0],
                "gloo": values_of(run_ranks(library, processes, time_gloo, limit=300))[0],
            }
            results[str(processes)] = columns
            cores = os.cpu_count()
            print(f"\n{processes} processes, {cores} cores, milliseconds per all-reduce (float32 sum)")
            print(f"{'bytes':>10} " + " ".join(f"{name:>10}" for name in columns) + f" {'gloo/hccl':>10}")
            for index, size in enumerate(SIZES):
                row = " ".join(f"{times[index] * 1e3:10.3f}" for times in columns.values())
                print(f"{size:>10} {row} {columns['gloo'][index] / columns['hccl'][index]:10.2f}")
    if options.json:
        options.json.write_text(json.dumps({"bytes": SIZES, "seconds": results}, indent=1))


if __name__ == "__main__":
    main()
