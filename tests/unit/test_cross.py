"""Targets of another architecture, and the tools that their emulation needs."""

from __future__ import annotations

import argparse
import platform
from pathlib import Path

import pytest
from ascendet.core.stack import Stack
from ascendet.envs import env, venv
from ascendet.errors import AscendetError
from ascendet.machine import arch
from ascendet.supply import lockfiles
from ascendet.wheels import check_emulated, cross, sdists, toolchain

STACK = Stack.load("vitdet")
HERE = platform.machine()
(OTHER,) = (machine for machine in arch.KNOWN if machine != HERE)


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> toolchain.Target:
    """This machine's target, without an environment."""
    target = toolchain.Target(
        machine=HERE,
        site=tmp_path / "site",
        python_include=tmp_path / "include",
        interpreter=tmp_path / "python",
        suffix=f".cpython-311-{HERE}-linux-gnu.so",
    )
    monkeypatch.setattr(toolchain, "host_target", lambda stack: target)
    return target


def test_this_machine_is_the_stacks_environment(here: toolchain.Target) -> None:
    assert cross.target(STACK, HERE) is here


def test_another_machine_has_its_own_wheels_and_suffix(
    here: toolchain.Target, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cross, "ensure_site", lambda stack, machine: tmp_path / machine)
    target = cross.target(STACK, OTHER)
    assert target.machine == OTHER
    assert target.site == tmp_path / OTHER
    assert target.suffix == f".cpython-311-{OTHER}-linux-gnu.so"
    assert target.python_include == here.python_include


def test_machine_without_locks_is_named() -> None:
    with pytest.raises(AscendetError) as caught:
        cross.target(STACK, "riscv64")
    assert caught.value.name == "usage"
    assert caught.value.found == "riscv64"


def test_locked_wheels_of_the_other_machine_are_asked_for(
    build: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(venv, "uv_install", lambda python, arguments: asked.append(arguments))
    monkeypatch.setattr(sdists, "build", lambda stack: [])
    cross.ensure_site(STACK, OTHER)
    cross.ensure_site(STACK, OTHER)
    (arguments,) = asked
    assert "--require-hashes" in arguments
    assert "--only-binary=:all:" in arguments
    assert str(lockfiles.torch_lock(STACK, OTHER)) in arguments
    assert any(argument.startswith(f"--python-platform={OTHER}") for argument in arguments)


def test_what_the_index_has_as_source_only_comes_from_our_wheels(
    build: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """No wheel of it is there to be taken by its locked hash, which is its source's."""
    stack = Stack.load("blendmask")
    ours = [tmp_path / f"{name}-1-py3-none-any.whl" for name in ("fvcore", "antlr4_python3_runtime")]
    asked: list[list[str]] = []
    locks: list[str] = []

    def install(python: Path, arguments: list[str]) -> None:
        asked.append(arguments)
        locks.extend(Path(word).read_text() for word in arguments if word.endswith("packages.txt"))

    monkeypatch.setattr(venv, "uv_install", install)
    monkeypatch.setattr(sdists, "build", lambda stack: ours)
    cross.ensure_site(stack, OTHER)
    first, second = asked
    (lock,) = locks
    whole = lockfiles.pins(lockfiles.packages_lock("blendmask").read_text())
    assert whole.keys() - lockfiles.pins(lock).keys() == {"fvcore", "antlr4-python3-runtime"}
    assert {"--require-hashes", "--only-binary=:all:"} <= set(first)
    assert {"--no-index", "--only-binary=:all:", *map(str, ours)} <= set(second)
    targets = [[word for word in words if word.startswith("--target=")] for words in asked]
    assert targets[0] == targets[1] != []


def test_missing_emulator_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(env, "ensure_base", lambda stack: None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(AscendetError) as caught:
        check_emulated.execute(argparse.Namespace(stack="vitdet", machine=OTHER))
    assert caught.value.name == "command-failed"
    assert "qemu-user-static" in caught.value.hint
