"""Export a checkpoint as ONNX, in four stages that ATC can convert, each compared with PyTorch.

    python -m vitdet.export --size=1024x1024 --batch=1

Environment: MODEL, DATASET, CHECKPOINT; WORK_DIR, which gets `backbone.onnx`, `rpn.onnx`, `roi.onnx`, `mask.onnx`,
`export_check.json` (the differences of the stages from the model, and of the graphs from the stages) and, last,
`export_meta.json`. Everything is computed on the CPU.

`--no-rewrite=NAME` leaves out one of `vitdet.stages.REWRITES`, `--variant=NAME` takes one of `VARIANTS`. `--aipp` makes
pictures bytes that AIPP normalises on the device (`backbone.aipp.cfg` for atc's `--insert_op_conf`).
"""

from __future__ import annotations

import argparse
import gc
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ascendet_common import progress
from ascendet_common.checkpoints import CheckpointMismatch
from ascendet_common.data import DataError, find_split, read
from ascendet_common.errors import forget, reporting
from ascendet_common.options import add_export_options
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from staged_om import exporting
from staged_om.meta import META, Meta, Stage, file_digest
from torch import Tensor, nn

from vitdet import launch, om, stages
from vitdet.checkpoint import compare, weights_of
from vitdet.checkpoint import read as read_checkpoint
from vitdet.data import describe_difference, known_classes, meta_classes, set_classes
from vitdet.stages import Options

AIPP = "backbone.aipp.cfg"
# 17 is the first with LayerNormalization: at 16 ATC gets single operators of it, half of a model's time on a 310P, as a
# user reports. RoiExtractor is registered up to 16.
_NEWEST, _OF_EXTRACTOR = 17, 16


def choose_opset(stage: str, wanted: str, options: Options) -> tuple[int, str]:
    """Return a stage's opset and the reason in a few words."""
    if stage in ("roi", "mask") and "roi-extractor" in options.variants:
        return _OF_EXTRACTOR, "the newest that ATC registers RoiExtractor for"
    if wanted != "auto":
        return int(wanted), "asked for"
    return _NEWEST, "the first with LayerNormalization"


