"""The audit: a sound wheel passes every rule, and each rule has a wheel that breaks it and nothing else."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ascendet import paths
from ascendet.core.spec import Spec
from ascendet.errors import AscendetError
from ascendet.wheels import audit, elf, wheelfile
from elftools.elf.elffile import ELFFile

OPS = list(Spec.load("mmcv").audit.operators)
PAIR = {"torch": "2.8.0", "torch_npu": "2.8.0"}
TAG = f"cp311-cp311-linux_{platform.machine()}"
SUFFIX = f".cpython-311-{platform.machine()}-linux-gnu.so"
# Uses the C library, "torch", and CANN through "torch_npu".
SOURCE = (
    '#include <cstdio>\nint from_torch(int); extern "C" int aclopCreateAttr();\n'
    'extern "C" int PyInit__ext() { return puts("x") + from_torch(1) + aclopCreateAttr(); }\n'
)


def compile_library(path: Path, source: str, *options: str) -> Path:
    text = path.with_suffix(".cpp")
    text.write_text(source)
    command = ["g++", "-shared", "-fPIC", "-s", str(text), "-o", str(path), *options]
    subprocess.run(command, cwd=path.parent, check=True, capture_output=True)
    return path


def python_library() -> Path:
    if sysconfig.get_config_var("Py_ENABLE_SHARED"):
        return Path(sysconfig.get_config_var("LIBDIR"), sysconfig.get_config_var("INSTSONAME"))
    return Path(sys.executable).resolve()


@pytest.fixture(scope="module")
def against(tmp_path_factory: pytest.TempPathFactory) -> elf.Provider:
    """A torch, a torch_npu and a CANN of a few bytes each, chained as the real ones are."""
    home = tmp_path_factory.mktemp("provider")
    folders = {name: home / name for name in ("torch", "torch_npu", "cann_sim")}
    for folder in folders.values():
        folder.mkdir()
    compile_library(folders["torch"] / "libc10.so", "int from_torch(int x) { return x; }")
    acl = compile_library(
        folders["cann_sim"] / "libascendcl.so",
        'extern "C" int aclopCreateAttr() { return 0; }',
        "-Wl,-soname,libascendcl.so",
    )
    compile_library(
        folders["torch_npu"] / "libtorch_npu.so",
        "int from_npu() { return 1; }",
        "-Wl,--no-as-needed",
        str(acl),
        "-Wl,-soname,libtorch_npu.so",
    )
    return elf.Provider(
        versions=PAIR,
        python="cp311",
        machine=platform.machine(),
        folders=folders,
        interpreter=python_library(),
    )


Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path, against: elf.Provider) -> Make:
    """A function that makes an mmcv wheel, sound but for what it is told."""

    def make(
        *options: str,
        source: str = SOURCE,
        ops: list[str] = OPS,
        tag: str = TAG,
        built: Mapping[str, str] | None = PAIR,
        edit: Callable[[bytes], bytes] = bytes,
        extra: Mapping[str, bytes] | None = None,
        library: bool = True,
    ) -> Path:
        (tmp_path / "libascendcl.so").unlink(missing_ok=True)
        code = source + "".join(f"void {op}(int) {{}}\n" for op in ops)
        links = [
            str(against.folders["torch"] / "libc10.so"),
            str(against.folders["torch_npu"] / "libtorch_npu.so"),
        ]
        search = f"-Wl,-rpath-link,{against.folders['cann_sim']}"
        path = compile_library(
            tmp_path / "_ext.so",
            code,
            "-Wl,--no-as-needed",
            "-Wl,--allow-shlib-undefined",
            "-Wl,-z,lazy",
            search,
            "-Wl,--unresolved-symbols=ignore-all",
            *(f"-L{Path(link).parent}" for link in links),
            "-l:libc10.so",
            "-l:libtorch_npu.so",
            *options,
        )
        info = "mmcv-2.1.0+npu.torch2.8.0.dist-info"
        files = {
            "mmcv/__init__.py": b"",
            f"{info}/METADATA": wheelfile.metadata({"name": "mmcv"}, "2.1.0+npu.torch2.8.0"),
            f"{info}/WHEEL": wheelfile.wheel_metadata(tag, pure=False),
            **(extra or {}),
        }
        if library:
            files[f"mmcv/_ext{SUFFIX}"] = edit(path.read_bytes())
        if built is not None:
            files["mmcv/_built_against.json"] = json.dumps(built).encode()
        return wheelfile.write(tmp_path, "mmcv", "2.1.0+npu.torch2.8.0", tag, files)

    return make


@pytest.fixture
def make_other(tmp_path: Path, against: elf.Provider) -> Make:
    """A function that makes a wheel of a project that Ascendet does not build."""

    def make(*members: str, tag: str = TAG, extra: Mapping[str, bytes] | None = None) -> Path:
        library = against.folders["torch"] / "libc10.so"
        contents = {
            "other/__init__.py": b"",
            "other-1.0.dist-info/METADATA": wheelfile.metadata({"name": "other"}, "1.0"),
            "other-1.0.dist-info/WHEEL": wheelfile.wheel_metadata(tag, pure=not members),
            **{member: library.read_bytes() for member in members},
            **(extra or {}),
        }
        return wheelfile.write(tmp_path, "other", "1.0", tag, contents)

    return make


def broken(report: Mapping[str, Any]) -> dict[str, str]:
    return {rule["name"]: rule["detail"] for rule in report["rules"] if not rule["ok"]}


def test_sound_wheel(make: Make, against: elf.Provider) -> None:
    report = audit.audit(make(), against)
    assert broken(report) == {}
    assert report["sound"]
    audit.require_sound(report)
    assert {rule["name"] for rule in report["rules"]} == {
        *("tags", "built-against", "extension", "machine", "versions", "needed", "search-paths", "stripped"),
        *("build-paths", "symbols", "npu-ops"),
    }


def test_report_names_every_symbol_s_provider(make: Make, against: elf.Provider) -> None:
    symbols = audit.audit(make(), against)["symbols"]
    assert symbols["_Z10from_torchi"] == "libc10.so (torch)"
    assert symbols["aclopCreateAttr"] == "libascendcl.so (cann_sim)"  # found through libtorch_npu.so
    assert symbols["puts"].startswith("libc.so.6 (GLIBC_2.")


def test_report_is_json_and_readable(make: Make, against: elf.Provider) -> None:
    report = audit.audit(make(ops=OPS[1:]), against)
    assert json.loads(json.dumps(report)) == report
    assert report["schema"] == audit.SCHEMA
    text = audit.summary(report)
    assert f"FAIL npu-ops        1 of {len(OPS)} are missing: {OPS[0]}" in text
    assert "-> build it with FORCE_NPU=1" in text
    with pytest.raises(AscendetError) as caught:
        audit.require_sound(report)
    assert caught.value.name == "audit-failed"
    assert OPS[0] in (caught.value.found or "")


# -- one wheel per rule that breaks that rule alone --


@pytest.mark.parametrize(
    "tag",
    [f"cp310-cp310-linux_{platform.machine()}", "cp311-cp311-linux_riscv64", "cp311-cp311-win_amd64"],
    ids=["another Python", "another machine", "another system"],
)
def test_tags(make: Make, against: elf.Provider, tag: str) -> None:
    assert set(broken(audit.audit(make(tag=tag), against))) == {"tags"}


@pytest.mark.parametrize(
    "built",
    [{"torch": "2.9.0", "torch_npu": "2.9.0"}, {"torch": "2.8.0", "torch_npu": "2.8.0.post2"}, None, {}],
)
def test_built_against(make: Make, against: elf.Provider, built: dict[str, str] | None) -> None:
    assert set(broken(audit.audit(make(built=built), against))) == {"built-against"}


def test_no_extension(make: Make, against: elf.Provider) -> None:
    found = broken(audit.audit(make(library=False), against))
    assert found == {"extension": "the wheel has no shared library"}


def test_file_that_is_no_library(make: Make, against: elf.Provider) -> None:
    found = broken(audit.audit(make(extra={"mmcv/other.so": b"text"}), against))
    assert set(found) == {"extension"}
    assert "mmcv/other.so is not an ELF file" in found["extension"]


def test_machine(make: Make, against: elf.Provider) -> None:
    other = {"x86_64": 183, "aarch64": 62}[platform.machine()]

    def foreign(content: bytes) -> bytes:
        return content[:18] + other.to_bytes(2, "little") + content[20:]

    assert set(broken(audit.audit(make(edit=foreign), against))) == {"machine"}


def test_versions(make: Make, against: elf.Provider, tmp_path: Path) -> None:
    (tmp_path / "map").write_text("GLIBC_2.99 { global: from_the_future; };")
    future = 'extern "C" int from_the_future() { return 1; }'
    library = compile_library(
        tmp_path / "libm.so.6", future, "-Wl,--version-script=map", "-Wl,-soname,libm.so.6"
    )
    source = SOURCE + 'extern "C" int from_the_future(); int use() { return from_the_future(); }\n'
    found = broken(audit.audit(make(str(library), source=source), against))
    assert found == {"versions": "from_the_future needs GLIBC_2.99, the limit is 2.35"}


def test_versions_of_an_unknown_kind(make: Make, against: elf.Provider, tmp_path: Path) -> None:
    (tmp_path / "map").write_text("STRANGE_1 { global: strange; };")
    library = compile_library(
        tmp_path / "libm.so.6",
        'extern "C" int strange() { return 1; }',
        "-Wl,--version-script=map",
        "-Wl,-soname,libm.so.6",
    )
    source = SOURCE + 'extern "C" int strange(); int use() { return strange(); }\n'
    assert set(broken(audit.audit(make(str(library), source=source), against))) == {"versions"}


def test_needed(make: Make, against: elf.Provider, tmp_path: Path) -> None:
    compile_library(tmp_path / "libfoo.so.1", "int foo() { return 1; }", "-Wl,-soname,libfoo.so.1")
    found = broken(audit.audit(make(str(tmp_path / "libfoo.so.1")), against))
    assert found == {"needed": "libfoo.so.1: not in [needed]"}


@pytest.mark.parametrize("kind", ["--enable-new-dtags", "--disable-new-dtags"])
def test_search_paths(make: Make, against: elf.Provider, kind: str) -> None:
    found = broken(audit.audit(make("-Wl,-rpath,$ORIGIN/lib", f"-Wl,{kind}"), against))
    assert found == {"search-paths": "$ORIGIN/lib"}


def test_search_paths_that_wheel_toml_names_are_allowed(tmp_path: Path) -> None:
    path = compile_library(tmp_path / "lib.so", "int x() { return 1; }", "-Wl,-rpath,$ORIGIN/../lib64")
    with path.open("rb") as file:
        library = ELFFile(file)
        assert elf.search_paths("lib.so", library, ["$ORIGIN/../lib64"]).ok
        assert not elf.search_paths("lib.so", library, ["$ORIGIN/.."]).ok


def test_library_may_need_another_one_of_its_wheel(make: Make, against: elf.Provider, tmp_path: Path) -> None:
    """As cann_sim's do: it is found there, with its symbols, and nowhere else."""
    own = compile_library(tmp_path / "libown.so", "int own() { return 1; }", "-Wl,-soname,libown.so")
    options = {"source": "int own();\n" + SOURCE.replace("return puts", "return own() + puts")}
    assert {"needed", "symbols"} <= set(broken(audit.audit(make(str(own), **options), against)))
    whole = make(str(own), **options, extra={"mmcv/lib/libown.so": own.read_bytes()})
    report = audit.audit(whole, against)
    assert broken(report) == {}
    assert report["symbols"]["_Z3ownv"] == "libown.so (the wheel)"


