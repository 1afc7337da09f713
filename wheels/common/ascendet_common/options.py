"""The options that the tool gives to a family's programs; docs/add-a-family.md lists them."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path


def add_train_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `train`."""
    parser.add_argument("--epochs", type=int, help="passes over the data set; the recipe's by default")
    parser.add_argument("--lr", type=float, help="learning rate; the recipe's by default")
    parser.add_argument("--amp", action="store_true", help="train in mixed precision")


def add_predict_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `predict`."""
    parser.add_argument("--images", type=int, help="how many, from the first on; all by default")


def add_infer_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `infer`."""
    parser.add_argument("--images", required=True, type=Path, help="JSON list of file names")
    parser.add_argument("--score", type=float, default=0.3, help="draw and list objects from this score on")
    parser.add_argument("--bad", choices=["skip", "refuse"], default="skip", help="damaged pictures")


def add_speed_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `speed`."""
    parser.add_argument(
        "--images", type=int, default=200, help="how many of the validation split, from the first on"
    )


def add_export_options(
    parser: argparse.ArgumentParser, rewrites: Sequence[str], *, own_size: bool = False
) -> None:
    """Add the options of `export`.

    Parameters
    ----------
    parser
        The program's.
    rewrites
        Names of what it changes for ATC, equal to the last bits.
    own_size
        Whether the model has a size of its own, so that `--size` can be left out.
    """
    parser.add_argument(
        "--size",
        required=not own_size,
        type=picture_size,
        metavar="HxW",
        help="of the input, px, such as 800x1344" + ("; the model's own by default" if own_size else ""),
    )
    parser.add_argument("--batch", type=int, default=1, help="pictures per execution")
    parser.add_argument("--opset", choices=["auto", "16", "17"], default="auto", help="of all stages")
    parser.add_argument(
        "--no-rewrite",
        action="append",
        default=[],
        choices=rewrites,
        help="leave this one as the model has it",
    )


def picture_size(text: str) -> tuple[int, int]:
    """Return the (height, width) that text such as "800x1344" means.

    >>> picture_size("800x1344")
    (800, 1344)
    """
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"a height and a width such as 800x1344, not {text}")
    return int(found[1]), int(found[2])
