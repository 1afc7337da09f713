"""`make om-info`: which exported models and OMs there are, and what their headers and records say."""

from __future__ import annotations

import argparse
import json
import shlex
from typing import Any

from ascendet import paths
from ascendet.om import exported, header
from ascendet.om.exported import Exported
from ascendet.run import target


def configure_parser(parser: argparse.ArgumentParser) -> None:
    """Add the stage's options."""
    target.add_options(parser)
    exported.add_options(parser)
    parser.add_argument("--json", action="store_true", help="print the facts as JSON")


def execute(args: argparse.Namespace) -> None:
    """Print every exported model of the target with its OMs."""
    aim = target.check(args, "export")
    found = exported.find(aim, exported.parse_sizes(args.sizes), exported.parse_batches(args.batch))
    facts = [describe(one) for one in found]
    print(json.dumps(facts, indent=1) if args.json else "\n\n".join(map(show, facts)))


def describe(one: Exported) -> dict[str, Any]:
    """Return what is known of an exported model and its OMs.

    Raises
    ------
    AscendetError
        `om-missing`, `om-corrupt`: an OM that the record names.
    """
    builds = []
    for folder in one.om_folders():
        record = json.loads((folder / exported.RECORD).read_text(encoding="utf-8"))
        stages = []
        for name, entry in record["stages"].items():
            head = header.read(folder / entry["om"])
            stages.append(
                {
                    "stage": name,
                    "name": head.name,
                    "bytes": head.length + header.SIZE,
                    "atc_version": head.version,
                    "user_info": head.user,
                    "simulated": head.simulated,
                    "command": entry["command"],
                }
            )
        builds.append(
            {
                "folder": paths.shorten(folder),
                "soc": record["soc"],
                "soc_source": record["soc_source"],
                "precision": record["precision"],
                "of_this_export": record["export_id"] == one.meta["export_id"],
                "stages": stages,
            }
        )
    keys = ("model", "height", "width", "batch", "checkpoint", "checkpoint_sha256", "export_id")
    opsets = {stage["name"]: stage["opset"] for stage in one.stages}
    return {
        "folder": paths.shorten(one.folder),
        **{key: one.meta[key] for key in keys},
        "opsets": opsets,
        "builds": builds,
    }


def show(facts: dict[str, Any]) -> str:
    """Return the facts of an exported model as text."""
    opsets = ", ".join(f"{name} {opset}" for name, opset in facts["opsets"].items())
    lines = [
        facts["folder"],
        f"  {facts['model']}, {facts['height']} x {facts['width']}, batch {facts['batch']}, opsets: {opsets}",
        f"  checkpoint {facts['checkpoint']}, sha256 {facts['checkpoint_sha256'][:16]}",
        f"  export {facts['export_id'][:16]}",
    ]
    for build in facts["builds"]:
        stale = "" if build["of_this_export"] else "; of an earlier export: make om"
        lines.append(f"  {build['soc']} ({build['soc_source']}), {build['precision']}{stale}")
        for stage in build["stages"]:
            made = f"ATC {stage['atc_version']}" + (" (simulated by cann_sim)" if stage["simulated"] else "")
            lines.append(f"    {stage['stage']:<12}{stage['bytes'] / 1e6:>9.1f} MB  {made}")
            lines.append(f"      {shlex.join(stage['command'])}")
    return "\n".join(lines if facts["builds"] else [*lines, "  no OM: make om"])
