"""A training under each fault of cann_sim ends in its named error with a whole checkpoint, or goes on."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from ascendet.envs import venv
from ascendet.errors import EXIT_CODES
from conftest import MakeShapes, script_environ

pytest.importorskip("vitdet", reason="the stack has no vitdet")

pytestmark = pytest.mark.skipif(
    "cann_sim" not in os.environ.get("ASCEND_HOME_PATH", ""),
    reason="the CANN tree is not cann_sim's: it has no faults on demand",
)


@pytest.fixture(scope="module")
def environ(make_shapes: MakeShapes) -> dict[str, str]:
    return script_environ(make_shapes(8, 2))


# `make train` without its choice of a folder, in the tool's own environment.
TRAIN = """
import os, pathlib, sys
from ascendet import errors
from ascendet.run import program

try:
    program.execute(program.Run(program="train", environ=os.environ, log=pathlib.Path(sys.argv[1], "train.log"),
                                arguments=sys.argv[2:]))
except errors.AscendetError as error:
    sys.stderr.write(error.render())
    sys.exit(error.exit_code)
"""


def train(environ: dict[str, str], folder: Path, *arguments: str, **changed: str) -> tuple[int, str, str]:
    """The exit code, what is on the error output, and the name of the last whole checkpoint."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        [venv.ensure_tools(), "-c", TRAIN, folder, "--epochs=3", *arguments],
        env=environ | {"WORK_DIR": str(folder)} | changed,
        capture_output=True,
        text=True,
        check=False,
    )
    note = folder / "last_checkpoint"
    return done.returncode, done.stderr, Path(note.read_text().strip()).name if note.is_file() else ""


# Where each strikes: in the second epoch of three. An iteration is some 2,260 launches and two all-reduces; two ranks
# first broadcast 127 parameters and buffers to each other. Not a stuck stream: most waits of a training have only
# torch_npu's limit of 547 s per operator; test_faults.py has it.
FAULTS = {
    "npu-out-of-memory": ("oom@alloc:25", "0"),
    "npu-lost": ("device-lost@launch:14000", "0"),
    "hccl-timeout": ("hccl-timeout@collective:135", "0,1"),
    "hccl-link-down": ("link-down@collective:135", "0,1"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_training_ends_in_a_named_error_and_resumes(
    environ: dict[str, str], tmp_path: Path, name: str
) -> None:
    fault, devices = FAULTS[name]
    code, message, checkpoint = train(environ, tmp_path / "run", CANN_SIM_FAULT=fault, DEVICES=devices)
    assert code == EXIT_CODES[name], message
    if name == "npu-out-of-memory":
        return  # before the first checkpoint: memory is taken in the first iterations and kept
    assert checkpoint
    assert "make train RESUME=1" in message
    if name == "npu-lost":
        again = train(environ, tmp_path / "run", "--lr=1e30", "--amp", RESUME="1", DEVICES=devices)
        assert again[::2] == (EXIT_CODES["loss-not-finite"], checkpoint), again[1]
        assert "make train RESUME=1 LR=5e+29" in again[1]
        assert train(environ, tmp_path / "run", RESUME="1", DEVICES=devices)[::2] == (0, "epoch_3.pth")
        assert f"resumed epoch: {Path(checkpoint).stem[-1]}" in (tmp_path / "run" / "train.log").read_text()


def test_a_training_goes_on(environ: dict[str, str], tmp_path: Path) -> None:
    faults = "slow-device:1.2,slow-link:2000,corrupt@aclnnRelu:5"
    code, message, checkpoint = train(environ, tmp_path / "run", CANN_SIM_FAULT=faults, DEVICES="0")
    assert (code, checkpoint) == (0, "epoch_3.pth"), message