class Exported:
    """A model and how it is exported.

    Parameters
    ----------
    cfg
        A configuration of the vitdet package.
    model
        Of this configuration, on the CPU, in evaluation mode; its layers are rewritten in place by `modules`.
    options
        See `vitdet.stages.Options`.
    aipp
        Whether pictures are given as bytes.

    Raises
    ------
    exporting.ConfigInvalid
        The model cannot take this size, or pads with what is no byte while `aipp` is asked for.
    """

    def __init__(self, cfg: Config, model: Any, options: Options, *, aipp: bool = False) -> None:
        patch = model.backbone.patch_embed.proj.kernel_size[0]
        exporting.check_size(options.size, 2 * patch)
        own = (model.backbone.img_size,) * 2
        if options.size != own and "attention" in options.without:
            raise exporting.ConfigInvalid(
                "without the rewrite attention the model takes its own size only",
                expected=f"{own[0]} x {own[1]}",
                found=f"{options.size[0]} x {options.size[1]}",
            )
        self.cfg, self.model, self.options, self.aipp = cfg, model, options, aipp
        self.own_size = options.size == own
        self.levels = len(model.rpn_head.prior_generator.strides)
        self.regions = len(model.roi_head.bbox_roi_extractor.featmap_strides)
        self.class_agnostic = bool(model.roi_head.mask_head.class_agnostic)
        self.host = self._host_facts()

    def modules(self) -> dict[str, nn.Module]:
        """Return the stages' modules by name; the model's layers are rewritten."""
        return stages.build(self.model, self.options)

    def _host_facts(self) -> dict[str, Any]:
        model, cfg = self.model, self.cfg
        pad = next((step for step in cfg.test_pipeline if step["type"] == "Pad"), None)
        head, rpn, test = model.roi_head.bbox_head, model.rpn_head, model.test_cfg
        preprocessor = model.data_preprocessor
        if not preprocessor._flip:
            raise exporting.ConfigInvalid("only models that take RGB can be exported")
        facts: dict[str, Any] = {
            "mean": preprocessor.mean.flatten().tolist(),
            "std": preprocessor.std.flatten().tolist(),
            # Bytes around the picture, before it is normalised; null: zeros after that, and boxes end at the picture.
            "pad": list(pad["pad_val"]["img"]) if pad else None,
            "levels": self.levels,
            "strides": [list(stride) for stride in rpn.prior_generator.strides],
            "anchors": [base.tolist() for base in rpn.prior_generator.base_anchors],
            "rpn_coder": _coder(rpn.bbox_coder),
            "rpn": {
                "candidates": test.rpn.nms_pre,
                "proposals": test.rpn.max_per_img,
                "overlap": test.rpn.nms.iou_threshold,
                "smallest": test.rpn.min_bbox_size,
            },
            "box_coder": _coder(head.bbox_coder),
            "class_agnostic_boxes": bool(head.reg_class_agnostic),
            "class_agnostic_masks": self.class_agnostic,
            "score": test.rcnn.score_thr,
            "overlap": test.rcnn.nms.iou_threshold,
            "detections": test.rcnn.max_per_img,
            "mask": test.rcnn.mask_thr_binary,
            "without": list(self.options.without),
            "variants": list(self.options.variants),
            "config": cfg.dump(),
        }
        if self.aipp:
            if facts["pad"] is None:
                raise exporting.ConfigInvalid(
                    "this model pads pictures after they are normalised, which AIPP cannot",
                    advice={"AIPP": ""},
                )
            facts["aipp"] = {
                om.PICTURE: {"mean": facts["mean"], "std": facts["std"], "swap": True, "config": AIPP}
            }
        return facts

    # -- inputs to trace and to compare with --

    def picture(self) -> Tensor:
        """Return normalised noise, [batch, 3, height, width]."""
        draw = torch.Generator().manual_seed(0)
        pixels = torch.randint(0, 256, (self.options.batch, 3, *self.options.size), generator=draw)
        preprocessor = self.model.data_preprocessor
        return (pixels - preprocessor.mean.cpu()) / preprocessor.std.cpu()

    def rois(self, per_picture: int) -> Tensor:
        """Return regions of all sizes, [batch * per_picture, 5], the last one empty."""
        draw = torch.Generator().manual_seed(0)
        count = self.options.batch * per_picture
        height, width = self.options.size
        limit = torch.tensor([width, height])
        sides = torch.rand(count, 2, generator=draw) ** 2 * limit
        corner = torch.rand(count, 2, generator=draw) * (limit - sides)
        picture = torch.arange(self.options.batch).repeat_interleave(per_picture)[:, None]
        rois = torch.cat([picture, corner, corner + sides], dim=1)
        rois[-1, 1:] = 0
        return rois

    def write(self, folder: Path, opset: str) -> tuple[Stage, ...]:
        """Write the stages and export_check.json into a folder; `exporting.write` says what is raised.

        One stage after the other, each freed before the next: a ViT-B at 1024 px needs some gigabytes per copy.
        """
        test = self.model.test_cfg
        picture = self.picture()
        rois, boxes = self.rois(test.rpn.max_per_img), self.rois(test.rcnn.max_per_img)
        rows = self._rows(len(boxes))
        expected = self._model_outputs(picture, rois, boxes, rows)
        modules = self.modules()
        features = om.features(self.levels)
        given: dict[str, dict[str, Tensor]] = {"backbone": {om.PICTURE: picture}}
        made: list[Stage] = []
        checks: dict[str, Any] = {}
        for name in tuple(modules):
            number, reason = choose_opset(name, opset, self.options)
            stage = exporting.Module(
                name=name,
                module=modules[name],
                inputs=given[name],
                outputs=self.outputs(name),
                opset=number,
                keep_fp32=self._keep_fp32(),
                custom=name in self._custom(),
            )
            values = stage.run()
            if name == "backbone":
                maps = {key: torch.from_numpy(value) for key, value in values.items()}
                read_from = {key: maps[key] for key in features[: self.regions]}
                given["rpn"] = maps
                given["roi"] = read_from | {om.ROIS: rois}
                given["mask"] = read_from | {om.BOXES: boxes} | rows
            one, check = exporting.write(stage, folder)
            check |= {"opset": {"version": number, "reason": reason}}
            if name in expected:
                check["model"] = exporting.require_equal(
                    f"the stage {name} and the model itself", expected.pop(name), values
                )
            checks[name] = check
            made.append(one)
            progress.write("note", text=f"{one.file}: opset {number}, {reason}")
            del stage, values, modules[name], given[name]
            gc.collect()
        exporting.write_check(checks, folder)
        if self.aipp:
            (folder / AIPP).write_text(self.aipp_config(), encoding="utf-8")
        return tuple(made)

    def _rows(self, count: int) -> dict[str, Tensor]:
        """Return the input that chooses each mask's class: every class in turn."""
        if self.class_agnostic:
            return {}
        classes = self.model.roi_head.mask_head.num_classes
        chosen = torch.arange(count)
        return {om.ROWS: (chosen * classes + chosen % classes).to(torch.int32)}

    def outputs(self, stage: str) -> tuple[str, ...]:
        """Return the names of a stage's outputs."""
        return {
            "backbone": om.features(self.levels),
            "rpn": (*om.rpn_scores(self.levels), *om.rpn_deltas(self.levels)),
            "roi": (om.SCORES, om.DELTAS),
            "mask": (om.MASKS,),
        }[stage]

    def _keep_fp32(self) -> tuple[str, ...]:
        return ("RoiAlign", "RoiExtractor", "/regions/") if self.options.rewrites("rois-fp32") else ()

    def _custom(self) -> tuple[str, ...]:
        variants = self.options.variants
        return (
            *(("backbone",) if "flash-attention" in variants else ()),
            *(("roi", "mask") if "roi-extractor" in variants else ()),
        )

    @torch.no_grad()
    def _model_outputs(
        self, picture: Tensor, rois: Tensor, boxes: Tensor, rows: dict[str, Tensor]
    ) -> dict[str, dict[str, np.ndarray]]:
        """Return what the model itself gives for the stages' inputs, by stage and output; for its own size only."""
        if not self.own_size:
            return {}
        model = self.model
        maps = model.extract_feat(picture)
        scores, deltas = model.rpn_head(maps)
        boxed = model.roi_head._bbox_forward(maps, rois)
        masks = model.roi_head._mask_forward(maps, boxes)["mask_preds"].flatten(0, 1)
        values = {
            "backbone": maps,
            "rpn": (*scores, *deltas),
            "roi": (boxed["cls_score"], boxed["bbox_pred"]),
            "mask": (masks if self.class_agnostic else masks[rows[om.ROWS].long()],),
        }
        return {
            stage: dict(zip(self.outputs(stage), (one.numpy() for one in tensors), strict=True))
            for stage, tensors in values.items()
        }

    def aipp_config(self) -> str:
        """Return the text for atc's `--insert_op_conf`: BGR bytes in, RGB, normalised.

        AIPP subtracts a whole number (mean_chn) and a float16 (min_chn) and multiplies by a float16: the mean is split,
        so that float16 rounds what is left of it, not all of it. The channels are those after the swap.
        """
        lines = [
            "aipp_mode: static",
            "related_input_rank: 0",
            "input_format: RGB888_U8",
            f"src_image_size_w: {self.options.size[1]}",
            f"src_image_size_h: {self.options.size[0]}",
            "csc_switch: false",
            "rbuv_swap_switch: true",
        ]
        for channel, (mean, std) in enumerate(zip(self.host["mean"], self.host["std"], strict=True)):
            lines += [
                f"mean_chn_{channel}: {int(mean)}",
                f"min_chn_{channel}: {mean - int(mean):.6g}",
                f"var_reci_chn_{channel}: {1 / std:.9g}",
            ]
        return "aipp_op {\n" + "".join(f"  {line}\n" for line in lines) + "}\n"


