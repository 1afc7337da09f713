"""Fixtures of all unit tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from ascendet import paths


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty build folder, and beside it an empty cache, in place of the real ones."""
    monkeypatch.setattr(paths, "BUILD", tmp_path / "build")
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    return tmp_path / "build"
