"""The target of a run: a model, a data set and devices, checked; in the stack's environment or in a container."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from ascendet import __version__, paths
from ascendet.containers import container, image
from ascendet.containers.image import ImageRequest
from ascendet.core import again, manifest, own_config
from ascendet.core.own_config import OwnConfig
from ascendet.core.stack import Stack, load_all
from ascendet.data import datasets
from ascendet.envs import activation, venv
from ascendet.errors import AscendetError
from ascendet.machine import devices, engine, host, identity
from ascendet.run import family
from ascendet.supply import assets
from ascendet.wheels import install

# Settings of scripts/runtime.sh that the caller may set; it keeps their values.
RUNTIME = (
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
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
    """The checked names and devices of a run, in the stack's environment or in a container.

    `own` is the user's configuration where MODEL names a file; `model` is then its name without folder and suffix.
    With an `image`, only `prepare`, which builds it, can set `container`, find out whether its NPUs are simulated, and
    check that it has the devices.
    """

    stack: Stack
    family: family.Family
    model: str
    dataset: str
    devices: tuple[int, ...]
    npu: host.NpuKind
    own: OwnConfig | None = None
    image: ImageRequest | None = None
    container: container.Container | None = None

    @property
    def home(self) -> Path:
        """The folder that holds all runs of this model on this data set."""
        return paths.BUILD / "runs" / f"{self.model}_{self.dataset}"

    @property
    def inputs(self) -> dict[str, object]:
        """The names that every result depends on, and the user's configuration."""
        own = {"config": self.own.digests} if self.own else {}
        return {"model": self.model, "dataset": self.dataset, **own}

    @property
    def files(self) -> list[Path]:
        """The files of the user's configuration, which a container must see."""
        return list(self.own.files) if self.own else []


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that name a target."""
    image.add_image_options(parser)
    container.add_run_options(parser)


def check(args: argparse.Namespace, program: str) -> Target:
    """Check the names and devices in the options and return the target; build nothing.

    Raises
    ------
    AscendetError
        `model-unknown`, `dataset-unknown`, `config-missing`, `program-missing`, `devices-invalid`, `npu-unknown`,
        `npu-missing`, `usage`; those of `own_config.find`.
    """
    stack = Stack.load(args.stack)
    own = check_names(stack, args.model, args.dataset)
    kin = family.of(stack)
    kin.check_program(program)
    if own:
        _check_dataset_given(args.dataset_by_default, own, program)
    else:
        kin.config(args.model)
    request = ImageRequest.read(args) if container.in_docker(args.run_in) else None
    npu = host.npu_kind()
    chosen = devices.choose(args.devices, devices.PER_NODE if request else devices.available(npu))
    return Target(
        stack=stack,
        family=kin,
        model=own.name if own else args.model,
        dataset=args.dataset,
        devices=chosen,
        npu=npu,
        own=own,
        image=request,
    )


def check_names(stack: Stack, model: str, dataset: str) -> OwnConfig | None:
    """Check the names of a model and a data set; return the user's configuration if MODEL names a file.

    Raises
    ------
    AscendetError
        Those of `check_model`; `dataset-unknown`.
    """
    own = check_model(stack, model)
    datasets.find(dataset)
    return own


def check_model(stack: Stack, model: str) -> OwnConfig | None:
    """Check the name of a model; return the user's configuration if it names a file.

    Raises
    ------
    AscendetError
        `model-unknown`; those of `own_config.find`.
    """
    own = own_config.find(stack, model)
    if own is None and model not in stack.models:
        others = [name for name, other in load_all().items() if model in other.models]
        known = f"MODEL={stack.models[0]}" if stack.models else f"STACK={next(iter(load_all()))}"
        raise AscendetError(
            "model-unknown",
            f"the {stack.name} stack has no model {model!r}",
            expected=", ".join(stack.models) or "this stack has no models yet",
            found=f"MODEL={model}" + (f", a model of STACK={others[0]}" if others else ""),
            hint=f"STACK={others[0]}" if others else known,
        )
    return own


def _check_dataset_given(by_default: bool, own: OwnConfig, program: str) -> None:
    """Raise `usage` if the data set of a user's configuration is only make's default.

    Such a file was written for a data set, which it may name in words that mean nothing here.
    """
    if by_default:
        raise AscendetError(
            "usage",
            "DATASET must be given with a configuration of your own",
            expected="one of requirements/datasets.toml, or your own",
            found=f"MODEL={paths.shorten(own.files[0])} without DATASET",
            hint=again.command(family.MAKE_TARGETS[program], DATASET="coco"),
        )


def prepare(target: Target) -> Target:
    """Build the stack's environment or image that the programs run in, and return the completed target.

    Raises
    ------
    AscendetError
        Those of `install.ensure`, or of `image.ensure`, `container.make` and `container.check_free`; `devices-invalid`.
    """
    if target.image is None:
        install.ensure(target.stack)
        return target
    place = container.open_container(target.image)
    devices.parse(",".join(map(str, target.devices)), place.count)
    container.check_free(place.physical(target.devices))
    return replace(target, npu="sim" if place.image.simulated else "real", container=place)


def environ(target: Target, work_dir: Path) -> dict[str, str]:
    """Return the environment variables of scripts/run.sh; for a container, only those that are passed to it."""
    given = {
        "FAMILY": target.family.package,
        "MODEL": target.model,
        "CONFIG": str(target.own.files[0]) if target.own else "",
        "DATASET": target.dataset,
        "WORK_DIR": str(work_dir),
        "ASCENDET_DATA": str(assets.root()),
        "DETECTRON2_DATASETS": str(assets.root()),
    }
    if target.container:
        return given | {name: os.environ[name] for name in RUNTIME if name in os.environ}
    return (
        activation.stack_environ(target.stack, target.npu)
        | given
        | {"DEVICES": ",".join(map(str, target.devices))}
    )


def tensorboard(target: Target) -> str:
    """Return the command that shows all runs of the model on the data set: the environment's, or the image's."""
    board = venv.stack_home(target.stack) / "bin/tensorboard"
    if target.container is None or board.exists():
        return f"{paths.shorten(board)} --logdir {shlex.quote(paths.shorten(target.home))} --port 6006"
    mount = shlex.quote(f"--mount=type=bind,source={target.home},target=/runs,readonly")
    return (
        f"{engine.command_name()} run --rm --publish=127.0.0.1:6006:6006 {mount} "
        f"--entrypoint={container.VENV}/bin/tensorboard {target.container.image.tag} --logdir=/runs --bind_all"
    )


# -- facts for the manifest --


def software(target: Target) -> dict[str, object]:
    """Return the software that a result depends on: the image's id, or the environment's locks and wheels."""
    if target.container:
        return {"image": target.container.image.id}
    environment = manifest.read(venv.stack_home(target.stack)) or {}
    return {"locks": environment.get("base"), "wheels": environment.get("layers")}


def describe(target: Target, environ: Mapping[str, str]) -> str:
    """Return one line about devices and place: `2 x Ascend910B3 (simulated, cann_sim) in build/venv/<stack>`."""
    kind = " (simulated, cann_sim)" if target.npu == "sim" else ""
    if target.container:
        soc = target.stack.soc[0] if target.npu == "sim" else soc_name(os.environ)
        return f"{len(target.devices)} x {soc}{kind} in {target.container.image.tag}"
    home = paths.shorten(venv.stack_home(target.stack))
    return f"{len(target.devices)} x {soc_name(environ)}{kind} in {home}"


def facts(target: Target, where: str) -> dict[str, object]:
    """Return the facts that the manifest of every run has; `where` is the line that `describe` returns."""
    return {
        "where": where,
        "machine": identity.describe(target.npu),
        "versions": versions(target.stack),
        "simulated": target.npu == "sim",
        **({"config": target.own.texts} if target.own else {}),
        "command": sys.argv,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def versions(stack: Stack) -> dict[str, str]:
    """Return the versions of a stack's software by name."""
    names = ("torch", "torchvision", "torch_npu", "python")
    upstreams = {name: pin.version for name, pin in stack.upstreams.items()}
    return {"ascendet": __version__, **{name: str(getattr(stack, name)) for name in names}, **upstreams}


def soc_name(environ: Mapping[str, str]) -> str:
    """Return the SoC's name that npu-smi shows, with CANN's prefix: `Ascend910B3`."""
    try:
        shown = subprocess.run(
            ["npu-smi", "info"], env=dict(environ), capture_output=True, text=True, timeout=60, check=False
        ).stdout
    except (FileNotFoundError, subprocess.TimeoutExpired):
        shown = ""
    found = re.search(r"^\|\s*\d+\s+(?:Ascend)?(\d{3}\w*)\s*\|", shown, re.MULTILINE)
    if not found:
        return "Ascend NPU"
    # A3 shows a number of four digits; its SoC is Ascend910 and that number.
    return f"Ascend910_{found[1]}" if re.fullmatch(r"9\d{3}", found[1]) else f"Ascend{found[1]}"
