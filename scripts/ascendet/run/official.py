"""Compare an evaluation with the figures that a model's authors published, `requirements/official.toml`."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ascendet import paths

FILE = paths.REQUIREMENTS / "official.toml"
_ROWS = {"bbox": "boxes", "segm": "masks"}


def compare(
    model: str, numbers: Mapping[str, Mapping[str, float]], digest: str, images: int, file: Path = FILE
) -> dict[str, Any] | None:
    """Return a model's official figures beside an evaluation's, for its manifest; None if none were published.

    Parameters
    ----------
    model
        The model's name.
    numbers
        COCO's numbers by "bbox" and "segm"; -1 if the annotations have no object to measure one on.
    digest
        The SHA-256 of the evaluated annotation file.
    images
        How many of its images were evaluated.
    file
        The table of official figures.

    Returns
    -------
    dict[str, Any] | None
        The model's entry of the table; `same_images`, whether the official figures were measured on the evaluated
        images; and `figures`: by "bbox" and "segm" the AP as `official`, `measured` and `difference`, which is None for
        other images.
    """
    published = tomllib.loads(file.read_text(encoding="utf-8")).get(model)
    if published is None:
        return None
    figures = published.pop("AP")
    same = (digest, images) == (published["annotations"], published["images"])
    return {
        **published,
        "same_images": same,
        "figures": {
            kind: {
                "official": figures[kind],
                "measured": numbers[kind]["AP"],
                "difference": numbers[kind]["AP"] - figures[kind] if same else None,
            }
            for kind in _ROWS
        },
    }


def table(compared: Mapping[str, Any], measured_on: str) -> str:
    """Return what `compare` found as a table; `measured_on` is what was evaluated, in words.

    >>> figures = {"official": 0.448, "measured": 0.5069, "difference": None}
    >>> compared = {"of": "R_101_3x", "source": "its README", "dataset": "COCO val2017", "images": 5000,
    ...             "same_images": False, "figures": {"bbox": figures, "segm": figures | {"measured": -1.0}}}
    >>> print(table(compared, "200 images of coco"))
    AP       official   measured  difference
    boxes       0.448      0.507           -
    masks       0.448          -           -
    official: R_101_3x on 5,000 images of COCO val2017 (its README); measured: 200 images of coco, so no difference
    """
    lines = [f"{'AP':<7}{'official':>10}{'measured':>11}{'difference':>12}"]
    for kind, row in compared["figures"].items():
        measured = f"{row['measured']:.3f}" if row["measured"] >= 0 else "-"
        difference = f"{row['difference']:+.3f}" if row["difference"] is not None else "-"
        lines.append(f"{_ROWS[kind]:<7}{row['official']:>10.3f}{measured:>11}{difference:>12}")
    official = (
        f"{compared['of']} on {compared['images']:,} images of {compared['dataset']} ({compared['source']})"
    )
    other = "" if compared["same_images"] else f"; measured: {measured_on}, so no difference"
    return "\n".join([*lines, f"official: {official}{other}"])