def _coder(coder: Any) -> dict[str, Any]:
    """Return what decoding needs of mmdet's DeltaXYWHBBoxCoder."""
    if coder.add_ctr_clamp or not coder.clip_border:
        raise exporting.ConfigInvalid(
            "boxes must be decoded without a limit of centres, and end at the border"
        )
    return {"means": list(coder.means), "stds": list(coder.stds)}


def load_model(cfg: Config, checkpoint: str, classes: tuple[str, ...]) -> Any:
    """Return the model of a configuration with a checkpoint's weights, on the CPU.

    Raises
    ------
    CheckpointError
        The file is damaged, or belongs to another model.
    """
    init_default_scope("mmdet")
    cfg.model.backbone.pop("init_cfg", None)  # the weights that training starts from
    set_classes(cfg, classes)
    model = MODELS.build(cfg.model)
    weights = weights_of(read_checkpoint(checkpoint))
    report = compare(model, weights)
    if not report.complete:
        raise CheckpointMismatch(f"the checkpoint is not one of this model\n{report}")
    model.load_state_dict(weights)
    return model.eval()


def has_model(meta: Meta) -> bool:
    """Return whether the model itself takes pictures of the exported size: for others its positions were resized."""
    own = Config.fromstring(meta.host["config"], ".py").model.backbone.img_size
    return (meta.height, meta.width) == (own, own)


