"""The options that the tool gives to a family's programs; docs/add-a-family.md lists them."""

from __future__ import annotations

import argparse
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
