"""The page of a report in headless Chromium: no error, no scrolling sideways, readable by day and by night, on A4."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import report_material as material
from ascendet.report import compare, facts, page, render
from ascendet.report.commands import Subject
from ascendet.report.words import Language, Words

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH (Debian: chromium)")
SUBJECT = Subject(stack="vitdet", model=material.MODEL, dataset=material.DATASET)
A4 = 688  # px: 210 mm without the margins of 14 mm, 96 px to the inch

# Measures the page that it is put into: widths, what is wider than its place, and the lowest contrast of a text.
PROBE = """<script>
addEventListener("load", () => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const light = (text) => {
    const [r, g, b] = rgb(text).map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const colour = getComputedStyle(node).backgroundColor;
      if ((rgb(colour)[3] ?? 1) > 0) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const name = (node) => node.tagName + "." + node.className;
  let lowest = [99, ""];
  for (const node of document.body.querySelectorAll("*:not(svg *)")) {
    if (![...node.childNodes].some((one) => one.nodeType === 3 && one.textContent.trim())) continue;
    const [a, b] = [light(getComputedStyle(node).color), light(ground(node))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < lowest[0]) lowest = [ratio, name(node)];
  }
  const wide = [...document.querySelectorAll("main *:not(svg *)")].filter(
    (node) => node.getBoundingClientRect().right > innerWidth + 1 && !node.closest(".scroll, pre, .lines thead"));
  const boxes = [...document.querySelectorAll(".scroll, pre")];
  const scrolls = boxes.filter((node) => node.scrollWidth > node.clientWidth + 1);
  parent.document.documentElement.dataset[window.name] = JSON.stringify({
    view: innerWidth, page: document.documentElement.scrollWidth, lowest, scrolls: scrolls.length,
    wide: wide.map(name), ground: getComputedStyle(document.body).backgroundColor,
  });
});
</script></head>"""


def chromium(*options: str, profile: Path) -> subprocess.CompletedProcess[str]:
    """Run Chromium without a window to its end."""
    common = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
    ]
    command = [str(CHROMIUM), *common, f"--user-data-dir={profile}", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def pages(language: Language) -> tuple[str, str]:
    """Return a report with everything in it and a long name, and a comparison, as HTML."""
    material.everything()
    words = Words(language)
    found = facts.gather(SUBJECT, material.MODEL, "latest")
    charts = material.drawn(f"{'very-long-name-' * 9}.png")
    made = page.compose(found, charts, words), compare.compose((found, found), charts, words)
    return render.to_html(made[0], words), render.to_html(made[1], words)


def measure(frames: Mapping[str, tuple[str, int]], folder: Path, *options: str) -> dict[str, dict[str, Any]]:
    """Return what PROBE measures of pages in frames of a width; Chromium's own windows are at least 500 px wide."""
    inside = []
    for name, (text, width) in frames.items():
        probed = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text).replace(
            "</head>", PROBE, 1
        )
        source = html.escape(probed, quote=True)
        inside.append(
            f'<iframe name="{name}" srcdoc="{source}" style="border:0;width:{width}px;height:900px"></iframe>'
        )
    file = folder / "frames.html"
    file.write_text(f"<!doctype html><meta charset=utf-8><body>{''.join(inside)}", encoding="utf-8")
    shown = chromium(*options, "--dump-dom", f"file://{file}", profile=folder / "profile").stdout
    found = dict(re.findall(r'data-(\w+)="(\{&quot;[^"]*)"', shown[:5000]))
    return {name: json.loads(html.unescape(found[name])) for name in frames}


@pytest.mark.parametrize(("scheme", "ground"), [("light", "rgb(251, 251, 249)"), ("dark", "rgb(17, 19, 21)")])
def test_a_page_is_readable_at_every_width_by_day_and_by_night(
    build: Path, tmp_path: Path, scheme: str, ground: str
) -> None:
    text, comparison = pages("zh")
    printed = text.replace("@media print", "@media all")
    frames = {"phone": (text, 380), "desk": (text, 1280), "paper": (printed, A4), "pair": (comparison, 380)}
    options = ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    for name, found in measure(frames, tmp_path, *options).items():
        assert found["view"] == found["page"] == frames[name][1], (name, found)
        assert found["wide"] == [], name
        assert found["lowest"][0] >= 4.5, (name, found["lowest"])  # WCAG 2, AA
        assert found["ground"] == ("rgb(255, 255, 255)" if name == "paper" else ground)
        assert (found["scrolls"] > 0) == (name in ("phone", "pair")), (
            name
        )  # tables, in their own place; none on paper


def test_it_prints_on_a4_and_the_console_is_silent(build: Path, tmp_path: Path) -> None:
    file, pdf = tmp_path / "page.html", tmp_path / "page.pdf"
    file.write_text(pages("en")[0], encoding="utf-8")
    options = ["--enable-logging=stderr", "--v=0", f"--print-to-pdf={pdf}", "--no-pdf-header-footer"]
    done = chromium(*options, f"file://{file}", profile=tmp_path / "profile")
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
    sizes = re.findall(rb"/MediaBox\s*\[0 0 ([\d.]+) ([\d.]+)\]", pdf.read_bytes())
    assert {(round(float(width)), round(float(height))) for width, height in sizes} == {(595, 842)}


def test_the_console_would_have_shown_an_error(tmp_path: Path) -> None:
    file, pdf = tmp_path / "page.html", tmp_path / "page.pdf"
    file.write_text("<script>throw new Error('seen')</script>")
    options = ["--enable-logging=stderr", "--v=0", f"--print-to-pdf={pdf}"]
    said = chromium(*options, f"file://{file}", profile=tmp_path / "profile").stderr
    assert any("CONSOLE" in line and "seen" in line for line in said.splitlines())
