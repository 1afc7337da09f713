"""Errors are an interface: every name has a code of its own, and every name is used."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from ascendet import __main__, cli, paths
from ascendet.errors import EXIT_CODES, AscendetError

# A family's programs write names into error.json.
SCRIPTS = [file for folder in ("scripts", "wheels") for file in sorted((paths.ROOT / folder).rglob("*.py"))]
# Raised as AscendetError("name", …), or chosen before as a string of that name.
STRINGS = re.compile(r'"([a-z]+(?:-[a-z]+)+|usage|interrupted)"')
RAISED = re.compile(r'AscendetError\(\s*"([^"]+)"')


def test_codes_are_unique_sorted_and_in_range() -> None:
    codes = list(EXIT_CODES.values())
    assert codes == sorted(set(codes))
    assert all(10 <= code <= 125 for code in codes)
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", name) for name in EXIT_CODES)


def test_every_raised_name_has_a_code() -> None:
    raised = {name for file in SCRIPTS for name in RAISED.findall(file.read_text(encoding="utf-8"))}
    assert raised - EXIT_CODES.keys() == set()


def test_every_code_is_used() -> None:
    others = (file.read_text(encoding="utf-8") for file in SCRIPTS if file.name != "errors.py")
    used = {name for text in others for name in STRINGS.findall(text)} | {"python-version"}
    assert EXIT_CODES.keys() - used == set()


def test_unknown_name_is_a_bug() -> None:
    with pytest.raises(KeyError):
        AscendetError("no-such-name", "what", hint="next")


def test_render_aligns_and_indents() -> None:
    error = AscendetError("usage", "what", expected="this\nor that", found="other", hint="make help")
    assert error.render() == (
        "error[usage]: what\n"
        "  expected: this\n"
        "            or that\n"
        "  found:    other\n"
        "  next:     make help\n"
    )
    assert "\x1b[1;31merror[usage]:\x1b[0m what" in error.render(colour=True)


def test_main_prints_the_error_and_returns_its_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["nope"]) == EXIT_CODES["stage-unknown"]
    assert capsys.readouterr().err.startswith("error[stage-unknown]: there is no stage 'nope'\n")


def test_old_python_ends_in_a_named_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 18, "final", 0))
    assert __main__.main() == EXIT_CODES["python-version"] == __main__.PYTHON_VERSION_EXIT
    text = capsys.readouterr().err
    assert text.startswith("error[python-version]:")
    assert "found:    Python 3.9.18" in text


def test_entry_point_parses_on_python_3_6() -> None:
    import ast

    source = (paths.ROOT / "scripts/ascendet/__main__.py").read_text(encoding="utf-8")
    ast.parse(source, feature_version=(3, 6))
    ast.parse(
        (paths.ROOT / "scripts/ascendet/__init__.py").read_text(encoding="utf-8"), feature_version=(3, 6)
    )


def test_shell_scripts_use_the_same_codes() -> None:
    text = (paths.ROOT / "scripts/runtime.sh").read_text(encoding="utf-8")
    found = re.findall(r'exit (\d+) # errors\.EXIT_CODES\["([a-z-]+)"\]', text)
    assert found
    assert all(EXIT_CODES[name] == int(code) for code, name in found)


def test_help_runs_without_any_environment() -> None:
    command = [sys.executable, "-I", "-c"]
    command += [
        f"import sys; sys.path.insert(0, {str(paths.ROOT / 'scripts')!r}); import ascendet.cli as c; c.main([])"
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert all(f"  {name} " in done.stdout for name in cli.STAGES)
