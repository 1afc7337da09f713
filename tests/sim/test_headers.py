"""cann_sim's sources against the headers of every torch_npu that a stack names: their declarations differ.

Only what needs no libtorch, as that would take each torch as well; the rest is compiled by `make cann-sim STACK=…`.
"""

from __future__ import annotations

import importlib.metadata
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "wheels" / "cann_sim" / "src"
PIN = re.compile(r"^torch-npu==(\S+) \\\n(?:    --hash=\S+(?: \\)?\n)+", re.MULTILINE)
PINS = {
    found[1]: found[0]
    for lock in sorted((ROOT / "requirements" / "lock").glob(f"*-torch-{platform.machine()}.txt"))
    for found in PIN.finditer(lock.read_text())
}
INSTALLED = importlib.metadata.version("torch_npu")
LIGHT = sorted(file for file in SOURCE.rglob("*.cpp") if '#include "pch.h"' not in file.read_text())


def test_there_are_other_versions_and_sources() -> None:
    assert INSTALLED in PINS
    assert len(PINS) > 1
    assert SOURCE / "runtime" / "profiler.cpp" in LIGHT


@pytest.mark.parametrize("version", sorted(PINS.keys() - {INSTALLED}))
def test_sources_compile(version: str, tmp_path: Path) -> None:
    if not shutil.which("g++"):
        pytest.skip("no g++")
    (tmp_path / "lock.txt").write_text(PINS[version])
    packages = tmp_path / "packages"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes",
               "--only-binary=:all:", "--target", packages, "-r", tmp_path / "lock.txt"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "DO NOT MATCH THE HASHES" in done.stderr:
        pytest.fail(done.stderr)
    if done.returncode:
        pytest.skip(f"torch_npu {version} cannot be fetched: {done.stderr.strip().splitlines()[-1]}")

    def check(file: Path) -> str:
        words = [
            "g++",
            "-std=c++17",
            "-fsyntax-only",
            # A function that this version's header does not declare would not get its name in C.
            *(["-Wmissing-declarations"] if file.parent.name == "hccl" else []),
            "-I",
            SOURCE,
            "-isystem",
            packages / "torch_npu" / "include",
            "-isystem",
            packages / "torch_npu" / "include" / "third_party" / "acl" / "inc",  # for src/graph
            "-isystem",
            sysconfig.get_path("include"),  # for src/pyacl
            file,
        ]
        return subprocess.run(words, capture_output=True, text=True, check=False).stderr

    with ThreadPoolExecutor(2) as pool:
        assert "".join(pool.map(check, LIGHT)) == ""
