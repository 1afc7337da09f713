"""The sources of cann_sim: which folder may know which, no circle of includes, no file that outgrows its reader."""

from __future__ import annotations

import graphlib
import re
from pathlib import Path

import pytest
from ascendet import paths

SOURCE = paths.WHEELS / "cann_sim" / "src"
FILES = sorted(file for file in SOURCE.glob("*/*") if file.suffix in (".cpp", ".h"))
ATEN = SOURCE / "pch.h"  # ATen's headers, for the folders over it
# What a folder includes beside its own files. Only hooks of the runtime, by name, join libhccl to it.
ALLOWED = {
    "runtime": set(),
    "compiler": {"runtime"},
    "driver": {"runtime"},
    "msprofiler": {"runtime"},
    "hccl": {"runtime"},
    "compute": {"runtime"},
    "acl": {"compute", "runtime"},
    "opapi": {"runtime"},
    "aclnn": {"compute", "opapi", "runtime"},
    "executor": {"acl"},  # how RoIAlign samples, which knows nothing of CANN
    "model": {"executor", "runtime"},
    "graph": {"runtime"},
    "pyacl": {"model", "runtime"},
}


def read_includes(file: Path, root: Path = SOURCE) -> set[Path]:
    """Return our own files that `file` includes."""
    names = re.findall(r'^#include "([^"]+)"', file.read_text(encoding="utf-8"), re.MULTILINE)
    return {root / name for name in names if (root / name).exists()}


def order_modules(files: list[Path], root: Path = SOURCE) -> list[str]:
    """Return the modules (a source and its header are one) so that none comes before what it includes.

    Raises graphlib.CycleError where that is impossible.
    """
    graph: dict[str, set[str]] = {}
    for file in files:
        module = str(file.relative_to(root).with_suffix(""))
        used = {str(found.relative_to(root).with_suffix("")) for found in read_includes(file, root)}
        graph.setdefault(module, set()).update(used - {module})
    return list(graphlib.TopologicalSorter(graph).static_order())


def test_includes_make_no_circle() -> None:
    order = order_modules(FILES)
    assert {"runtime/state", "hccl/communicator", "compute/dispatch", "acl/operators"} <= set(order)
    assert order.index("runtime/state") < order.index("runtime/counting")


def test_a_circle_would_be_found(tmp_path: Path) -> None:
    """Also one through sources only, where each header by itself is innocent."""
    for name, other in (("a", "b"), ("b", "a")):
        (tmp_path / f"{name}.h").write_text("")
        (tmp_path / f"{name}.cpp").write_text(f'#include "{name}.h"\n#include "{other}.h"\n')
    with pytest.raises(graphlib.CycleError):
        order_modules(sorted(tmp_path.iterdir()), tmp_path)


def test_folders_know_only_those_below() -> None:
    assert {file.parent.name for file in FILES} == set(ALLOWED)
    for file in FILES:
        foreign = {found.parent.name for found in read_includes(file) - {ATEN}} - {file.parent.name}
        assert foreign <= ALLOWED[file.parent.name], file


def test_includes_are_written_from_the_root() -> None:
    """As `folder/name.h`: a file that moves breaks no include of its neighbours without a word."""
    headers = {file.name for file in FILES if file.suffix == ".h"}
    for file in FILES:
        for name in re.findall(r'^#include "([^"]+)"', file.read_text(encoding="utf-8"), re.MULTILINE):
            assert (SOURCE / name).exists() or name not in headers, f"{file}: {name}"


def test_no_file_outgrows_its_reader() -> None:
    assert {file.name: count for file in FILES if (count := len(file.read_text().splitlines())) > 600} == {}


def test_every_file_of_operators_registers_some() -> None:
    for file in (SOURCE / "acl").glob("*.cpp"):
        assert file.name == "operators.cpp" or "const Registration registered{" in file.read_text(), file


# A function with C linkage: SIM_API before its name, or a name of one of CANN's C interfaces at the left margin.
C_FUNCTION = re.compile(r"(?:acl|Hccl|hal|cann_sim_)\w*$")
DEFINITION = re.compile(
    r"^(?:SIM_API |extern \"C\" )?[\w:<>*, ]+?\b((?:acl|Hccl|hal|cann_sim_)\w*)\(", re.MULTILINE
)
CALL = re.compile(r"(\w+)(?:<[^()]*>)?\(|\bnew\b|\bthrow\b")
HARMLESS = {"if", "for", "while", "switch", "sizeof", "static_cast", "reinterpret_cast"}


def closing(text: str, start: int, pair: str) -> int:
    """Return where the bracket at `start` is closed; `pair` is the two characters."""
    depth = 0
    for found in re.finditer(
        r'"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])\'|//[^\n]*|[' + re.escape(pair) + "]", text[start:]
    ):
        depth += {pair[0]: 1, pair[1]: -1}.get(found[0], 0)
        if depth == 0:
            return start + found.start()
    raise AssertionError("a bracket is not closed")


def unguarded(text: str) -> list[str]:
    """Return the C functions that `text` defines, call something, and let what that throws out."""
    names = []
    for found in DEFINITION.finditer(text):
        after = closing(text, text.index("(", found.end() - 1), "()") + 1
        head = re.match(r"\s*(try\s*)?\{", text[after:])
        if head is None:  # a declaration, or a call
            continue
        start = after + head.end() - 1
        body = text[start : closing(text, start, "{}")]
        body = re.split(r"return (?:guard|communicate)\(", body)[0]  # HCCL's guard, around the rest
        calls = {call[1] or call[0] for call in CALL.finditer(body)}
        silent = HARMLESS.union(
            re.findall(r"(\w+)\([^()]*\) noexcept", text), filter(C_FUNCTION.match, calls)
        )
        if calls - silent and not head[1]:
            names.append(found[1])
    return names


def test_nothing_is_thrown_out_of_a_c_function() -> None:
    """Its callers are not prepared for that: see SIM_CATCH in runtime/abi.h."""
    assert {file.name: names for file in FILES if (names := unguarded(file.read_text()))} == {}


def test_a_c_function_without_its_guard_would_be_found() -> None:
    guarded = "SIM_API int aclOne() try {\n    return f();\n}\nSIM_CATCH\n"
    hccl = 'HcclResult HcclTwo(HcclComm c) {\n    return guard("HcclTwo", [&] { g(c); });\n}\n'
    plain = "SIM_API int aclThree(int a) {\n    if (a) { return 1; }\n    return 0;\n}\n"
    assert unguarded(guarded + hccl + plain + "SIM_API int aclFour(int);\n") == []
    assert unguarded("SIM_API int aclOne() {\n    return f();\n}\n" + hccl) == ["aclOne"]
    assert unguarded('extern "C" int aclOne() { return new int; }') == ["aclOne"]
