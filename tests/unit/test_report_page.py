"""The page of a report: its verdict, its words in two languages, HTML and Markdown that obey nothing in a file."""

from __future__ import annotations

import fcntl
import hashlib
import html.parser
import json
import re
import shutil
import string
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import report_material as material
from ascendet import paths
from ascendet.report import compare, facts, page, render, report, verdict, words
from ascendet.report.charts import Charts, _count_pictures, _svg, _take
from ascendet.report.commands import Subject
from ascendet.report.document import Cell, Page, Table
from ascendet.report.facts import Facts
from ascendet.report.reading import Reader, Reason
from ascendet.report.verdict import Line
from ascendet.report.words import LANGUAGES, Language, Words
from conftest import fails

SUBJECT = Subject(stack="vitdet", model=material.MODEL, dataset=material.DATASET)
SOURCE = paths.ROOT / "scripts/ascendet/report"


def gather(run: str = "latest") -> Facts:
    return facts.gather(SUBJECT, material.MODEL, run)


def compose(language: Language = "en") -> Page:
    return page.compose(gather(), material.drawn(), Words(language))


def lines() -> dict[str, Line]:
    return {line.subject: line for line in verdict.judge(gather())}


@pytest.fixture(autouse=True)
def _build(build: Path) -> Path:
    return build


# -- verdict --


def test_all_that_is_simulated_is_met_but_for_an_npu_and_throughput() -> None:
    material.everything()
    states = {subject: line.state for subject, line in lines().items()}
    assert states == {
        "training": "met",
        "evaluation": "met",
        "accuracy.bbox": "met",
        "accuracy.segm": "met",
        "fallbacks": "met",
        "speed": "measured",
        "om": "met",
        "hardware": "missing",
    }
    assert verdict.outcome(list(lines().values())) == "partial"
    assert all(line.simulated for line in lines().values() if line.state != "missing")


def test_on_npus_nothing_is_called_simulated() -> None:
    run = material.add_run(simulated=False, where="2 x Ascend910B3 in build/venv/vitdet")
    material.add_eval(run / "eval", simulated=False, where="2 x Ascend910B3 in build/venv/vitdet")
    material.add_speed(run / "speed", simulated=False, where="1 x Ascend910B3 in build/venv/vitdet")
    assert lines()["hardware"].state == "met"
    made = page.compose(gather(), material.drawn(), Words("en"))
    text = render.to_html(made, Words("en"))
    band = text.index("measured on cann_sim")  # the band's limits are
    assert [found.start() < band for found in re.finditer('class="sim"', text)] == [True]


def test_a_part_on_npus_is_not_the_whole() -> None:
    run = material.add_run(simulated=False)
    assert lines()["hardware"].state == "met"
    material.add_eval(run / "eval")
    assert (lines()["hardware"].state, lines()["hardware"].reason) == ("missing", "hardware.mixed")


@pytest.mark.parametrize(
    ("box", "state"), [(0.5, "failed"), (0.565, "met"), (0.661, "met"), (0.9, "met"), (-1.0, "measured")]
)
def test_ap_is_held_to_the_band(box: float, state: str) -> None:
    material.add_eval(material.add_run() / "eval", box=box)
    assert lines()["accuracy.bbox"].state == state


def test_a_band_is_for_its_annotations_and_all_images() -> None:
    run = material.add_run()
    inputs = {"annotations": "0" * 64, "checkpoint": material.CHECKPOINT, "images": 120}
    material.add_eval(run / "eval", inputs=inputs)
    assert lines()["accuracy.bbox"].reason == "accuracy.other-annotations"
    (run / "eval").rename(run / "eval-4")
    material.add_eval(run / "eval-4")
    assert lines()["accuracy.bbox"].reason == "accuracy.part"
    assert lines()["accuracy.bbox"].command == "make eval MODEL=vitdet-tiny DATASET=shapes"
    material.add_eval(run / "eval-4", acceptance=["IMAGES was more than there are: all were evaluated"])
    assert lines()["accuracy.bbox"].state == "met"


