"""`make curves`: draw a training's loss and AP into its run folder."""

from __future__ import annotations

import argparse
import subprocess

from ascendet import paths
from ascendet.core import access, again, manifest, options
from ascendet.core.stack import Stack
from ascendet.errors import AscendetError
from ascendet.run import target
from ascendet.wheels import install


def configure_parser(parser: argparse.ArgumentParser) -> None:
    """Add the stage's options."""
    options.add_stack_option(parser)
    parser.add_argument("--model", required=True, help="one of the stack's models, or a configuration file")
    parser.add_argument("--dataset", required=True, help="one of the stack's data sets")
    parser.add_argument("--run", default="", help="the run folder's name; empty: the latest")


def execute(args: argparse.Namespace) -> None:
    """Draw the curves, and print where the files are."""
    stack = Stack.load(args.stack)
    own = target.check_names(stack, args.model, args.dataset)
    model = own.name if own else args.model
    run = paths.BUILD / "runs" / f"{model}_{args.dataset}" / (args.run or "latest")
    content = manifest.read(run)
    if content is None:
        raise AscendetError(
            "data-missing",
            "there is no such training run",
            expected=paths.shorten(run),
            hint=again.command("train", RUN=""),
        )
    run = run.resolve()
    title = f"{model} on {args.dataset}{' (simulated)' if content.get('simulated') else ''}"
    command = [str(install.ensure(stack)), "-m", "ascendet_common.plot", f"--run={run}", f"--title={title}"]
    done = subprocess.run([*command, f"--out={run / 'curves'}"], capture_output=True, text=True, check=False)
    if done.returncode:
        access.require(run)
        raise AscendetError(
            "command-failed",
            "the curves cannot be drawn",
            found=(done.stderr.strip().splitlines() or ["no message"])[-1],
            hint=f"less {paths.shorten(run / 'train.log')}",
        )
    print(f"{title}: {paths.shorten(run / 'curves.png')} and .svg")
