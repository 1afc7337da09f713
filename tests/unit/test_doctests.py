"""The examples in docstrings are true."""

from __future__ import annotations

import doctest
import importlib

import pytest
from ascendet import paths

# shapes runs in a stack's environment only (OpenCV).
SCRIPTS = paths.ROOT / "scripts/ascendet"
MODULES = sorted(
    ".".join(file.relative_to(SCRIPTS).with_suffix("").parts)
    for file in SCRIPTS.rglob("*.py")
    if file.stem not in {"__init__", "__main__", "shapes"}
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    assert doctest.testmod(importlib.import_module(f"ascendet.{name}")).failed == 0
