"""Our build of the mmcv wheel against the stock one, on this machine, in one run.

Stock is `python setup.py bdist_wheel` in our patched source, with mmcv's own settings (ninja, its number of jobs).
Ours is what `make mmcv-wheel` does: unpack, patch, compile, link, pack, audit. Both from nothing, then with one
changed line in one NPU file; then ours with nothing to do. Then the operators of both, called in turn.

    make bench-wheel writes the table to wheels/mmcv/BENCHMARK.md
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from ascendet import paths
from ascendet.supply import patches, sources, unpack
from ascendet.wheels import toolchain

TABLE = paths.WHEELS / "mmcv" / "BENCHMARK.md"
CHANGED = "mmcv/ops/csrc/pytorch/npu/nms_npu.cpp"
LINE = "  int64_t offset_64 = offset;\n"


@dataclass
class Cost:
    """Wall and processor seconds of a command."""

    wall: float
    cpu: float


def main() -> None:
    """Measure, print the table, write it."""
    with tempfile.TemporaryDirectory(prefix="bench-wheel-") as folder:
        here = Path(folder)
        rows = Measurement(here)
        rows.stock_from_nothing()
        rows.ours_from_nothing()
        rows.stock_after_one_line()
        rows.ours_after_one_line()
        rows.ours_with_nothing_to_do()
        text = table(rows, rows.operators())
    print(text)
    TABLE.write_text(text, encoding="utf-8")


class Measurement:
    """The two builds and what they cost."""

    def __init__(self, here: Path) -> None:
        self.here = here
        self.stock = prepare_stock(here / "stock")
        self.project = copy_project(here / "project")
        self.costs: dict[str, Cost] = {}

    def stock_from_nothing(self) -> None:
        self.costs["stock"] = self.build_stock()

    def stock_after_one_line(self) -> None:
        change(self.stock / CHANGED, LINE + "  offset_64 += 0;\n")
        self.costs["stock, one line"] = self.build_stock()

    def build_stock(self) -> Cost:
        shutil.rmtree(self.stock / "dist", ignore_errors=True)
        environ = os.environ | {"MMCV_WITH_OPS": "1", "FORCE_NPU": "1"}
        return run("stock", [sys.executable, "setup.py", "--quiet", "bdist_wheel"], self.stock, environ)

    def ours_from_nothing(self) -> None:
        self.costs["ours"] = self.build_ours()

    def ours_after_one_line(self) -> None:
        name = f"{len(patches.list_files('mmcv')) + 1:04d}-bench.patch"
        (self.project / "patches" / "mmcv" / name).write_text(one_line_patch(self.here), encoding="utf-8")
        self.costs["ours, one line"] = self.build_ours()

    def build_ours(self) -> Cost:
        shutil.rmtree(self.here / "ours-wheel", ignore_errors=True)
        for old in (self.here / "ours").glob("*.whl"):
            old.unlink()
        return run(
            "ours",
            ascendet("wheel", "mmcv", "--into", str(self.here / "ours")),
            self.project,
            our_environ(self.project),
        )

    def ours_with_nothing_to_do(self) -> None:
        command = ascendet("wheel", "mmcv")
        run("ours", command, paths.ROOT, our_environ(paths.ROOT))  # installs it if it is not there
        self.costs["ours, nothing to do"] = run("ours", command, paths.ROOT, our_environ(paths.ROOT))

    def wheels(self) -> tuple[Path, Path]:
        """The stock wheel and ours."""
        (stock,) = (self.stock / "dist").glob("*.whl")
        (ours,) = (self.here / "ours").glob("*.whl")
        return stock, ours

    def operators(self) -> list[tuple[str, float, float, bool]]:
        """Name, stock's and our seconds, and whether the results are the same to the last bit."""
        sites = []
        for name, wheel in zip(("stock-site", "ours-site"), self.wheels(), strict=True):
            site = self.here / name
            shutil.unpack_archive(wheel, site, "zip")
            sites.append(site)
        shutil.copy(sites[1] / "mmcv" / "_built_against.json", sites[0] / "mmcv")
        rounds: list[dict[str, list[float]]] = [{}, {}]
        for _ in range(3):  # in turn, so that a busy moment meets both
            for site, seen in zip(sites, rounds, strict=True):
                environ = os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
                shown = subprocess.run(
                    [sys.executable, "-c", OPERATORS], env=environ, stdout=subprocess.PIPE, check=True
                )
                for name, (seconds, digest) in json.loads(shown.stdout.splitlines()[-1]).items():
                    seen.setdefault(name, []).append(seconds)
                    seen.setdefault(f"{name} digest", []).append(digest)
        return [
            (
                name,
                min(rounds[0][name]),
                min(rounds[1][name]),
                rounds[0][f"{name} digest"] == rounds[1][f"{name} digest"],
            )
            for name in rounds[0]
            if not name.endswith(" digest")
        ]


