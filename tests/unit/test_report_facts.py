"""Facts of a report: what the stages leave, and as much as there is where something is missing or broken."""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import report_material as material
from ascendet.report import charts, facts, page, render, verdict
from ascendet.report.charts import Charts
from ascendet.report.commands import Subject, makefile, of_stage
from ascendet.report.facts import Facts
from ascendet.report.words import Language, Words
from conftest import fails

SUBJECT = Subject(stack="vitdet", model=material.MODEL, dataset=material.DATASET)


def gather(run: str = "latest", subject: Subject = SUBJECT) -> Facts:
    return facts.gather(subject, material.MODEL, run)


def text(found: Facts) -> str:
    """Return all that the English page says of these facts, without charts."""
    return str(page.compose(found, Charts(), Words("en")))


@pytest.fixture(autouse=True)
def _build(build: Path) -> Path:
    return build


def test_everything_that_stages_leave_is_found() -> None:
    material.everything()
    found = gather()
    assert found.name == material.RUN
    assert found.state == "finished"
    assert found.digest == material.CHECKPOINT
    assert found.simulated is True
    assert found.broken == []
    assert found.training
    assert (found.training.step, found.training.of, found.training.seconds) == (100, 100, 0.5)
    assert found.training.batch["images"] == 4
    assert found.training.settings["NPU_FALLBACK"] == "error"
    assert found.evaluation
    assert found.evaluation.of_checkpoint
    assert found.evaluation.numbers["bbox"]["AP"] == 0.68
    assert found.speed
    (om,) = found.staged
    assert om.of_checkpoint
    assert om.comparisons[0].ap == {
        "om": {"bbox": 0.6739},
        "pytorch": {"bbox": 0.6745},
        "difference": {"bbox": -0.0006},
    }
    assert om.sweeps[0].search
    assert found.counters
    assert (found.counters["launches"], found.counters["waits"]) == (10, [("a.py:3", "item", 8)])


def test_commands_stand_in_the_order_in_which_they_ran() -> None:
    material.everything()
    assert gather().commands == [
        "make train MODEL=vitdet-tiny DATASET=shapes EPOCHS=2",
        "make eval MODEL=vitdet-tiny DATASET=shapes",
        "make speed MODEL=vitdet-tiny DATASET=shapes",
        "make export MODEL=vitdet-tiny DATASET=shapes",
        "make om MODEL=vitdet-tiny DATASET=shapes",
        "make om-compare MODEL=vitdet-tiny DATASET=shapes",
        "make om-precision MODEL=vitdet-tiny DATASET=shapes IMAGES=120",
    ]


def test_missing_things_are_made_with_the_users_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAKEFLAGS", "w -- RUN=first REPORT_LANG=zh DEVICES=6,7")
    assert SUBJECT.make("eval") == "make eval DEVICES=6,7 MODEL=vitdet-tiny DATASET=shapes"
    other = Subject(stack="blendmask", model="my model.yaml", dataset="细胞", checkpoint="a b.pth")
    assert (
        other.make("speed")
        == "make speed DEVICES=6,7 MODEL='my model.yaml' DATASET='细胞' STACK=blendmask CHECKPOINT='a b.pth'"
    )


def test_the_command_for_an_image_has_no_variables_of_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "MAKEFLAGS", "w -- MODEL=vitdet-tiny DATASET=shapes REPORT_LANG=zh RUN=first MIRROR=cn"
    )
    material.add_run()
    assert "make image MIRROR=cn'" in text(gather())


def test_figures_whose_manifest_cannot_be_read_are_not_quoted() -> None:
    run = material.everything()
    material.write(run / "eval/manifest.json", "{")
    found = gather()
    assert found.evaluation is None  # nobody knows of which checkpoint, pictures and devices they are
    assert [one.section for one in found.broken] == ["accuracy"]


