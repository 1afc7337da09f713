"""The NPU build of mmcv as it is installed in the stack's environment."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import sysconfig
import tomllib
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import mmcv
import pytest
import torch
from ascendet import paths
from ascendet.supply import patches, sources, unpack
from ascendet.wheels import native, toolchain

# Tells whether the shared library was loaded; `before` runs first, then mmcv._ext is imported.
PROBE = """
import sys
from importlib import metadata
{before}
try:
    import mmcv._ext
except ImportError as error:
    print(error)
print("loaded:", "mmcv/_ext." in open("/proc/self/maps").read())
"""


def probe(before: str) -> str:
    command = [sys.executable, "-c", PROBE.format(before=before)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_right_pair_is_loaded() -> None:
    assert "loaded: True" in probe("")


@pytest.mark.parametrize("changed", ["torch", "torch_npu"])
def test_another_pair_is_refused_before_the_library_is_loaded(changed: str) -> None:
    lie = f"lambda name: '2.7.1' if name == '{changed}' else real(name)"
    before = f"real = metadata.version; metadata.version = {lie}"
    shown = probe(before)
    assert "error[wheel-mismatch]" in shown
    assert f"{changed} 2.7.1" in shown
    assert "loaded: False" in shown


def test_wheel_says_what_it_was_built_against() -> None:
    built = json.loads(Path(mmcv.__file__).with_name("_built_against.json").read_text())
    assert built["torch"] == metadata.version("torch").partition("+")[0]
    assert built["torch_npu"] == metadata.version("torch_npu")
    assert built["patches"] == patches.digest("mmcv")
    assert built["version"] == metadata.version("mmcv")
    assert mmcv.__version__ == "2.1.0"  # what mmdet checks


def patched_source(folder: Path) -> Path:
    sdist = sources.fetch("mmcv-2.1.0.tar.gz", [sys.executable, "-m", "pip"])
    tree = unpack.unpack(sdist, folder)
    patches.apply("mmcv", tree)
    return tree


def test_a_unit_compiles_to_the_same_bytes_in_two_places_with_and_without_precompiled_header(
    tmp_path: Path,
) -> None:
    """The whole wheel, under two users: make check-repro."""
    home = paths.WHEELS / "mmcv"
    table = tomllib.loads((home / "wheel.toml").read_text(encoding="utf-8"))
    target = toolchain.Target(
        machine=platform.machine(),
        site=Path(torch.__file__).parents[1],
        python_include=Path(sysconfig.get_path("include")),
        interpreter=Path(sys.executable),
        suffix=sysconfig.get_config_var("EXT_SUFFIX"),
    )
    built = []
    for precompiled in (True, False):
        tree = patched_source(tmp_path / f"precompiled {precompiled}" / "somewhere")
        recorded = json.loads(
            subprocess.run(
                [sys.executable, "-W", "ignore", paths.WHEELS / "record.py", target.site],
                cwd=tree,
                env=os.environ | table["env"],
                stdout=subprocess.PIPE,
                check=True,
            ).stdout
        )
        units = native.make_units(recorded["sources"], table["native"]["units"])
        (unit,) = (replace(unit, precompiled=precompiled) for unit in units if unit.name == "npu")
        output = tree / "_ext.so"
        native.build(
            native.Extension(
                module="mmcv._ext",
                include_dirs=recorded["include_dirs"],
                library_dirs=recorded["library_dirs"],
                libraries=recorded["libraries"],
                macros=recorded["macros"],
                flags=[*table["native"]["flags"], *recorded["flags"]],
            ),
            [unit],
            "".join(f'#include "{name}"\n' for name in table["native"]["header"]),
            tree=tree,
            target=target,
            compiler=toolchain.find(target.machine),
            output=output,
            store=tree.parent / "store",
        )
        built.append(output.read_bytes())
    assert built[0] == built[1]
    assert str(tmp_path).encode() not in built[0]
    assert str(target.site).encode() not in built[0]
