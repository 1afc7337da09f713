"""`make weights`: fetch the weights that a stack's models start from into `assets.root()`/weights."""

from __future__ import annotations

import argparse
import json

from ascendet import paths
from ascendet.core import options
from ascendet.core.stack import Stack
from ascendet.supply import assets


def configure_parser(parser: argparse.ArgumentParser) -> None:
    """Add the stage's options."""
    options.add_stack_option(parser)
    assets.add_options(parser)


def execute(args: argparse.Namespace) -> None:
    """Print the licences of the stack's weights, fetch those that are missing, and print where they are."""
    stack = Stack.load(args.stack)
    known = assets.load()
    licences = {name: known[name].licence for name in stack.weights if name in known}
    for name, licence in () if args.json else licences.items():
        print(f"{name}: {licence}", flush=True)
    assets.ensure(stack.weights, mirror=args.mirror, accept_new=args.accept_new)
    folder = assets.ensure_folder("weights")
    if args.json:
        print(json.dumps({"folder": str(folder), "files": list(stack.weights), "licences": licences}))
    for name in () if args.json else stack.weights:
        print(paths.shorten(folder / name))
