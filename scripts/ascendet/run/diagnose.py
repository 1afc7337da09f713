"""Find out why a program failed: from its error.json, from messages of torch_npu and docker, or from a full disk."""

from __future__ import annotations

import json
import re
import signal
import sys
from pathlib import Path

from ascendet import paths
from ascendet.core import again, files
from ascendet.errors import EXIT_CODES, AscendetError
from ascendet.machine import engine
from ascendet.run import folders
from ascendet.run.family import MAKE_TARGETS

ERROR = "error.json"  # written by wheels/common
_DOCKER_FAILED = 125  # the exit code of `docker run` if docker itself failed, not the program

# torch_npu's messages about failed devices and links between devices. The codes are in acl/error_codes/rt_error_codes.h
# and hccl/hccl_types.h of CANN 8.5.
_HARDWARE = (
    (
        r"NPU out of memory",
        "npu-out-of-memory",
        "an NPU is out of memory",
        "more DEVICES or smaller batches",
    ),
    # lost heartbeat; HBM multi-bit ECC error
    (
        r"error code is 507(?:010|054)\b",
        "npu-lost",
        "an NPU is lost",
        "npu-smi info; DEVICES without that NPU",
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
        "a rank did not reach a collective operation in time",
        "the first error of the other ranks in the log; a longer HCCL_EXEC_TIMEOUT",
    ),
    # EJ0003, code 11, in older versions; EI0019, code 7, in 8.5
    (
        r"\b(?:EJ0003|EI0019)\b",
        "port-in-use",
        "another process listens on HCCL's port",
        "HCCL_IF_BASE_PORT=<first of 16 free ports>, or unset it (free ports are then chosen)",
    ),
    (
        r"Hccl\w+, error code is 21\b",
        "hccl-link-down",
        "a link between NPUs is down",
        "hccn_tool -i <card> -link -g",
    ),
)


# Exceptions that no device and no link causes; those of torch_npu and HCCL are RuntimeErrors.
_PROGRAM_FAULT = re.compile(
    r"^(\[rank\d+\]:? ?)?(\w+\.)*(Value|Type|Key|Index|Attribute|Import|ModuleNotFound|Assertion|ZeroDivision"
    r"|NotImplemented|Name|Unicode\w*|FileNotFound|Permission)Error\b.*:",
    re.MULTILINE,
)


def failure(program: str, code: int, log: Path) -> AscendetError:
    """Return the error for a program that ended with exit code `code`; its work folder holds `log`."""
    if code == EXIT_CODES["run-busy"]:
        return _busy(program, log)
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith("runtime: OMP_NUM_THREADS=")]
    lines = lines[starts[-1] :] if starts else lines  # a resumed training appends to the same log
    text = "\n".join(lines[-400:])
    stated = _stated(program, log)
    if stated:
        return stated
    known = engine.explain(text)
    if known and code == _DOCKER_FAILED and known.name == "name-in-use":
        return _busy(program, log)  # a container is named by its work folder
    if known and (code == _DOCKER_FAILED or known.name in ("device-busy", "port-in-use")):
        return known
    if "No space left on device" in text or files.is_full(log.parent):
        error = files.disk_full(log.parent)
        error.hint = f"free some space, then: {_again(program, log)}"
        return error
    return _hardware(program, log, text) or _unknown(program, code, log, lines)


def _busy(program: str, log: Path) -> AscendetError:
    """Return the error for a work folder that another process works in."""
    if program == "train":
        return folders.busy(log.parent)
    return folders.busy(log.parent, f"wait for it, then: {_again(program, log)}")


def interrupted(program: str, log: Path) -> AscendetError:
    """Return the error for a program that was asked to stop; for a training it says what was saved."""
    return _stated(program, log, only="interrupted") or AscendetError(
        "interrupted", f"make {MAKE_TARGETS[program]} was interrupted", hint=_again(program, log)
    )


