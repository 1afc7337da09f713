"""Fixtures of all unit tests."""

from __future__ import annotations

import argparse
import ctypes
from collections.abc import Iterator
from pathlib import Path

import pytest
from ascendet import paths
from ascendet.core import manifest
from ascendet.errors import AscendetError
from ascendet.run import target
from ascendet.run.target import Target


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty build folder, and beside it an empty cache, in place of the real ones."""
    monkeypatch.setattr(paths, "BUILD", tmp_path / "build")
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    return tmp_path / "build"


class _Capabilities(ctypes.Structure):
    """The header of capget(2) and capset(2)."""

    _fields_ = (("version", ctypes.c_uint32), ("process", ctypes.c_int))


@pytest.fixture
def by_modes() -> Iterator[None]:
    """Let files' modes hold for this process, even if it is root's, which may read and write everything otherwise."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = _Capabilities(version=0x20080522, process=0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; and of the next 32 the same
    assert libc.capget(ctypes.byref(header), sets) == 0
    before = sets[0]
    sets[0] &= ~(1 << 1 | 1 << 2)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert libc.capset(ctypes.byref(header), sets) == 0
    yield
    sets[0] = before
    assert libc.capset(ctypes.byref(header), sets) == 0


def fails(name: str, call: object, *arguments: object, **options: object) -> AscendetError:
    """Call, and return the error of that name that it raises."""
    with pytest.raises(AscendetError) as caught:
        call(*arguments, **options)  # type: ignore[operator]
    assert caught.value.name == name
    return caught.value


def check(model: str, dataset: str, devices: str, stack: str = "vitdet", program: str = "train") -> Target:
    """Check a target as the stages do."""
    parser = argparse.ArgumentParser()
    target.add_options(parser)
    options = [f"--stack={stack}", f"--model={model}", f"--dataset={dataset}", f"--devices={devices}"]
    return target.check(parser.parse_args(options), program)


@pytest.fixture
def aim(build: Path, monkeypatch: pytest.MonkeyPatch) -> Target:
    """ViTDet-tiny on shapes, on two simulated devices."""
    monkeypatch.setenv("NPU", "sim")
    monkeypatch.delenv("CANN_SIM_DEVICES", raising=False)
    monkeypatch.delenv("ASCENDET_DATA", raising=False)
    return check("vitdet-tiny", "shapes", "6,7")


def make_run(aim: Target, name: str, state: str, key: str = "k", checkpoint: bool = True) -> Path:
    """Make a run folder as a training leaves it."""
    run = aim.home / name
    run.mkdir(parents=True)
    manifest.write(run, {"key": key, "state": state, "inputs": {}})
    if checkpoint:
        (run / "epoch_3.pth").write_text("weights")
        (run / "last_checkpoint").write_text("/elsewhere/before/it/moved/epoch_3.pth")
    return run