@pytest.mark.parametrize(
    ("difference", "state"), [(None, "missing"), (-0.009, "met"), (-0.02, "failed"), (0.3, "met")]
)
def test_official_figures_are_for_the_same_pictures(difference: float | None, state: str) -> None:
    row = {"official": 0.448, "measured": 0.45, "difference": difference}
    official = {
        "of": "R_101_3x",
        "source": "its README",
        "dataset": "COCO",
        "images": 5000,
        "figures": {"bbox": row},
    }
    material.add_eval(material.add_run() / "eval", official=official)
    assert "official.bbox" not in lines()  # shapes has none to be held to
    material.home().rename(material.home().with_name("vitdet-tiny_coco-val"))
    subject = Subject(stack="vitdet", model=material.MODEL, dataset="coco-val")
    found = {line.subject: line for line in verdict.judge(facts.gather(subject, material.MODEL, "latest"))}
    assert found["official.bbox"].state == state
    if state == "missing":
        assert found["official.bbox"].command == "make eval MODEL=vitdet-tiny DATASET=coco"


def test_an_operator_on_the_cpu_is_named() -> None:
    material.add_run(cpu_fallbacks=[{"operator": "torchvision::nms", "line": "a.py:3"}])
    assert lines()["fallbacks"].values == {"operators": "torchvision::nms"}
    assert lines()["fallbacks"].state == "failed"


def test_fallbacks_that_nobody_watched_are_not_called_none() -> None:
    run = material.add_run()
    (run / "train.log").write_text("runtime: NPU_FALLBACK=allow\n")
    assert lines()["fallbacks"].state == "missing"