def torch_stages(meta: Meta, checkpoint: str | Path) -> dict[str, nn.Module]:
    """Return the stages' modules, which take and give tensors in the order of the ports.

    Raises
    ------
    CheckpointMismatch
        The checkpoint is not the one that was exported.
    CheckpointError
        As `load_model`.
    """
    exporting.require_exported(meta, Path(checkpoint))
    model = load_model(Config.fromstring(meta.host["config"], ".py"), str(checkpoint), meta.classes)
    options = Options(
        size=(meta.height, meta.width),
        batch=meta.batch,
        without=tuple(meta.host["without"]),
        variants=tuple(meta.host["variants"]),
    )
    return stages.build(model, options)


def classes_and_ids(cfg: Config, checkpoint: str) -> tuple[tuple[str, ...], tuple[Any, ...]]:
    """Return the classes of a checkpoint or of the data set, and the data set's ids of them: 1, 2, … without one.

    Raises
    ------
    CheckpointMismatch
        The checkpoint states other classes than the data set.
    DataError
        There is no data set, and the checkpoint does not say its classes.
    """
    root = Path(cfg.data_root)
    stated = meta_classes(read_checkpoint(checkpoint).get("meta") or {})
    here = known_classes(root)
    if stated and here and stated != here:
        raise CheckpointMismatch(
            f"the checkpoint is not one of this model: {describe_difference(stated, here)}"
        )
    if here:
        content = read(root / "annotations" / f"instances_{find_split(root, 'val')}.json")
        return here, tuple(category["id"] for category in content["categories"])
    if not stated:
        raise DataError(f"the checkpoint does not say its classes, and there is no data set {root}")
    return stated, tuple(range(1, len(stated) + 1))


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the program's options."""
    add_export_options(parser, tuple(stages.REWRITES), own_size=True)
    parser.add_argument(
        "--variant",
        action="append",
        default=[],
        choices=tuple(stages.VARIANTS),
        help="use this operator of ATC's",
    )
    parser.add_argument("--aipp", action="store_true", help="take pictures as bytes, normalised by AIPP")


def main() -> None:
    """Export."""
    parser = launch.parser("Export a checkpoint as ONNX, stage by stage.")
    add_options(parser)
    args = parser.parse_args()
    forget()
    with reporting():
        cfg = launch.load_config(args)
        file, folder = os.environ["CHECKPOINT"], Path(os.environ["WORK_DIR"])
        classes, ids = classes_and_ids(cfg, file)
        model = load_model(cfg, file, classes)
        options = Options(
            size=args.size or (model.backbone.img_size,) * 2,
            batch=args.batch,
            without=tuple(args.no_rewrite),
            variants=tuple(args.variant),
        )
        export(cfg, model, options, folder, file, classes, ids, opset=args.opset, aipp=args.aipp)


def export(
    cfg: Config,
    model: Any,
    options: Options,
    folder: Path,
    checkpoint: str,
    classes: tuple[str, ...],
    ids: tuple[Any, ...],
    *,
    opset: str = "auto",
    aipp: bool = False,
) -> Meta:
    """Write a model's stages and, last, export_meta.json into a folder, and return what that says."""
    exported = Exported(cfg, model, options, aipp=aipp)
    # What is here from now on is of this export: without its meta file it is none.
    (folder / META).unlink(missing_ok=True)
    made = exported.write(folder, opset)
    meta = Meta(
        family="vitdet",
        model=Path(cfg.filename).stem,
        checkpoint=checkpoint,
        checkpoint_sha256=file_digest(Path(checkpoint)),
        height=options.size[0],
        width=options.size[1],
        batch=options.batch,
        classes=classes,
        category_ids=ids,
        stages=made,
        host=exported.host,
        export_id=exporting.export_id(made),
    )
    meta.write(folder)
    progress.write("note", text=f"exported {', '.join(stage.file for stage in made)}")
    return meta


if __name__ == "__main__":
    main()
