"""What to run on what: a model on a data set, on checked devices of one stack, in its environment or in a container."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ascendet import __version__, paths
from ascendet.containers import container, image
from ascendet.core import manifest
from ascendet.core.stack import Stack
from ascendet.data import datasets
from ascendet.envs import env
from ascendet.errors import AscendetError
from ascendet.machine import devices, host
from ascendet.run import family
from ascendet.supply import assets
from ascendet.wheels import install

# Settings that scripts/run.sh keeps where the caller has set them; the same names as in runtime.sh.
RUNTIME = (
    "OMP_NUM_THREADS",
    "TASK_QUEUE_ENABLE",
    "PYTORCH_NPU_ALLOC_CONF",
    "HCCL_CONNECT_TIMEOUT",
    "HCCL_EXEC_TIMEOUT",
    "HCCL_IF_BASE_PORT",
    "MAX_RESTARTS",
    "NPU_FALLBACK",
)


@dataclass(frozen=True, kw_only=True)
class Target:
    """What to run on what: checked names and devices of one stack; in the stack's environment, or in a container."""

    stack: Stack
    family: family.Family
    model: str
    dataset: str
    devices: tuple[int, ...]
    npu: host.NpuKind
    container: container.Container | None = None

    @property
    def home(self) -> Path:
        """The folder of all runs of this model on this data set."""
        return paths.BUILD / "runs" / f"{self.model}_{self.dataset}"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that name a target."""
    image.add_image_options(parser)
    container.add_run_options(parser)


def check(args: argparse.Namespace, program: str) -> Target:
    """Check the names and devices that the options give; with RUN_IN=docker the image is built first.

    Raises
    ------
    AscendetError
        `model-unknown`, `dataset-unknown`, `config-missing`, `program-missing`, `devices-invalid`, `npu-unknown`,
        `npu-missing`; in a container also those of `container.make`, `container.check_free` and `image.ensure`.
    """
    stack = Stack.load(args.stack)
    check_names(stack, args.model, args.dataset)
    kin = family.of(stack)
    kin.check_program(program)
    kin.config(args.model)
    npu, place = host.npu_kind(), None
    if container.in_docker(args):
        place = container.open_container(args)
        npu = "sim" if place.image.simulated else "real"
    chosen = devices.choose(args.devices, place.count if place else devices.available(npu))
    if place:
        container.check_free(place.physical(chosen))
    return Target(
        stack=stack,
        family=kin,
        model=args.model,
        dataset=args.dataset,
        devices=chosen,
        npu=npu,
        container=place,
    )


def check_names(stack: Stack, model: str, dataset: str) -> None:
    """Refuse a model that the stack does not have, and an unknown data set: `model-unknown`, `dataset-unknown`."""
    if model not in stack.models:
        raise AscendetError(
            "model-unknown",
            f"the {stack.name} stack has no model {model!r}",
            expected=", ".join(stack.models) or "none is built yet for this stack",
            found=f"MODEL={model}",
            hint=f"MODEL={stack.models[0]}" if stack.models else "STACK=vitdet",
        )
    datasets.find(dataset)


def prepare(target: Target) -> None:
    """Make what the programs run in complete: the stack's environment, where there is no container."""
    if target.container is None:
        install.ensure(target.stack)


def environ(target: Target, work_dir: Path) -> dict[str, str]:
    """Return the environment of scripts/run.sh; for a container, only what it is given."""
    given = {
        "FAMILY": target.family.package,
        "MODEL": target.model,
        "DATASET": target.dataset,
        "WORK_DIR": str(work_dir),
        "ASCENDET_DATA": str(assets.root()),
        "DETECTRON2_DATASETS": str(assets.root()),
    }
    if target.container:
        return given | {name: os.environ[name] for name in RUNTIME if name in os.environ}
    return env.stack_environ(target.stack) | given | {"DEVICES": ",".join(map(str, target.devices))}


# -- what a manifest says of it --


def software(target: Target) -> dict[str, object]:
    """Return what a result depends on of the software that makes it: an image, or locks and wheels."""
    if target.container:
        return {"image": target.container.image.id}
    environment = manifest.read(env.stack_home(target.stack)) or {}
    return {"locks": environment.get("base"), "wheels": environment.get("layers")}


def describe(target: Target, environ: Mapping[str, str]) -> str:
    """Return one line for people: `2 x Ascend910B3 (simulated, cann_sim) in build/venv/vitdet`."""
    kind = " (simulated, cann_sim)" if target.npu == "sim" else ""
    if target.container:
        soc = target.stack.soc[0] if target.npu == "sim" else soc_name(os.environ)
        return f"{len(target.devices)} x {soc}{kind} in {target.container.image.tag}"
    home = paths.shorten(env.stack_home(target.stack))
    return f"{len(target.devices)} x {soc_name(environ)}{kind} in {home}"


def facts(target: Target, where: str) -> dict[str, object]:
    """Return what every manifest of a run says of how it came about; `where` is `describe`'s line."""
    return {
        "where": where,
        "versions": versions(target.stack),
        "simulated": target.npu == "sim",
        "command": sys.argv,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def versions(stack: Stack) -> dict[str, str]:
    """Return what a run's manifest says about its software."""
    names = ("torch", "torchvision", "torch_npu", "python")
    upstreams = {name: pin.version for name, pin in stack.upstreams.items()}
    return {"ascendet": __version__, **{name: str(getattr(stack, name)) for name in names}, **upstreams}


def soc_name(environ: Mapping[str, str]) -> str:
    """Return the SoC as npu-smi shows it, with CANN's prefix: `Ascend910B3`."""
    try:
        shown = subprocess.run(
            ["npu-smi", "info"], env=dict(environ), capture_output=True, text=True, timeout=60, check=False
        ).stdout
    except (FileNotFoundError, subprocess.TimeoutExpired):
        shown = ""
    found = re.search(r"^\|\s*\d+\s+(?:Ascend)?(\d{3}\w*)\s*\|", shown, re.MULTILINE)
    return f"Ascend{found[1]}" if found else "Ascend NPU"
