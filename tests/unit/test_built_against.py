"""The guard in the installed mmcv: another torch / torch_npu pair is refused before mmcv._ext is loaded."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ascendet import paths

BUILT = {"version": "2.1.0+npu.torch2.8.0", "torch": "2.8.0", "torch_npu": "2.8.0"}


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """An installed mmcv whose extension says that it was loaded."""
    package = tmp_path / "mmcv"
    package.mkdir()
    (package / "__init__.py").write_text("from . import _built_against\n")
    (package / "_ext.py").write_text("print('loaded')\n")
    (package / "ops.py").write_text("from . import _ext\n")
    shutil.copy(paths.WHEELS / "mmcv" / "built_against.py", package / "_built_against.py")
    (package / "_built_against.json").write_text(json.dumps(BUILT))
    return tmp_path


def run(site: Path, code: str, **installed: str) -> subprocess.CompletedProcess[str]:
    """Run code beside an mmcv, with these projects installed."""
    for name, version in installed.items():
        info = site / f"{name}-{version}.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    command = [sys.executable, "-Sc", f"import sys; sys.path.insert(0, {str(site)!r}); {code}"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("torch", ["2.8.0", "2.8.0+cpu", "2.8.0+cu128"])
@pytest.mark.parametrize("code", ["import mmcv._ext", "import mmcv.ops"])
def test_right_pair_loads(site: Path, torch: str, code: str) -> None:
    done = run(site, code, torch=torch, torch_npu="2.8.0")
    assert (done.returncode, done.stdout) == (0, "loaded\n"), done.stderr


@pytest.mark.parametrize("code", ["import mmcv._ext", "import mmcv.ops"])
@pytest.mark.parametrize(
    ("installed", "found"),
    [
        ({"torch": "2.9.0+cpu", "torch_npu": "2.9.0"}, "torch 2.9.0, torch_npu 2.9.0"),
        ({"torch": "2.8.0", "torch_npu": "2.8.0.post2"}, "torch 2.8.0, torch_npu 2.8.0.post2"),
        ({"torch": "2.8.0"}, "torch 2.8.0, torch_npu not installed"),
        ({}, "torch not installed, torch_npu not installed"),
    ],
)
def test_other_pair_is_refused_before_loading(
    site: Path, code: str, installed: dict[str, str], found: str
) -> None:
    done = run(site, code, **installed)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "ImportError: error[wheel-mismatch]: mmcv 2.1.0+npu.torch2.8.0" in done.stderr
    assert "expected: torch 2.8.0, torch_npu 2.8.0\n" in done.stderr
    assert f"found:    {found}\n" in done.stderr
    assert "next:     pip install torch==2.8.0 torch_npu==2.8.0" in done.stderr


def test_rest_of_mmcv_stays_usable(site: Path) -> None:
    assert run(site, "import mmcv").returncode == 0
