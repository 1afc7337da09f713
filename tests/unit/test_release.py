"""Releases: an index that pip reads from the folder and from a server, and no change of it that goes unnoticed."""

from __future__ import annotations

import errno
import functools
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ascendet import cli, paths
from ascendet.core import files, manifest
from ascendet.core.stack import Stack
from ascendet.errors import EXIT_CODES, AscendetError
from ascendet.release import bom, check, collect, constraints, index, provenance, release, sums
from ascendet.supply import lockfiles
from ascendet.wheels import wheelfile

PURE = "py3-none-any"
NEW, OLD = "2.1.0+npu.torch2.9.0", "2.1.0+npu.torch2.8.0"


def make_wheel(folder: Path, name: str, version: str, *, tag: str = PURE, said: str = "ours") -> Path:
    """A wheel whose module says who made it; it has a licence and states a version of Python."""
    folder.mkdir(parents=True, exist_ok=True)
    info = f"{name}-{version}.dist-info"
    stated = {
        "name": name,
        "description": "made by a test",
        "python_requires": ">=3.9",
        "license": "Apache-2.0",
    }
    content = {
        f"{name}/__init__.py": f"said = {said!r}\n".encode(),
        f"{info}/METADATA": wheelfile.metadata(stated, version),
        f"{info}/WHEEL": wheelfile.wheel_metadata(tag, pure=tag == PURE),
        f"{info}/licenses/LICENSE": b"Apache-2.0\n",
    }
    return wheelfile.write(folder, name, version, tag, content)


def build(path: Path, stacks: tuple[str, ...] = ("vitdet",), machine: str | None = None) -> collect.Built:
    """What `collect` returns for a wheel."""
    inputs = {
        "source": "0" * 64,
        "patches": {"0001-a.patch": "1" * 64},
        "upstream": {"mmcv-2.1.0.tar.gz": "2" * 64},
        "code": {"wheel.py": "3" * 64},
        "torch": "4" * 64,
    }
    return collect.Built(
        path=path, wheel="mmcv", machine=machine, stacks=stacks, inputs=inputs, audit={"sound": True}
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A release of three wheels, two of them versions of one project."""
    made = tmp_path / "made"
    built = [
        build(make_wheel(made, "mmcv", OLD)),
        build(make_wheel(made, "mmcv", NEW), ("vitdet-torch2.9",)),
        build(make_wheel(made, "vitdet", "0.1.0"), ("vitdet", "vitdet-torch2.9")),
    ]
    stacks = [Stack.load(name) for name in ("vitdet", "vitdet-torch2.9")]
    final = tmp_path / "release" / "0.1.0"
    release.publish(final, stacks, ["x86_64", "aarch64"], built)
    return final


def pip_install(target: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-cache-dir", "--isolated"]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    environ |= {"PIP_CONFIG_FILE": os.devnull, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    return subprocess.run(
        [*command, "--target", str(target), *words], env=environ, capture_output=True, text=True, check=False
    )


def said(target: Path, name: str) -> str:
    return (target / name / "__init__.py").read_text()


@pytest.fixture
def server(folder: Path) -> Iterator[str]:
    """A plain web server of the standard library; the address of the index on it."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}/simple"
        served.shutdown()


# -- the index --


@pytest.mark.parametrize("version", [OLD, NEW])
def test_pip_installs_the_version_that_is_named_from_the_folder(
    folder: Path, tmp_path: Path, version: str
) -> None:
    address = (folder / "simple").as_uri()
    done = pip_install(tmp_path / "site", "--index-url", address, f"mmcv=={version}")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / f"mmcv-{version}.dist-info").is_dir()


def test_pip_installs_from_a_web_server(server: str, tmp_path: Path) -> None:
    done = pip_install(tmp_path / "site", "--index-url", server, f"mmcv=={OLD}", "vitdet")
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "site").glob("*.dist-info")} == {
        f"mmcv-{OLD}.dist-info",
        "vitdet-0.1.0.dist-info",
    }


