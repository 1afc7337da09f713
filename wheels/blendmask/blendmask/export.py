"""Export a checkpoint as ONNX, in two stages that ATC can convert, each compared with PyTorch.

    python -m blendmask.export --size=800x1344 --batch=1

Environment: MODEL (or CONFIG), DATASET, CHECKPOINT; WORK_DIR, which gets `detector.onnx`, `blend.onnx`,
`export_check.json` (the differences from PyTorch) and, last, `export_meta.json`. Everything is computed on the CPU.

Rewrites change how something is computed, not what; `--no-rewrite=NAME` leaves one out:

attention-at-boxes
    The attention is computed by the second stage, at the boxes that were found, not by the first one everywhere.
rois-fp32
    RoiAlign is float32 in every precision mode: in float16 a box's coordinates have steps of 0.5 px from 512 on.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from ascendet_common import progress
from ascendet_common.checkpoints import CheckpointMismatch
from ascendet_common.data import DataError, describe_difference, find_split, read
from ascendet_common.errors import forget, reporting
from ascendet_common.images import Pixels
from ascendet_common.options import add_export_options
from detectron2.config import CfgNode
from staged_om import exporting
from staged_om.meta import META, Meta, Stage, file_digest
from torch import Tensor, nn

from blendmask import checkpoint, launch, om
from blendmask.config import new
from blendmask.metric import describe
from blendmask.model import BlendMask
from blendmask.predict import load_model
from blendmask.stages import Blend, Detector

AT_BOXES, ROIS_FP32 = "attention-at-boxes", "rois-fp32"
REWRITES = (AT_BOXES, ROIS_FP32)
# The oldest whose RoiAlign can shift by half a pixel; nothing here needs a newer one.
_OPSET = 16
AIPP = "detector.aipp.cfg"


class Exported:
    """A model and how it is to be exported.

    Parameters
    ----------
    cfg
        A configuration that `blendmask.config.check` accepts.
    model
        Of this configuration, on the CPU, ready for use.
    size
        (height, width) of the input, px: multiples of the model's coarsest stride but for its top levels.
    batch
        Pictures per execution.
    without
        The names of the rewrites to leave out.
    aipp
        Whether pictures are given as bytes, which AIPP normalises on the device.

    Raises
    ------
    exporting.ConfigInvalid
        The model cannot take this size.
    """

    def __init__(
        self,
        cfg: CfgNode,
        model: BlendMask,
        *,
        size: tuple[int, int],
        batch: int,
        without: tuple[str, ...] = (),
        aipp: bool = False,
    ) -> None:
        exporting.check_size(size, model.backbone.size_divisibility)
        self.cfg, self.model, self.size, self.batch, self.aipp = cfg, model, size, batch, aipp
        self.everywhere = AT_BOXES in without
        self.keep_fp32 = () if ROIS_FP32 in without else ("RoiAlign",)
        self.levels = model.proposal_generator.in_features
        self.indices = om.PLACES if self.everywhere else om.NEIGHBOURS
        self.rows = om.ATTENTION if self.everywhere else om.FEATURES

    def modules(self) -> dict[str, nn.Module]:
        """Return the stages' modules by name."""
        return {
            "detector": Detector(self.model, everywhere=self.everywhere).eval(),
            "blend": Blend(self.model, self.batch, everywhere=self.everywhere).eval(),
        }

    def outputs(self) -> tuple[str, ...]:
        """Return the names of the detector's outputs."""
        maps = (*map(om.scores_of, self.levels), *map(om.sides_of, self.levels))
        return (*maps, om.BASES, self.rows)

    def write(self, folder: Path, opset: int) -> tuple[Stage, ...]:
        """Write both stages and export_check.json into a folder; `exporting.write` says what is raised."""
        modules = self.modules()
        pictures = self.picture()
        detector = exporting.Module(
            name="detector",
            module=modules["detector"],
            inputs=pictures,
            outputs=self.outputs(),
            opset=opset,
        )
        given = detector.run()
        blend = exporting.Module(
            name="blend",
            module=modules["blend"],
            inputs=self.boxes({name: torch.from_numpy(given[name]) for name in (om.BASES, self.rows)}),
            outputs=(om.MASKS,),
            opset=opset,
            keep_fp32=self.keep_fp32,
        )
        made, checks = [], {}
        for stage in (detector, blend):
            one, checks[stage.name] = exporting.write(stage, folder)
            made.append(one)
        exporting.write_check(checks, folder)
        if self.aipp:
            (folder / AIPP).write_text(self.aipp_config(), encoding="utf-8")
        return tuple(made)

    def picture(self) -> dict[str, Tensor]:
        """Return inputs of the detector: noise, in a part of the input that is no multiple of anything."""
        draw = torch.Generator().manual_seed(0)
        height, width = self.size
        pixels = torch.randint(0, 256, (self.batch, 3, height, width), generator=draw)
        values = (pixels - self.model.pixel_mean) / self.model.pixel_std
        rows, columns = torch.ones(self.batch, 1, height, 1), torch.ones(self.batch, 1, 1, width)
        rows[:, :, height - 5 :] = columns[..., width - 11 :] = 0
        if self.aipp:
            return {om.PICTURE: values, om.ROWS: rows, om.COLUMNS: columns}
        return {om.PICTURE: values * rows * columns}

    def boxes(self, given: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return inputs of the blender beside the detector's: boxes of all sizes, also outside, and an empty slot."""
        draw = torch.Generator().manual_seed(0)
        count = self.batch * self.model.proposal_generator.slots
        height, width = self.size
        corners = torch.rand(count, 2, 2, generator=draw) * 1.5 - 0.25
        corners = corners.sort(dim=1).values * torch.tensor([width, height])
        boxes = corners.flatten(1)
        boxes[-1] = 0
        number = count if self.everywhere else 9 * count
        rows = torch.randint(0, len(given[self.rows]), (number,), generator=draw, dtype=torch.int32)
        rows[-9:] = len(given[self.rows]) - 1
        return given | {om.BOXES: boxes, self.indices: rows}

    def host_facts(self) -> dict[str, Any]:
        """Return what `blendmask.om` needs, as JSON values; and the configuration, for `torch_stages`."""
        fcos = self.model.proposal_generator
        cfg = self.cfg
        facts: dict[str, Any] = {
            "mean": list(cfg.MODEL.PIXEL_MEAN),
            "std": list(cfg.MODEL.PIXEL_STD),
            "min_size": cfg.INPUT.MIN_SIZE_TEST,
            "max_size": cfg.INPUT.MAX_SIZE_TEST,
            "levels": list(self.levels),
            "strides": list(fcos.strides),
            "threshold": fcos.threshold,
            "overlap": fcos.overlap,
            "candidates": fcos.candidates,
            "slots": fcos.slots,
            "config": cfg.dump(),
        }
        if self.aipp:
            facts["aipp"] = {om.PICTURE: {"mean": facts["mean"], "std": facts["std"], "config": AIPP}}
        return facts

    def aipp_config(self) -> str:
        """Return the text for atc's `--insert_op_conf`: bytes in, BGR as it is, normalised.

        AIPP subtracts a whole number (mean_chn) and a float16 (min_chn) and multiplies by a float16: the mean is split,
        so that float16 rounds what is left of it, not all of it.
        """
        lines = [
            "aipp_mode: static",
            "related_input_rank: 0",
            "input_format: RGB888_U8",
            f"src_image_size_w: {self.size[1]}",
            f"src_image_size_h: {self.size[0]}",
            "csc_switch: false",
            "rbuv_swap_switch: false",
        ]
        for channel, (mean, std) in enumerate(
            zip(self.cfg.MODEL.PIXEL_MEAN, self.cfg.MODEL.PIXEL_STD, strict=True)
        ):
            whole = int(mean)
            lines += [
                f"mean_chn_{channel}: {whole}",
                f"min_chn_{channel}: {mean - whole:.6g}",
                f"var_reci_chn_{channel}: {1 / std:.9g}",
            ]
        return "aipp_op {\n" + "".join(f"  {line}\n" for line in lines) + "}\n"


def torch_stages(meta: Meta, checkpoint_file: str | Path) -> dict[str, nn.Module]:
    """Return the stages' modules, which take and give tensors in the order of the ports.

    Raises
    ------
    CheckpointMismatch
        The checkpoint is not the one that was exported.
    CheckpointError
        As `load_model`.
    """
    cfg, model = _read(meta, checkpoint_file)
    _, blend = meta.stages
    exported = Exported(
        cfg,
        model,
        size=(meta.height, meta.width),
        batch=meta.batch,
        without=(AT_BOXES,) if any(port.name == om.PLACES for port in blend.inputs) else (),
        aipp="aipp" in meta.host,
    )
    return exported.modules()


def open_detector(meta: Meta, checkpoint_file: str | Path) -> Callable[[Pixels], list[dict[str, Any]]]:
    """Return the model itself as a function of a picture, BGR, to its detections as `blendmask.infer` gives them.

    Pictures are scaled and padded to the exported size, because group normalisation and the pyramid see the padding:
    padded otherwise, the same picture gives other scores. Raises as `torch_stages`.
    """
    _, model = _read(meta, checkpoint_file)
    host = om.Host(meta)
    model.padded = host.size

    def detect(pixels: Pixels) -> list[dict[str, Any]]:
        image = torch.from_numpy(host.scale(pixels).transpose(2, 0, 1).copy())
        (result,) = model([{"image": image, "height": pixels.shape[0], "width": pixels.shape[1]}])
        rows = describe(result["instances"], None, meta.classes)
        return [{"category": row["category_id"], **row} for row in rows]

    return detect


def _read(meta: Meta, checkpoint_file: str | Path) -> tuple[CfgNode, BlendMask]:
    """Return the configuration and the model that were exported, on the CPU, ready for use."""
    exporting.require_exported(meta, Path(checkpoint_file))
    cfg = new()
    cfg.merge_from_other_cfg(CfgNode.load_cfg(meta.host["config"]))
    return cfg, load_model(cfg, torch.device("cpu"), meta.classes, str(checkpoint_file))


def own_size(cfg: CfgNode, divisor: int) -> tuple[int, int]:
    """Return the smallest (height, width) that any picture in landscape format fits into as it is scaled for tests."""
    sides = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    height, width = (-(-side // divisor) * divisor for side in sides)
    return height, width


def classes_and_ids(file: str) -> tuple[tuple[str, ...], tuple[Any, ...]]:
    """Return the classes of a checkpoint or of the data set, and the data set's ids of them: 1, 2, … without one.

    Raises
    ------
    CheckpointMismatch
        The checkpoint states other classes than the data set.
    DataError
        There is no data set, and the checkpoint does not say its classes.
    """
    stated = checkpoint.classes_in(checkpoint.read(file))
    root = launch.data_root()
    if not (root / "annotations").is_dir():
        if not stated:
            raise DataError(f"the checkpoint does not say its classes, and there is no data set {root}")
        return stated, tuple(range(1, len(stated) + 1))
    content = read(root / "annotations" / f"instances_{find_split(root, 'val')}.json")
    here = tuple(str(category["name"]) for category in content["categories"])
    if stated and stated != here:
        raise CheckpointMismatch(
            f"the checkpoint is not one of this model: {describe_difference(stated, here)}"
        )
    return here, tuple(category["id"] for category in content["categories"])


def main() -> None:
    """Export."""
    parser = launch.parser("Export a checkpoint as ONNX, stage by stage.")
    add_export_options(parser, REWRITES, own_size=True)
    parser.add_argument("--aipp", action="store_true", help="take pictures as bytes, normalised by AIPP")
    args = parser.parse_args()
    forget()
    with reporting():
        cfg = launch.load_config(args)
        cfg.MODEL.DEVICE = "cpu"
        file, folder = os.environ["CHECKPOINT"], Path(os.environ["WORK_DIR"])
        classes, ids = classes_and_ids(file)
        model = load_model(cfg, torch.device("cpu"), classes, file)
        size = args.size or own_size(cfg, model.backbone.size_divisibility)
        exported = Exported(
            cfg, model, size=size, batch=args.batch, without=tuple(args.no_rewrite), aipp=args.aipp
        )
        # What is here from now on is of this export: without its meta file it is none.
        (folder / META).unlink(missing_ok=True)
        stages = exported.write(folder, _OPSET if args.opset == "auto" else int(args.opset))
        Meta(
            family="blendmask",
            model=os.environ["MODEL"],
            checkpoint=file,
            checkpoint_sha256=file_digest(Path(file)),
            height=size[0],
            width=size[1],
            batch=args.batch,
            classes=classes,
            category_ids=ids,
            stages=stages,
            host=exported.host_facts(),
            export_id=exporting.export_id(stages),
        ).write(folder)
        progress.write("note", text=f"exported {', '.join(stage.file for stage in stages)}")


if __name__ == "__main__":
    main()
