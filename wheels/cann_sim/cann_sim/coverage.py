"""`python -m cann_sim coverage`: measure how much of torch's operator database gives the CPU's results.

The operators run in a separate process (`opinfo`). If one crashes or hangs, this is recorded, and a new process
continues with the next operator. Results are kept in a file of JSON lines, so a run continues where the last one ended.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import datetime
import hashlib
import importlib.metadata
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import cann_sim
from cann_sim import whole

Job = tuple[str, str, str]  # operator, dtype, mode
STARTUP = 600.0  # seconds that torch's database may take to load: two minutes on a loaded machine


def configure_parser(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("--state", type=Path, required=True, help="file that keeps the results between runs")
    parser.add_argument("--seconds", type=float, help="end after about this time; run again to continue")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds for one operator in one dtype")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="OP", help="OpInfo names to run, known or not"
    )
    parser.add_argument("--markdown", type=Path, help="write the table of operators to this file")
    parser.add_argument(
        "--hold-back",
        type=Path,
        metavar="TSV",
        help="after a run at CANN_SIM_LEVEL=all: write what is held back",
    )
    parser.add_argument("--json", action="store_true", help="print the results as one JSON document")


def execute(args: argparse.Namespace) -> int:
    """Run the jobs that have no result yet, then report; return 1 if the default level does not reach the gate."""
    state = State(args.state)
    deadline = time.monotonic() + args.seconds if args.seconds else float("inf")
    try:
        left = Runner(state, args.timeout, deadline).run(args.only)
    except WorkerLost as lost:
        sys.exit(f"cann_sim: torch's operator database does not load: {lost}")
    results = state.results()
    if args.json:
        print(
            json.dumps(
                {
                    **state.pair,
                    "unfinished": left,
                    "results": results,
                    "totals": totals(results),
                    "whole": whole.count(results),
                },
                indent=1,
            )
        )
    else:
        print(summary(results))
    if left:
        print(f"{left} jobs are left: run the same command again", file=sys.stderr)
        return 0
    if args.hold_back:
        from cann_sim import gate, operators

        held = gate.hold_back(results, operators.ready())
        changed = gate.write_held_back(args.hold_back, held)
        print(f"{args.hold_back}: {len(held)} operators held back", file=sys.stderr)
        if changed:
            print("it changed: build cann_sim again, then measure it", file=sys.stderr)
    if args.markdown:
        from cann_sim import npu_functions, operators

        text = markdown(state.pair, results, operators.aten(), npu_functions.markdown())
        args.markdown.write_text(text, encoding="utf-8")
        print(f"wrote {args.markdown}", file=sys.stderr)
    low = whole.below(results) if state.level == "aclnn" and not args.only else []
    for sentence in low:
        print(f"error: {sentence}", file=sys.stderr)
    return 1 if low else 0


class State:
    """Results on disk: a line with the versions of torch, torch_npu and cann_sim, then one JSON line per result."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.pair = {name: importlib.metadata.version(name) for name in ("torch", "torch_npu")}
        digest = hashlib.sha256()
        for library in ("libcann_sim_compute.so", "libopapi.so"):
            digest.update((cann_sim.home() / "lib64" / library).read_bytes())
        self.level = os.environ.get("CANN_SIM_LEVEL", "aclnn")
        self._header = {**self.pair, "cann_sim": digest.hexdigest()[:16], "level": self.level}
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self._known: dict[Job, dict[str, Any]] = {}
        if lines and json.loads(lines[0]) == self._header:
            for line in lines[1:]:
                self._remember(json.loads(line))
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(self._header) + "\n", encoding="utf-8")

    def __contains__(self, job: Job) -> bool:
        return job in self._known

    def _remember(self, result: dict[str, Any]) -> None:
        self._known[result["op"], result["dtype"], result["mode"]] = result

    def add(self, result: dict[str, Any]) -> None:
        """Store a result; it replaces an older result of the same job."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")
        self._remember(result)

    def results(self) -> list[dict[str, Any]]:
        """Return all results, sorted by operator, dtype and mode."""
        return [self._known[job] for job in sorted(self._known)]


class Runner:
    """Gives jobs to `opinfo` processes until all are done or the time is over."""

    def __init__(self, state: State, timeout: float, deadline: float) -> None:
        self.state, self.timeout, self.deadline = state, timeout, deadline

    def run(self, only: list[str]) -> int:
        """Run the jobs without a result (or all jobs of the operators in `only`) and return how many are left."""
        todo: collections.deque[Job] | None = None
        done = 0
        while todo is None or todo:
            with Worker() as worker:
                if todo is None:
                    every = [tuple(job) for job in worker.read(STARTUP)["jobs"]]
                    todo = collections.deque(
                        job for job in every if (job[0] in only if only else job not in self.state)
                    )
                else:
                    worker.read(STARTUP)
                while todo and worker.alive:
                    if time.monotonic() > self.deadline:
                        return len(todo)
                    job = todo.popleft()
                    self.state.add(self._ask(worker, job))
                    done += 1
                    _show(f"{done} done, {len(todo)} left: {' '.join(job)[:80]}", last=not todo)
        return 0

    def _ask(self, worker: Worker, job: Job) -> dict[str, Any]:
        try:
            return worker.ask(job, self.timeout)
        except WorkerLost as lost:
            # The number of samples is unknown, so the whole operator counts as one.
            return {"op": job[0], "dtype": job[1], "mode": job[2], "samples": 1, "equal": 0, "random": 0,
                    "different": 0, "refused": 0, "crashed": 1, "max_error": 0.0, "reasons": {str(lost): 1},
                    "example": "", "seconds": 0.0}  # fmt: skip


def _show(progress: str, *, last: bool) -> None:
    """Print a line of progress: on a terminal each overwrites the one before, in a log only the last is printed."""
    if sys.stderr.isatty():
        print(f"\r{progress:<110}", end="\n" if last else "", file=sys.stderr, flush=True)
    elif last:
        print(progress, file=sys.stderr)


class WorkerLost(Exception):  # not an error of cann_sim's tool, but a result
    """The process ended or hung; the message says which."""


class Worker:
    """One `opinfo` process."""

    command: ClassVar[list[str]] = [sys.executable, "-W", "ignore", "-m", "cann_sim.opinfo"]

    def __enter__(self) -> Worker:
        self.alive = True
        self._errors = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            # With the task queue, an operator that fails would also make the following ones fail.
            env={**os.environ, "TASK_QUEUE_ENABLE": "0"},
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def ask(self, job: Job, timeout: float) -> dict[str, Any]:
        """Return the result of a job; raise `WorkerLost` if the process ends or takes too long."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it ended after its last answer: read() reports how
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
        return self.read(timeout)

    def read(self, timeout: float) -> dict[str, Any]:
        """Return the next answer of the process; raise `WorkerLost` if there is none in `timeout` seconds."""
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            ready = selector.select(timeout)
        line = self._process.stdout.readline() if ready else ""
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        self.alive = False
        if not ready:
            raise WorkerLost(f"no result in {timeout:.0f} s")
        code = self._process.wait()
        raise WorkerLost(
            signal.Signals(-code).name if code < 0 else f"exit code {code}: {self._last_words()}"
        )

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1][:160] if lines else ""


