"""What wheels/record.py reads from a source's own setup.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ascendet import paths

# The way in which detectron2 and AdelaiDet are built.
SETUP = """
import glob, os, torch
from setuptools import find_packages, setup
from torch.utils.cpp_extension import CUDA_HOME, CppExtension, CUDAExtension
here = os.path.dirname(os.path.abspath(__file__))
csrc = os.path.join(here, "thing", "csrc")
print("noise", torch.__version__)
extension = CUDAExtension if torch.cuda.is_available() else CppExtension
setup(
    name="thing", version="1.0", python_requires=">=3.7", install_requires=["a>=1"], zip_safe=False,
    packages=[*find_packages(exclude=("tests*",)), "thing.extra"],
    package_dir={"thing.extra": "projects/extra"},
    package_data={"thing.zoo": ["configs/*.yaml"]},
    ext_modules=[extension("thing._C", glob.glob(csrc + "/*.cpp"), include_dirs=[csrc],
                           define_macros=[("A", None), ("B", "2")], extra_compile_args=ARGS)],
)
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A site-packages folder with what setup.py reads of torch and torch_npu."""
    home = tmp_path / "site"
    (home / "torch").mkdir(parents=True)
    (home / "torch/version.py").write_text("__version__ = '2.8.0'\nhip = None\n")
    (home / "torch_npu/utils").mkdir(parents=True)
    (home / "torch_npu/utils/cpp_extension.py").touch()
    return home


def record(tmp_path: Path, site: Path, setup: str) -> dict[str, Any]:
    tree = tmp_path / "thing-1.0"
    for name in ("thing/__init__.py", "thing/csrc/b.cpp", "thing/csrc/a.cpp", "thing/zoo/__init__.py"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).touch()
    for name in ("thing/zoo/configs/x.yaml", "projects/extra/y.py", "tests/__init__.py"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).touch()
    (tree / "setup.py").write_text(setup)
    command = [sys.executable, "-W", "ignore", str(paths.WHEELS / "record.py"), str(site)]
    shown = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=True).stdout
    content = json.loads(shown)
    assert isinstance(content, dict)
    assert str(tmp_path) not in shown
    return content


def test_everything_that_setup_py_says(tmp_path: Path, site: Path) -> None:
    assert record(tmp_path, site, SETUP.replace("ARGS", "{'cxx': ['-O1'], 'nvcc': ['-x']}")) == {
        "sources": ["thing/csrc/a.cpp", "thing/csrc/b.cpp"],
        "include_dirs": [
            "{tree}/thing/csrc",
            "{site}/torch/include",
            "{site}/torch/include/torch/csrc/api/include",
        ],
        "library_dirs": ["{site}/torch/lib"],
        "libraries": ["c10", "torch", "torch_cpu", "torch_python"],
        "macros": ["A", "B=2"],
        "flags": ["-O1"],
        "files": {
            "thing/__init__.py": "thing/__init__.py",
            "thing/extra/y.py": "projects/extra/y.py",
            "thing/zoo/__init__.py": "thing/zoo/__init__.py",
            "thing/zoo/configs/x.yaml": "thing/zoo/configs/x.yaml",
        },
        "metadata": {
            "install_requires": ["a>=1"],
            "name": "thing",
            "python_requires": ">=3.7",
            "version": "1.0",
        },
    }


def test_flags_as_a_list(tmp_path: Path, site: Path) -> None:
    assert record(tmp_path, site, SETUP.replace("ARGS", "['-O2']"))["flags"] == ["-O2"]
