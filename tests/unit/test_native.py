"""Compiling: fast because nothing is done twice, and the same bytes wherever it is done."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import sysconfig
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from ascendet import paths
from ascendet.core import files
from ascendet.errors import AscendetError
from ascendet.wheels import native, toolchain

GROUPS = {
    "bindings": {"sources": ["csrc/bind.cpp"], "precompiled": False},
    "ops": {"sources": ["csrc/op*.cpp"]},
}
SOURCES = {
    "include/common.hpp": '#pragma once\n#include <vector>\n#include "torch/check.h"\n#include "cycle.h"\n',
    "include/cycle.h": '#pragma once\n#include "common.hpp"\n',
    "csrc/shared.h": "#define SHARED 1\n",
    "csrc/bind.cpp": "int one(); int two(); int three();\n"
    'extern "C" int PyInit__ext() { return one() + two() + three(); }\n',
    "csrc/op1.cpp": '#include "common.hpp"\nnamespace { int hidden = 1; }\nint one() { return hidden; }\n',
    "csrc/op2.cpp": '#include "common.hpp"\nint two() { return check(SIZE); }\n',
    "csrc/alone.cpp": '#include "common.hpp"\n#include "shared.h"\nint three() { return SHARED; }\n',
}
HEADER = '#include "common.hpp"\n'


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> toolchain.Target:
    """A machine whose torch is one header that names its own file, as torch's do in their error messages."""
    monkeypatch.setattr(paths, "BUILD", tmp_path / "build")
    monkeypatch.setenv("MAX_JOBS", "2")
    site = tmp_path / "somewhere" / "site-packages"
    for project in ("torch", "torch_npu"):
        info = site / f"{project}-1.dist-info"
        info.mkdir(parents=True)
        (info / "RECORD").write_text(f"{project}/a.h,sha256=abc,1\n")
    (site / "torch/lib").mkdir(parents=True)
    (site / "torch/lib/libtorch_python.so").write_bytes(b"\0_gcc_libstdcpp_cxxabi1018\0")
    check = "#pragma once\n#include <cstdio>\ninline int check(int x) { return x ? puts(__FILE__) : 0; }\n"
    (site / "include/torch").mkdir(parents=True)
    (site / "include/torch/check.h").write_text(check)
    return toolchain.Target(
        machine=platform.machine(),
        site=site,
        python_include=Path(sysconfig.get_path("include")),
        interpreter=Path(sys.executable).resolve(),
        suffix=".so",
    )


EXTENSION = native.Extension(
    module="thing._ext",
    include_dirs=["{tree}/include", "{site}/include"],
    library_dirs=["{site}/torch/lib"],
    libraries=[],
    macros=["SIZE=8"],
    flags=["-O1"],
)


def make_tree(folder: Path) -> Path:
    for name, text in SOURCES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def build(
    target: toolchain.Target, tree: Path, store: Path, *, extension: native.Extension = EXTENSION
) -> tuple[native.Log, bytes]:
    """Build and return the log and the library's content."""
    output = tree / "_ext.so"
    log = native.build(
        extension,
        native.make_units(sorted(name for name in SOURCES if name.endswith(".cpp")), GROUPS),
        HEADER,
        tree=tree,
        target=target,
        compiler=toolchain.find(target.machine),
        output=output,
        store=store,
    )
    return log, output.read_bytes()


def test_every_source_is_in_exactly_one_unit() -> None:
    sources = sorted(name for name in SOURCES if name.endswith(".cpp"))
    units = native.make_units(sources, GROUPS)
    assert sorted(source for unit in units for source in unit.sources) == sources
    assert [(unit.name, unit.precompiled) for unit in units] == [
        ("bindings", False),
        ("ops", True),
        ("csrc_alone.cpp", True),
    ]


def test_same_bytes_in_another_folder_and_with_another_torch_folder(
    target: toolchain.Target, tmp_path: Path
) -> None:
    _, first = build(target, make_tree(tmp_path / "a"), tmp_path / "store-a")
    moved = target.site.rename(tmp_path / "elsewhere")
    _, second = build(
        replace(target, site=moved), make_tree(tmp_path / "b" / "deeper"), tmp_path / "b" / "store"
    )
    assert first == second
    assert b"site-packages/include/torch/check.h" in first
    assert str(tmp_path).encode() not in first


def test_nothing_is_compiled_twice_wherever_the_source_lies(target: toolchain.Target, tmp_path: Path) -> None:
    log, first = build(target, make_tree(tmp_path / "a"), tmp_path / "store")
    assert (log.compiled, log.reused) == (["bindings", "ops", "csrc_alone.cpp"], [])
    log, second = build(target, make_tree(tmp_path / "b"), tmp_path / "store")
    assert (log.compiled, log.reused) == ([], ["bindings", "ops", "csrc_alone.cpp"])
    assert first == second


@pytest.mark.parametrize(
    ("changed", "compiled"),
    [
        ("csrc/op2.cpp", ["ops"]),
        ("csrc/bind.cpp", ["bindings"]),
        ("csrc/shared.h", ["csrc_alone.cpp"]),
        ("include/cycle.h", ["ops", "csrc_alone.cpp"]),
        ("include/common.hpp", ["ops", "csrc_alone.cpp"]),
    ],
)
def test_what_changed_is_compiled_again(
    target: toolchain.Target, tmp_path: Path, changed: str, compiled: list[str]
) -> None:
    build(target, make_tree(tmp_path / "a"), tmp_path / "store")
    tree = make_tree(tmp_path / "b")
    (tree / changed).write_text((tree / changed).read_text() + "\nint more_of_it();\n")
    log, _ = build(target, tree, tmp_path / "store")
    assert log.compiled == compiled


