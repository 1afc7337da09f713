"""Programs: what their failure looks like as a named error."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from ascendet.core import files, process
from ascendet.errors import AscendetError


def run(code: str, **options: object) -> str:
    command = [sys.executable, "-c", code]
    return process.run(command, what="it does not work", hint="make it", **options)  # type: ignore[arg-type]


def failure(code: str, **options: object) -> AscendetError:
    with pytest.raises(AscendetError) as caught:
        run(code, **options)
    return caught.value


def test_success_gives_standard_output_only() -> None:
    assert run("import sys; print('out'); print('err', file=sys.stderr)") == "out\n"
    assert run("print(input())", text="given\n") == "given\n"


def test_bytes_that_are_no_text_do_not_stop_it() -> None:
    assert run("import sys; sys.stdout.buffer.write(b'a\\xffb')") == "a\ufffdb"


def test_the_end_of_its_output_becomes_the_error() -> None:
    error = failure(
        "import sys; print('out'); sys.exit('\\n'.join(map(str, range(20))))", error="smoke-failed"
    )
    assert (error.name, error.what, error.hint) == ("smoke-failed", "it does not work", "make it")
    assert error.found == "\n".join(map(str, range(12, 20)))


@pytest.mark.parametrize("capture", [True, False])
def test_without_a_word_the_exit_code_is_said(capture: bool) -> None:
    error = failure("raise SystemExit(3)", capture=capture)
    assert error.found == "exit code 3" + ("" if capture else " (its message is above)")
    assert error.name == "command-failed"


def test_a_killed_program_is_said_to_be_killed() -> None:
    assert failure("import os; os.kill(os.getpid(), 9)").found == "ended by SIGKILL"


def test_what_it_prints_goes_to_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    assert run("print('seen')", capture=False) == ""
    assert capfd.readouterr().out == "seen\n"


def test_missing_program() -> None:
    with pytest.raises(AscendetError) as caught:
        process.run(["no-such-program"], what="it does not work", hint="make it")
    assert caught.value.found == "no-such-program is not installed"
    assert process.ask(["no-such-program"]) is None
    with pytest.raises(AscendetError) as caught:
        process.require("no-such-program", "no-such-package")
    assert "no-such-package" in caught.value.hint


def test_missing_folder_is_not_a_missing_program(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        run("", cwd=tmp_path / "gone")


def test_a_full_disk_is_the_reason(tmp_path: Path) -> None:
    free = files.shutil.disk_usage(tmp_path).free
    assert failure("raise SystemExit(1)", disks=[tmp_path], room=free * 2).name == "disk-full"
    assert failure("raise SystemExit(1)", disks=[tmp_path], room=0).name == "command-failed"


def test_ask_gives_none_for_a_failure() -> None:
    assert process.ask([sys.executable, "-c", "print(1)"]) == "1\n"
    assert process.ask([sys.executable, "-c", "print(1); raise SystemExit(1)"]) is None
