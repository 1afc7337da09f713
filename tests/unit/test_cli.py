"""One noun per stage: the same in the command line, the Makefile, and the pages."""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from ascendet import cli, paths
from ascendet.containers import image
from ascendet.core import spec
from ascendet.core.options import Parser
from ascendet.core.stack import load_all
from ascendet.dev.suites import SUITES
from ascendet.errors import EXIT_CODES
from ascendet.wheels import cross

MAKEFILE = (paths.ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = re.findall(r"^(?:\$\(\w+\): )?([a-z0-9%-]+):.*## ", MAKEFILE, re.MULTILINE)
SOURCE = paths.ROOT / "scripts/ascendet"
READMES = [paths.ROOT / "README.md", paths.ROOT / "README.zh-CN.md"]
COMMANDS = [paths.ROOT / "docs/commands.md", paths.ROOT / "docs/commands.zh-CN.md"]
STACKS = [paths.ROOT / "docs/stacks.md", paths.ROOT / "docs/stacks.zh-CN.md"]


def make(*arguments: str) -> str:
    done = subprocess.run(["make", *arguments], cwd=paths.ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == "", "GNU make warns of undefined variables here"
    return done.stdout


def test_every_stage_has_a_module_and_a_target() -> None:
    for name, stage in cli.STAGES.items():
        assert (SOURCE / stage.module.replace(".", "/")).with_suffix(".py").is_file(), name
        assert re.search(rf"\$\(PY\) {name}\b", MAKEFILE), f"no target runs {name}"


def test_every_recipe_is_one_command_that_delegates() -> None:
    for target, recipe in re.findall(
        r"^(?:\$\(\w+\): )?([a-z0-9%-]+):.*## .*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE
    ):
        assert recipe.count("\n") == 1, target
        assert recipe.startswith(("\t@$(PY) ", "\t@$(MAKE) ", "\t@awk ", "\t@printf ")), target
        called = re.match(r"\t@\$\(PY\) ([a-z0-9-]+)", recipe)
        assert called is None or called[1] in cli.STAGES


def test_makefile_has_the_strict_prelude() -> None:
    for line in (".SHELLFLAGS := -eu -o pipefail -c", ".DELETE_ON_ERROR:", ".DEFAULT_GOAL := help"):
        assert line in MAKEFILE
    assert "--warn-undefined-variables" in MAKEFILE


def test_help_lists_every_target_in_the_files_order() -> None:
    assert re.findall(r"^  make ([a-z0-9%-]+) ", make("help"), re.MULTILINE) == TARGETS


def test_bench_wheel_is_a_benchmark_and_mmcv_wheel_a_wheel() -> None:
    assert "ascendet bench 'wheel'" in make("--dry-run", "bench-wheel", "STACK=vitdet")
    assert "ascendet wheel 'mmcv' --stack 'vitdet' --machine 'aarch64'" in make(
        "--dry-run", "mmcv-wheel", "ARCH=aarch64", "STACK=vitdet"
    )


def test_paths_with_blanks_and_apostrophes_are_one_word() -> None:
    recipe = make("--dry-run", "data", "FROM=/data/Ann's pictures", "PYTHON=python3")
    assert "/data/Ann's pictures" in shlex.split(recipe)


def test_print_variable() -> None:
    assert make("print-MODEL") == "vitdet-tiny\n"
    assert make("print-MODEL", "MODEL=vitdet-b") == "vitdet-b\n"


@pytest.mark.parametrize("devices", ["7,6,x", "", "a b", "$(id)"])
def test_variables_reach_the_tool_as_they_are(devices: str) -> None:
    recipe = make("--dry-run", "train", f"DEVICES={devices.replace('$', '$$')}", "PYTHON=python3")
    assert f"--devices '{devices}'" in recipe


def test_resume_and_checkpoint_reach_the_tool() -> None:
    assert "--resume" in make("--dry-run", "train", "RESUME=1")
    assert "--resume" not in make("--dry-run", "train")
    assert "--checkpoint 'x.pth' --images '200'" in make(
        "--dry-run", "eval", "CHECKPOINT=x.pth", "IMAGES=200"
    )
    assert "--images 'a.jpg b/*.png' --score '0.5'" in make(
        "--dry-run", "infer", "IMAGES=a.jpg b/*.png", "SCORE=0.5"
    )


@pytest.mark.parametrize("page", COMMANDS, ids=lambda path: path.name)
def test_page_of_commands_names_every_target_and_no_other(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(r"`make ([a-z0-9_-]+%?)", text)) | set(
        re.findall(r"^make ([a-z0-9_-]+)", text, re.MULTILINE)
    )
    assert {name for name in TARGETS if "%" not in name} - named == set()
    wheels = {f"{name}-wheel" for name in spec.known()}
    assert wheels - named == set()
    unknown = named - wheels - set(TARGETS) - {f"test-{name}" for name in SUITES}
    unknown = {name for name in unknown if not name.startswith(("bench-", "print-"))}
    assert unknown == set()


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.name)
def test_first_screen_holds_the_two_commands(readme: Path) -> None:
    first_screen = readme.read_text(encoding="utf-8").splitlines()[:30]
    assert any(line.startswith("make demo") for line in first_screen)
    assert any(line.startswith("make test") for line in first_screen)


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.name)
def test_readmes_are_one_screen_and_lead_to_every_page_for_users(readme: Path) -> None:
    text = readme.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 60
    kind = ".zh-CN.md" if readme.name.endswith(".zh-CN.md") else ".md"
    chinese = sorted((paths.ROOT / "docs").glob("*.zh-CN.md"))
    pages = {page.name.replace(".zh-CN.md", kind) for page in chinese}
    assert pages - set(re.findall(r"\(docs/([^)#]+)", text)) == set()