def test_every_option_of_the_makefile_has_its_variable() -> None:
    values, switches, defaults = makefile()
    assert {
        "model",
        "dataset",
        "devices",
        "images",
        "run-in",
        "precision",
        "checkpoint",
        "language",
    } <= values.keys()
    assert {"amp": "AMP", "resume": "RESUME", "force": "FORCE"}.items() <= switches.items()
    assert defaults["DEVICES"] == "0,1"
    argv = [
        "x",
        "train",
        "--model",
        "m",
        "--dataset",
        "d",
        "--amp",
        "--resume",
        "--devices",
        "6",
        "--run",
        "a b",
    ]
    assert of_stage(argv) == "make train MODEL=m DATASET=d AMP=1 DEVICES=6 RUN='a b'"


# -- states --


def test_a_run_that_goes_on_is_running_and_one_without_its_process_stopped() -> None:
    run = material.add_run(state="running")
    with (run / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = gather()
        assert found.state == "running"
        assert "still running: step 100 of 100" in text(found)
    assert gather().state == "stopped"
    assert "its process is gone" in text(gather())


@pytest.mark.parametrize("state", ["failed", "interrupted"])
def test_a_run_that_failed_says_with_which_error(state: str) -> None:
    material.add_run(state=state, error="npu-out-of-memory")
    found = gather()
    assert found.state == state
    assert ("error[npu-out-of-memory]" in text(found)) == (state == "failed")
    assert "make train MODEL=vitdet-tiny DATASET=shapes RUN=first RESUME=1" in text(found)


def test_a_manifest_of_an_older_version_gives_what_it_has() -> None:
    run = material.everything()
    for file in (run / "manifest.json", run / "eval/manifest.json", run / "speed/manifest.json"):
        material.write(file, {"stage": "x"})
    found = gather()
    assert found.broken == []
    assert "does not say how it ended" in text(found)
    assert "of an earlier version" in text(found)


def test_a_run_without_anything_but_its_folder_is_reported() -> None:
    run = material.add_run()
    for file in run.iterdir():
        file.unlink()
    assert "No step was logged" in text(gather())


def test_a_resumed_training_is_one() -> None:
    run = material.add_run(state="interrupted")
    row = {"phase": "train", "step": 50, "of": 100, "loss": 1.5, "losses": {}, "lr": 1, "seconds": 0.5}
    with (run / "progress.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n" + '{"phase": "tr')  # the last line was cut by a kill
    found = gather()
    assert found.training
    assert (found.training.attempts, found.training.step, found.training.last_loss) == (2, 50, 1.5)
    assert found.broken == []


def test_a_resumed_training_that_repeats_no_logged_step_is_one_of_two_attempts() -> None:
    command = material.common("train", ["--run", "first", "--resume"])["command"]
    run = material.add_run(command=command)
    rows = [json.loads(row) for row in (run / "progress.jsonl").read_text().splitlines()]
    for after in (30, 60):  # before the next logged step, and one that is logged a second time
        note = {"phase": "note", "text": f"resumed after step {after}", "time": 1.0}
        again = [row for row in rows if row["phase"] == "train" and row["step"] > after]
        before = [
            row for row in rows if row["phase"] != "train" or row["step"] <= max(after, 75 * (after == 60))
        ]
        material.write(
            run / "progress.jsonl", "".join(json.dumps(row) + "\n" for row in (*before, note, *again))
        )
        found = gather()
        assert found.training is not None
        assert (found.training.attempts, found.training.step) == (2, 100)
    assert found.commands == ["make train MODEL=vitdet-tiny DATASET=shapes RUN=first"]


def test_an_image_is_known_by_its_digest_and_labels(build: Path) -> None:
    digest = "sha256:" + "7" * 64
    material.add_run(inputs={"image": digest})
    assert gather().environment.image == {"id": digest}
    labels = {
        "org.opencontainers.image.base.name": "cann:8.5.0",
        "org.opencontainers.image.base.digest": "sha256:88",
    }
    material.write(
        build / "image/vitdet-x86_64/k/manifest.json",
        {"image": digest, "tag": "ascendet/vitdet", "labels": labels},
    )
    said = text(gather())
    assert all(
        known in said for known in (digest, "ascendet/vitdet", "cann:8.5.0 sha256:88", "sbom.cdx.json")
    )


def test_wheels_are_named_by_their_digests(build: Path) -> None:
    material.add_run()
    material.write(
        build / "wheelhouse/mmcv/k/manifest.json",
        {"outputs": {"mmcv-2.1.0.whl": "e" * 64, "audit.json": "0"}},
    )
    (wheel,) = gather().environment.wheels
    assert (wheel.name, wheel.digest, wheel.file) == ("mmcv", "e" * 64, "mmcv-2.1.0.whl")


def test_patches_are_those_of_the_stacks_wheels_with_their_reasons() -> None:
    material.add_run()
    patches = gather().environment.patches
    assert {patch.upstream for patch in patches} == {"mmcv", "mmdet"}
    assert all(patch.why for patch in patches)


# -- broken files --

FILES = {
    "manifest.json": "environment",
    "progress.jsonl": "training",
    "eval/manifest.json": "accuracy",
    "eval/metrics.json": "accuracy",
    "eval/classes.json": "accuracy",
    "speed/manifest.json": "inference",
    "counters.rank0.json": "waits",
    "export_meta.json": "om",
    "export_check.json": "om",
    "Ascend910B3-origin/om.json": "om",
    "compare-Ascend910B3-origin/compare.json": "om",
    "precision-Ascend910B3-fp16/precision.json": "om",
}


@pytest.mark.parametrize("content", ["{", "[]\n", "null\n", '"text"\n', '{"bbox": 3}\n', "\x00\n"])
@pytest.mark.parametrize("name", FILES)
def test_a_broken_file_is_named_in_its_section_and_the_report_appears(name: str, content: str) -> None:
    run = material.everything()
    om = next((run.parents[2] / "om").iterdir())
    file = next(folder / name for folder in (run, om) if (folder / name).is_file())
    material.write(file, content)
    found = gather()
    made = page.compose(found, Charts(), Words("en"))
    assert len(made.sections) == 9
    # Keys that are missing are those of an older version, and no defect.
    older = content.startswith('{"bbox"') and name.endswith("manifest.json")
    if not older:
        assert [one.file.endswith(name.rpartition("/")[2]) for one in found.broken] == [True] * len(
            found.broken
        )
        assert {one.section for one in found.broken} == {FILES[name]}
        assert all("make " in one.command and one.why for one in found.broken)
        assert "cannot be used" in str(made.sections)


def _places(content: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the keys that lead to each value of a JSON content."""
    for key in (
        content
        if isinstance(content, dict)
        else range(min(2, len(content)))
        if isinstance(content, list)
        else ()
    ):
        yield (*place, key)
        yield from _places(content[key], (*place, key))


def test_a_value_of_another_type_never_stops_a_report() -> None:
    """Every 29th of all values with every wrong one; all of them, 3,573 cases, were tried once by hand."""
    run = material.everything()
    cases = [
        (file, place, wrong)
        for file in sorted([*run.rglob("*.json"), *(run.parents[2] / "om").rglob("*.json")])
        for place in _places(json.loads(file.read_text()))
        for wrong in (None, 3, "x", [], {}, [3], {"a": 1}, -1.5, True)
    ]
    for file, place, wrong in cases[::29]:
        before = file.read_text()
        content = inner = json.loads(before)
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = wrong
        material.write(file, content)
        assert len(page.compose(gather(), Charts(), Words("en")).sections) == 9, (file, place, wrong)
        file.write_text(before)


def test_a_file_that_may_not_be_read_is_named() -> None:
    run = material.everything()
    (run / "eval/metrics.json").unlink()
    (run / "eval/metrics.json").mkdir()
    (broken,) = gather().broken
    assert broken.why.key == "folder"


CLOSED = (
    *FILES,
    "train.log",
    "last_checkpoint",
    "epoch_2.pth",
    "eval",
    "speed",
    "backbone.onnx",
    "Ascend910B3-origin",
    "compare-Ascend910B3-origin",
    ".",  # the export's folder
    "wheelhouse",
    "wheelhouse/mmcv/key/manifest.json",
    "data/shapes/manifest.json",
)


@pytest.mark.usefixtures("by_modes")
@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("name", CLOSED)
def test_what_may_not_be_read_is_said_in_words_with_the_command_that_lets_one(
    name: str, language: Language, build: Path
) -> None:
    run = material.everything()
    om = next((build / "om").iterdir())
    stage = om / "export_meta.json"
    content = json.loads(stage.read_text())
    content["stages"][0]["sha256"] = hashlib.sha256(b"onnx").hexdigest()
    material.write(stage, content)
    for made in ("wheelhouse/mmcv/key", "data/shapes"):
        material.write(build / made / "manifest.json", {})
    (build / "data/shapes/annotations").mkdir()
    material.write(build / "data/shapes/annotations/instances_val.json", {})
    places = (om,) if name == "." else (run, om, build)
    file = next(folder / name for folder in places if (folder / name).exists())
    mode = file.stat().st_mode
    file.chmod(0)
    try:
        found = gather()
        made_page = page.compose(found, Charts(), Words(language))
    finally:
        file.chmod(mode)
    shown = {one.file for one in found.broken}
    assert any(str(file) == one or str(file) in one for one in shown), shown
    markdown = render.to_markdown(made_page, Words(language))
    assert f"<code>sudo chmod a+r{'X' * file.is_dir()} {file}</code>" in markdown
    assert {"en": "has no right to read it", "zh": "无权读取"}[language] in markdown
    assert "Errno" not in markdown
    assert "Permission denied" not in markdown


@pytest.mark.usefixtures("by_modes")
def test_what_cannot_be_read_is_not_called_not_made(build: Path) -> None:
    run = material.everything()
    (om,) = (build / "om").iterdir()
    closed = [run / "progress.jsonl", run / "eval", run / "speed", om, *run.glob("counters*")]
    for file in closed:
        file.chmod(0)
    found = gather()
    said = {line.subject: line for line in verdict.judge(found)}
    whole = text(found)
    for file in closed:
        file.chmod(0o700)
    reasons = {
        "training": "training.unread",
        "evaluation": "evaluation.broken",
        "speed": "speed.unread",
        "om": "om.unread",
    }
    for (subject, reason), file in zip(reasons.items(), closed, strict=False):
        assert (said[subject].reason, said[subject].state) == (reason, "missing")
        assert str(said[subject].command).startswith("sudo chmod a+r"), subject
        assert str(file) in str(said[subject].command)
    for claim in (
        "Not evaluated",
        "Not counted",
        "Not measured: first",
        "Not exported",
        "No step was logged",
        "not evaluated",
    ):
        assert claim not in whole


@pytest.mark.usefixtures("by_modes")
@pytest.mark.parametrize("name", ["predictions.json", "images.json", "instances_val.json", "python"])
def test_charts_of_what_may_not_be_read_say_so_in_words(
    name: str, build: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = material.everything()
    truth = build / "annotations/instances_val.json"
    python = build / "python"
    material.write(truth, {})
    material.write(python, "")
    python.chmod(0o755)
    monkeypatch.setattr(charts.venv, "stack_python", lambda _: python)
    monkeypatch.setattr(charts, "_draw_curves", lambda *_: None)
    inputs = {"annotations": hashlib.sha256(b"{}").hexdigest(), "checkpoint": material.CHECKPOINT}
    material.add_eval(run / "eval", inputs=inputs)
    material.write(run / "eval/images.json", {"annotations": str(truth), "images": [1]})
    file = {truth.name: truth, python.name: python}.get(name, run / "eval" / name)
    file.chmod(0)
    found = gather()
    made = charts.draw(found, "zh", 0.3)
    markdown = render.to_markdown(page.compose(found, made, Words("zh")), Words("zh"))
    assert f"sudo chmod a+r {file}" in markdown
    assert "无权读取" in markdown
    assert "Errno" not in markdown
    assert "denied" not in markdown


@pytest.mark.usefixtures("by_modes")
def test_a_run_of_another_user_is_running_only_while_it_runs() -> None:
    run = material.add_run(state="running")
    (run / ".lock").touch()
    (run / ".lock").chmod(0o400)
    run.chmod(0o500)
    assert gather().state == "stopped"
    with (run / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert gather().state == "running"
    run.chmod(0o700)


def test_a_run_whose_checkpoint_may_not_be_read_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    material.everything()

    def refuse(run: Path) -> Path:
        raise PermissionError(13, "Permission denied", str(run / "last_checkpoint"))

    monkeypatch.setattr(facts.folders, "last_checkpoint", refuse)
    assert gather().checkpoint is None


# -- which run --


def test_without_any_run_the_next_command_trains() -> None:
    error = fails("data-missing", gather)
    assert error.hint == "make train MODEL=vitdet-tiny DATASET=shapes"


def test_an_unknown_run_lists_those_that_there_are() -> None:
    material.add_run()
    error = fails("data-missing", gather, "nosuch")
    assert error.found == "first"
    assert error.hint == "make report MODEL=vitdet-tiny DATASET=shapes RUN=first"


def test_results_of_a_checkpoint_without_a_run_are_reported() -> None:
    checkpoint = "/weights/R_101_3x.pth"
    material.add_eval(material.home() / "eval-R_101_3x", digest="f" * 64, checkpoint=checkpoint)
    material.add_speed(material.home() / "speed-R_101_3x")
    for subject in (
        SUBJECT,
        Subject(stack="vitdet", model="vitdet-tiny", dataset="shapes", checkpoint=checkpoint),
    ):
        found = gather(subject=subject)
        assert (found.run, found.name, found.digest) == (None, "R_101_3x", "f" * 64)
        assert found.evaluation
        assert found.speed
        assert "was not trained here" in text(found)
        assert found.subject.make("speed").endswith(f"CHECKPOINT={checkpoint}")
        assert "CHECKPOINT" not in found.subject.make("train")
    other = Subject(stack="vitdet", model="vitdet-tiny", dataset="shapes", checkpoint="/weights/other.pth")
    assert fails("data-missing", gather, "latest", other).hint == other.make("eval")


def test_another_checkpoint_of_a_run_has_results_of_its_own() -> None:
    run = material.everything()
    other = run / "epoch_1.pth"
    other.write_text("weights of an epoch before")
    digest = hashlib.sha256(other.read_bytes()).hexdigest()
    material.add_eval(run / "eval-epoch_1", box=0.1, digest=digest, checkpoint=f"x/{other.name}")
    found = gather(
        subject=Subject(stack="vitdet", model="vitdet-tiny", dataset="shapes", checkpoint=str(other))
    )
    assert (found.name, found.digest) == ("first-epoch_1", digest)
    assert found.evaluation
    assert found.evaluation.of_checkpoint
    assert found.evaluation.numbers["bbox"]["AP"] == 0.1
    assert found.speed is None  # that is of the last checkpoint
    assert not found.staged[0].of_checkpoint


def test_an_evaluation_of_another_checkpoint_is_called_that() -> None:
    run = material.add_run()
    material.add_eval(run / "eval", digest="0" * 64)
    assert "only another checkpoint than the run's last one was evaluated" in text(gather())


def test_the_evaluation_of_all_images_comes_before_that_of_a_part() -> None:
    run = material.everything()
    part = {"annotations": material.ANNOTATIONS, "checkpoint": material.CHECKPOINT, "images": 4}
    material.add_eval(run / "eval-4", inputs=part)
    found = gather()
    assert found.evaluation
    assert (found.evaluation.images, [one.images for one in found.others]) == (120, [4])


def test_an_export_of_another_checkpoint_is_shown_as_such() -> None:
    material.add_run()
    material.add_om(checkpoint="0" * 64)
    found = gather()
    assert not found.staged[0].of_checkpoint
    assert "This export is of another checkpoint" in text(found)
    assert "this checkpoint is not exported" in text(found)


def test_commands_about_a_run_that_is_not_the_latest_name_its_checkpoint() -> None:
    run = material.add_run()
    assert gather(material.RUN).subject.checkpoint == ""
    material.add_run("second")
    assert gather(material.RUN).subject.make("speed").endswith(f" CHECKPOINT={run / 'epoch_2.pth'}")
    assert gather().subject.make("speed") == "make speed MODEL=vitdet-tiny DATASET=shapes"
