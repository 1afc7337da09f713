"""The files that ATC leaves in its working folder: the pre-check's report and what fused (fusion_result.json)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import onnx

from cann_sim.atc.checks import nodes_of, opsets
from cann_sim.atc.errors import AtcError
from cann_sim.atc.fusion import UB_PASSES
from cann_sim.atc.lowering import Finding, fusion_counts
from cann_sim.atc.registry import DEFAULT_DOMAIN


def work_folder() -> Path:
    """Return ASCEND_WORK_PATH, or the folder in which the tool was started."""
    return Path(os.environ.get("ASCEND_WORK_PATH") or ".")


def make_folder(path: Path) -> None:
    """Make a folder unless it is there.

    Raises
    ------
    AtcError
        E13004.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AtcError("E13004", file=path, reason=error.strerror) from error


def write_json(path: Path, content: Any) -> None:
    """Write JSON; see `write_text`."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file; it gets its name when it is complete.

    Raises
    ------
    AtcError
        E13004.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
    except OSError as error:
        raise AtcError("E13004", file=path, reason=error.strerror) from error
    finally:
        unfinished.unlink(missing_ok=True)


def check_result(model: onnx.ModelProto, errors: list[AtcError]) -> dict[str, Any]:
    """Return the pre-check's report: each node with its operator, and the code and reason if it is refused."""
    versions = opsets(model)
    causes: dict[str, list[dict[str, str]]] = {}
    for error in errors:
        cause = {"code": error.code, "message": error.sentence}
        causes.setdefault(str(error.fields.get("opname", "")), []).append(cause)
    operators = []
    for node in nodes_of(model.graph):
        domain = node.domain or DEFAULT_DOMAIN
        optype = f"{domain}::{versions.get(domain, 0)}::{node.op_type}"
        entry: dict[str, Any] = {"op_name": node.name, "op_type": optype, "result": "success"}
        if node.name in causes:
            entry |= {"result": "failed", "cause": causes[node.name]}
        operators.append(entry)
    return {"result": "failed" if errors else "success", "op": operators}


def write_fusion_result(findings: Iterable[tuple[Finding, ...]]) -> None:
    """Write fusion_result.json: for each graph (one per gear) how often each pass matched and took effect.

    It goes to the working folder, or under ASCEND_WORK_PATH to FE/<pid>.
    """
    folder = work_folder()
    if os.environ.get("ASCEND_WORK_PATH"):
        folder = folder / "FE" / str(os.getpid())
    graphs = {}
    for index, found in enumerate(findings):
        passes = {
            name: {"effect_times": str(count), "match_times": str(count)}
            for name, count in fusion_counts(found).items()
        }
        graphs[f"session_and_graph_id_0_{index}"] = {
            "graph_fusion": {name: counts for name, counts in passes.items() if name not in UB_PASSES},
            "ub_fusion": {name: counts for name, counts in passes.items() if name in UB_PASSES},
        }
    write_json(folder / "fusion_result.json", graphs)


def warnings(findings: Iterable[tuple[Finding, ...]]) -> list[AtcError]:
    """Return the warnings of a conversion, one per node and code, however many gears have it."""
    found = {
        (code, finding.name): AtcError(code, opname=finding.name, reason=finding.reason)
        for graph in findings
        for finding in graph
        for code in finding.warnings
    }
    return list(found.values())
