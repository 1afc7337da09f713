"""What training and evaluation share: run folders, and starting a program on devices with its log kept."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from ascendet import (
    __version__,
    assets,
    container,
    data,
    devices,
    engine,
    env,
    host,
    image,
    install,
    manifest,
    paths,
)
from ascendet.errors import AscendetError
from ascendet.stack import Stack

_SAME_REQUEST = 2.0  # seconds
_DOCKER_FAILED = 125  # the exit code of `docker run` when it is not the program's

# What people want to see of mmengine's log while it runs; all of it is in the log file.
_PROGRESS = re.compile(
    r"(Epoch|Iter)\(\w+\)|Saving checkpoint|resumed|^(runtime|recipe|skipped|picture): | - WARNING - "
)
_SHOWN = {"eta", "time", "memory", "loss"}
_PREFIX = re.compile(r"^(?:\d{4}/)?\d\d/\d\d (\d\d:\d\d:\d\d) - mmengine - \S*?(INFO|WARNING|ERROR)\S* - ")


@dataclass(frozen=True, kw_only=True)
class Target:
    """What to run on what: checked names and devices of one stack; in the stack's environment, or in a container."""

    stack: Stack
    model: str
    dataset: str
    devices: tuple[int, ...]
    npu: host.NpuKind
    container: container.Container | None = None

    @property
    def home(self) -> Path:
        """The folder of all runs of this model on this data set."""
        return paths.BUILD / "runs" / f"{self.model}_{self.dataset}"


