"""Detect objects in pictures with one device: drawn pictures, COCO-like results, and where the time goes.

    python -m vitdet.infer --config vitdet-b.py --checkpoint b.pth --images list.json --out FOLDER

`list.json` holds file names; bytes that are not UTF-8 are lone surrogates there and in the results, as Python has them,
and `\\xNN` where they are printed and in the names of drawn pictures. Written to FOLDER: `pictures/`, and `results.json`
with the detections in pixels of the picture as it is seen (turned by its EXIF orientation), what was skipped, and
milliseconds. Batch 1, as in the port reports.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.visualization import DetLocalVisualizer
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.device import get_device
from mmengine.registry import init_default_scope
from pycocotools import mask as coco_mask
from torch import Tensor, nn

from vitdet.checkpoint import CheckpointError, compare, read, weights_of
from vitdet.data import DataError, differing, known_classes, meta_classes, set_classes
from vitdet.images import ImageError, Pixels, printable
from vitdet.images import read as read_image

# read: file to pixels. preprocess: resize, pad, copy to the device, normalise. device: the model, with its NMS and the
# pasting of masks. postprocess: results to the host, masks to RLE. Each ends when the device is done.
STAGES = ("read", "preprocess", "device", "postprocess")


class Watch:
    """Milliseconds of named pieces of work."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Measure a block, until the device has finished what it started."""
        start = time.perf_counter()
        yield
        if get_device() == "npu":
            torch.npu.synchronize()
        self.spent[name] = 1e3 * (time.perf_counter() - start)


class Detector:
    """A trained model on this process's device.

    Parameters
    ----------
    cfg
        A configuration of the vitdet package. Where its data set is here, the checkpoint must have its classes.
    checkpoint
        A file of exactly this model.

    Raises
    ------
    CheckpointError
        A damaged file, or one of another model or other classes.
    DataError
        A file that does not say its classes, and there is no data set that does.
    """

    def __init__(self, cfg: Config, checkpoint: str) -> None:
        init_default_scope("mmdet")
        cfg.model.backbone.pop("init_cfg", None)  # what training starts from
        content = read(checkpoint)
        classes = self._classes(content.get("meta") or {}, Path(cfg.data_root))
        set_classes(cfg, classes)
        self.model = MODELS.build(cfg.model)
        self._load(self.model, weights_of(content))
        self.model.to(torch.device(get_device())).eval()
        # Pixels come from `images.read`; there are no annotations.
        steps = [step for step in cfg.test_pipeline if not step["type"].startswith("Load")]
        self.pipeline = Compose(steps)
        self.meta = {"classes": classes, "palette": "random"}

    @staticmethod
    def _classes(meta: dict[str, Any], root: Path) -> tuple[str, ...]:
        stated, here = meta_classes(meta), known_classes(root)
        if stated and here and stated != here:
            raise CheckpointError(f"the checkpoint is not one of this model: {differing(stated, here)}")
        if not stated and not here:
            raise DataError(f"the checkpoint does not say its classes, and there is no data set {root}")
        return stated or here

    @staticmethod
    def _load(model: nn.Module, weights: dict[str, Tensor]) -> None:
        report = compare(model, weights)
        if not report.complete:
            raise CheckpointError(f"the checkpoint is not one of this model\n{report}")
        model.load_state_dict(weights)

    @torch.no_grad()
    def __call__(self, pixels: Pixels, name: str, watch: Watch) -> tuple[DetDataSample, list[dict[str, Any]]]:
        """Detections in an image.

        Parameters
        ----------
        pixels
            Shape (height, width, 3), BGR, uint8.
        name
            What the image is called.
        watch
            Gets the milliseconds of all stages but `read`.

        Returns
        -------
        sample, detections
            mmdet's sample on the host; and per object `category`, `score`, `bbox` [x, y, width, height] in pixels,
            `segmentation` (compressed RLE), by falling score.

        Raises
        ------
        ImageError
            The image's shape leaves nothing after scaling: it is thousands of times wider than high, or the reverse.
        """
        shape = pixels.shape[:2]
        with watch("preprocess"):
            entry = dict(img=pixels, img_path=name, img_id=0, img_shape=shape, ori_shape=shape)
            try:
                data = self.pipeline(entry)
            except cv2.error as error:
                raise ImageError(f"{name}: {shape[1]} x {shape[0]} pixels cannot be scaled") from error
            data = self.model.data_preprocessor(pseudo_collate([data]))
        with watch("device"):
            sample = self.model(**data, mode="predict")[0]
        with watch("postprocess"):
            sample = sample.cpu()
            found = self._describe(sample.pred_instances)
        return sample, found

    def _describe(self, objects: Any) -> list[dict[str, Any]]:
        masks = coco_mask.encode(np.asfortranarray(objects.masks.numpy().transpose(1, 2, 0).astype(np.uint8)))
        rows = zip(
            objects.labels.tolist(), objects.scores.tolist(), objects.bboxes.tolist(), masks, strict=True
        )
        found = [
            {
                "category": self.meta["classes"][label],
                "score": score,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "segmentation": {"size": mask["size"], "counts": mask["counts"].decode()},
            }
            for label, score, (x0, y0, x1, y1), mask in rows
        ]
        return sorted(found, key=lambda item: -item["score"])