def test_stripped(make: Make, against: elf.Provider, tmp_path: Path) -> None:
    def with_symbols(_: bytes) -> bytes:
        command = ["g++", "-shared", "-fPIC", "-g0", "_ext.cpp", "-o", "full.so", "-Wl,--no-as-needed"]
        command += ["-Wl,--unresolved-symbols=ignore-all", "-Wl,--allow-shlib-undefined"]
        command += [f"-L{against.folders['torch']}", f"-L{against.folders['torch_npu']}"]
        command += ["-l:libc10.so", "-l:libtorch_npu.so"]
        subprocess.run(command, cwd=tmp_path, check=True)
        return (tmp_path / "full.so").read_bytes()

    assert broken(audit.audit(make(edit=with_symbols), against)) == {"stripped": ".symtab"}


def test_build_paths(make: Make, against: elf.Provider) -> None:
    source = SOURCE + 'const char* where = "/home/me/mmcv/csrc/nms.cpp"; const char* fine = "/dev/null";\n'
    found = broken(audit.audit(make(source=source), against))
    assert found == {"build-paths": "/home/me/mmcv/csrc/nms.cpp"}


def test_symbols(make: Make, against: elf.Provider) -> None:
    source = SOURCE + "namespace at_npu { int gone(int); } int use() { return at_npu::gone(1); }\n"
    found = broken(audit.audit(make(source=source), against))
    assert set(found) == {"symbols"}
    assert "_ZN6at_npu4goneEi" in found["symbols"]