def add_target_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that name a target: what to run on what."""
    image.add_image_options(parser)
    container.add_run_options(parser)


def check_target(args: argparse.Namespace) -> Target:
    """Check the names and devices before anything but the container's image is built.

    Raises
    ------
    AscendetError
        `model-unknown`, `dataset-unknown`, `devices-invalid`, `npu-unknown`, `npu-missing`; in a container also those
        of `container.make`, `container.check_free` and `image.ensure`.
    """
    stack = Stack.load(args.stack)
    check_names(stack, args.model, args.dataset)
    npu, place = host.npu_kind(), None
    if container.in_docker(args):
        place = container.open_container(args)
        npu = "sim" if place.image.simulated else "real"
    chosen = devices.choose(args.devices, place.count if place else devices.available(npu))
    if place:
        container.check_free(place.physical(chosen))
    return Target(
        stack=stack, model=args.model, dataset=args.dataset, devices=chosen, npu=npu, container=place
    )


def check_names(stack: Stack, model: str, dataset: str) -> None:
    """Refuse a model or data set that the stack does not have: `model-unknown`, `dataset-unknown`."""
    if model not in stack.models:
        raise AscendetError(
            "model-unknown",
            f"the {stack.name} stack has no model {model!r}",
            expected=", ".join(stack.models) or "none is built yet for this stack",
            found=f"MODEL={model}",
            hint=f"MODEL={stack.models[0]}" if stack.models else "STACK=vitdet",
        )
    if dataset not in stack.datasets:
        raise AscendetError(
            "dataset-unknown",
            f"the {stack.name} stack has no data set {dataset!r}",
            expected=", ".join(stack.datasets),
            found=f"DATASET={dataset}",
            hint=f"DATASET={stack.datasets[0]}",
        )


def prepare(target: Target) -> None:
    """Make what the programs run in complete, and check that it can do what was asked for."""
    if target.container is None:
        install.ensure(target.stack)
    check_config(target)


def software(target: Target) -> dict[str, object]:
    """What a result depends on of the software that makes it: an image, or locks and wheels."""
    if target.container:
        return {"image": target.container.image.id}
    environment = manifest.read(env.stack_home(target.stack)) or {}
    return {"locks": environment.get("base"), "wheels": environment.get("layers")}


def check_config(target: Target) -> Path:
    """The installed configuration of the model on the data set, or `error[config-missing]`."""
    if target.container:
        configs = paths.WHEELS / "vitdet" / "vitdet" / "configs"  # what the image was built from
    else:
        configs = next(env.stack_home(target.stack).glob("lib/python*/site-packages/vitdet/configs"))
    config = configs / f"{target.model}_{target.dataset}.py"
    if not config.is_file():
        known = sorted(file.stem for file in configs.glob("*.py"))
        raise AscendetError(
            "config-missing",
            f"there is no configuration of {target.model} for {target.dataset}",
            expected=", ".join(known),
            found=config.name,
            hint="MODEL={} DATASET={}".format(*known[0].split("_", 1)),
        )
    return config


def describe(target: Target, environ: Mapping[str, str]) -> str:
    """One line for people: `2 x Ascend910B3 (simulated, cann_sim) in build/venv/vitdet`."""
    kind = " (simulated, cann_sim)" if target.npu == "sim" else ""
    if target.container:
        soc = target.stack.soc[0] if target.npu == "sim" else soc_name(os.environ)
        return f"{len(target.devices)} x {soc}{kind} in {target.container.image.tag}"
    home = paths.shorten(env.stack_home(target.stack))
    return f"{len(target.devices)} x {soc_name(environ)}{kind} in {home}"


def facts(target: Target, where: str) -> dict[str, object]:
    """What every manifest of a run says of how it came about; `where` is `describe`'s line."""
    return {
        "where": where,
        "versions": versions(target.stack),
        "simulated": target.npu == "sim",
        "command": sys.argv,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def versions(stack: Stack) -> dict[str, str]:
    """What a run's manifest says about its software."""
    names = ("torch", "torchvision", "torch_npu", "python")
    upstreams = {name: pin.version for name, pin in stack.upstreams.items()}
    return {"ascendet": __version__, **{name: str(getattr(stack, name)) for name in names}, **upstreams}


def soc_name(environ: Mapping[str, str]) -> str:
    """The SoC as npu-smi shows it, with CANN's prefix: `Ascend910B3`."""
    try:
        shown = subprocess.run(
            ["npu-smi", "info"], env=dict(environ), capture_output=True, text=True, timeout=60, check=False
        ).stdout
    except (FileNotFoundError, subprocess.TimeoutExpired):
        shown = ""
    found = re.search(r"^\|\s*\d+\s+(?:Ascend)?(\d{3}\w*)\s*\|", shown, re.MULTILINE)
    return f"Ascend{found[1]}" if found else "Ascend NPU"


@contextlib.contextmanager
def not_busy(folder: Path) -> Iterator[None]:
    """Refuse a run folder that another process works in (train.sh takes the same lock, for good)."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise busy(folder) from None
    yield


def busy(folder: Path) -> AscendetError:
    """The error for a run folder in use."""
    return AscendetError(
        "run-busy",
        f"another process works in {paths.shorten(folder)}",
        found=f"its lock {paths.shorten(folder / '.lock')} is held",
        hint="wait for it or stop it; without RESUME=1 a training gets a folder of its own",
    )


def check_data(dataset: str, *splits: str) -> Path:
    """The data set's folder, with these splits of COCO, or `error[data-missing]`. Making it is for `make data`."""
    if dataset == "coco":
        return data.check_coco(splits or data.SPLITS)
    folder = assets.root() / dataset
    if not (folder / "annotations").is_dir():
        raise AscendetError(
            "data-missing",
            f"the data set {dataset} is not here",
            expected=f"{paths.shorten(folder)}/annotations",
            found="no such folder",
            hint=f"make data DATASET={dataset}",
        )
    return folder


# Settings that train.sh, eval.sh and infer.sh keep where the caller has set them; the same names as in runtime.sh.
RUNTIME = (
    "OMP_NUM_THREADS",
    "TASK_QUEUE_ENABLE",
    "PYTORCH_NPU_ALLOC_CONF",
    "HCCL_CONNECT_TIMEOUT",
    "HCCL_EXEC_TIMEOUT",
    "HCCL_IF_BASE_PORT",
    "MAX_RESTARTS",
)


def run_environ(target: Target, work_dir: Path) -> dict[str, str]:
    """The environment of train.sh, eval.sh and infer.sh; for a container, only what it is given."""
    given = {
        "MODEL": target.model,
        "DATASET": target.dataset,
        "WORK_DIR": str(work_dir),
        "ASCENDET_DATA": str(assets.root()),
        "DETECTRON2_DATASETS": str(assets.root()),
    }
    if target.container:
        return given | {name: os.environ[name] for name in RUNTIME if name in os.environ}
    return env.stack_environ(target.stack) | given | {"DEVICES": ",".join(map(str, target.devices))}


def link_latest(run: Path) -> None:
    """Make `latest` beside the run point to it, without a moment in which it points nowhere."""
    temp = run.parent / f".latest-{os.getpid()}"
    temp.unlink(missing_ok=True)
    temp.symlink_to(run.name)
    temp.replace(run.parent / "latest")


def last_checkpoint(run: Path) -> Path | None:
    """The checkpoint that mmengine wrote last, completely: it notes the name afterwards."""
    note = run / "last_checkpoint"
    if not note.is_file():
        return None
    # Only the name counts: the folder may have been moved since.
    path = run / Path(note.read_text(encoding="utf-8").strip()).name
    return path if path.is_file() else None


def find_checkpoint(target: Target, asked: str) -> Path:
    """The checkpoint to use: the file that was asked for, or the latest training's last one.

    Raises
    ------
    AscendetError
        `checkpoint-missing`.
    """
    if asked:
        path = Path(asked).expanduser().absolute()
        if path.is_file():
            return path
        raise AscendetError(
            "checkpoint-missing", "there is no such checkpoint", found=asked, hint="CHECKPOINT=<file>"
        )
    latest = target.home / "latest"
    path_or_none = last_checkpoint(latest.resolve()) if latest.exists() else None
    if path_or_none is None:
        raise AscendetError(
            "checkpoint-missing",
            f"{target.model} was not trained on {target.dataset} here",
            expected=f"a checkpoint in {paths.shorten(latest)}",
            hint=f"make train MODEL={target.model} DATASET={target.dataset}, or CHECKPOINT=<file>",
        )
    return path_or_none


def folder_beside(target: Target, checkpoint: Path, noun: str) -> Path:
    """Where a checkpoint's results go: into the run that it is from, else beside the runs."""
    if checkpoint.parent.parent == target.home:
        return checkpoint.parent / noun
    return target.home / f"{noun}-{checkpoint.stem}"


@contextlib.contextmanager
def replaced(final: Path, log: str) -> Iterator[Path]:
    """A temporary folder that takes the place of `final` when the block ends well.

    What failed leaves only its log, as `<final>-failed.log`, which the error then points to.
    """
    work = final.with_name(f".tmp-{final.name}-{os.getpid()}")
    with manifest.full_disk_named(final.parent):
        try:
            work.mkdir(parents=True)
            yield work
            if final.exists():
                shutil.rmtree(final)
            work.rename(final)
        except AscendetError as error:
            if error.name == "run-failed" and (work / log).exists():
                kept = final.with_name(f"{final.name}-failed.log")
                (work / log).replace(kept)
                error.hint = f"less {paths.shorten(kept)}"
            raise
        finally:
            shutil.rmtree(work, ignore_errors=True)


def in_container(
    target: Target,
    script: str,
    environ: Mapping[str, str],
    log: Path,
    inputs: Sequence[Path] = (),
    arguments: Sequence[str] = (),
) -> tuple[str, list[str]]:
    """Name and command of a container for `execute`; it reads `inputs` and writes beside `log`."""
    assert target.container is not None
    log.touch()
    target.container.prepare(log.parent)
    name = re.sub(r"[^\w]+", "-", f"ascendet-{script.removesuffix('.sh')}-{log.parent.name}")
    command = target.container.command(
        target.devices,
        [f"{container.SCRIPTS}/{script}", *arguments],
        name=name,
        work_dir=log.parent,
        inputs=list(dict.fromkeys(inputs)),
        environ=environ,
    )
    return name, [engine.client(), *command]


def execute(
    script: str,
    environ: Mapping[str, str],
    log: Path,
    target: Target | None = None,
    inputs: Sequence[Path] = (),
    arguments: Sequence[str] = (),
) -> None:
    """Run one of our shell scripts with `arguments` to its end: everything into `log`, progress on the terminal.

    It runs in the container of `target`, where there is one; see `in_container` for `inputs`.

    An interrupt (Ctrl-C, SIGTERM) is passed on, so that the ranks end before we do.

    Raises
    ------
    AscendetError
        `interrupted`, `run-busy`, `checkpoint-mismatch`, `checkpoint-unreadable`, `disk-full`, `npu-out-of-memory`,
        `npu-lost`, `npu-timeout`, `hccl-timeout`, `hccl-link-down`, `run-failed`; from a container also what
        `engine.explain` names.
    """
    command = ["bash", str(paths.ROOT / "scripts" / script), *arguments]
    name = None
    if target and target.container:
        name, command = in_container(target, script, environ, log, inputs, arguments)
        environ = os.environ
    # Its own session: a terminal would interrupt the ranks and torchrun at once, and torchrun has to go last.
    with (
        log.open("a", encoding="utf-8") as file,
        subprocess.Popen(
            command,
            env=dict(environ),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        ) as child,
        _interrupts_to(child, name) as interrupted,
    ):
        assert child.stdout is not None
        for line in child.stdout:
            file.write(line)
            file.flush()
            if _PROGRESS.search(line):
                print(shorten_progress(line.rstrip()), flush=True)
        code = child.wait()
    if interrupted:
        raise _interrupted(script, log)
    if code:
        raise _failure(script, code, log)


def shorten_progress(line: str) -> str:
    """A line of mmengine's log for a terminal: the time of day, where it is, how it goes.

    >>> shorten_progress("11/21 04:21:52 - mmengine - INFO - Epoch(train)  [1][ 75/150]  base_lr: 1e-3 lr: 1e-3  "
    ...                  "eta: 0:44:08  time: 1.9933  data_time: 0.02  memory: 210  loss: 2.55  loss_cls: 0.7  acc: 82")
    '04:21:52 Epoch(train)  [1][ 75/150]  eta: 0:44:08  time: 1.9933  memory: 210  loss: 2.55'
    """
    line = _PREFIX.sub(r"\1 ", line)
    head, *values = re.split(r"\s+(?=[a-z_]+: )", line) if "(train)" in line else [line]
    return "  ".join([head, *(value for value in values if value.split(":")[0] in _SHOWN)])


@contextlib.contextmanager
def _interrupts_to(child: subprocess.Popen[str], name: str | None) -> Iterator[list[float]]:
    """Pass SIGINT and SIGTERM to the child (docker's client passes them on); the list holds when (seconds, monotonic).

    make and timeout each pass a signal on that they get, so what follows within a moment is the same request.
    """
    arrived: list[float] = []

    def forward(number: int, _: FrameType | None) -> None:
        arrived.append(time.monotonic())
        if len(arrived) == 1:
            with contextlib.suppress(ProcessLookupError):
                child.terminate()  # torchrun ends its ranks itself
            print("\nstopping the ranks …", file=sys.stderr, flush=True)
        elif arrived[-1] - arrived[0] > _SAME_REQUEST:  # a second Ctrl-C means it
            if name:
                subprocess.run([engine.client(), "kill", name], capture_output=True, check=False)
            _kill_tree(child.pid)

    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield arrived
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _kill_tree(root: int) -> None:
    """Kill a process and all that descend from it: torchrun's ranks are in sessions of their own."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended while we looked
            # pid (comm) state ppid …; comm may hold anything, also a closing parenthesis
            parent = int(stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    tree = [root]
    for pid in tree:  # grows as it goes
        tree += children.get(pid, [])
    for pid in tree:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


# How torch_npu tells what became of a device or of a link to another one. Codes: acl/error_codes/rt_error_codes.h
# and hccl/hccl_types.h of CANN 8.5.
_HARDWARE = (
    (
        r"NPU out of memory",
        "npu-out-of-memory",
        "an NPU has no memory left",
        "more DEVICES or smaller batches",
    ),
    # lost heartbeat; HBM multi-bit ECC error
    (
        r"error code is 507(?:010|054)\b",
        "npu-lost",
        "an NPU is lost",
        "npu-smi info; DEVICES without that card",
    ),
    (
        r"error code is 507(?:014|046)\b",
        "npu-timeout",
        "an NPU did not finish in time",
        "npu-smi info; a longer ACL_STREAM_TIMEOUT",
    ),
    (
        r"Hccl\w+, error code is 9\b",
        "hccl-timeout",
        "a rank did not come to a collective in time",
        "the first error of the other ranks in the log; a longer HCCL_EXEC_TIMEOUT",
    ),
    # older ones: EJ0003, code 11; 8.5: EI0019, code 7
    (
        r"\b(?:EJ0003|EI0019)\b",
        "port-in-use",
        "another process listens on HCCL's port",
        "HCCL_IF_BASE_PORT=<first of 16 free ports>, or unset it (then free ones are chosen)",
    ),
    (
        r"Hccl\w+, error code is 21\b",
        "hccl-link-down",
        "a link between NPUs is down",
        "hccn_tool -i <card> -link -g",
    ),
)


def _hardware_failure(script: str, log: Path, text: str) -> AscendetError | None:
    """The named error for a device, or a link, that failed under a run; the first in the log is the cause."""
    hits = [(found, row) for pattern, *row in _HARDWARE if (found := re.search(f".*{pattern}.*", text))]
    if not hits:
        return None
    found, (name, what, hint) = min(hits, key=lambda hit: hit[0].start())
    whole = last_checkpoint(log.parent)
    again = "make eval" if script == "eval.sh" else "make train RESUME=1" if whole else "make train"
    return AscendetError(name, what, found=found[0].strip()[:300], hint=f"{hint}; then: {again}")


# What vitdet's InterruptHook says last.
_SAVED = re.compile(r"error\[interrupted\]: (saved \S+ after iteration \d+)")


def _interrupted(script: str, log: Path) -> AscendetError:
    """The error for a run that was asked to stop; a training says what it saved."""
    saved = _SAVED.findall(log.read_text(encoding="utf-8", errors="replace")[-20_000:])
    hint = "make train RESUME=1" if script == "train.sh" else "run it again"
    return AscendetError(
        "interrupted", f"{script} was interrupted", found=saved[-1] if saved else None, hint=hint
    )


def _failure(script: str, code: int, log: Path) -> AscendetError:
    """The named error for what a failed run's log says."""
    if code == 75:
        return busy(log.parent)
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    text = "\n".join(lines[-400:])
    if _SAVED.search(text):  # another machine of this training was asked to stop
        return _interrupted(script, log)
    known = engine.explain(text)
    if known and (code == _DOCKER_FAILED or known.name in ("device-busy", "port-in-use")):
        return known
    refused = re.search(r"CheckpointError: (.*(?:\n(?!\[|Traceback|  File).*){0,6})", text)
    if refused:
        reason = refused[1].strip()
        name = "checkpoint-mismatch" if "not one of this model" in reason else "checkpoint-unreadable"
        note = paths.shorten(log.parent / "last_checkpoint")
        hint = f"put an older one's name into {note}" if script == "train.sh" else "CHECKPOINT=<file>"
        return AscendetError(name, "the checkpoint cannot be used", found=reason, hint=hint)
    damaged = re.search(r"(?:ImageError|DataError: damaged image):? (.*)", text)
    if damaged:
        hint = "repair or remove it" + (
            "; BAD=skip leaves it out" if script == "infer.sh" else "; make data-check"
        )
        return AscendetError("image-damaged", "a picture cannot be read", found=damaged[1], hint=hint)
    unusable = re.search(r"DataError: (.*)", text)
    if unusable:
        return AscendetError(
            "data-invalid",
            "the data set cannot be used",
            found=unusable[1],
            hint="make data-check, or another DATASET",
        )
    if "No space left on device" in text or manifest.is_full(log.parent):
        error = manifest.disk_full(log.parent)
        if script == "train.sh":
            error.hint = "free some space, then: make train RESUME=1 (from the last whole checkpoint)"
        return error
    if failed := _hardware_failure(script, log, text):
        return failed
    # The first exception of a rank; torchrun's own, about the rank that ended, comes last and explains nothing.
    raised = re.compile(r"(\[rank\d+\]:? ?)?[A-Za-z_][\w.]*(Error|Exception)\b.*:")
    causes = [number for number, line in enumerate(lines) if raised.match(line)] or [len(lines) - 1]
    sys.stderr.write("\n".join(lines[max(0, causes[0] - 16) : causes[0] + 6]) + "\n")
    return AscendetError(
        "run-failed",
        f"{script} failed",
        found=f"exit code {code}" + (f"; {lines[causes[0]]}" if lines else ""),
        hint=f"less {paths.shorten(log)}",
    )