# Best of several calls of CPU operators, and a digest of their results.
OPERATORS = """
import hashlib, json, time
import torch
from mmcv import ops
torch.manual_seed(0)
corner = torch.rand(4000, 2) * 800
boxes = torch.cat([corner, corner + torch.rand(4000, 2) * 120], 1)
scores = torch.rand(4000)
features = torch.randn(2, 64, 50, 50)
rois = torch.cat([torch.randint(2, (300, 1)).float(), boxes[:300] / 2], 1)
offset, weight = torch.randn(1, 18, 40, 40), torch.randn(32, 32, 3, 3)
image = torch.randn(1, 32, 40, 40)
calls = {
    "nms, 4,000 boxes": lambda: ops.nms(boxes, scores, 0.5)[1],
    "RoIAlign, 300 boxes, 64 channels": lambda: ops.roi_align(features, rois, 7, 0.125, 2),
    "deformable convolution, 32 channels, 40 x 40": lambda: ops.deform_conv2d(image, offset, weight, 1, 1),
}
results = {}
for name, call in calls.items():
    times = []
    for _ in range(7):
        start = time.perf_counter()
        value = call()
        times.append(time.perf_counter() - start)
    results[name] = (min(times), hashlib.sha256(value.numpy().tobytes()).hexdigest())
print(json.dumps(results))
"""


def prepare_stock(folder: Path) -> Path:
    """mmcv's patched source; the guard that its __init__ imports is ours, so here it is empty."""
    sdist = sources.fetch("mmcv-2.1.0.tar.gz", [sys.executable, "-m", "pip"])
    tree = unpack.unpack(sdist, folder)
    patches.apply("mmcv", tree)
    (tree / "mmcv" / "_built_against.py").touch()
    return tree


def copy_project(folder: Path) -> Path:
    """The project without its history and builds: the bench adds a patch to it."""
    folder.mkdir()
    for name in ("scripts", "wheels", "patches", "requirements", "pyproject.toml"):
        source = paths.ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, folder / name)
    return folder


def one_line_patch(here: Path) -> str:
    """A patch that changes one line of one NPU file."""
    tree = prepare_stock(here / "for-patch")
    change(tree / CHANGED, LINE + "  offset_64 += 0;\n")
    original = prepare_stock(here / "for-patch-original")
    diff = subprocess.run(
        ["diff", "-U1", f"--label=a/{CHANGED}", f"--label=b/{CHANGED}", original / CHANGED, tree / CHANGED],
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    header = "Subject: [PATCH] bench\n\nWhy: bench\nUpstream: N/A bench\nRemove-when: now\n---\n"
    return f"{header}diff --git a/{CHANGED} b/{CHANGED}\n{diff}"


def change(path: Path, replacement: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count(LINE) == 1
    path.write_text(text.replace(LINE, replacement), encoding="utf-8")


def ascendet(*arguments: str) -> list[str]:
    base = getattr(sys, "_base_executable", sys.executable)
    return [base, "-m", "ascendet", *arguments]


def our_environ(root: Path) -> dict[str, str]:
    return os.environ | {
        "PYTHONPATH": str(root / "scripts"),
        "ASCENDET_BUILD": str(paths.BUILD),
        "ASCENDET_CACHE": str(paths.CACHE),
    }


def run(what: str, command: list[str], folder: Path, environ: dict[str, str]) -> Cost:
    """Run a command to its end; what it cost."""
    print(
        f"{what}: {' '.join(Path(word).name if word.startswith('/') else word for word in command)}",
        flush=True,
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    done = subprocess.run(
        command, cwd=folder, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    wall = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"{what} failed:\n{done.stdout.decode(errors='replace')[-3000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"  {wall:.1f} s wall, {cpu:.1f} s of processors", flush=True)
    return Cost(wall, cpu)


def table(measured: Measurement, operators: list[tuple[str, float, float, bool]]) -> str:
    """The benchmark as a page."""
    stock, ours = measured.wheels()
    costs = measured.costs
    compiler = toolchain.find(platform.machine()).identity
    busy = os.getloadavg()[1]
    lines = [
        "# Building the mmcv NPU wheel: stock and ours",
        "",
        f"Measured by `make bench-wheel` on {datetime.date.today().isoformat()}: {os.cpu_count()} processors "
        f"({platform.machine()}), GCC {compiler.rpartition(' ')[2]}, load {busy:.1f} at the end. Stock is "
        "`python setup.py bdist_wheel` in our patched source; ours is all of `make mmcv-wheel` but installing: "
        "unpack, patch, compile, link, pack, audit.",
        "",
        "| | stock | ours | ratio |",
        "|---|---|---|---|",
        row("from nothing, wall", costs["stock"].wall, costs["ours"].wall),
        row("from nothing, processors", costs["stock"].cpu, costs["ours"].cpu),
        row(
            "one line of one NPU file changed, wall (stock incremental)",
            costs["stock, one line"].wall,
            costs["ours, one line"].wall,
        ),
        row("the same against stock from nothing, wall", costs["stock"].wall, costs["ours, one line"].wall),
        f"| nothing to do, wall | | {costs['ours, nothing to do'].wall:.2f} s | |",
        f"| wheel | {stock.stat().st_size / 1e6:.1f} MB | {ours.stat().st_size / 1e6:.2f} MB | "
        f"{stock.stat().st_size / ours.stat().st_size:.0f}x |",
        "",
        "The optimisation level is the same (`-O3`). Operators on the CPU, one thread, best of 21 calls:",
        "",
        "| operator | stock | ours | ratio | results |",
        "|---|---|---|---|---|",
        *(
            f"| {name} | {1e3 * slow:.2f} ms | {1e3 * fast:.2f} ms | {slow / fast:.2f}x | "
            f"{'the same to the last bit' if same else 'DIFFERENT'} |"
            for name, slow, fast, same in operators
        ),
        "",
    ]
    return "\n".join(lines)


def row(what: str, stock: float, ours: float) -> str:
    return f"| {what} | {stock:.1f} s | {ours:.1f} s | {stock / ours:.1f}x |"


if __name__ == "__main__":
    main()
