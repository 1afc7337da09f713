"""Run folders: their locks, their checkpoints, which one to resume, and their state in the manifest."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from ascendet import paths
from ascendet.core import again, files, manifest
from ascendet.errors import AscendetError
from ascendet.run.target import Target

LOG = "train.log"
PROGRESS = "progress.jsonl"  # written by wheels/common
LAST = "last_checkpoint"  # names it
LOCK = ".lock"  # held by scripts/run.sh
# Errors whose cause one must read in the log.
_LOGGED = ("run-failed", "export-failed", "onnx-differs", "atc-failed")


def check_not_busy(folder: Path) -> None:
    """Raise `run-busy` if another process works in a run folder; scripts/run.sh holds the same lock while it runs."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise busy(folder) from None


def is_busy(folder: Path) -> bool:
    """Return whether another process works in a run folder, which may be another user's: nothing is written into it."""
    try:
        with (folder / LOCK).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def busy(
    folder: Path, hint: str = "wait for it or stop it; without RESUME=1 a training gets a new folder"
) -> AscendetError:
    """Return the error for a work folder that another process works in; scripts/run.sh notes in the lock who it is."""
    holder = (folder / LOCK).read_text(encoding="utf-8").strip()
    return AscendetError(
        "run-busy",
        f"another process works in {paths.shorten(folder)}",
        found=f"its lock {paths.shorten(folder / LOCK)} is held" + (f" by {holder}" if holder else ""),
        hint=hint,
    )


def link_latest(run: Path) -> None:
    """Make the link `latest` beside a run point to it."""
    files.point(run.parent / "latest", run.name)


def fallbacks(work: Path) -> list[dict[str, str]]:
    """Return the operators without an NPU kernel that a program met, by `operator` and `line`, each once.

    What NPU_FALLBACK=warn lets pass; NPU_FALLBACK=allow is not told of any.
    """
    file = work / PROGRESS
    found = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else ():
        with contextlib.suppress(json.JSONDecodeError):  # a kill left it half-written
            fallback = json.loads(line).get("fallback")
            if fallback and fallback not in found:
                found.append(fallback)
    return found


# -- checkpoints --


def last_checkpoint(run: Path) -> Path | None:
    """Return the last complete checkpoint of a run, or None; a training writes its name only after the checkpoint."""
    note = run / LAST
    if not note.is_file():
        return None
    # Use only the name, because the folder may have been moved since.
    path = run / Path(note.read_text(encoding="utf-8").strip()).name
    return path if path.is_file() else None


def find_checkpoint(target: Target, asked: str) -> Path:
    """Return the checkpoint to use: the file `asked`, or the last checkpoint of the latest training if that is "".

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
            "checkpoint-missing",
            "CHECKPOINT must be an existing file",
            found=f"CHECKPOINT={asked}",
            hint="CHECKPOINT=<file>",
        )
    latest = target.home / "latest"
    path_or_none = last_checkpoint(latest.resolve()) if latest.exists() else None
    if path_or_none is None:
        raise AscendetError(
            "checkpoint-missing",
            f"{target.model} was not trained on {target.dataset} here",
            expected=f"a checkpoint in {paths.shorten(latest)}",
            hint=f"{again.command('train', IMAGES='', SCORE='', BAD='')}, or CHECKPOINT=<file>",
        )
    return path_or_none


def folder_beside(target: Target, checkpoint: Path, noun: str) -> Path:
    """Return the folder for results of a checkpoint: in the checkpoint's run, or beside the runs if it has none.

    The name is `noun` for the last checkpoint of a run, and states the checkpoint for others.
    """
    run = checkpoint.parent
    if run.parent == target.home:
        return run / (noun if checkpoint == last_checkpoint(run) else f"{noun}-{checkpoint.stem}")
    return target.home / f"{noun}-{checkpoint.stem}"


@contextlib.contextmanager
def replacing(final: Path, log: str, name: Callable[[Path], str] | None = None) -> Iterator[Path]:
    """Yield a temporary folder, which replaces `final` at the end of the block.

    After a failure only its log is kept, as `<final>-failed.log`, and the error's hint names it. `name` gives the
    final folder's name where only the finished folder tells it. Of two processes at once, the last one's folder stays.
    """
    begun = final
    work = final.with_name(f"{files.TEMP}{final.name}-{os.getpid()}")
    _remove_abandoned(begun)
    with files.disk_errors(final.parent):
        try:
            work.mkdir(parents=True)
            yield work
            if name:
                final = final.with_name(name(work))
            files.publish(work, final)
        except AscendetError as error:
            if error.name in _LOGGED and (work / log).exists():
                kept = final.with_name(f"{final.name}-failed.log")
                (work / log).replace(kept)
                error.hint = f"less {paths.shorten(kept)}"
            raise
        finally:
            shutil.rmtree(work, ignore_errors=True)
            _remove_abandoned(begun)  # a program may have outlived its killed tool until now


def _remove_abandoned(final: Path) -> None:
    """Remove unfinished folders of tools that were killed; a program that outlived its tool still holds the lock."""
    start = f"{files.TEMP}{final.name}-"
    for folder in final.parent.glob(f"{glob.escape(start)}*"):
        pid = folder.name.removeprefix(start).removesuffix(files.OLD)
        if not pid.isdecimal() or _is_tool(pid):
            continue
        with contextlib.suppress(AscendetError):
            check_not_busy(folder)
            shutil.rmtree(folder, ignore_errors=True)


def _is_tool(pid: str) -> bool:
    """Return whether a process is a running ascendet: none that was killed and not reaped, nor a later process."""
    with contextlib.suppress(OSError):
        return b"ascendet" in Path("/proc", pid, "cmdline").read_bytes().split(b"\0")
    return False


# -- the runs of a training --


def all_runs(target: Target) -> list[Path]:
    """Return the run folders, the newest first."""
    folders = target.home.iterdir() if target.home.is_dir() else ()
    return sorted(
        (folder for folder in folders if (folder / manifest.MANIFEST).is_file() and not folder.is_symlink()),
        key=lambda folder: folder.name,
        reverse=True,
    )


def find_finished(target: Target, inputs: dict[str, object], *, resume: bool = False) -> Path | None:
    """Return a finished run with the same inputs, or None; with `resume`, None also if a newer run can be resumed.

    A resumed run keeps its mixed precision and learning rate, so the inputs do not show which run is meant.
    """
    key = manifest.digest_inputs(inputs)
    for run in all_runs(target):
        content = manifest.read(run) or {}
        if resume and content.get("state") != "finished" and last_checkpoint(run):
            return None
        if content.get("key") == key and content.get("state") == "finished" and last_checkpoint(run):
            return run
    return None


def new_run(target: Target, name: str = "") -> Path:
    """Create a run folder with this name, or named by the current time, and return it.

    Raises
    ------
    AscendetError
        `name-in-use`.
    """
    if name:
        run = target.home / name
        if manifest.read(run) is not None:
            raise AscendetError(
                "name-in-use",
                f"the training {paths.shorten(run)} already exists",
                hint=f"{again.command('train', RESUME='1')} to resume it, or another RUN",
            )
        run.mkdir(parents=True, exist_ok=True)
        return run
    while True:
        run = target.home / datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        try:
            run.mkdir(parents=True)
        except FileExistsError:
            time.sleep(1)
        else:
            return run


def _known(run: Path) -> dict[str, object]:
    """Return the inputs that a run was started or last resumed with."""
    before = (manifest.read(run) or {}).get("inputs")
    return before if isinstance(before, dict) else {}


def resume_inputs(run: Path, inputs: dict[str, object]) -> dict[str, object]:
    """Return the inputs for resuming a run: `inputs`, with the run's mixed precision and learning rate if not given."""
    known = _known(run)
    return inputs | {name: inputs.get(name) or known.get(name) for name in ("amp", "lr")}


