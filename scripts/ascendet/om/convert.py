"""`make om`: convert the stages of exported models with the environment's atc, CANN's or the simulated one."""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ascendet import paths
from ascendet.core import again, files
from ascendet.errors import AscendetError
from ascendet.om import exported, forecast, header, soc
from ascendet.om.exported import Exported
from ascendet.om.soc import Choice
from ascendet.run import folders, program, target
from ascendet.run.target import Target

_LOG = "atc.log"
# Where atc's messages begin: one of its codes, or the line that it ends with.
_MESSAGE = re.compile(r"^\[?(E[A-Z]?\d{4,5}|SIM\d{3}|ATC run failed|error)", re.MULTILINE)


def configure_parser(parser: argparse.ArgumentParser) -> None:
    """Add the stage's options."""
    target.add_options(parser)
    exported.add_options(parser)
    exported.add_conversion_options(parser)


def execute(args: argparse.Namespace) -> None:
    """Convert every exported model that is asked for."""
    precision = exported.check_precision(args.precision)
    aim = target.check(args, "export")
    found = exported.find(aim, exported.parse_sizes(args.sizes), exported.parse_batches(args.batch))
    aim = target.prepare(aim)
    choice = soc.find(aim, args.soc, force=args.force)
    print(choice, flush=True)
    for one in found:
        keep = exported.read_keep(args.keep_dtype, [stage["name"] for stage in one.stages])
        print(f"{forecast.table(aim, one, choice.soc, precision, keep)}\n", flush=True)
        final = convert(aim, one, choice, precision, keep)
        print(f"stored in {paths.shorten(final)}: {len(one.stages)} OM files")
        if exported.by_cann(final):
            print(f"what atc fused, beside the forecast: {again.command('om-forecast')}")


def arguments(
    stage: Mapping[str, Any],
    *,
    model: str,
    soc: str,
    precision: str,
    keep: str = "",
    more: Sequence[str] = (),
) -> list[str]:
    """Return atc's arguments for a stage.

    Parameters
    ----------
    stage
        An entry of `stages` in export_meta.json.
    model
        The path of its ONNX file, as atc is to see it.
    soc, precision
        The SoC's name, and a mode of `--precision_mode_v2` or `--precision_mode`.
    keep
        The file for `--keep_dtype`; atc ignores it in modes that keep all data types.
    more
        Further arguments, such as `--fusion_switch_file=…`.
    """
    option = "precision_mode_v2" if precision in exported.PRECISIONS_V2 else "precision_mode"
    shapes = ";".join(f"{port['name']}:{','.join(map(str, port['shape']))}" for port in stage["inputs"])
    return [
        "--framework=5",
        f"--model={model}",
        f"--output={stage['name']}",
        f"--soc_version={soc}",
        f"--input_shape={shapes}",
        f"--{option}={precision}",
        *([f"--keep_dtype={keep}"] if keep else []),
        *more,
    ]


def convert(
    aim: Target, one: Exported, choice: Choice, precision: str, keep: exported.Keep | None = None
) -> Path:
    """Convert all stages of an exported model, unless that was done before, and return the folder of the OMs.

    `keep` names nodes that keep their data type, by stage, beside those of export_meta.json.

    Raises
    ------
    AscendetError
        `atc-failed`, with atc's code and text.
    """
    kept = keep or {}
    final = one.om_folder(choice.soc, exported.mode_name(precision, kept))
    if fresh(one, final):
        return final
    with folders.replacing(final, _LOG) as work:
        converted = {
            stage["name"]: _convert(
                aim, one, stage, work, choice.soc, precision, exported.kept_nodes(stage, kept)
            )
            for stage in one.stages
        }
        heads = [header.read(work / entry["om"]) for entry in converted.values()]
        record = {
            "export_id": one.meta["export_id"],
            "soc": choice.soc,
            "soc_source": choice.source,
            "precision": precision,
            "atc_version": heads[0].version,
            "simulated": any(head.simulated for head in heads),
            "stages": converted,
        }
        files.write_text(work / exported.RECORD, json.dumps(record, indent=1) + "\n")
    return final


def fresh(one: Exported, folder: Path) -> bool:
    """Return whether a folder has the OMs of this very export, complete and as they were made."""
    try:
        record = json.loads((folder / exported.RECORD).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    return record["export_id"] == one.meta["export_id"] and all(
        (folder / entry["om"]).is_file() and files.digest(folder / entry["om"]) == entry["sha256"]
        for entry in record["stages"].values()
    )


def _convert(
    aim: Target,
    one: Exported,
    stage: Mapping[str, Any],
    work: Path,
    soc: str,
    precision: str,
    kept: Sequence[str],
) -> dict[str, Any]:
    """Convert one stage into `work`, and return its entry in om.json."""
    keep = ""
    if kept:
        keep = f"{stage['name']}{exported.KEEP_SUFFIX}"
        (work / keep).write_text("".join(f"{name}\n" for name in kept), encoding="utf-8")
    # Relative paths: `work` lies beside the ONNX file, and the command that an OM records should not tell where.
    aipp = one.meta.get("host", {}).get("aipp", {})
    given = [f"../{aipp[port['name']]['config']}" for port in stage["inputs"] if port["name"] in aipp]
    command = arguments(
        stage,
        model=f"../{stage['file']}",
        soc=soc,
        precision=precision,
        keep=keep,
        more=[f"--insert_op_conf={config}" for config in given],
    )
    print(f"atc {' '.join(command)}", flush=True)
    clock = time.monotonic()
    try:
        program.execute(
            program.Run(
                program="atc",
                environ=target.environ(aim, work),
                log=work / _LOG,
                target=aim,
                inputs=[one.folder],
                arguments=command,
            )
        )
    except AscendetError as error:
        if error.name != "run-failed":
            raise
        raise AscendetError(
            "atc-failed",
            f"atc cannot convert the stage {stage['name']} of {one.folder.name}",
            found=message((work / _LOG).read_text(encoding="utf-8", errors="replace")) or error.found,
            hint=again.command("om-forecast"),
        ) from error
    fused = work / exported.FUSION_RESULT
    if fused.is_file():  # the next stage's would replace it; the forecast is compared with that of CANN's atc
        fused.replace(work / f"{stage['name']}.{exported.FUSION_RESULT}")
    om = f"{stage['name']}.om"
    return {
        "om": om,
        "sha256": files.digest(work / om),
        "onnx_sha256": stage["sha256"],
        "command": ["atc", *command],
        "seconds": round(time.monotonic() - clock, 1),
    }


def message(log: str) -> str:
    r"""Return atc's error in a log: from its first code on, at most eight lines.

    >>> message("ATC start working now\nE16005: one operator set only\n  cause\n")
    'E16005: one operator set only\n  cause'
    """
    starts = list(_MESSAGE.finditer(log))
    coded = [found for found in starts if found[1].startswith(("E", "SIM"))] or starts
    return "\n".join(log[coded[0].start() :].strip().splitlines()[:8]) if coded else ""
