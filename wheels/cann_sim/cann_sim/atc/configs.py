"""The files that steer precision and fusion: what each of their lines means, and which are refused."""

from __future__ import annotations

import configparser
import json
import re
from pathlib import Path
from typing import Any

from cann_sim.atc.errors import AtcError

DTYPES = {
    "float32": "float32", "float": "float32", "float16": "float16", "bfloat16": "bfloat16", "int8": "int8",
    "uint8": "uint8", "int16": "int16", "uint16": "uint16", "int32": "int32", "uint32": "uint32", "int64": "int64",
    "uint64": "uint64", "double": "float64", "bool": "bool",
}  # fmt: skip
OUTPUT_TYPES = {
    "FP32": "float32", "FP16": "float16", "INT8": "int8", "INT16": "int16", "UINT16": "uint16", "UINT8": "uint8",
    "INT32": "int32", "INT64": "int64", "UINT32": "uint32", "UINT64": "uint64", "DOUBLE": "float64",
}  # fmt: skip
MODES = (
    "high_precision", "high_performance", "enable_float_32_execution", "enable_hi_float_32_execution",
    "support_out_of_bound_index", "keep_fp16", "super_performance",
)  # fmt: skip
CUSTOM = re.compile(r"(?P<name>OpType::[^:]+|.+?:):?InputDtype:(?P<inputs>.+?),OutputDtype:(?P<outputs>.+)")


def keep_dtype(path: Path) -> frozenset[str]:
    """Return the names and `OpType::X` of a --keep_dtype file: one a line."""
    return frozenset(_lines(path))


def customize_dtypes(path: Path) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """Return the data types of inputs and outputs by name or `OpType::X`.

    A line is `name::InputDtype:float16,OutputDtype:float16` or `OpType::X:InputDtype:...`.

    Raises `AtcError` E10001 for a line of another form or an unknown data type.
    """
    result = {}
    for line in _lines(path):
        found = CUSTOM.fullmatch(line)
        if found is None:
            reason = f"{line} is not name::InputDtype:...,OutputDtype:..."
            raise AtcError("E10001", parameter="--customize_dtypes", value=path, reason=reason)
        name = found["name"] if found["name"].startswith("OpType::") else found["name"].rstrip(":")
        result[name] = (_dtypes(found["inputs"], path), _dtypes(found["outputs"], path))
    return result


def mixlist(path: Path) -> dict[str, dict[str, tuple[str, ...]]]:
    """Return the changes of the lists of mixed precision: `black-list` and `white-list`, `to-add` and `to-remove`.

    Raises `AtcError`: E10032 for a file that is no JSON, E10001 for another content.
    """
    content = _json(path)
    if not isinstance(content, dict):
        content = {"the file": content}
    result: dict[str, dict[str, tuple[str, ...]]] = {}
    for name, changes in content.items():
        valid = name in ("black-list", "white-list", "gray-list") and isinstance(changes, dict)
        if not valid or not all(
            kind in ("to-add", "to-remove") and isinstance(operators, list)
            for kind, operators in changes.items()
        ):
            reason = f"{name} is no list of black-list and white-list with to-add and to-remove"
            raise AtcError("E10001", parameter="--modify_mixlist", value=path, reason=reason)
        result[name] = {kind: tuple(map(str, operators)) for kind, operators in changes.items()}
    return result


def op_precision_mode(path: Path) -> dict[str, str]:
    """Return modes by operator type (`OpType::X`) and by node name of a --op_precision_mode ini.

    Raises `AtcError` E10001 for an unknown mode or a file that is no ini.
    """
    parser = configparser.ConfigParser(delimiters=("=",), strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]  # names are case-sensitive
    text = _text(path)
    try:
        parser.read_string(text if text.lstrip().startswith("[") else f"[ByOpType]\n{text}")
    except configparser.Error as error:
        reason = str(error).splitlines()[0]
        raise AtcError("E10001", parameter="--op_precision_mode", value=path, reason=reason) from error
    result = {}
    for section in parser.sections():
        for name, mode in parser[section].items():
            if section not in ("ByOpType", "ByNodeName") or mode not in MODES:
                reason = f"[{section}] {name}={mode} is unknown; modes are {', '.join(MODES)}"
                raise AtcError("E10001", parameter="--op_precision_mode", value=path, reason=reason)
            result[f"OpType::{name}" if section == "ByOpType" else name] = mode
    return result


def fusion_switches(path: Path) -> frozenset[str]:
    """Return the passes that a --fusion_switch_file switches off; `ALL` means every one.

    Lines are `Pass:off`; JSON has `Switch` with `GraphFusion` and `UBFusion`, each by pass or `ALL`.

    Raises `AtcError`: E10032 or E10001 for another form.
    """
    pairs: list[tuple[str, str]] = []
    if _text(path).lstrip().startswith("{"):
        switches = _json(path).get("Switch")
        for kind, states in switches.items() if isinstance(switches, dict) else [("Switch", switches)]:
            if kind not in ("GraphFusion", "UBFusion") or not isinstance(states, dict):
                reason = f"{kind} is no table of passes; Switch has GraphFusion and UBFusion"
                raise AtcError("E10001", parameter="--fusion_switch_file", value=path, reason=reason)
            pairs += [(name, str(state)) for name, state in states.items()]
    else:
        for line in _lines(path):
            name, colon, state = line.rpartition(":")
            pairs.append((name.strip(), state.strip()) if colon else (line, ""))
    for name, state in pairs:
        if state not in ("on", "off"):
            reason = f"{name} must be on or off"
            raise AtcError("E10001", parameter="--fusion_switch_file", value=path, reason=reason)
    return frozenset(name for name, state in pairs if state == "off")


def output_type(text: str) -> str | dict[str, str]:
    """Return the data type of all outputs (numpy's name), "" for the model's, or types by `node:index`.

    Raises `AtcError` E10001 for an unknown type.
    """
    if not text:
        return ""
    if ":" not in text:
        return _output_type(text, text)
    result = {}
    for part in filter(None, text.split(";")):
        node, colon, name = part.rpartition(":")
        if not colon or not node.rpartition(":")[2].isdigit():
            reason = f"{part} is not node:index:type"
            raise AtcError("E10001", parameter="--output_type", value=text, reason=reason)
        result[node] = _output_type(name, text)
    return result


def _output_type(name: str, text: str) -> str:
    if name not in OUTPUT_TYPES:
        reason = f"it must be one of {', '.join(OUTPUT_TYPES)}"
        raise AtcError("E10001", parameter="--output_type", value=text, reason=reason)
    return OUTPUT_TYPES[name]


def _dtypes(text: str, path: Path) -> tuple[str, ...]:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in DTYPES:
            reason = f"{name} is no data type"
            raise AtcError("E10001", parameter="--customize_dtypes", value=path, reason=reason)
    return tuple(DTYPES[name] for name in names)


def _lines(path: Path) -> list[str]:
    """Return the lines of a file that are neither empty nor comments."""
    lines = (line.strip() for line in _text(path).splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _json(path: Path) -> Any:
    try:
        return json.loads(_text(path))
    except ValueError as error:
        raise AtcError("E10032", file=path, reason=error) from error


def _text(path: Path) -> str:
    """Return a file's text."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise AtcError("E13003", file=path, reason="it is no text in UTF-8") from error