@pytest.mark.parametrize("page", STACKS, ids=lambda path: path.name)
def test_table_of_stacks_is_stacks_toml(page: Path) -> None:
    rows = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    for stack in load_all().values():
        row = next(row for row in rows if row.startswith(f"| `{stack.name}` |"))
        for value in (stack.cann, stack.python, stack.torch, stack.torchvision, stack.torch_npu):
            assert f" {value} " in row, value
        for name, pin in stack.upstreams.items():
            known = pin.version if pin.packaged or pin.sdist else str(pin.commit)[:8]
            assert f"{name} {known}" in row


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["env", "--bogus"], "unrecognized arguments: --bogus"),
        (["cann-sim", "--stack"], "--stack: expected one argument"),
        (["bundle", "extra"], "unrecognized arguments: extra"),
    ],
)
def test_options_that_argparse_rejects_are_usage(
    words: list[str], found: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == EXIT_CODES["usage"]
    shown = capsys.readouterr().err
    assert shown.startswith("error[usage]: ")
    assert found in shown
    assert f"next:     make help, or ascendet {words[0]} --help\n" in shown


@pytest.mark.parametrize("words", [["wheel", "mmcv"], ["audit", "x.whl"], ["check-emulated"]])
def test_architecture_is_refused_before_anything_is_made(
    words: list[str], build: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "_enter_tools", lambda argv: None)
    assert cli.main([*words, "--machine", "riscv64"]) == EXIT_CODES["usage"]
    assert "ARCH must be an architecture that the locks cover" in capsys.readouterr().err
    assert not build.exists()


@pytest.mark.parametrize("stage", [cross.add_machine_option, image.add_image_options])
@pytest.mark.parametrize("name", ["aarch64", "arm64"])
def test_both_names_of_an_architecture_are_understood(
    stage: Callable[[argparse.ArgumentParser], None], name: str
) -> None:
    parser = Parser()
    stage(parser)
    option = "--machine" if stage is cross.add_machine_option else "--arch"
    (found,) = {value for value in vars(parser.parse_args([option, name])).values() if "64" in str(value)}
    assert found == "aarch64"


@pytest.mark.parametrize(
    ("words", "next_command"),
    [
        (["export", "--sizes=7"], "make export MODEL=m SIZES=1024x1024,800x1344"),
        (["export", "--checkpoint=none.pth"], "make export MODEL=m SIZES=7 CHECKPOINT=<file>"),
        (["om-compare", "--score=2"], "make om-compare MODEL=m SIZES=7 SCORE=0.3"),
        (["om-precision", "--bound=x"], "make om-precision MODEL=m SIZES=7 BOUND=0.002"),
        (["om-bisect", "--chunk=x"], "make om-bisect MODEL=m SIZES=7 CHUNK=50"),
        (["infer-om", "--images= "], "make infer-om MODEL=m SIZES=7 IMAGES='a.jpg folder pictures/*.png'"),
    ],
)
def test_the_next_command_is_a_whole_one(
    words: list[str], next_command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MAKEFLAGS", "w -- MODEL=m SIZES=7")
    monkeypatch.setenv("NPU", "sim")
    monkeypatch.setattr(cli, "_enter_tools", lambda _: None)
    target = ["--model=vitdet-tiny", "--dataset=shapes", "--devices=0"]
    assert (
        cli.main([*words, *target])
        == EXIT_CODES["checkpoint-missing" if "--checkpoint=none.pth" in words else "usage"]
    )
    assert capsys.readouterr().err.splitlines()[-1].split("next:")[1].strip() == next_command