def _stated(program: str, log: Path, only: str = "") -> AscendetError | None:
    """Return the error that the program wrote into error.json, or None; with `only`, just an error of that name."""
    try:
        content = json.loads((log.parent / ERROR).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    name = content.get("name")
    if name not in EXIT_CODES or (only and name != only):
        return None
    return AscendetError(
        name,
        content["what"],
        expected=content.get("expected"),
        found=content.get("found"),
        hint=_hint(name, program, log, content.get("advice") or {}),
    )


def _hint(name: str, program: str, log: Path, advice: dict[str, str]) -> str:
    """Return the next command for an error from error.json."""
    if name == "checkpoint-missing":
        return f"{again.command('weights')}, or CHECKPOINT=<file>"
    if name.startswith("checkpoint-"):
        note = paths.shorten(log.parent / "last_checkpoint")
        return (
            f"write the name of an older checkpoint into {note}"
            if program == "train"
            else again.complete("CHECKPOINT=<file>", MAKE_TARGETS[program])
        )
    if name.startswith("config-"):
        # It is make's variables that ask too much, where there is advice.
        return _again(program, log, advice) if advice else f"edit it, then: {_again(program, log)}"
    if name == "image-damaged":
        return f"repair or remove it; {_after_repair(program, log)}"
    if name == "om-differs" and MAKE_TARGETS[program] == "om-compare":
        return again.command("om-bisect", SCORE="", **advice)
    if name in ("om-missing", "om-mixed-builds", "om-corrupt"):
        return again.command("om", IMAGES="", SCORE="", BAD="")
    if name == "data-invalid":
        return f"{again.command('data-check')}, or another DATASET"
    return _again(program, log, advice)


def _after_repair(program: str, log: Path) -> str:
    """Return what to do after a picture was repaired or removed."""
    if program in ("train", "predict", "speed"):
        return "then make data again: a data set that was taken in must first be removed"
    if again.given().get("BAD") == "refuse":
        return f"{again.command(MAKE_TARGETS[program], BAD='skip')} leaves it out"
    return f"then: {_again(program, log)}"


def _again(program: str, log: Path, advice: dict[str, str] | None = None) -> str:
    """Return the command that repeats a program, or resumes a training that has a checkpoint."""
    changed: dict[str, str] = {}
    if program == "train":  # without a checkpoint there is nothing to resume, and the run's name is taken
        resumable = folders.last_checkpoint(log.parent) is not None
        changed = {"RESUME": "1"} if resumable else {"RESUME": "", "RUN": ""}
    return again.command(MAKE_TARGETS[program], **changed, **(advice or {}))


def _hardware(program: str, log: Path, text: str) -> AscendetError | None:
    """Return the error for a failed device or link, or None; if the log has several, the first is the cause."""
    hits = [(found, row) for pattern, *row in _HARDWARE if (found := re.search(f".*{pattern}.*", text))]
    if not hits:
        return None
    found, (name, what, hint) = min(hits, key=lambda hit: hit[0].start())
    fault = _PROGRAM_FAULT.search(text)
    if fault and fault.start() < found.start():
        return None  # one rank's program failed, and the others lost their peer
    return AscendetError(
        name, what, found=found[0].strip()[:300], hint=f"{hint}; then: {_again(program, log)}"
    )


def _unknown(program: str, code: int, log: Path, lines: list[str]) -> AscendetError:
    """Return `run-failed` with the first exception of a rank, and print the log around it.

    The last exception is torchrun's, which only says that a rank ended.
    """
    raised = re.compile(r"(\[rank\d+\]:? ?)?[A-Za-z_][\w.]*(Error|Exception)\b.*:")
    causes = [number for number, line in enumerate(lines) if raised.match(line)]
    said = [number for number, line in enumerate(lines) if line.strip() and not line.startswith("runtime: ")]
    causes = causes or said[-1:]
    for cause in causes[:1]:
        sys.stderr.write("\n".join(lines[max(0, cause - 16) : cause + 6]) + "\n")
    ended = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return AscendetError(
        "run-failed",
        f"make {MAKE_TARGETS[program]} failed",
        found="; ".join(filter(None, [ended, *(lines[number].strip() for number in causes[:1])])),
        hint=f"less {paths.shorten(log)}",
    )
