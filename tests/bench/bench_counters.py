"""What cann_sim's own work costs: its counters, off and on; the way into an operator; the bytes that it copies.

Groups of steps with counters off and on take turns in one process, so that a busy machine slows both. The first step of
a group does not count: it is the one that sees every signature for the first time.

    python tests/bench/bench_counters.py [--steps 30]
"""

import argparse
import statistics
import time

import torch
from bench_step_time import BATCHES, Training, load
from cann_sim import counters

CALLS = 2000
GROUP = 5


def steps(count):
    """Training steps of vitdet-tiny with counters off and on; a step's copies and its batch's bytes."""
    cfg, model, batches = load("vitdet-tiny")
    npu = Training(model, "npu:0", cfg)
    for batch in batches * 2:
        npu.step(batch)
    off, on = [], []
    for group in range(2 * count // GROUP):
        seconds = on if group % 4 in (1, 2) else off  # off, on, on, off: neither is always the second
        if seconds is on:
            counters.start()
        for index in range(GROUP + 1):
            npu.step(batches[index % BATCHES])
            counters.step()
        counters.stop()
        seconds += npu.cpu_seconds[-GROUP:]
    medians = statistics.median(off), statistics.median(on)
    print(f"vitdet-tiny (simulated), CPU time, medians of {len(off)} and {len(on)} steps in turns")
    print(f"  counters off  {medians[0] * 1e3:8.1f} ms")
    print(f"  counters on   {medians[1] * 1e3:8.1f} ms, {100 * (medians[1] / medians[0] - 1):+.1f} %")
    counters.start()
    npu.step(batches[0])
    counters.stop()
    counted = counters.snapshot()
    total = {
        d: sum(row["bytes"] for row in counted["copies"] if row["direction"] == d) for d in ("h2d", "d2h")
    }
    images = sum(image.numel() for image in batches[0]["inputs"])
    launches, fallbacks = (sum(counted[name].values()) for name in ("launches", "cpu_fallbacks"))
    print(f"one step: {launches} kernel launches, {fallbacks} operators on the CPU;")
    print(
        f"  bytes from host to device {total['h2d']:,} (its images alone {images:,} as uint8), back {total['d2h']:,};\n"
        f"  tensors on the device {counted['memory']['0']['tensor_bytes']:,}: none of them was copied"
    )


def operators():
    """Nanoseconds of an operator on four numbers: what is not computing."""
    print(f"x.add_(y) of 4 numbers, best of 5 x {CALLS} calls")
    for name, device, counting in (
        ("CPU", "cpu", False),
        ("NPU", "npu", False),
        ("NPU, counters on", "npu", True),
    ):
        x, y = torch.ones(4, device=device), torch.ones(4, device=device)
        if counting:
            counters.start()
        best = float("inf")
        for _ in range(5):
            start = time.perf_counter()
            for _ in range(CALLS):
                x.add_(y)
            torch.npu.synchronize()
            best = min(best, (time.perf_counter() - start) / CALLS)
        counters.stop()
        print(f"  {name:<18}{best * 1e6:8.2f} us")


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--steps", type=int, default=30, help="steps with counters off, and as many with them on"
    )
    args = parser.parse_args()
    steps(args.steps)
    operators()


if __name__ == "__main__":
    main()