def find_resumable(target: Target, inputs: dict[str, object], name: str = "") -> Path:
    """Return the newest unfinished run that has a checkpoint (with `name`, only a run of that name).

    If its inputs have changed since its start, print which.

    Raises
    ------
    AscendetError
        `resume-impossible`, `run-busy`.
    """
    for run in all_runs(target):
        if name and run.name != name:
            continue
        content = manifest.read(run) or {}
        if content.get("state") == "finished" or last_checkpoint(run) is None:
            continue
        check_not_busy(run)
        known, now = _known(run), resume_inputs(run, inputs)
        changed = [name for name, value in now.items() if known.get(name) != value]
        if changed:
            print(f"resuming although these changed: {', '.join(changed)}", file=sys.stderr)
        return run
    raise AscendetError(
        "resume-impossible",
        f"{target.model} on {target.dataset} has no unfinished training with a checkpoint",
        found=f"{len(all_runs(target))} runs in {paths.shorten(target.home)}",
        hint=again.command("train", RESUME="", RUN=""),  # a run's name is taken
    )


@contextlib.contextmanager
def withdrawing(run: Path) -> Iterator[None]:
    """Let `latest` point to a run; remove it again if the block's program refuses it before it began.

    A configuration or a file to start from that is refused leaves nothing to resume, and must not hide the run before.
    """
    latest = run.parent / "latest"
    before = latest.resolve() if latest.is_symlink() else None
    new = not any(run.iterdir())
    link_latest(run)
    try:
        yield
    except AscendetError as error:
        if new and (error.name.startswith("config-") or error.name == "checkpoint-missing"):
            files.remove_tree(run)
            if before and before.is_dir():
                link_latest(before)
            else:
                latest.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def keeping_state(run: Path, facts: dict[str, object]) -> Iterator[None]:
    """Write the run's state to its manifest: running during the block, then finished, interrupted or failed."""
    clock = time.monotonic()
    before = manifest.read(run) or {}
    spent = before.get("seconds")
    past = float(spent) if isinstance(spent, int | float) else 0.0
    if started := before.get("started"):  # a resumed training began when it was first started
        facts = facts | {"started": started}

    def write(state: str, **more: object) -> None:
        seconds = round(past + time.monotonic() - clock, 1)
        met = {"cpu_fallbacks": fallbacks(run)}
        manifest.write(run, facts | {"state": state, "seconds": seconds} | met | more)

    with files.disk_errors(run):
        write("running")
        try:
            yield
        except AscendetError as error:
            write("interrupted" if error.name == "interrupted" else "failed", error=error.name)
            raise
        checkpoint = last_checkpoint(run)
        if checkpoint is None:
            raise AscendetError(
                "run-failed",
                "the training ended without a checkpoint",
                hint=f"less {paths.shorten(run / LOG)}",
            )
        write("finished", outputs={checkpoint.name: files.digest(checkpoint)})