def test_symbols_that_only_another_torch_npu_has(make: Make, against: elf.Provider, tmp_path: Path) -> None:
    compile_library(tmp_path / "libtorch_npu.so", "int other_version() { return 1; }")
    other = replace(against, folders={**against.folders, "torch_npu": tmp_path})
    source = SOURCE + "int from_npu(); int use() { return from_npu(); }\n"
    wheel = make(source=source)
    assert broken(audit.audit(wheel, against)) == {}
    found = broken(audit.audit(wheel, other))
    assert set(found) == {"symbols"}
    assert "_Z8from_npuv" in found["symbols"]
    assert "aclopCreateAttr" in found["symbols"]  # its provider was named by the right libtorch_npu.so


def test_python_s_symbols_come_from_the_interpreter(make: Make, against: elf.Provider) -> None:
    source = SOURCE + 'extern "C" int Py_IsInitialized(); int use() { return Py_IsInitialized(); }\n'
    assert audit.audit(make(source=source), against)["symbols"]["Py_IsInitialized"] == "python (cp311)"
    source = SOURCE + 'extern "C" int PyNo_Such(); int use() { return PyNo_Such(); }\n'
    assert set(broken(audit.audit(make(source=source), against))) == {"symbols"}


def test_weak_symbols_may_be_missing(make: Make, against: elf.Provider) -> None:
    source = (
        SOURCE + "__attribute__((weak)) int perhaps(int); int use() { return perhaps ? perhaps(1) : 0; }\n"
    )
    assert broken(audit.audit(make(source=source), against)) == {}