def test_base_version_finds_the_newest_build(folder: Path, tmp_path: Path) -> None:
    """This is what vitdet requires: mmcv==2.1.0."""
    done = pip_install(tmp_path / "site", "--index-url", (folder / "simple").as_uri(), "mmcv==2.1.0")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / f"mmcv-{NEW}.dist-info").is_dir()


def test_pip_refuses_a_wheel_that_was_changed(folder: Path, tmp_path: Path) -> None:
    make_wheel(folder / "wheels", "mmcv", OLD, said="somebody else")
    done = pip_install(tmp_path / "site", "--index-url", (folder / "simple").as_uri(), f"mmcv=={OLD}")
    assert done.returncode != 0
    assert "DO NOT MATCH THE HASHES" in done.stderr


def test_json_pages_have_what_pep_691_asks_for_and_say_the_same_as_html(folder: Path) -> None:
    listing = json.loads((folder / "simple/mmcv/index.json").read_text())
    assert listing["meta"] == {"api-version": "1.1"}
    assert listing["name"] == "mmcv"
    assert listing["versions"] == [OLD, NEW]
    for file in listing["files"]:
        wheel = folder / "wheels" / file["filename"]
        assert file["hashes"] == {"sha256": files.digest(wheel)}
        assert file["size"] == wheel.stat().st_size
        assert file["requires-python"] == ">=3.9"
        assert file["core-metadata"] == {"sha256": files.digest(Path(f"{wheel}.metadata"))}
    projects = json.loads((folder / "simple/index.json").read_text())["projects"]
    assert projects == [{"name": "mmcv"}, {"name": "vitdet"}]
    pages = index.read(folder)
    assert pages["simple/mmcv/index.json"] == pages["simple/mmcv/index.html"]
    assert len(pages["simple/mmcv/index.html"]) == 2


def test_html_page_escapes_what_html_and_addresses_need(folder: Path) -> None:
    page = (folder / "simple/mmcv/index.html").read_text()
    assert 'data-requires-python="&gt;=3.9"' in page
    assert "../../wheels/mmcv-2.1.0%2Bnpu.torch2.8.0-py3-none-any.whl#sha256=" in page


# -- confusion with packages of the same name elsewhere --


def test_constraints_take_our_wheel_although_another_index_has_one_of_its_name_and_version(
    folder: Path, tmp_path: Path
) -> None:
    public = tmp_path / "public"
    for version in ("0.1.0", "9.0"):
        make_wheel(public / "wheels", "vitdet", version, said="somebody else")
    index.write(public, [index.read_wheel(path) for path in (public / "wheels").glob("*.whl")])
    addresses = (
        "--index-url",
        (public / "simple").as_uri(),
        "--extra-index-url",
        (folder / "simple").as_uri(),
    )
    unsafe = pip_install(tmp_path / "unsafe", *addresses, "vitdet")
    assert unsafe.returncode == 0, unsafe.stderr
    # So there is something to prevent.
    assert said(tmp_path / "unsafe", "vitdet") == "said = 'somebody else'\n"

    ours = tmp_path / "ours.txt"
    ours.write_text(lockfiles.part((folder / "constraints/vitdet.txt").read_text(), {"vitdet"}))
    done = pip_install(tmp_path / "site", "--require-hashes", *addresses, "-r", str(ours))
    assert done.returncode == 0, done.stderr
    assert said(tmp_path / "site", "vitdet") == "said = 'ours'\n"


def test_constraints_hold_each_lock_by_architecture_and_our_wheels_of_both(tmp_path: Path) -> None:
    stack = Stack.load("vitdet")
    entries = [
        index.read_wheel(
            make_wheel(tmp_path / machine, "mmcv", OLD, tag=f"cp311-cp311-linux_{machine}", said=machine)
        )
        for machine in ("x86_64", "aarch64")
    ]
    pins = constraints.join(stack, entries, ["x86_64", "aarch64"])
    text = constraints.render(stack, pins, ["x86_64", "aarch64"])
    assert f"mmcv=={OLD} \\\n    --hash=sha256:" in text
    assert all(entry.sha256 in text for entry in entries)
    assert "nvidia-nccl-cu12==2.27.3 ; platform_machine == 'x86_64' \\" in text
    assert "torch==2.8.0 \\" in text
    assert len(pins["torch", "2.8.0", ""]) == 2  # the architectures' files
    assert not {"pytest", "pip", "wheel"} & {name for name, _, _ in pins}
    for line in text.splitlines():
        assert line.startswith(("#", "    --hash=sha256:")) or line.endswith(" \\")


