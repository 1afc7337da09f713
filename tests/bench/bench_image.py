"""`make image` on the stand-in base: its times, and its size beside the port report's recipe on the same base.

Times: with nothing to do, and after a change in our code (a line in the vitdet package), each as `make image` in a
worktree of this repository. Sizes: what lies above the base without torch's own wheels (torch, torchvision,
torch_npu and the libraries they link), which are the same in both; so the report's recipe is built without them. It
is built in its favour: with our mmcv wheel instead of its compiler and objects, and without mmdet's test packages
and fairscale (which asks for torch).

    make bench-image
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

from ascendet import paths  # noqa: E402
from ascendet.containers import base_sim, image  # noqa: E402
from ascendet.core.stack import Stack  # noqa: E402
from ascendet.machine import arch, engine  # noqa: E402
from ascendet.supply import sources, unpack  # noqa: E402

STACK = Stack.load("vitdet")
# The report's steps after the CANN image, in its order. libgl1 is libgl1-mesa-glx's name in Debian.
REPORT = """
FROM {base}
RUN apt-get update && apt-get install -y libxcb1 libxrender1 libxext6 libglib2.0-0 libgl1 git
COPY mmdetection /workspace/mmdetection
COPY wheels /workspace/wheels
RUN --mount=type=secret,id=pip --mount=type=secret,id=ca \
    export PIP_CONFIG_FILE=/run/secrets/pip PIP_BREAK_SYSTEM_PACKAGES=1; \
    [ ! -s /run/secrets/ca ] || export PIP_CERT=/run/secrets/ca; \
    cd /workspace/mmdetection/requirements && grep -hv ^fairscale build.txt optional.txt runtime.txt >/tmp/wishes && \
    pip install -r /tmp/wishes && \
    pip install PyYAML openmim psutil decorator onnx attrs mmengine==0.10.7 opencv-python && \
    pip install --no-deps /workspace/wheels/*.whl
"""


def main() -> None:
    """Print the table."""
    machine = arch.parse("")
    base = base_sim.ensure(STACK, machine)
    timed(ROOT, base)  # it may have to be built first
    print(f"no change:        {timed(ROOT, base):6.1f} s (asked: under 5)")
    print(f"code-only change: {after_a_change(base):6.1f} s (asked: under 20)")
    parser = argparse.ArgumentParser()
    image.add_image_options(parser)
    built = image.ensure(parser.parse_args([f"--base-image={base}"]))
    (facts,) = engine.inspect("image", [base])
    layers = engine.run(
        "history", "--human=false", "--format={{.Size}} {{.CreatedBy}}", built.tag
    ).splitlines()
    torch = max(int(line.split()[0]) for line in layers)
    ours = built.size - facts["Size"] - torch
    report, cache = report_sizes(base, facts["Size"], machine)
    print(
        f"above the base, without torch's wheels: {ours / 1e6:.0f} MB (torch's layer: {torch / 1e6:.0f} MB)"
    )
    print(f"the report's recipe, likewise: {report / 1e6:.0f} MB, {report / ours:.2f} times ours (asked: 2)")
    print(
        f"  {cache / 1e6:.0f} MB of it are pip's cache, which it leaves; torch's wheels would add theirs to that"
    )


def timed(root: Path, base: str) -> float:
    """Seconds of `make image` in a worktree."""
    clock = time.monotonic()
    command = ["make", "image", f"BASE_IMAGE={base}"]
    environ = os.environ | {"ASCENDET_BUILD": str(paths.BUILD)}
    subprocess.run(command, cwd=root, env=environ, stdout=subprocess.DEVNULL, check=True)
    return time.monotonic() - clock


def after_a_change(base: str) -> float:
    """Seconds of `make image` in a copy of this repository with one more line in the vitdet package."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "copy")
        shutil.copytree(ROOT, copy, symlinks=True, ignore=shutil.ignore_patterns("build", ".git"))
        with (copy / "wheels/vitdet/vitdet/pyramid.py").open("a") as file:
            file.write(f"# {time.time_ns()}\n")
        seconds = timed(copy, base)
    timed(ROOT, base)  # `latest` is ours again
    return seconds


def report_sizes(base: str, base_size: int, machine: str) -> tuple[int, int]:
    """Bytes above the base of the report's recipe, and of pip's cache in it."""
    tag = "ascendet/bench:report"
    with tempfile.TemporaryDirectory() as folder:
        context = Path(folder, "context")
        for wheel in (image.make_context(STACK, machine) / "wheels").rglob("*.whl"):
            (context / "wheels").mkdir(parents=True, exist_ok=True)
            shutil.copy(wheel, context / "wheels")
        pip = [sys.executable, "-m", "pip"]
        tree = unpack.unpack(sources.fetch(str(STACK.upstreams["mmdet"].sdist), pip), Path(folder))
        tree.rename(context / "mmdetection")
        (context / "Dockerfile").write_text(REPORT.format(base=base).strip() + "\n")
        engine.run("build", f"--tag={tag}", *image.secrets(Path(folder)), str(context))
    (facts,) = engine.inspect("image", [tag])
    cache = engine.run("run", "--rm", tag, "du", "--summarize", "--bytes", "/root/.cache").split()[0]
    engine.run("rmi", tag)
    return facts["Size"] - base_size, int(cache)


if __name__ == "__main__":
    main()
