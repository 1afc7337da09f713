"""msprof of the simulated CANN: export a profiling session to the files that torch_npu.profiler reads.

`--export=on` writes `mindstudio_profiler_output/` of a PROF_ folder:

    msprof_<time>.json        the timeline (chrome://tracing): tasks by device, launches by host thread, and their links
    op_summary_<time>.csv     one row per kernel
    op_statistic_<time>.csv   calls and times by kernel

Times are host times of CPU kernels: their order and nesting are correct, but they say nothing about an NPU's speed.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TORCH_NPU_POLL_S = 0.1  # Constant.SLEEP_TIME of torch_npu.profiler
TIMED = {"SIMULATED", "HCCL"}  # kinds of tasks in op_summary; the timeline also has the copies
# A signature is float32[2,3], int64[] -> float32[2,3]
TENSOR = re.compile(r"(\w+)\[([\d,]*)\]")


@dataclass(frozen=True)
class Task:
    """One task of a device. Times are nanoseconds since the epoch."""

    device: int
    begin: int
    end: int
    thread: int
    kind: str
    name: str
    detail: str

    @property
    def microseconds(self) -> float:
        """The task's duration."""
        return (self.end - self.begin) / 1000


def main() -> int:
    """Export a session and return the exit code. `--analyze` does nothing: no link between devices is simulated."""
    parser = argparse.ArgumentParser(prog="msprof", description="msprof of cann_sim, the simulated CANN")
    parser.add_argument(
        "--export", choices=["on", "off"], default="off", help="write the results of a session"
    )
    parser.add_argument(
        "--analyze", choices=["on", "off"], default="off", help="accepted; has no result here"
    )
    parser.add_argument("--output", type=Path, required=True, help="the session's PROF_ folder")
    options = parser.parse_args()
    start = options.output / "host" / "start_info"
    if not start.is_file():
        print(
            f"error[cann-sim-msprof]: {options.output} is no session of the simulated CANN\n"
            f"  expected: {start}, which aclprofFinalize writes\n"
            "  next:     give the PROF_<n>_<time>_<letters> folder, or profile again to its end",
            file=sys.stderr,
        )
        return 1
    if options.export == "on":
        export(sorted(read_tasks(options.output), key=lambda task: task.begin), options.output)
    return 0


def read_tasks(session: Path) -> Iterator[Task]:
    """Yield the tasks that libascendcl recorded, with times converted to the time of day."""
    start = json.loads((session / "host" / "start_info").read_text())
    to_epoch = int(start["collectionTimeBegin"]) * 1000 - int(start["clockMonotonicRaw"])
    for folder in session.glob("device_*"):
        device = int(folder.name.removeprefix("device_"))
        for line in (folder / "data" / "cann_sim_tasks.tsv").read_text().splitlines():
            begin, end, thread, kind, name, detail = line.split("\t")
            yield Task(device, int(begin) + to_epoch, int(end) + to_epoch, int(thread), kind, name, detail)


def export(tasks: list[Task], session: Path) -> None:
    """Write all files into a folder that gets its name only when they are complete, because torch_npu waits for it.

    torch_npu's CANNTimelineParser looks for the folder every TORCH_NPU_POLL_S, in a thread that its task manager stops
    soon after this process ends. CANN's export therefore runs on after its first CSV file, and this one waits, too.
    """
    folder, partial = session / "mindstudio_profiler_output", session / "mindstudio_profiler_output.partial"
    partial.mkdir(mode=0o750, exist_ok=True)
    stamp = time.strftime("%Y%m%d%H%M%S")
    (partial / f"msprof_{stamp}.json").write_text(json.dumps(timeline(tasks)))
    write_csv(partial / f"op_summary_{stamp}.csv", summary(tasks))
    write_csv(partial / f"op_statistic_{stamp}.csv", statistic(tasks))
    partial.replace(folder)
    time.sleep(5 * TORCH_NPU_POLL_S)


def write_csv(path: Path, rows: list[list[object]]) -> None:
    """Write rows, the header first, as a CSV file."""
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def us(nanoseconds: int) -> str:
    """Return nanoseconds as microseconds with all digits; a float has too few digits for a time of day."""
    return f"{nanoseconds // 1000}.{nanoseconds % 1000:03d}"


