"""`make om-forecast`: before any conversion, which nodes fuse, which have no AI Core kernel, and what stays float32."""

from __future__ import annotations

import argparse

from ascendet.core import process
from ascendet.envs import activation, venv
from ascendet.om import exported, soc
from ascendet.om.exported import Exported
from ascendet.run import target
from ascendet.run.target import Target


def configure_parser(parser: argparse.ArgumentParser) -> None:
    """Add the stage's options."""
    target.add_options(parser)
    exported.add_options(parser)
    exported.add_conversion_options(parser)


def execute(args: argparse.Namespace) -> None:
    """Print the forecast of every exported model that is asked for."""
    precision = exported.check_precision(args.precision)
    aim = target.check(args, "export")
    found = exported.find(aim, exported.parse_sizes(args.sizes), exported.parse_batches(args.batch))
    aim = target.prepare(aim)
    choice = soc.find(aim, args.soc, force=args.force)
    print(choice)
    for one in found:
        print(table(aim, one, choice.soc, precision))


def table(aim: Target, one: Exported, chip: str, precision: str) -> str:
    """Return the forecast of all stages of an exported model, as cann_sim's package prints it."""
    if aim.npu == "real" or aim.container:
        return "no forecast: it needs cann_sim in the stack's environment (RUN_IN=venv, NPU=sim)"
    environ = activation.stack_environ(aim.stack, aim.npu)
    parts = []
    for stage in one.stages:
        command = [venv.stack_python(aim.stack), "-m", "cann_sim.atc.forecast", one.folder / stage["file"]]
        shown = process.ask([*command, f"--soc={chip}", f"--precision={precision}"], env=environ)
        # What atc refuses cannot be forecast; atc says why.
        parts.append(f"forecast of {stage['name']} on {chip}, {precision} (simulated ATC)")
        parts.append("none" if shown is None else shown.rstrip())
    return "\n".join(parts)
