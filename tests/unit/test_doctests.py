"""The examples in docstrings are true."""

from __future__ import annotations

import doctest
import importlib

import pytest
from ascendet import paths

# shapes runs in a stack's environment only (OpenCV).
MODULES = sorted(
    {file.stem for file in (paths.ROOT / "scripts/ascendet").glob("*.py")}
    - {"__init__", "__main__", "shapes"}
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    assert doctest.testmod(importlib.import_module(f"ascendet.{name}")).failed == 0