def test_a_training_without_a_step_shows_nothing_yet() -> None:
    run = material.add_run(state="running")
    (run / "progress.jsonl").write_text("")
    with (run / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = lines()
        text = str(compose())
    assert (found["training"].reason, found["training"].state) == ("training.starting", "missing")
    assert found["fallbacks"].state == "missing"
    assert "no step is logged yet" in text
    assert "About " not in text


@pytest.mark.parametrize("evaluated", [True, False])
def test_figures_of_a_training_without_a_manifest_are_marked_or_their_devices_called_unknown(
    evaluated: bool,
) -> None:
    run = material.add_run()
    if evaluated:
        material.add_eval(run / "eval")
    (run / "manifest.json").unlink()
    markdown = render.to_markdown(compose(), Words("en"))
    (line,) = (line for line in markdown.splitlines() if line.startswith("- throughput"))
    assert line.endswith("(simulated)") is evaluated
    assert ("No manifest says whether" in markdown) is not evaluated


def test_a_checkpoint_that_was_cut_off_since_is_not_met() -> None:
    run = material.everything()
    assert lines()["training"].state == "met"
    (run / "epoch_2.pth").write_text("weig")
    assert (lines()["training"].state, lines()["training"].reason) == ("failed", "training.damaged")
    text = str(compose())
    assert "epoch_2.pth cannot be used" in text
    assert "it has 4 bytes now" in text
    (run / "epoch_2.pth").unlink()
    assert (lines()["training"].state, lines()["training"].reason) == ("missing", "training.no-checkpoint")


def test_a_training_is_met_by_its_log_not_by_its_manifest_alone() -> None:
    run = material.add_run()
    rows = (run / "progress.jsonl").read_text().splitlines(keepends=True)
    train = [row for row in rows if '"train"' in row]
    for kept, reason in (
        (train, "finished"),
        (train[:3], "finished"),  # the last steps need not be logged: 75 of 100, every 25th
        ([*train[:2], rows[-1]], "finished"),  # validated at step 100
        (train[:2], "cut"),
        ([], "unlogged"),
    ):
        (run / "progress.jsonl").write_text("".join(kept))
        line = lines()["training"]
        assert line.reason == f"training.{reason}"
        assert line.state == ("met" if reason == "finished" else "missing")
        assert line.command == (
            None if reason == "finished" else "make train MODEL=vitdet-tiny DATASET=shapes"
        )
    (run / "progress.jsonl").unlink()
    assert lines()["training"].reason == "training.unlogged"
    assert "no step of it is logged" in str(compose())


@pytest.mark.parametrize("name", ["backbone.onnx", "Ascend910B3-origin/backbone.om"])
def test_an_export_of_which_a_file_was_cut_off_since_is_not_met(name: str) -> None:
    material.everything()
    folder = material.add_om()
    whole = hashlib.sha256(b"onnx").hexdigest()
    (folder / "Ascend910B3-origin/backbone.om").write_text("onnx")
    for file, stages in (
        (folder / "export_meta.json", None),
        (folder / "Ascend910B3-origin/om.json", "backbone"),
    ):
        content = json.loads(file.read_text())
        (content["stages"][stages] if stages else content["stages"][0])["sha256"] = whole
        material.write(file, content)
    assert lines()["om"].state == "met"
    (folder / name).write_text("on")
    assert (lines()["om"].state, lines()["om"].reason) == ("failed", "om.damaged")
    assert f"{name} cannot be used" in str(compose())


def test_a_comparison_of_an_earlier_export_or_without_a_rung_shows_nothing() -> None:
    material.everything()
    folder = material.add_om()
    comparison = folder / "compare-Ascend910B3-origin/compare.json"
    material.write(comparison, json.loads(comparison.read_text()) | {"ladder": []})
    assert (lines()["om"].state, lines()["om"].reason) == ("missing", "om.no-rungs")
    material.add_om()
    record = folder / "Ascend910B3-origin/om.json"
    material.write(record, json.loads(record.read_text()) | {"export_id": "an earlier one"})
    assert (lines()["om"].state, lines()["om"].reason) == ("missing", "om.old")


def test_figures_of_another_checkpoint_are_not_this_ones() -> None:
    run = material.everything()
    other = {"checkpoint": "f" * 64}
    material.add_speed(run / "speed", inputs=other)
    assert (lines()["speed"].state, lines()["speed"].reason) == ("missing", "speed.old")
    file = paths.BUILD / "mine.pth"
    file.write_text("weights")
    asked = replace(SUBJECT, checkpoint=str(file))
    material.add_eval(material.home() / "eval-mine", checkpoint="mine.pth")
    for content, reason in (("weights", "evaluation.done"), ("weig", "evaluation.other")):
        file.write_text(content)
        (line,) = (
            one
            for one in verdict.judge(facts.gather(asked, material.MODEL, "latest"))
            if one.subject == "evaluation"
        )
        assert line.reason == reason


def test_numbers_that_are_not_the_manifests_are_not_quoted() -> None:
    run = material.everything()
    numbers = json.loads((run / "eval/metrics.json").read_text())
    numbers["bbox"]["AP"] = 0.99
    material.write(run / "eval/metrics.json", numbers)
    assert lines()["evaluation"].state == "missing"
    assert "its numbers are not those of the manifest beside it" in str(compose())


@pytest.mark.parametrize(("key", "said"), [("x", "another key"), (None, "is not here now")])
def test_a_data_set_that_changed_or_is_gone_since_is_not_how_one_reproduces_it(
    key: str | None, said: str, build: Path
) -> None:
    material.add_eval(material.add_run() / "eval")
    folder = build / "data/shapes"
    command = ["__main__.py", "data", "--dataset", "shapes"]

    def now(key: str, content: str) -> str:
        material.write(folder / "manifest.json", {"key": key, "command": command})
        material.write(folder / "annotations/instances_val.json", content)
        return str(compose())

    text = now("d" * 16, "{}")
    assert "make data DATASET=shapes" in text
    assert "has another key now" not in text
    if key:
        text = now(key, "{}")
    else:
        shutil.rmtree(folder)
        text = str(compose())
    assert said in text
    assert "FROM" not in text  # shapes is not the user's own
    assert "make data DATASET=shapes" not in gather().commands
    material.add_eval(
        material.home() / "first/eval", inputs={"annotations": hashlib.sha256(b"{}").hexdigest()}
    )
    assert "another key" not in now("x", "{}")  # made anew by another stack, with the same annotations


def test_a_run_is_reported_although_its_data_set_is_gone(
    monkeypatch: pytest.MonkeyPatch, build: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    material.add_run()
    material.home().rename(build / "runs/vitdet-tiny_mine")
    run_stage(monkeypatch, "--dataset=mine")
    assert (
        "make data DATASET=mine FROM='&lt;folder or zip&gt;'"
        in next(build.glob("reports/*/report.md")).read_text()
    )
    assert "ran to its end" in capsys.readouterr().out
    fails("dataset-unknown", run_stage, monkeypatch, "--dataset=nobodys")
    fails("dataset-unknown", run_stage, monkeypatch, "--dataset=../x")


def test_a_single_logged_loss_is_said_once() -> None:
    run = material.add_run()
    rows = (run / "progress.jsonl").read_text().splitlines(keepends=True)
    (run / "progress.jsonl").write_text("".join(row for row in rows if '"step": 100' in row))
    markdown = render.to_markdown(compose(), Words("en"))
    assert "- loss: 1.000 (simulated)\n" in markdown


def test_chinese_sentences_have_chinese_punctuation() -> None:
    material.everything()
    markdown = render.to_markdown(compose("zh"), Words("zh"))
    prose = re.sub(
        r"<code>.*?</code>|```.*?```|\]\([^)]*\)|^\| mm.*$", "", markdown, flags=re.DOTALL | re.MULTILINE
    )
    assert re.findall(r".{8}[\u4e00-\u9fff] ?[;:,(](?!\d).{8}", prose) == []


def test_a_band_is_for_the_recipe() -> None:
    run = material.add_run()
    material.add_eval(run / "eval", box=0.1)
    assert lines()["accuracy.bbox"].state == "failed"
    for given, said in (({"epochs": "1"}, "EPOCHS=1"), ({"lr": 0.5, "amp": True}, "LR=0.5 AMP=1")):
        material.add_run(inputs={"amp": False, "lr": None, **given})
        line = lines()["accuracy.bbox"]
        assert (line.state, line.values["changed"]) == ("measured", said)
        assert f"given {said}" in str(compose())


@pytest.mark.parametrize("state", ["failed", "interrupted", "stopped"])
def test_a_training_that_ended_before_a_step_was_not_at_step_0_of_0(state: str) -> None:
    run = material.add_run(state="running" if state == "stopped" else state, error="npu-lost")
    (run / "progress.jsonl").unlink()
    assert lines()["training"].reason == f"training.{state}-early"
    text = str(compose())
    assert "before its first logged step" in text
    assert "0 of 0" not in text


def test_what_only_one_run_has_been_evaluated_with_does_not_differ() -> None:
    for name in ("first", "second"):
        material.add_run(name)
    material.add_eval(material.home() / "first/eval")
    pair = gather("first"), gather("second")
    made = compare.compose(pair, material.drawn(), Words("en"))
    assert "Their inputs are the same" in str(made)
    assert made.made.count("/runs/vitdet-tiny_shapes/") == 2


def test_predictions_are_not_shown_beside_other_annotations(build: Path) -> None:
    named, here = build / "elsewhere.json", build / "data/shapes/annotations/instances_val.json"
    digest = hashlib.sha256(b"{}").hexdigest()

    def found(first: str | None, second: str | None, digest: str | None = digest) -> Path | None:
        for file, content in ((named, first), (here, second)):
            file.unlink(missing_ok=True)
            if content:
                material.write(file, content)
        return report.charts._annotations(named, "shapes", digest)

    assert found("{}", None) == named
    assert found(None, "{}") == found("[]", "{}") == here
    assert found("[]", None) is found("[]", "[]") is found(None, None) is None
    assert found("[]", "{}", digest=None) == named


def test_captions_are_text_in_markdown() -> None:
    material.everything()
    made = page.compose(gather(), material.drawn("a_b's *c*.png"), Words("en"))
    markdown = render.to_markdown(made, Words("en"))
    assert "*a\\_b's \\*c\\*.png: 4 found" in markdown
    assert "each column's own median" in markdown


def test_a_rung_that_breaks_fails() -> None:
    material.add_run()
    material.add_om(holds=False)
    assert lines()["om"].state == "failed"
    assert verdict.outcome(list(lines().values())) == "failed"


# -- words --


def fields(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}


def test_every_text_is_in_both_languages_with_the_same_placeholders() -> None:
    for key, texts in words.load().items():
        assert set(texts) == set(LANGUAGES), key
        assert all(texts.values()), key
        assert fields(texts["en"]) == fields(texts["zh"]), key


def test_every_key_is_used_and_every_used_key_exists() -> None:
    sources = [*SOURCE.glob("*.py"), *SOURCE.glob("templates/*.j2")]
    text = "\n".join(file.read_text(encoding="utf-8") for file in sources)
    known = set(words.load())
    called = set(re.findall(r"\b(?:words|t)\(\s*[\"']([a-z0-9]+\.[a-z0-9-]+)[\"']\s*[,)]", text))
    called |= {f"why.{name.replace('.', '-')}" for name in re.findall(r'reason="([a-z.-]+)"', text)}
    assert called - known == set()
    # Keys that are put together: their beginning stands in a text, and what follows it in quotes.
    begun = re.findall(r"[\"'](?:reason=f\")?([a-z0-9]+\.(?:[a-z0-9]+-)?)(?:\{|' ~)", text)
    begun += [f"why.{name}-" for name in re.findall(r'reason=f"([a-z]+)\.\{', text)]
    quoted = set(re.findall(r"[\"']([A-Za-z0-9_.-]+)[\"']", text))
    made = {f"verdict.{subject}-{kind}" for subject in ("accuracy", "official") for kind in facts.KINDS}
    made |= {key for key in known if key.removeprefix("why.").replace("-", ".", 1) in quoted}
    for key in known:
        rests = [key.removeprefix(start).removesuffix("-alt") for start in begun if key.startswith(start)]
        made |= {key for rest in rests if rest in quoted}
    assert sorted(known - called - made - quoted) == []


@pytest.mark.parametrize(
    ("environ", "language"),
    [
        ({"LANG": "zh_CN.UTF-8"}, "zh"),
        ({"LC_ALL": "C", "LANG": "zh_CN.UTF-8"}, "en"),
        ({"LC_MESSAGES": "zh_TW", "LANG": "en_US"}, "zh"),
        ({}, "en"),
    ],
)
def test_the_language_is_the_locales(environ: dict[str, str], language: str) -> None:
    assert words.choose("", environ) == language


def test_another_language_is_refused() -> None:
    fails("usage", words.choose, "fr")


# -- HTML --


class Outline(html.parser.HTMLParser):
    """What a test looks at in a page."""

    def __init__(self) -> None:
        super().__init__()
        self.headings: list[int] = []
        self.ids: Counter[str] = Counter()
        self.links: list[str] = []
        self.sources: list[str] = []
        self.alts: list[str | None] = []
        self.tags: Counter[str] = Counter()
        self.open: list[str] = []
        self.language: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags[tag] += 1
        if tag not in ("meta", "link", "img", "br", "path"):
            self.open.append(tag)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag == "html":
            self.language = found["lang"]
        if found.get("id"):
            self.ids[str(found["id"])] += 1
        self.links += [str(found["href"])] if tag == "a" else []
        self.sources += [str(found[name]) for name in ("src", "href") if found.get(name) and tag != "a"]
        self.alts += [found.get("alt")] if tag == "img" else []
        assert not any(name.startswith("on") for name in found)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_page_is_one_file_that_a_screen_reader_can_read(language: Language) -> None:
    material.everything()
    text = render.to_html(compose(language), Words(language))
    seen = Outline()
    seen.feed(text)
    assert seen.language == {"en": "en", "zh": "zh-CN"}[language]
    assert seen.open == []
    assert seen.headings[0] == 1
    assert seen.headings.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(seen.headings, seen.headings[1:], strict=False))
    assert max(seen.ids.values()) == 1
    assert all(link.removeprefix("#") in seen.ids for link in seen.links)
    assert all(source.startswith("data:") for source in seen.sources)
    assert seen.tags["script"] == 0
    assert seen.alts
    assert all(seen.alts)
    assert "url(" not in text
    assert "@import" not in text


@pytest.mark.parametrize("language", LANGUAGES)
def test_names_from_files_are_text_and_nothing_else(language: Language) -> None:
    material.everything()
    made = compose(language)
    text = render.to_html(made, Words(language))
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "<script" not in text
    markdown = render.to_markdown(made, Words(language))
    assert "<script" not in markdown
    assert "a\\|b &lt;script&gt;.png" in markdown
    note = (
        "pictures that are not there or cannot be read: 1 (&lt;b&gt;.png); make data-check DATASET=… says why"
    )
    assert note in text
    assert note in markdown


def test_markdown_tables_have_as_many_cells_as_columns() -> None:
    material.everything()
    markdown = render.to_markdown(compose(), Words("en"))
    tables = re.findall(r"(?:^\|.*\|\n)+", markdown, re.MULTILINE)
    assert len(tables) > 10
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1, table
    pictures = re.findall(r"\]\(pictures/([^)]+)\)", markdown)
    assert sorted(pictures) == sorted({figure.name for figure in render.figures(compose())})


def test_a_markdown_caption_that_is_only_a_mark_is_no_list_item() -> None:
    material.everything()
    markdown = render.to_markdown(compose(), Words("en"))
    assert "\n*(simulated)*\n" in markdown
    assert "\n* " not in markdown


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_reader_is_told_what_missed_and_a_dashed_frame_mean(language: Language) -> None:
    material.everything()
    told = str(compose(language))
    for word in {"en": ("dashed frame", "Missed are all"), "zh": ("虚线框", "漏检指")}[language]:
        assert word in told
    assert "1 devices" not in told


def test_this_machines_folders_are_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    assert render.tidy(f"{paths.ROOT}/build/x, /home/ann/y, /home/anna, /data/home/ann") == (
        "build/x, ~/y, /home/anna, /data/home/ann"
    )


def test_simulated_stands_once_on_a_table_that_is_on_columns_or_on_cells() -> None:
    def table(*marks: tuple[bool, bool]) -> Table:
        rows = [[Cell(text="a"), *(Cell(text="1", simulated=mark) for mark in row)] for row in marks]
        return Table(columns=["", "x", "y"], rows=rows)

    assert render.marks(table((True, True), (True, True)))[0]
    assert render.marks(table((True, False), (True, True))) == (False, [False, True, False])
    assert render.marks(table()) == (False, [False] * 3)


def test_a_chart_that_could_run_code_is_refused(tmp_path: Path) -> None:
    refused = (
        "<svg><script>1</script></svg>",
        '<svg onload="x"/>',
        "<svg><foreignObject/></svg>",
        '<svg><use href="data:x"/></svg>',
    )
    for text in refused:
        (tmp_path / "chart.svg").write_text(text)
        with pytest.raises(ValueError, match=r"^chart\.svg$"):
            _svg(tmp_path / "chart.svg")
    (tmp_path / "chart.svg").write_text(
        '<svg><use xlink:href="#m"/><text>a class on it= javascript:</text></svg>'
    )
    assert b"a class on it=" in _svg(tmp_path / "chart.svg")


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"images": 1}'])
def test_broken_findings_are_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "findings.json").write_text(content)
    reader, charts = Reader(), Charts()
    _take(tmp_path, charts, reader, "make eval")
    assert charts.findings is None
    assert [one.section for one in reader.broken] == ["pictures"]


