"""The command line of the simulated ATC: what it takes, and the code of each thing that it refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cann_sim
import pytest
from atc_models import SOC, command, convolution, save
from cann_sim.atc.__main__ import main

Run = Callable[..., tuple[int, str]]
BATCH = "--input_shape=image:-1,3,8,8"
IMAGE = "--input_shape=image:1,3,-1,-1"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with model.onnx, whose sizes are open, in which the tool is started."""
    save(convolution(height="size", batch="batch"), tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ASCEND_PROCESS_LOG_PATH", str(tmp_path / "log"))
    return tmp_path


@pytest.fixture
def run(folder: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run ATC in this process: exit code and what it printed."""

    def run_main(*words: str) -> tuple[int, str]:
        code = main(list(words))
        return code, capsys.readouterr().out

    return run_main


def codes(output: str) -> list[str]:
    """The codes at the starts of lines."""
    return [line.split(":")[0] for line in output.splitlines() if line[:1] in "EWS" and ": [PID" in line]


REFUSED = {
    "no framework": ([f"--soc_version={SOC}"], "E10007"),
    "an unknown framework": (["--framework=2"], "E10007"),
    "caffe without weights": (["--framework=0", "--model=model.onnx"], "E10008"),
    "caffe": (["--framework=0", "--weight=model.onnx"], "SIM001"),
    "mindspore": (["--framework=1"], "SIM001"),
    "tensorflow": (["--framework=3"], "SIM001"),
    "no SoC": (["--framework=5", "--model=model.onnx", "--output=made"], "E10054"),
    "no output": (["--framework=5", "--model=model.onnx", f"--soc_version={SOC}"], "E10054"),
    "no model": (["--framework=5", "--output=made", f"--soc_version={SOC}"], "E10054"),
    "an unknown mode": (["--mode=2"], "E10001"),
    "the mode of text files": (["--mode=5"], "SIM001"),
    "the mode of nano": (["--mode=30", "--framework=5"], "SIM001"),
    "a mode that is no number": (["--mode=one"], "E10001"),
    "an unknown log level": (["--log=verbose"], "E10010"),
    "a switch that is not 0 or 1": (["--display_model_info=yes"], "E10006"),
    "a switch that is not true or false": (["--enable_single_stream=1"], "E10005"),
    "help that is neither": (["--help=maybe"], "E10003"),
    "mode 1 without om": (["--mode=1", "--json=made.json"], "E10004"),
    "mode 1 without json": (["--mode=1", "--om=model.onnx"], "E10004"),
    "mode 6 without om": (["--mode=6"], "E10004"),
    "mode 6 with a framework": (["--mode=6", "--om=model.onnx", "--framework=5"], "E10057"),
    "mode 6 of no OM": (["--mode=6", "--om=model.onnx"], "E10001"),
    "mode 6 of a file that is not there": (["--mode=6", "--om=other.om"], "E13000"),
    "the old tuning": (["--auto_tune_mode=RL"], "E10001"),
    "single operators": (["--singleop=op.json"], "SIM001"),
}
REFUSED_CONVERSIONS = {
    "a model that is not there": (["--model=other.onnx"], "E13000"),
    "a model that is a folder": (["--model=."], "E13001"),
    "an output without a name": (["--output=made/"], "E10022"),
    "an output that is a path too long": (["--output=" + "a/" * 2048 + "b"], "E10021"),
    "a SoC that does not exist": (["--soc_version=Ascend910C9"], "E10001"),
    "a SoC without Ascend in front": (["--soc_version=910B3"], "E10001"),
    "a SoC without operator package": (["--soc_version=Ascend310B1"], "EZ3003"),
    "a format that ONNX has not": (["--input_format=NHWC"], "E10001"),
    "both precision modes": (["--precision_mode=force_fp16", "--precision_mode_v2=origin"], "E10056"),
    "an unknown precision mode": (["--precision_mode=fp16"], "E10001"),
    "an unknown precision mode of version 2": (["--precision_mode_v2=force_fp16"], "E10001"),
    "hif8 on 910B": (["--precision_mode_v2=mixed_hif8"], "E10055"),
    "bfloat16 on 310P": (
        [BATCH.replace("-1", "1"), "--precision_mode_v2=mixed_bfloat16", "--soc_version=Ascend310P3"],
        "E10001",
    ),
    "a list of mixed precision in another mode": (["--modify_mixlist=model.onnx"], "E10001"),
    "keep_dtype that is not there": (["--keep_dtype=keep.cfg"], "E13000"),
    "op_precision_mode that is not there": (["--op_precision_mode=op.ini"], "E13000"),
    "another operating system": (["--host_env_os=windows"], "E10001"),
    "another processor": (["--host_env_cpu=riscv64"], "E10001"),
    "weights outside of the OM": (["--external_weight=1"], "SIM001"),
    "an unknown place of weights": (["--external_weight=3"], "E10006"),
    "an unknown output type": ([BATCH.replace("-1", "1"), "--output_type=FP8"], "E10001"),
    "shapes that vary without gears": ([], "SIM001"),
    "a range": (["--input_shape=image:1~4,3,8,8"], "SIM001"),
    "a size of the model outside of the range": (["--input_shape=image:1~4,4~5,8,8"], "E10050"),
    "a range of another rank": (["--input_shape=image:1~4,3,8"], "E10049"),
    "a shape without a name": (["--input_shape=1,3,8,8"], "E10002"),
    "a shape with a fraction": (["--input_shape=image:1,3,8.5,8"], "E10002"),
    "a shape with a letter": (["--input_shape=image:1,3,8a,8"], "E10002"),
    "a shape with a word": (["--input_shape=image:1,3,big,8"], "E10014"),
    "a shape with a size of 2 to the 70": ([f"--input_shape=image:1,3,{2**70},8"], "E10013"),
    "a shape with zero": (["--input_shape=image:1,3,0,8"], "E10011"),
    "a shape of an unknown input": (["--input_shape=picture:1,3,8,8"], "E10016"),
    "a shape of a node": (["--input_shape=conv:1,3,8,8"], "E10017"),
    "a shape of another rank": (["--input_shape=image:1,3,8"], "E10049"),
    "two kinds of gears": ([BATCH, "--dynamic_batch_size=1,2", "--dynamic_dims=1;2"], "E10009"),
    "gears and a range option": (
        [BATCH, "--dynamic_batch_size=1,2", "--input_shape_range=image:[1~2,3,8,8]"],
        "E10009",
    ),
    "gears and a range": (["--input_shape=image:1~2,3,8,8", "--dynamic_batch_size=1,2"], "E10040"),
    "gears without a shape": (["--dynamic_batch_size=1,2"], "E10004"),
    "batches of a scalar": (["--input_shape=image:", "--dynamic_batch_size=1,2"], "E10012"),
    "batches without -1": (["--input_shape=image:1,3,8,8", "--dynamic_batch_size=1,2"], "E10031"),
    "batches with -1 elsewhere": (["--input_shape=image:-1,3,-1,8", "--dynamic_batch_size=1,2"], "E10018"),
    "batches that are words": ([BATCH, "--dynamic_batch_size=one,two"], "E10003"),
    "one batch": ([BATCH, "--dynamic_batch_size=4"], "E10035"),
    "101 batches": ([BATCH, "--dynamic_batch_size=" + ",".join(map(str, range(1, 102)))], "E10036"),
    "a batch of zero": ([BATCH, "--dynamic_batch_size=0,2"], "E10038"),
    "a batch twice": ([BATCH, "--dynamic_batch_size=2,4,2"], "E10039"),
    "image sizes of the batch": ([BATCH, "--dynamic_image_size=8,8;16,16"], "E10019"),
    "image sizes without -1": (["--input_shape=image:1,3,8,8", "--dynamic_image_size=8,8;16,16"], "E10019"),
    "image sizes of one number": ([IMAGE, "--dynamic_image_size=8;16"], "E10020"),
    "image sizes of words": ([IMAGE, "--dynamic_image_size=8,x;16,16"], "E10003"),
    "image sizes of no format": ([IMAGE, "--input_format=ND", "--dynamic_image_size=8,8;9,9"], "E10003"),
    "one image size": ([IMAGE, "--dynamic_image_size=8,8"], "E10035"),
    "an image size twice": ([IMAGE, "--dynamic_image_size=8,8;9,9;8,8"], "E10039"),
    "dims without -1": (["--input_shape=image:1,3,8,8", "--dynamic_dims=1;2"], "E10001"),
    "dims of another number": ([IMAGE, "--dynamic_dims=8;16"], "E10003"),
    "dims that are words": ([IMAGE, "--dynamic_dims=8,a;9,b"], "E10001"),
    "dims of zero": ([IMAGE, "--dynamic_dims=8,0;9,9"], "E10038"),
    "no dims": ([IMAGE, "--dynamic_dims=;"], "E10058"),
    "fp16 for an unknown input": ([BATCH.replace("-1", "1"), "--input_fp16_nodes=picture"], "E10016"),
    "fp16 for a node": ([BATCH.replace("-1", "1"), "--input_fp16_nodes=conv"], "E10017"),
    "an unknown output": ([BATCH.replace("-1", "1"), "--out_nodes=nothing:0"], "E11017"),
    "an output that a node does not have": ([BATCH.replace("-1", "1"), "--out_nodes=conv:1"], "E11016"),
    "implementation modes of nothing": (["--optypelist_for_implmode=Conv2D"], "E10001"),
}  # fmt: skip


@pytest.mark.parametrize(("words", "code"), REFUSED.values(), ids=REFUSED)
def test_a_wrong_command_has_the_documented_code(run: Run, words: list[str], code: str) -> None:
    result, output = run(*words)
    assert (result, codes(output)) == (255, [code]), output
    assert "ATC run failed, Please check the detail log, Try 'atc --help' for more information" in output


@pytest.mark.parametrize(("words", "code"), REFUSED_CONVERSIONS.values(), ids=REFUSED_CONVERSIONS)
def test_a_wrong_conversion_has_the_documented_code(
    run: Run, folder: Path, words: list[str], code: str
) -> None:
    result, output = run(*command(folder, *words))
    assert (result, codes(output)) == (255, [code]), output
    assert not list(folder.glob("*.om"))
    assert not (folder / "kernel_meta").exists()
    # What the real tool takes must not look like an error of the user's.
    assert (code == "SIM001") == ("cann_sim does not have this, CANN's ATC does" in output)


def test_help_lists_the_options_and_succeeds(run: Run) -> None:
    result, output = run("--help")
    assert result == 0
    assert "--dynamic_image_size" in output
    assert "--keep_dtype" in output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--soc=Ascend910B3", "--unknown=1"], "unknown command line flag 'unknown'"),
        (["--framework=5", "model.onnx"], "Non-option parameter: model.onnx"),
        (["--framework"], "flag '--framework' is missing its argument"),
        (["--dynamic=1"], "unknown command line flag 'dynamic'"),  # three options begin so
    ],
)
def test_a_command_that_cannot_be_read_says_why_on_stderr(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main(words) == 255
    printed = capsys.readouterr()
    assert f"ERROR: {message}" in printed.err
    assert codes(printed.out) == ["E19999"]


def test_one_dash_dashes_in_names_and_values_as_words_are_read(run: Run) -> None:
    _, output = run("-mode", "6", "--om", "other.om")
    assert codes(output) == ["E13000"]
    _, output = run("-framework=5", "--soc-version", SOC, "--output=made", "-model=other.onnx")
    assert codes(output) == ["E13000"]


def test_a_log_is_written_where_cann_writes_it(run: Run, folder: Path) -> None:
    run("--mode=6", "--om=other.om", "--log=info")
    (log,) = (folder / "log" / "debug" / "plog").glob(f"plog-{os.getpid()}_*.log")
    text = log.read_text()
    assert "[INFO] GE(" in text
    assert "--om=other.om" in text
    assert "[ERROR] GE(" in text
    assert "E13000" in text


def test_a_log_that_cannot_be_written_stops_nothing(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASCEND_PROCESS_LOG_PATH", str(folder / "model.onnx"))
    assert codes(run("--mode=6", "--om=other.om", "--log=info")[1]) == ["E13000"]


def test_a_configuration_that_is_no_text_has_a_code(run: Run, folder: Path) -> None:
    (folder / "keep.cfg").write_bytes(b"\xff\xfe")
    assert codes(run(*command(folder, "--keep_dtype=keep.cfg"))[1]) == ["E13003"]


def test_without_a_log_level_no_log_is_written(run: Run, folder: Path) -> None:
    run("--mode=6", "--om=other.om")
    assert not (folder / "log").exists()


@pytest.mark.parametrize(
    ("words", "status", "code"),
    [(["--help"], 0, ""), (["--framework=5"], 255, "E10054"), (["--mode=6", "--om=no.om"], 255, "E13000")],
)
def test_the_script_runs_in_a_folder_of_the_users(
    folder: Path, words: list[str], status: int, code: str
) -> None:
    (folder / "onnx.py").write_text("raise SystemExit('the folder of the user was imported')")
    script = cann_sim.home() / "bin" / "atc"
    environ = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run([script, *words], env=environ, capture_output=True, text=True, check=False)
    assert (done.returncode, codes(done.stdout)) == (status, [code] if code else []), done.stderr