def test_architectures_of_a_release_are_those_of_its_compiled_wheels(folder: Path) -> None:
    assert check.machines_of(folder) == []
    for machine in ("aarch64", "x86_64"):
        make_wheel(folder / "wheels", "cann_sim", "1", tag=f"cp311-cp311-linux_{machine}")
    assert set(check.machines_of(folder)) == {"aarch64", "x86_64"}
    assert check.machines_of(folder)[0] == os.uname().machine  # what needs no emulation is tried first


# -- tampering --


def test_a_fresh_release_is_sound(folder: Path) -> None:
    assert sums.problems(folder) == []
    check.verify(folder)
    done = subprocess.run(["sha256sum", "--quiet", "--check", "SHA256SUMS"], cwd=folder, check=False)
    assert done.returncode == 0


WHEEL = f"wheels/mmcv-{OLD}-{PURE}.whl"


def change_wheel(folder: Path) -> str:
    make_wheel(folder / "wheels", "mmcv", OLD, said="somebody else")
    return f"{WHEEL} has another digest than in SHA256SUMS"


def remove_wheel(folder: Path) -> str:
    (folder / WHEEL).unlink()
    return f"{WHEEL} is missing"


def remove_sums(folder: Path) -> str:
    (folder / "SHA256SUMS").unlink()
    return "SHA256SUMS is missing"


def add_file(folder: Path) -> str:
    (folder / "wheels/extra.whl").write_bytes(b"x")
    return "wheels/extra.whl is not in SHA256SUMS"


def change_sums(folder: Path) -> str:
    text = (folder / "SHA256SUMS").read_text()
    digest = files.digest(folder / WHEEL)
    (folder / "SHA256SUMS").write_text(text.replace(digest, "0" * 64))
    return f"{WHEEL} has another digest than in SHA256SUMS"


def break_sums(folder: Path) -> str:
    (folder / "SHA256SUMS").write_text("hello\n")
    return "SHA256SUMS:1: not '<sha256>  <file>'"


def change_wheel_and_sums(folder: Path) -> str:
    """The index still knows."""
    change_wheel(folder)
    sums.write(folder)
    return f"simple/mmcv/index.html states another digest of {WHEEL} than SHA256SUMS"


def list_a_missing_file(folder: Path) -> str:
    page = folder / "simple/mmcv/index.html"
    page.write_text(page.read_text().replace("torch2.8.0", "torch2.7.0"))
    (folder / "SHA256SUMS").unlink()
    sums.write(folder)
    return f"simple/mmcv/index.html lists {WHEEL.replace('2.8', '2.7')}, which is missing"


def hide_a_wheel(folder: Path) -> str:
    shutil.rmtree(folder / "simple/vitdet")
    (folder / "SHA256SUMS").unlink()
    sums.write(folder)
    return f"no page lists wheels/vitdet-0.1.0-{PURE}.whl"


def lead_elsewhere(folder: Path) -> str:
    page = folder / "simple/mmcv/index.html"
    page.write_text(page.read_text().replace("../../wheels/", "https://example.org/", 1))
    return "leads out of wheels/"


@pytest.mark.parametrize(
    "tamper",
    [
        change_wheel,
        remove_wheel,
        remove_sums,
        add_file,
        change_sums,
        break_sums,
        change_wheel_and_sums,
        list_a_missing_file,
        hide_a_wheel,
        lead_elsewhere,
    ],
)
def test_tampering_is_found_and_named(folder: Path, tamper: Callable[[Path], str]) -> None:
    expected = tamper(folder)
    assert any(expected in line for line in sums.problems(folder)), sums.problems(folder)
    with pytest.raises(AscendetError) as caught:
        check.verify(folder)
    assert caught.value.name == "release-damaged"
    assert expected in (caught.value.found or "")