@pytest.mark.parametrize(
    ("said", "broken", "command"),
    [
        ("ModuleNotFoundError: No module named 'numpy'", [], "make install"),
        ("error: predictions.json is no list of COCO results", ["pictures"], None),
    ],
)
def test_a_package_that_is_missing_is_no_fault_of_the_predictions(
    tmp_path: Path, said: str, broken: list[str], command: str | None
) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "{said}" >&2\nexit 1\n')
    python.chmod(0o755)
    annotations = tmp_path / "instances_val.json"
    annotations.write_text("{}")
    inputs = {"annotations": hashlib.sha256(b"{}").hexdigest(), "checkpoint": material.CHECKPOINT}
    evaluated = material.add_eval(material.add_run() / "eval", inputs=inputs)
    material.write(evaluated / "predictions.json", [])
    material.write(evaluated / "images.json", {"annotations": str(annotations), "images": [1]})
    found, made = gather(), Charts()
    assert found.evaluation
    report.charts._find(found, found.evaluation, python, "en", 0.3, made)
    assert made.no_findings == Reason(key="said", values={"text": said.removeprefix("error: ")})
    assert [one.section for one in found.broken] == broken
    assert made.remedy is None if command is None else str(made.remedy).startswith(command)


def test_a_page_without_an_environment_compiles_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(report.charts.venv, "stack_python", lambda _: tmp_path / "bin/python")
    material.add_eval(material.add_run() / "eval")
    made = report.charts.draw(gather(), "en", 0.3)
    assert made.no_findings == made.no_curves == Reason(key="absent", file=f"{tmp_path}/bin/python")
    assert str(made.remedy).startswith("make install")


