"""Patch series: headers that a stranger can act on, applied all or nothing, without fuzz."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from ascendet.core import files
from ascendet.core.stack import Upstream
from ascendet.errors import AscendetError
from ascendet.supply import patches

OLD = "".join(f"line {number}\n" for number in range(1, 21))


def make_patch(
    number: int, slug: str, old: str, new: str, *, header: str | None = None, file: str = "a.txt"
) -> str:
    """Write a patch into the series "up" that turns `old` into `new`; its text."""
    folder = patches.HOME.parent / "work"
    folder.mkdir(exist_ok=True)
    (folder / "old").write_text(old)
    (folder / "new").write_text(new)
    diff = subprocess.run(
        ["diff", "-U1", f"--label=a/{file}", f"--label=b/{file}", folder / "old", folder / "new"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    if header is None:
        header = "Why: because\n it must\nUpstream: N/A ours\nRemove-when: never\n"
    head = f"From 0\nSubject: [PATCH] {slug}\n\n{header}---\n {file} | 1 +\n\n"
    text = f"{head}diff --git a/{file} b/{file}\n{diff}-- \n"
    path = patches.HOME / "up" / f"{number:04d}-{slug}.patch"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return text


@pytest.fixture(autouse=True)
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An unpatched source, inside a git repository as our build folder is."""
    monkeypatch.setattr(patches, "HOME", tmp_path / "patches")
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    folder = tmp_path / "build" / "up-1.0"
    folder.mkdir(parents=True)
    (folder / "a.txt").write_text(OLD)
    return folder


def test_applies_in_order_also_within_one_file(tree: Path) -> None:
    middle = OLD.replace("line 3\n", "LINE 3\n")
    make_patch(1, "first", OLD, middle)
    make_patch(2, "second", middle, middle.replace("LINE 3\n", "LINE THREE\n"))
    patches.apply("up", tree)
    assert (tree / "a.txt").read_text() == OLD.replace("line 3\n", "LINE THREE\n")
    assert [path.name for path in tree.iterdir()] == ["a.txt"]  # nothing beside it, no .orig, no .rej


def test_a_patch_for_one_version_is_left_out_for_others(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header = "Why: because\nUpstream: N/A ours\nRemove-when: never\nOnly-for: {}\n"
    make_patch(1, "all", OLD, OLD.replace("line 3\n", "LINE 3\n"))
    make_patch(2, "old", OLD, OLD.replace("line 12\n", "old\n"), header=header.format("1.0"))
    make_patch(3, "new", OLD, OLD.replace("line 12\n", "new\n"), header=header.format("2.0"))
    pins = {version: Upstream(version=version, sdist=f"up-{version}.tar.gz") for version in ("1.0", "2.0")}
    monkeypatch.setattr(patches, "_pins", lambda _: list(pins.values()))
    assert patches.lint_all() == []
    assert list(patches.digest("up", "2.0")) == ["0001-all.patch", "0003-new.patch"]
    patches.apply("up", tree, "2.0")
    assert (tree / "a.txt").read_text() == OLD.replace("line 3\n", "LINE 3\n").replace("line 12\n", "new\n")
    assert "- Only-for: 2.0" in patches.render_index()
    pins.pop("1.0")
    (problem,) = patches.lint_all()
    assert "0002-old.patch" in problem
    assert "Only-for: 1.0 is none of 2.0" in problem


def test_upstream_without_a_series_stays_as_it_is(tree: Path) -> None:
    patches.apply("other", tree)
    assert (tree / "a.txt").read_text() == OLD


def test_failure_names_the_patch_and_leaves_the_source_alone(tree: Path) -> None:
    make_patch(1, "good", OLD, OLD.replace("line 3\n", "LINE 3\n"))
    make_patch(2, "bad", OLD.replace("line 9", "other"), OLD.replace("line 9", "another"))
    before = files.digest_tree(tree)
    with pytest.raises(AscendetError) as caught:
        patches.apply("up", tree)
    assert caught.value.name == "patch-does-not-apply"
    assert "0002-bad.patch" in caught.value.what
    assert "a.txt:8" in (caught.value.found or "")
    assert files.digest_tree(tree) == before


def test_fuzz_is_not_tolerated(tree: Path) -> None:
    make_patch(1, "drifted", OLD, OLD.replace("line 9\n", "LINE 9\n"))
    (tree / "a.txt").write_text(OLD.replace("line 8\n", "line eight\n"))  # only the context differs
    with pytest.raises(AscendetError) as caught:
        patches.apply("up", tree)
    assert caught.value.name == "patch-does-not-apply"


def test_missing_file(tree: Path) -> None:
    make_patch(1, "gone", OLD, OLD + "more\n", file="b.txt")
    with pytest.raises(AscendetError) as caught:
        patches.apply("up", tree)
    assert "b.txt" in (caught.value.found or "")


def test_applying_twice_is_refused(tree: Path) -> None:
    make_patch(1, "once", OLD, OLD.replace("line 3\n", "LINE 3\n"))
    patches.apply("up", tree)
    with pytest.raises(AscendetError):
        patches.apply("up", tree)


@pytest.mark.parametrize(
    ("header", "complaint"),
    [
        ("Upstream: N/A ours\nRemove-when: never\n", "no Why:"),
        ("Why: x\nRemove-when: never\n", "no Upstream:"),
        ("Why: x\nUpstream: N/A ours\n", "no Remove-when:"),
        ("Why:\nUpstream: N/A ours\nRemove-when: never\n", "no Why:"),
        ("Why: x\nUpstream: N/A\nRemove-when: never\n", "Upstream: is neither"),
        ("Why: x\nUpstream: soon\nRemove-when: never\n", "Upstream: is neither"),
        ("Why: x\nWhy: y\nUpstream: N/A ours\nRemove-when: never\n", "Why stands there twice"),
    ],
)
def test_lint_refuses_an_incomplete_header(header: str, complaint: str) -> None:
    make_patch(1, "some", OLD, OLD + "more\n", header=header)
    problems = patches.lint_all()
    assert len(problems) == 1
    assert complaint in problems[0]
    assert "0001-some.patch:" in problems[0]


def test_lint_refuses_bad_names_and_numbers() -> None:
    make_patch(1, "same", OLD, OLD + "1\n")
    make_patch(3, "same", OLD, OLD + "1\n")
    make_patch(4, "Not_A_Slug", OLD, OLD + "1\n")
    (patches.HOME / "up" / "a.patch.orig").touch()
    text = "\n".join(patches.lint_all())
    assert "number is 0003, its place is 0002" in text
    assert "slug is also that of" in text
    assert "not NNNN-slug.patch" in text
    assert "a.patch.orig:1: not a patch" in text


def test_lint_refuses_what_is_no_patch_or_trails_blanks() -> None:
    make_patch(1, "blank", OLD, OLD + "more \n")
    (patches.HOME / "up" / "0002-text.patch").write_text("hello\n")
    text = "\n".join(patches.lint_all())
    assert "white space at the end of an added line" in text
    assert "0002-text.patch:1: no '---' line" in text


def test_index_holds_every_patch_with_its_reason() -> None:
    make_patch(1, "one", OLD, OLD + "1\n")
    make_patch(2, "two", OLD, OLD + "2\n")
    index = patches.render_index()
    assert index.index("0001-one.patch") < index.index("0002-two.patch")
    assert index.count("- Why: because it must\n") == 2


def test_our_own_patches_are_sound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert patches.lint_all() == []
    assert (patches.HOME / "README.md").read_text(encoding="utf-8") == patches.render_index(), "make patches"