def test_no_release_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(paths, "BUILD", tmp_path)
    with pytest.raises(AscendetError) as caught:
        check.verify(release.home())
    assert caught.value.name == "release-damaged"
    assert caught.value.found == "SHA256SUMS is missing"
    assert caught.value.hint == "make release"


# -- the same bytes --


def test_two_releases_have_the_same_bytes_and_no_path_of_this_machine(folder: Path, tmp_path: Path) -> None:
    made = tmp_path / "elsewhere"
    built = [
        build(make_wheel(made, "vitdet", "0.1.0"), ("vitdet", "vitdet-torch2.9")),
        build(make_wheel(made, "mmcv", NEW), ("vitdet-torch2.9",)),
        build(make_wheel(made, "mmcv", OLD)),
    ]
    stacks = [Stack.load(name) for name in ("vitdet", "vitdet-torch2.9")]
    other = tmp_path / "other"
    release.publish(other, stacks, ["x86_64", "aarch64"], sorted(built, key=lambda item: item.path.name))
    assert files.digest_tree(other) == files.digest_tree(folder)
    texts = [file for file in files.walk(folder) if file.suffix in (".json", ".txt", ".html", "")]
    assert len(texts) > 10
    for file in texts:
        assert str(tmp_path) not in file.read_text(), file


def test_folder_holds_licences_patches_and_their_index(folder: Path) -> None:
    assert (folder / f"licences/mmcv-{OLD}/LICENSE").read_text() == "Apache-2.0\n"
    assert (folder / "licences/LICENSE").read_bytes() == (paths.ROOT / "LICENSE").read_bytes()
    assert (folder / "patches/README.md").read_bytes() == (paths.ROOT / "patches/README.md").read_bytes()
    assert len(list((folder / "patches").glob("*/*.patch"))) == len(
        list((paths.ROOT / "patches").glob("*/*.patch"))
    )


def test_provenance_is_an_in_toto_statement_about_the_wheel_and_its_inputs(folder: Path) -> None:
    name = f"mmcv-{OLD}-{PURE}.whl"
    stated = json.loads((folder / f"provenance/{name}.intoto.json").read_text())
    assert stated["_type"] == "https://in-toto.io/Statement/v1"
    assert stated["predicateType"] == "https://slsa.dev/provenance/v1"
    assert stated["subject"] == [{"name": name, "digest": {"sha256": files.digest(folder / "wheels" / name)}}]
    definition = stated["predicate"]["buildDefinition"]
    assert definition["externalParameters"] == {"wheel": "mmcv", "stack": "vitdet"}
    assert {entry["name"]: entry["digest"] for entry in definition["resolvedDependencies"]} == {
        "mmcv-2.1.0.tar.gz": {"sha256": "2" * 64},
        "patches/0001-a.patch": {"sha256": "1" * 64},
        "code/wheel.py": {"sha256": "3" * 64},
        "wheels/mmcv": {"ascendetTree": "0" * 64},
        "torch": {"ascendetRecord": "4" * 64},
    }
    assert stated["predicate"]["runDetails"]["builder"]["id"]


def test_provenance_names_a_commit_as_one() -> None:
    inputs = {"upstream": {"commit": "02b5c4e"}}
    (found,) = provenance.dependencies("detectron2", inputs)
    assert found == {"name": "commit", "digest": {"gitCommit": "02b5c4e"}}


def test_sbom_lists_our_files_with_digests_and_every_locked_package(folder: Path) -> None:
    listed = json.loads((folder / "sbom/vitdet.cdx.json").read_text())
    assert listed["specVersion"] == "1.6"
    assert "timestamp" not in listed["metadata"]
    found = {(entry["name"], entry["version"]): entry for entry in listed["components"]}
    wheel = folder / "wheels" / f"mmcv-{OLD}-{PURE}.whl"
    assert found["mmcv", OLD]["hashes"] == [{"alg": "SHA-256", "content": files.digest(wheel)}]
    assert found["mmcv", OLD]["licenses"] == [{"license": {"name": "Apache-2.0"}}]
    assert ("mmcv", NEW) not in found
    assert {("torch", "2.8.0"), ("mmengine", "0.10.7"), ("vitdet", "0.1.0")} <= found.keys()