def timeline(tasks: list[Task]) -> list[dict[str, object]]:
    """Return the tasks as events of the trace event format."""
    host = 1
    events = [*process(host, "CANN (simulated)", "CPU")]
    for device in sorted({task.device for task in tasks}):
        events += process(host + 1 + device, "Ascend Hardware (simulated by cann_sim)", f"NPU {device}")
    for number, task in enumerate(tasks):
        npu = {"pid": host + 1 + task.device, "tid": 0, "ts": us(task.begin)}
        cpu = {"pid": host, "tid": task.thread, "ts": us(task.begin)}
        flow = {"name": f"HostToDevice{number}", "id": str(number), "cat": "HostToDevice"}
        args = {"Task Type": task.kind, "Task Id": number, "Stream Id": 0, "Shapes": task.detail}
        events += [
            {"ph": "X", "name": task.name, "dur": task.microseconds, "args": args, **npu},
            {"ph": "X", "name": "Node@launch", "dur": task.microseconds, "args": {"Mode": "launch"}, **cpu},
            {"ph": "s", **flow, **cpu},
            {"ph": "f", "bp": "e", **flow, **npu},
        ]
    return events


def process(pid: int, name: str, label: str) -> Iterator[dict[str, object]]:
    """Yield the events that name a process in the timeline."""
    for kind, args in (
        ("process_name", {"name": name}),
        ("process_labels", {"labels": label}),
        ("process_sort_index", {"sort_index": pid}),
    ):
        yield {"ph": "M", "name": kind, "pid": pid, "tid": 0, "args": args}


def summary(tasks: list[Task]) -> list[list[object]]:
    """Return a header and one row per kernel, in the columns that CANN 8.5 writes and torch_npu reads."""
    rows: list[list[object]] = [
        ["Device_id", "Task ID", "Stream ID", "Op Name", "OP Type", "Task Type", "Task Start Time(us)",
         "Task Duration(us)", "Task Wait Time(us)", "Block Dim", "Input Shapes", "Input Data Types",
         "Output Shapes", "Output Data Types"]
    ]  # fmt: skip
    ended: dict[int, int] = {}
    for number, task in enumerate(tasks):
        if task.kind in TIMED:
            inputs, _, outputs = task.detail.partition(" -> ")
            wait = max(0, task.begin - ended.get(task.device, task.begin)) / 1000
            ended[task.device] = task.end
            rows.append(
                [task.device, number, 0, task.name, task.name.rpartition("::")[2], task.kind, us(task.begin) + "\t",
                 task.microseconds, wait, 0, *shapes_and_types(inputs), *shapes_and_types(outputs)]
            )  # fmt: skip
    return rows


def shapes_and_types(tensors: str) -> tuple[str, str]:
    """Return CANN's two columns for tensors, such as "2,3;4" and "FLOAT32;INT64"."""
    found = TENSOR.findall(tensors)
    return '"' + ";".join(shape for _, shape in found) + '"', ";".join(dtype.upper() for dtype, _ in found)


def statistic(tasks: list[Task]) -> list[list[object]]:
    """Return a header and the calls and times of each kernel, the longest total first."""
    times: dict[tuple[int, str, str], list[float]] = {}
    for task in tasks:
        if task.kind in TIMED:
            name = task.name.rpartition("::")[2]
            times.setdefault((task.device, name, task.kind), []).append(task.microseconds)
    whole = sum(map(sum, times.values())) or 1.0
    rows: list[list[object]] = [
        ["Device_id", "OP Type", "Core Type", "Count", "Total Time(us)", "Min Time(us)", "Avg Time(us)",
         "Max Time(us)", "Ratio(%)"]
    ]  # fmt: skip
    for (device, name, kind), list_ in sorted(times.items(), key=lambda item: -sum(item[1])):
        total = sum(list_)
        rows.append(
            [device, name, kind, len(list_), round(total, 3), min(list_), round(total / len(list_), 3), max(list_),
             round(100 * total / whole, 3)]
        )  # fmt: skip
    return rows


if __name__ == "__main__":
    sys.exit(main())
