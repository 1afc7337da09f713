"""Where exported models and their OMs are, and what their records say.

    build/om/<model>-<dataset>-<height>x<width>-b<batch>/   export_meta.json, <stage>.onnx
        <soc>-<precision>/                                  om.json, <stage>.om

staged_om describes export_meta.json (`staged_om.meta`), which the family's export program writes; `make om` writes
om.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ascendet import paths
from ascendet.core import again
from ascendet.errors import AscendetError
from ascendet.run.target import Target

META = "export_meta.json"  # staged_om.meta.META
RECORD = "om.json"
FUSION_RESULT = (
    "fusion_result.json"  # what atc leaves in its current folder; we keep it as <stage>.fusion_result.json
)
KEEP_SUFFIX = ".keep_dtype.cfg"  # a node in each line, as atc's --keep_dtype takes them
# What `--precision_mode_v2` takes; atc refuses it beside `--precision_mode`, which takes the others.
PRECISIONS_V2 = ("origin", "fp16", "mixed_float16", "mixed_bfloat16", "cube_fp16in_fp32out")
PRECISIONS_V1 = (
    "force_fp16",
    "force_fp32",
    "must_keep_origin_dtype",
    "allow_fp32_to_fp16",
    "allow_mix_precision",
    "allow_mix_precision_fp16",
    "allow_mix_precision_bf16",
)

Size = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Exported:
    """An exported model: its folder, and the content of its export_meta.json."""

    folder: Path
    meta: dict[str, Any]

    @property
    def size(self) -> Size:
        """The input's height and width in pixels."""
        return int(self.meta["height"]), int(self.meta["width"])

    @property
    def batch(self) -> int:
        """The pictures of one pass."""
        return int(self.meta["batch"])

    @property
    def stages(self) -> list[dict[str, Any]]:
        """The stages, in the order in which they run."""
        return list(self.meta["stages"])

    def om_folder(self, soc: str, precision: str) -> Path:
        """Return the folder of the OMs for a SoC in a precision mode."""
        return self.folder / f"{soc}-{precision}"

    def om_folders(self) -> list[Path]:
        """Return the complete folders with OMs."""
        return sorted(record.parent for record in self.folder.glob(f"[!.]*/{RECORD}"))


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose among exported models: `--sizes` and `--batch`."""
    parser.add_argument("--sizes", default="", help="heights and widths: 1024x1024,800x1344")
    parser.add_argument("--batch", default="", help="pictures of one pass: 1,4")


def add_conversion_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what OMs are for: `--precision` and `--force`; `--soc` is the target's."""
    parser.add_argument("--precision", default="origin", help="a precision mode of atc, of either option")
    parser.add_argument(
        "--keep-dtype", default="", help="a folder with <stage>.keep_dtype.cfg of make om-precision"
    )
    parser.add_argument("--force", action="store_true", help="take SOC although other sources name another")


def home() -> Path:
    """Return the folder of all exported models."""
    return paths.BUILD / "om"


def read(folder: Path) -> Exported:
    """Return the exported model in a folder."""
    return Exported(folder=folder, meta=json.loads((folder / META).read_text(encoding="utf-8")))


def folder_name(aim: Target, size: Size, batch: int) -> str:
    """Return the name of the folder of an exported model."""
    return f"{aim.model}-{aim.dataset}-{size[0]}x{size[1]}-b{batch}"


def find(aim: Target, sizes: Sequence[Size], batches: Sequence[int]) -> list[Exported]:
    """Return the exported models of a target, of these sizes and batches; empty means all.

    Raises
    ------
    AscendetError
        `om-missing`: there is none, or not all that were asked for.
    """
    known = [read(meta.parent) for meta in sorted(home().glob(f"{aim.model}-{aim.dataset}-*x*-b*/{META}"))]
    found = [
        one for one in known if (not sizes or one.size in sizes) and (not batches or one.batch in batches)
    ]
    asked = [(size, batch) for size in sizes for batch in batches or [one.batch for one in found] or [1]]
    absent = [pair for pair in asked if pair not in [(one.size, one.batch) for one in found]]
    if absent or not found:
        raise AscendetError(
            "om-missing",
            f"{aim.model} on {aim.dataset} is not exported" + (" like this" if known else ""),
            expected=", ".join(folder_name(aim, size, batch) for size, batch in absent) or None,
            found=", ".join(one.folder.name for one in known) or f"nothing in {paths.shorten(home())}",
            hint=again.command("export", IMAGES="", SCORE="", BAD=""),
        )
    return found