def test_another_content_has_another_serial_number(tmp_path: Path) -> None:
    stack = Stack.load("vitdet")
    entries = [
        index.read_wheel(make_wheel(tmp_path / text, "vitdet", "0.1.0", said=text)) for text in ("one", "two")
    ]
    numbers = {json.loads(bom.write(stack, [entry], []))["serialNumber"] for entry in entries}
    assert len(numbers) == 2


# -- what stops it --


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    first = make_wheel(tmp_path / "1", "mmcv", OLD)
    second = make_wheel(tmp_path / "2", "mmcv", OLD, said="another")
    same = make_wheel(tmp_path / "3", "mmcv", OLD)
    other = Stack.load("vitdet-post2")
    assert collect.same(build(first), same, other).stacks == ("vitdet", "vitdet-post2")
    with pytest.raises(AscendetError) as caught:
        collect.same(build(first), second, other)
    assert caught.value.name == "release-invalid"
    assert files.digest(second) in (caught.value.found or "")


def test_missing_cross_compiler_is_named_before_anything_is_built(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = "aarch64" if os.uname().machine == "x86_64" else "x86_64"
    monkeypatch.setattr(paths, "BUILD", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AscendetError) as caught:
        collect.collect([Stack.load("vitdet")], [other])
    assert caught.value.name == "compiler-missing"
    assert caught.value.expected == f"{other}-linux-gnu-g++"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["--machine", "riscv64"], ["--machine", "ARM"]])
@pytest.mark.parametrize("stage", ["release", "check-release"])
def test_unknown_architecture_is_refused(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    stage: str,
    words: list[str],
) -> None:
    monkeypatch.setattr(release, "home", lambda: folder)
    assert cli.main([stage, *words]) == EXIT_CODES["usage"]
    assert "ARCH must be an architecture that the locks cover" in capsys.readouterr().err


@pytest.mark.parametrize("stage", ["release", "check-release"])
def test_unknown_stack_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path, stage: str
) -> None:
    monkeypatch.setattr(release, "home", lambda: folder)
    assert cli.main([stage, "--stack", "vitdet nonesuch"]) == EXIT_CODES["stack-unknown"]
    assert "nonesuch" in capsys.readouterr().err


def test_a_stack_that_the_release_does_not_hold_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    monkeypatch.setattr(release, "home", lambda: folder)
    assert cli.main(["check-release", "--stack", "blendmask"]) == EXIT_CODES["release-damaged"]
    assert "constraints/blendmask.txt is missing" in capsys.readouterr().err


def test_a_damaged_wheel_in_the_build_folder_is_not_released(tmp_path: Path) -> None:
    path = make_wheel(tmp_path, "mmcv", OLD)
    manifest.write(tmp_path, {"inputs": {}, "outputs": {path.name: files.digest(path)}})
    assert collect.take(path, Stack.load("vitdet"), "mmcv", None).path == path
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(AscendetError) as caught:
        collect.take(path, Stack.load("vitdet"), "mmcv", None)
    assert caught.value.name == "release-invalid"
    assert f"{path.name} is damaged" in (caught.value.found or "")
    assert caught.value.hint.startswith("rm -r ")


@pytest.mark.parametrize(
    ("code", "name"),
    [(errno.EACCES, "release-invalid"), (errno.EROFS, "release-invalid"), (errno.ENOSPC, "disk-full")],
)
def test_a_folder_that_cannot_be_written_is_named_and_nothing_is_left(
    folder: Path, monkeypatch: pytest.MonkeyPatch, code: int, name: str
) -> None:
    before = files.digest_tree(folder)

    def fail(path: Path) -> None:
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(sums, "write", fail)  # the last step
    with pytest.raises(AscendetError) as caught:
        release.publish(folder, [Stack.load("vitdet")], ["x86_64"], [])
    assert caught.value.name == name
    assert files.digest_tree(folder) == before
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(files.TEMP)] == []
