"""The sources of cann_sim: which folder may know which, no circle of includes, no file that outgrows its reader."""

from __future__ import annotations

import graphlib
import re
from pathlib import Path

import pytest
from ascendet import paths

SOURCE = paths.WHEELS / "cann_sim" / "src"
FILES = sorted(file for file in SOURCE.rglob("*") if file.suffix in (".cpp", ".h"))
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
        foreign = {found.parent.name for found in read_includes(file)} - {file.parent.name}
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