# -- the report --


def totals(results: Iterable[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return the counts by mode and dtype: operators, samples, samples of each kind, and the percentage that passed.

    A sample passes if it is equal or random.
    """
    sums: dict[str, collections.Counter[str]] = {}
    for result in results:
        counter = sums.setdefault(f"{result['mode']} {result['dtype']}", collections.Counter())
        counter["operators"] += 1
        for kind in ("samples", "equal", "random", "different", "refused", "crashed"):
            counter[kind] += result[kind]
    return {
        key: {
            **counter,
            "percent": whole.percentage(counter["equal"] + counter["random"], counter["samples"]),
        }
        for key, counter in sums.items()
    }


def summary(results: list[dict[str, Any]]) -> str:
    """Return the totals as a table, and that of whole operators."""
    kinds = ("operators", "samples", "equal", "random", "different", "refused", "crashed", "percent")
    rows = [["", *kinds]]
    for key, total in sorted(totals(results).items()):
        rows.append(
            [key, *(f"{total[kind]:.2f}" if kind == "percent" else str(total[kind]) for kind in kinds)]
        )
    return f"{_aligned(rows)}\n\nwhole operators\n{_aligned(whole.rows(results))}"


def _aligned(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *numbers in rows:
        cells = [number.rjust(width) for number, width in zip(numbers, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *cells]))
    return "\n".join(lines)


def markdown(
    pair: dict[str, str], results: list[dict[str, Any]], aten: Iterable[Any], functions: list[str]
) -> str:
    """Return the text of COVERAGE.md: totals, reasons of differences, every aten operator, then `functions`."""
    from cann_sim.operators import STATES

    operators = list(aten)
    count = collections.Counter(operator.state for operator in operators)
    lines = [
        "# What the simulated NPU computes",
        "",
        f"Made by `make sim-coverage` on {datetime.date.today()} with torch "
        f"{pair['torch']} and torch_npu {pair['torch_npu']}. **Simulated**: it compares cann_sim with the CPU and says",
        "nothing of the accuracy of an NPU's kernels.",
        "",
        "## torch's operator database (OpInfo) on `npu` against the CPU",
        "",
        "Equal means to the last bit. Random samples (and uninitialised memory) are compared by dtype and shape.",
        "",
        "| | operators | samples | equal | random | different | refused | crashed | passed |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for key, total in sorted(totals(results).items()):
        cells = [
            str(total[kind])
            for kind in ("operators", "samples", "equal", "random", "different", "refused", "crashed")
        ]
        lines.append(f"| {key} | {' | '.join(cells)} | {total['percent']:.2f} % |")
    lines += ["", *whole.markdown(results)]
    lines += ["", "### The rest, by reason", "", "| reason | samples | operators |", "|---|--:|---|"]
    for reason, samples, names in _by_reason(results):
        lines.append(f"| {_cell(reason)} | {samples} | {_cell(', '.join(names))} |")
    lines += ["", "## aten operators", "", "| state | operators | meaning |", "|---|--:|---|"]
    lines += [f"| {state} | {count[state]} | {meaning} |" for state, meaning in STATES.items()]
    at_aclnn = sum(operator.level.startswith("aclnn") for operator in operators)
    lines += [
        "",
        f"The last column is the level by default: {at_aclnn} operators run torch_npu's own",
    ]
    lines += [
        "kernels; those that are held back, all or some of their calls, and why, are in `opapi/held_back.tsv`."
    ]
    lines += ["", "| operator | state | level |", "|---|---|---|"]
    lines += [f"| `{operator.name}` | {operator.state} | {operator.level} |" for operator in operators]
    lines += ["", *functions]
    return "\n".join(lines) + "\n"


def _by_reason(results: list[dict[str, Any]]) -> list[tuple[str, int, list[str]]]:
    """Return (reason, samples, operators), the most frequent reason first."""
    samples, names = collections.Counter[str](), collections.defaultdict[str, set[str]](set)
    for result in results:
        for reason, number in result["reasons"].items():
            samples[reason] += number
            names[reason].add(result["op"])
    return [(reason, number, sorted(names[reason])) for reason, number in samples.most_common()]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