def check_precision(text: str) -> str:
    """Return the precision mode in PRECISION; raise `usage` if there is no such mode."""
    if text not in (*PRECISIONS_V2, *PRECISIONS_V1):
        raise AscendetError(
            "usage",
            "PRECISION must be a precision mode of atc",
            expected=", ".join((*PRECISIONS_V2, *PRECISIONS_V1)),
            found=f"PRECISION={text}",
            hint="PRECISION=origin",
        )
    return text


Keep = Mapping[str, tuple[str, ...]]


def read_keep(text: str, stages: Sequence[str]) -> Keep:
    """Return the nodes that keep their data type by stage, from the folder KEEP_DTYPE; none if that is empty.

    Raises
    ------
    AscendetError
        `usage`: the folder has no file for any of these stages.
    """
    if not text:
        return {}
    folder = Path(text).expanduser()
    found = {stage: folder / f"{stage}{KEEP_SUFFIX}" for stage in stages}
    kept = {
        stage: tuple(file.read_text(encoding="utf-8").split())
        for stage, file in found.items()
        if file.is_file()
    }
    if not kept:
        raise AscendetError(
            "usage",
            "KEEP_DTYPE must be a folder that make om-precision wrote",
            expected=", ".join(file.name for file in found.values()),
            found=f"KEEP_DTYPE={text}",
            hint=again.command("om-precision", KEEP_DTYPE=""),
        )
    return kept


def kept_nodes(stage: Mapping[str, Any], keep: Keep) -> list[str]:
    """Return the nodes of a stage of export_meta.json that keep their data type: its own, and those of `keep`."""
    return sorted({*stage["keep_fp32"], *keep.get(stage["name"], ())})


def by_cann(folder: Path) -> bool:
    """Return whether CANN's own atc made the OMs in a folder, not the simulated one."""
    record = folder / RECORD
    return record.is_file() and not json.loads(record.read_text(encoding="utf-8"))["simulated"]


def mode_name(precision: str, keep: Keep) -> str:
    """Return the name of a precision mode with the nodes that are kept, as folders have it.

    >>> mode_name("fp16", {}), mode_name("fp16", {"roi": ("/RoiAlign",)})
    ('fp16', 'fp16-keep-414d3df3')
    """
    if not keep:
        return precision
    text = json.dumps({stage: sorted(nodes) for stage, nodes in keep.items()}, sort_keys=True)
    return f"{precision}-keep-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def parse_sizes(text: str) -> list[Size]:
    """Return the heights and widths in SIZES, or raise `usage`.

    >>> parse_sizes("1024x1024,800x1344"), parse_sizes("")
    ([(1024, 1024), (800, 1344)], [])
    """
    found = []
    for word in filter(None, text.replace(" ", "").split(",")):
        height, _, width = word.partition("x")
        if not (height.isascii() and width.isascii() and height.isdecimal() and width.isdecimal()) or not (
            int(height) and int(width)
        ):
            raise AscendetError(
                "usage",
                "SIZES must be heights and widths in pixels",
                found=f"SIZES={text}",
                hint="SIZES=1024x1024,800x1344",
            )
        found.append((int(height), int(width)))
    return list(dict.fromkeys(found))


def parse_batches(text: str) -> list[int]:
    """Return the numbers in BATCH, or raise `usage`.

    >>> parse_batches("1,4"), parse_batches("")
    ([1, 4], [])
    """
    words = list(filter(None, text.replace(" ", "").split(",")))
    if not all(word.isascii() and word.isdecimal() and int(word) for word in words):
        raise AscendetError(
            "usage", "BATCH must be numbers of pictures", found=f"BATCH={text}", hint="BATCH=1,4"
        )
    return list(dict.fromkeys(map(int, words)))