def test_other_flags_macros_torch_or_compiler_make_other_objects(
    target: toolchain.Target, tmp_path: Path
) -> None:
    build(target, make_tree(tmp_path / "a"), tmp_path / "store")
    tree = make_tree(tmp_path / "b")
    log, _ = build(target, tree, tmp_path / "store", extension=replace(EXTENSION, flags=["-O2"]))
    assert len(log.compiled) == 3
    log, _ = build(target, tree, tmp_path / "store", extension=replace(EXTENSION, macros=["SIZE=9"]))
    assert len(log.compiled) == 3
    (target.site / "torch-1.dist-info/RECORD").write_text("torch/a.h,sha256=other,1\n")
    log, _ = build(target, tree, tmp_path / "store")
    assert len(log.compiled) == 3


@pytest.mark.parametrize("script", ["../../../bin/torchrun", "bin/torchrun"], ids=["environment", "target"])
def test_record_of_an_installation_says_the_same_everywhere(target: toolchain.Target, script: str) -> None:
    record = target.site / "torch-1.dist-info/RECORD"
    before = toolchain.identify(target, "torch")
    record.write_text(
        f"{script},sha256=here,9\ntorch-1.dist-info/INSTALLER,sha256=pip,4\n"
        "torch/__pycache__/a.pyc,,\ntorch/a.h,sha256=abc,1\n"
    )
    assert toolchain.identify(target, "torch") == before


def test_error_in_a_source_is_named_and_leaves_no_object(target: toolchain.Target, tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "a")
    (tree / "csrc/op2.cpp").write_text('#include "common.hpp"\nint two() { return missing; }\n')
    with pytest.raises(AscendetError) as caught:
        build(target, tree, tmp_path / "store")
    assert caught.value.name == "compile-failed"
    assert "'missing' was not declared" in (caught.value.found or "").replace("‘", "'").replace("’", "'")
    assert "csrc/op2.cpp:2" in (caught.value.found or "")
    assert not list((tmp_path / "store").glob("ops-*.o"))
    assert (tmp_path / "store/ops.log").exists()


def fake_compiler(folder: Path, script: str) -> str:
    path = folder / "g++"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


GNU = 'case "$1" in --version) echo "g++ (Fake) 12.2.0"; echo "Free Software Foundation"; exit;;'


def test_no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(AscendetError) as caught:
        toolchain.find(platform.machine())
    assert caught.value.name == "compiler-missing"


def test_no_compiler_for_the_other_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AscendetError) as caught:
        toolchain.find("riscv64")
    assert (caught.value.name, caught.value.expected) == ("compiler-missing", "riscv64-linux-gnu-g++")


@pytest.mark.parametrize("version", ["8.3.0", "9.2.1"])
def test_compiler_too_old(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str) -> None:
    script = f"{GNU} -dumpfullversion) echo {version}; exit;; esac"
    monkeypatch.setenv("CXX", fake_compiler(tmp_path, script))
    with pytest.raises(AscendetError) as caught:
        toolchain.find(platform.machine())
    assert (caught.value.name, caught.value.found) == ("compiler-too-old", f"GCC {version}")


def test_compiler_that_is_not_gnu_s(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", fake_compiler(tmp_path, "echo clang version 14"))
    with pytest.raises(AscendetError) as caught:
        toolchain.find(platform.machine())
    assert (caught.value.name, caught.value.found) == ("compiler-missing", "clang version 14")


@pytest.mark.parametrize(
    ("message", "name", "words"),
    [
        ("fatal error: x.o: No space left on device", "disk-full", "full"),
        ("g++: fatal error: Killed signal terminated program cc1plus", "compile-failed", "out of memory"),
    ],
)
def test_full_disk_and_full_memory(
    monkeypatch: pytest.MonkeyPatch,
    target: toolchain.Target,
    tmp_path: Path,
    message: str,
    name: str,
    words: str,
) -> None:
    script = f'{GNU} -dumpfullversion) echo 12.2.0; exit;; esac; echo "{message}" >&2; exit 1'
    monkeypatch.setenv("CXX", fake_compiler(tmp_path, script))
    with pytest.raises(AscendetError) as caught:
        build(target, make_tree(tmp_path / "a"), tmp_path / "store")
    assert caught.value.name == name
    assert words in caught.value.what
    assert not list((tmp_path / "store").glob("*.o"))


def test_second_build_waits_for_the_first_and_says_so(
    target: toolchain.Target, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    store.mkdir()
    done: list[list[str]] = []
    with files.holding_lock(store / ".lock", "first"):
        tree = make_tree(tmp_path / "a")
        second = threading.Thread(target=lambda: done.append(build(target, tree, store)[0].compiled))
        second.start()
        time.sleep(0.5)
        assert done == []
    second.join()
    assert len(done[0]) == 3
    assert f"waiting for process {os.getpid()}" in capfd.readouterr().err


def test_library_loads_and_answers(target: toolchain.Target, tmp_path: Path) -> None:
    build(target, make_tree(tmp_path / "a"), tmp_path / "store")
    code = f"import ctypes; print(ctypes.CDLL('{tmp_path}/a/_ext.so').PyInit__ext())"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(shown.split()[-1]) > 2