def summarize(calls: Sequence[dict[str, float]]) -> dict[str, Any]:
    """The first call, in which a device compiles, apart from the median of the others, in milliseconds.

    >>> steady = summarize([dict.fromkeys(STAGES, 9.0), dict.fromkeys(STAGES, 1.0)])["steady"]
    >>> steady["total"], steady["images_per_second"]
    (4.0, 250.0)
    """
    totals = [sum(call[name] for name in STAGES) for call in calls]
    steady = {name: statistics.median(call[name] for call in calls[1:]) for name in STAGES}
    total = statistics.median(totals[1:])
    return {
        "first_call": {**{name: calls[0][name] for name in STAGES}, "total": totals[0]},
        "steady": {**steady, "total": total, "images_per_second": 1e3 / total},
        "calls": len(calls) - 1,
    }


def main() -> None:
    """Go through the pictures that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--config", required=True, help="configuration of the model")
    parser.add_argument("--checkpoint", required=True, help="its weights")
    parser.add_argument("--images", required=True, type=Path, help="JSON list of file names")
    parser.add_argument("--out", required=True, type=Path, help="folder for results.json and pictures/")
    parser.add_argument("--score", type=float, default=0.3, help="draw and list objects from this score on")
    parser.add_argument("--bad", choices=["skip", "refuse"], default="skip", help="damaged pictures")
    args = parser.parse_args()
    cfg = Config.fromfile(args.config)
    detector = Detector(cfg, args.checkpoint)
    visualizer = DetLocalVisualizer()
    visualizer.dataset_meta = detector.meta
    (args.out / "pictures").mkdir(parents=True, exist_ok=True)
    files = json.loads(args.images.read_text(encoding="utf-8"))
    results, skipped, calls = [], [], []
    for number, file in enumerate(files):
        shown = printable(file)
        try:
            # The very first one again: one picture has a steady state, too.
            for _ in range(1 if calls else 2):
                watch = Watch()
                with watch("read"):
                    pixels = read_image(file)
                sample, found = detector(pixels, shown, watch)
                calls.append(watch.spent)
        except ImageError as error:
            if args.bad == "refuse":
                raise
            skipped.append({"file": file, "reason": str(error).removeprefix(f"{shown}: ")})
            print(f"skipped: {error}", flush=True)
            continue
        picture = f"{number:04d}-{Path(shown).stem}.jpg"
        visualizer.add_datasample(
            shown,
            np.ascontiguousarray(pixels[..., ::-1]),  # it draws on RGB
            sample,
            draw_gt=False,
            pred_score_thr=args.score,
            out_file=str(args.out / "pictures" / picture),
        )
        kept = [item for item in found if item["score"] >= args.score]
        height, width = pixels.shape[:2]
        results.append(
            {
                "file": file,
                "picture": f"pictures/{picture}",
                "width": width,
                "height": height,
                "detections": kept,
                "milliseconds": calls[-1],
            }
        )
        print(f"{shown}: {len(kept)} objects, {sum(calls[-1].values()):.0f} ms", flush=True)
    if not results:
        sys.exit(
            f"ImageError: none of the {len(files)} pictures can be read; {printable(skipped[0]['file'])}: "
            f"{skipped[0]['reason']}"
        )
    content = {
        "categories": list(detector.meta["classes"]),
        "score_threshold": args.score,
        "images": results,
        "skipped": skipped,
        "latency": summarize(calls),
    }
    (args.out / "results.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