@pytest.mark.parametrize("missing", [OPS[:1], ["nms_npu"], OPS])
def test_npu_ops(make: Make, against: elf.Provider, missing: list[str]) -> None:
    found = broken(audit.audit(make(ops=[op for op in OPS if op not in missing]), against))
    assert set(found) == {"npu-ops"}
    assert all(op in found["npu-ops"] for op in missing)


def test_policy_s_list_has_no_op_twice() -> None:
    assert len(set(OPS)) == len(OPS)
    assert len(OPS) == 23 + 1  # and nms_rotated


# -- wheels that promise other things, or nothing --


def names(report: Mapping[str, Any]) -> set[str]:
    return {rule["name"] for rule in report["rules"]}


def test_wheel_of_others_is_held_to_the_policy_only(make_other: Make, against: elf.Provider) -> None:
    report = audit.audit(make_other(f"other/_C{SUFFIX}"), against)
    assert broken(report) == {}
    assert names(report) == {
        *("tags", "extension", "machine", "versions", "needed", "search-paths", "stripped"),
        *("build-paths", "symbols"),
    }


def test_pure_wheel_of_others(make_other: Make, against: elf.Provider) -> None:
    report = audit.audit(make_other(tag="py3-none-any"), against)
    assert broken(report) == {}
    assert names(report) == {"tags", "extension"}
    assert "the wheel has no shared library" in audit.summary(report)


def test_pair_that_a_wheel_of_others_states_is_checked(make_other: Make, against: elf.Provider) -> None:
    for stated, wrong in ((PAIR, set()), ({"torch": "2.9.0"}, {"built-against"})):
        extra = {"other/_built_against.json": json.dumps(stated).encode()}
        assert set(broken(audit.audit(make_other(extra=extra), against))) == wrong
    for damaged in (b"", b"[1]", b"\xff"):
        wheel = make_other(extra={"other/_built_against.json": damaged})
        assert "cannot be read" in broken(audit.audit(wheel, against))["built-against"]


@pytest.fixture
def promise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """A function that makes `other` a wheel of ours with the given tables in its wheel.toml."""
    home = tmp_path / "wheels"
    (home / "other").mkdir(parents=True)
    (home / "policy.toml").write_bytes((paths.WHEELS / "policy.toml").read_bytes())
    monkeypatch.setattr(paths, "WHEELS", home)
    head = 'name = "other"\nversion = "1.0"\nsource = { upstream = "other" }\nenv = { FORCE = "1" }\n'
    return lambda tables: (home / "other/wheel.toml").write_text(head + tables) and None


def test_another_extension_is_promised(
    make_other: Make, against: elf.Provider, promise: Callable[[str], None]
) -> None:
    promise('[audit]\nextension = "other/_C"\n')
    assert broken(audit.audit(make_other(f"other/_C{SUFFIX}"), against)) == {}
    report = audit.audit(make_other(f"other/_D{SUFFIX}"), against)
    assert set(broken(report)) == {"extension"}
    assert "-> build it with FORCE=1; build it with: make other-wheel" in audit.summary(report)


def test_other_operators_are_promised(
    make_other: Make, against: elf.Provider, promise: Callable[[str], None]
) -> None:
    promise('[audit]\nextension = "other/_C"\noperators = ["from_torch", "gone"]\n')
    assert broken(audit.audit(make_other(f"other/_C{SUFFIX}"), against)) == {
        "npu-ops": "1 of 2 are missing: gone"
    }


def test_compiled_wheel_of_ours_must_state_its_pair(
    make_other: Make, against: elf.Provider, promise: Callable[[str], None]
) -> None:
    promise('[native]\nmodule = "other._C"\n')
    assert set(broken(audit.audit(make_other(f"other/_C{SUFFIX}"), against))) == {"built-against"}


def test_what_wheel_toml_does_not_know_is_refused(promise: Callable[[str], None]) -> None:
    for tables in ("[audit]\nextensions = 1\n", "[native]\n", "guards = 1\n"):
        promise(tables)
        with pytest.raises(AscendetError) as caught:
            Spec.load("other")
        assert caught.value.name == "wheel-invalid"
    with pytest.raises(AscendetError) as caught:
        Spec.load("nothing")
    assert (caught.value.name, caught.value.expected) == ("wheel-unknown", "one of other")
