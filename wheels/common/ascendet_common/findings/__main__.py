"""Turn an evaluation's detections into findings: numbers, charts, and pictures beside the ground truth.

    python -m ascendet_common.findings --predictions eval/predictions.json --images eval/images.json --out folder

writes into the folder, which must exist, charts (SVG), pictures (JPEG), and at last findings.json:

    images, objects, crowd, detections
                how many pictures were evaluated, objects and crowd regions they have, and detections there are
    score, shown
                the lowest score of what errors, confusion and pictures are about; how many detections have it
    classes     per class `name`, `objects`, and `detections` from that score on
    kinds       what overlaps are measured between: "bbox", "segm"
    errors      per kind `counts` as `numbers.classify` defines them, `ignored` detections (see `matching.Matches`),
                and the two overlaps that the definitions use
    confusion   `classes`, the background last, and `matrix` as `numbers.confusion` defines it, by the first kind
    precision_recall
                per kind [recall, precision] at IoU 0.5, at 0.75 and for the mean of 0.5 to 0.95; empty without objects
    charts      the files
    pictures    per picture its role (`pictures.choose`), file, and numbers (`numbers.of_images`, by the last kind)
    notes       what a reader must know, such as a picture that cannot be read, in the language of the charts

Equal inputs give equal bytes. `make report` shows them.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from ascendet_common import progress
from ascendet_common.findings import charts, inputs, matching, numbers, pictures
from ascendet_common.findings.inputs import Evaluation, Json
from ascendet_common.findings.masks import FindingsError
from ascendet_common.findings.words import Language, say

FINDINGS = "findings.json"


def find(
    evaluation: Evaluation, score: float, language: Language, out: Path, folder: Path | None = None
) -> Json:
    """Write charts, pictures and findings.json into `out`; return the content of the last one.

    Parameters
    ----------
    evaluation
        What was evaluated.
    score
        The lowest score of the detections that errors, confusion and pictures show.
    language
        Of charts and notes.
    out
        An existing folder.
    folder
        Where the pictures are; None: beside the annotations.
    """

    def write(name: str, content: bytes | str) -> None:
        temp = out / f".{name}.part"
        temp.write_bytes(content.encode() if isinstance(content, str) else content)
        temp.replace(out / name)

    shown = evaluation.found.score >= score
    beyond = matching.beyond(evaluation)
    errors: dict[str, Json] = {}
    lines: dict[str, Any] = {}
    confusions = []
    for number, kind in enumerate(evaluation.kinds, 1):
        pairs = matching.pair(evaluation, kind)
        matches = matching.match(evaluation, pairs, matching.IOU, beyond)
        kinds, missed = numbers.classify(evaluation, pairs, matches, shown)
        counts = {name: int((kinds == name).sum()) for name in ("correct", *numbers.ERRORS)}
        errors[kind] = {
            "counts": counts | {"missed": int(missed.sum())},
            "ignored": int((shown & matches.ignored).sum()),
            "iou": matching.IOU,
            "background_iou": matching.BACKGROUND,
        }
        lines[kind] = numbers.curves(numbers.precision(evaluation, pairs))
        confusions.append(numbers.confusion(evaluation, pairs, matches, shown))
        progress.write("findings", step=number, of=len(evaluation.kinds) + 1, text=say(kind, language))
    gallery = pictures.Gallery(
        evaluation=evaluation,
        matches=matches,
        shown=shown,
        rows=numbers.of_images(evaluation, matches, shown),
        folder=folder or evaluation.pictures(),
        language=language,
        write=write,
    )
    drawn, damaged = gallery.draw()
    svgs = {
        "precision_recall": charts.precision_recall(lines, language),
        "confusion": charts.confusion(evaluation.classes, confusions[0], language),
        "errors": charts.errors({kind: row["counts"] for kind, row in errors.items()}, language),
    }
    for name, svg in svgs.items():
        write(f"{name}.svg", svg)
    content = {
        **_count(evaluation, score),
        "errors": errors,
        "confusion": {"classes": [*evaluation.classes, "background"], "matrix": confusions[0].tolist()},
        "precision_recall": lines,
        "charts": {name: f"{name}.svg" for name in svgs},
        "pictures": drawn,
        "notes": _notes(evaluation, damaged, language),
    }
    write(FINDINGS, json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n")
    return content


def _count(evaluation: Evaluation, score: float) -> Json:
    truth, found = evaluation.truth, evaluation.found
    shown = found.score >= score
    objects = np.bincount(truth.category[~truth.crowd], minlength=len(evaluation.classes))
    detections = np.bincount(found.category[shown], minlength=len(evaluation.classes))
    rows = zip(evaluation.classes, objects.tolist(), detections.tolist(), strict=True)
    return {
        "images": len(evaluation.images),
        "objects": int((~truth.crowd).sum()),
        "crowd": int(truth.crowd.sum()),
        "detections": len(found),
        "score": score,
        "shown": int(shown.sum()),
        "classes": [{"name": name, "objects": has, "detections": gets} for name, has, gets in rows],
        "kinds": list(evaluation.kinds),
    }


def _notes(evaluation: Evaluation, damaged: list[str], language: Language) -> list[str]:
    """Return sentences about what was left out."""
    names = "; ".join(damaged[:3]) + ("; …" if len(damaged) > 3 else "")
    counts = {
        "unreadable": len(damaged),
        "lost objects": evaluation.lost[0],
        "lost detections": evaluation.lost[1],
        "other size": evaluation.other_size if "segm" in evaluation.kinds else 0,
        "no masks": evaluation.found.masks is not None and "segm" not in evaluation.kinds,
    }
    return [say(key, language, count=count, names=names) for key, count in counts.items() if count]


def main(argv: list[str] | None = None) -> None:
    """Write the findings of the evaluation that the command line names; exit with a sentence if a file is broken."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--predictions", type=Path, required=True, help="COCO results")
    parser.add_argument(
        "--images", type=Path, required=True, help="the annotation file and the evaluated images"
    )
    parser.add_argument(
        "--pictures", type=Path, help="the pictures' folder; default: the split's, beside annotations"
    )
    parser.add_argument(
        "--score", type=float, default=0.3, help="the lowest score of what errors and pictures show"
    )
    parser.add_argument("--language", choices=("en", "zh"), default="en", help="of charts and notes")
    parser.add_argument("--out", type=Path, required=True, help="an existing folder")
    args = parser.parse_args(argv)
    if not 0 <= args.score <= 1:
        parser.error(f"--score must be from 0 to 1, not {args.score}")
    try:
        find(inputs.read(args.predictions, args.images), args.score, args.language, args.out, args.pictures)
    except (FindingsError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