def test_pictures_that_arrive_later_are_drawn_then(tmp_path: Path) -> None:
    annotations = tmp_path / "annotations/instances_val.json"
    material.write(annotations, {})
    before = _count_pictures(annotations)
    material.write(tmp_path / "val/1.png", {})
    assert _count_pictures(annotations) == {**before, "val": 1}


def test_pictures_stop_before_the_page_is_too_long(tmp_path: Path) -> None:
    rows = [{"role": "best", "file": f"{at}.jpg", "file_name": "a"} for at in range(4)]
    for row in rows:
        (tmp_path / row["file"]).write_bytes(bytes(1_200_000))
    content = {
        "images": 1,
        "objects": 1,
        "shown": 1,
        "score": 0.3,
        "errors": {},
        "charts": {},
        "pictures": rows,
    }
    material.write(tmp_path / "findings.json", content)
    charts = Charts()
    _take(tmp_path, charts, Reader(), "make eval")
    assert len(charts.pictures) == 2


# -- the stage --


def run_stage(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """Run `make report` with the charts that the fixtures have."""
    import argparse

    monkeypatch.setattr(report.charts, "draw", lambda *_: material.drawn())
    monkeypatch.setattr(report.charts, "overlay", lambda *_: material.drawn())
    parser = argparse.ArgumentParser()
    report.configure_parser(parser)
    report.execute(parser.parse_args(["--model=vitdet-tiny", "--dataset=shapes", *arguments]))


def test_the_stage_writes_both_forms_and_prints_the_verdict(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], build: Path
) -> None:
    material.everything()
    run_stage(monkeypatch, "--language=zh")
    folder = build / "reports/vitdet-tiny_shapes_first_zh"
    assert {file.name for file in folder.iterdir()} == {"report.html", "report.md", "pictures"}
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].endswith("vitdet-tiny_shapes_first_zh/report.html")
    assert 8 < len(printed) <= 12
    assert "验收区间" in printed[4]
    assert (folder / "report.html").stat().st_size < 5_000_000


