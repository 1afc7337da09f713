"""The floors of the tool: which package may import which, and that nothing is imported in a circle."""

from __future__ import annotations

import ast
import graphlib
import sys
from collections.abc import Iterator

import pytest
from ascendet import cli, paths

SOURCE = paths.ROOT / "scripts/ascendet"
# From the ground up: a package imports its own modules and those of packages that stand before it. What lies in no
# package is the frame: `errors` and `paths` below all of them, `cli` and `__main__` above.
FLOORS = [
    "core",
    "machine",
    "supply",
    "envs",
    "wheels",
    "data",
    "containers",
    "run",
    "om",
    "report",
    "release",
    "dev",
]
FRAME = {"__init__", "errors", "paths"}
MODULES = {
    ".".join(path.relative_to(SOURCE).with_suffix("").parts): path for path in sorted(SOURCE.rglob("*.py"))
}


def imports(name: str, tree: ast.AST) -> Iterator[str]:
    """Yield what the module `name` imports of ours, by every form of import, as names below `ascendet`."""
    package = name.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "ascendet":
                    yield resolve(alias.name.split(".")[1:])
        elif isinstance(node, ast.ImportFrom):
            base = (node.module or "").split(".")
            if node.level:
                base = ["ascendet", *package[: len(package) - node.level + 1], *filter(None, base)]
            if base[0] == "ascendet":
                for alias in node.names:
                    yield resolve([*base[1:], alias.name])
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            argument = node.args[0]
            if isinstance(argument, ast.Constant) and str(argument.value).startswith("ascendet."):
                yield resolve(str(argument.value).split(".")[1:])


def resolve(parts: list[str]) -> str:
    """Return the module that a dotted name leads to: the name itself, or what holds it."""
    while parts and ".".join(parts) not in MODULES:
        if ".".join([*parts, "__init__"]) in MODULES:
            return ".".join([*parts, "__init__"])
        parts = parts[:-1]
    return ".".join(parts) or "__init__"


GRAPH = {
    name: {found for found in imports(name, ast.parse(path.read_text(encoding="utf-8"))) if found != name}
    for name, path in MODULES.items()
}


def test_every_module_stands_on_a_floor() -> None:
    assert {name.split(".")[0] for name in MODULES} == {*FLOORS, *FRAME, "__main__", "cli"}


@pytest.mark.parametrize("floor", FLOORS)
def test_no_package_imports_a_later_one(floor: str) -> None:
    allowed = FRAME | set(FLOORS[: FLOORS.index(floor) + 1])
    upwards = {
        (name, found)
        for name, all_found in GRAPH.items()
        for found in all_found
        if name.split(".")[0] == floor and found.split(".")[0] not in allowed
    }
    assert upwards == set()


def test_nothing_is_imported_in_a_circle() -> None:
    order = graphlib.TopologicalSorter(GRAPH)
    order.prepare()  # raises CycleError, which names the circle


def test_stages_stand_in_the_order_of_the_floors() -> None:
    floors = [FLOORS.index(stage.module.split(".")[0]) for stage in cli.STAGES.values()]
    assert floors == sorted(floors)


def test_every_form_of_import_is_seen() -> None:
    forms = """
import ascendet.run.train
from ascendet.run import infer, evaluate as e
from ascendet.run.score import METRICS
from ascendet import cli, __version__
from . import sources
from ..core.files import digest
importlib.import_module("ascendet.dev.bench")
def later():
    from ascendet.supply import fetch
"""
    assert set(imports("supply.lock", ast.parse(forms))) == {
        "run.train",
        "run.infer",
        "run.evaluate",
        "run.score",
        "cli",
        "__init__",
        "supply.sources",
        "core.files",
        "dev.bench",
        "supply.fetch.__init__",
    }


def test_host_stages_need_the_standard_library_only() -> None:
    """What runs before the tools environment exists may import nothing of it."""
    todo = ["__main__", "cli", *(stage.module for stage in cli.STAGES.values() if stage.where == "host")]
    seen: set[str] = set()
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        # Imports inside functions run when they are called.
        top = ast.Module(
            [
                node
                for node in ast.parse(MODULES[name].read_text(encoding="utf-8")).body
                if isinstance(node, ast.Import | ast.ImportFrom)
            ],
            [],
        )
        todo += imports(name, top)
        for node in top.body:
            assert isinstance(node, ast.Import | ast.ImportFrom)
            found = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
            for module in found:
                assert module.split(".")[0] in {"ascendet", *sys.stdlib_module_names}, f"{name}: {module}"


@pytest.mark.parametrize("name", MODULES)
def test_no_module_is_longer_than_one_can_read_at_once(name: str) -> None:
    assert len(MODULES[name].read_text(encoding="utf-8").splitlines()) <= 350