def test_two_runs_are_compared(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], build: Path
) -> None:
    first = material.everything()
    second = material.add_run("second", inputs={"lr": 5e-5, "wheels": {"mmcv": "f" * 64}})
    material.add_eval(second / "eval", box=0.7)
    run_stage(monkeypatch, f"--run={first.name},second")
    text = (build / "reports/vitdet-tiny_shapes_first_second/report.md").read_text()
    assert re.search(r"\| first \| 0.680.*\n\| second \| 0.700.*\n\| difference \| \+0.020", text)
    assert "| lr | <code>None</code> | <code>5e-05</code> |" in text
    assert "wheels.mmcv" in text
    assert len(capsys.readouterr().out.splitlines()) <= 12
    error = fails("data-missing", run_stage, monkeypatch, "--run=first,third")
    assert error.expected == "the run third"
    assert error.found == "first, second"
    for other in ("first,second,third", "first,first", ".", "..", "first/eval", ","):
        fails("usage", run_stage, monkeypatch, f"--run={other}")


def test_a_configuration_of_ones_own_is_called_like_its_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, build: Path
) -> None:
    (tmp_path / "mine.yaml").write_text("MODEL: {}\n")
    material.add_run()
    material.home().rename(material.home().with_name("mine_shapes"))
    run_stage(monkeypatch, "--stack=blendmask", f"--model={tmp_path}/mine.yaml")
    text = (build / "reports/mine_shapes_first/report.md").read_text()
    assert text.startswith("# mine on shapes\n")
    assert f"make eval MODEL={tmp_path}/mine.yaml DATASET=shapes STACK=blendmask" in text


def test_two_equal_runs_do_not_differ() -> None:
    material.everything()
    made = compare.compose((gather(), gather()), material.drawn(), Words("en"))
    assert "Their inputs are the same" in str(made)


def test_a_folder_that_cannot_be_written_is_an_error_with_a_next_command(
    monkeypatch: pytest.MonkeyPatch, build: Path
) -> None:
    material.add_run()
    (build / "reports").write_text("a file where the folder should be")
    assert "ls -ld" in fails("report-unwritable", run_stage, monkeypatch).hint


def test_a_report_that_fails_leaves_the_older_one(monkeypatch: pytest.MonkeyPatch, build: Path) -> None:
    material.add_run()
    run_stage(monkeypatch)
    before = (build / "reports/vitdet-tiny_shapes_first/report.html").read_text()

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report.render, "write", fail)
    fails("disk-full", run_stage, monkeypatch)
    assert (build / "reports/vitdet-tiny_shapes_first/report.html").read_text() == before
    assert [file.name for file in (build / "reports").iterdir()] == ["vitdet-tiny_shapes_first"]
