"""Findings of an evaluation as large as asked: seconds of the CPU and memory, beside the matching of pycocotools alone.

Made-up truth and detections with masks: 80 classes, 7 objects and 100 detections per image, a third of them near an
object. The precision of both must be the same numbers. `find` draws charts too, but no pictures: there are none.

    python tests/bench/bench_findings.py [--images 500]
"""

import argparse
import contextlib
import io
import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
from ascendet_common.findings import __main__ as program
from ascendet_common.findings import inputs, matching, numbers
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

WIDTH, HEIGHT = 640, 480
CLASSES, OBJECTS, DETECTIONS = 80, 7, 100
TURNS = np.linspace(0, 2 * np.pi, 24, endpoint=False)


def polygon(box):
    """Ellipse in `box` [x, y, width, height]."""
    x, y, width, height = box
    points = np.stack([x + width / 2 * (1 + np.cos(TURNS)), y + height / 2 * (1 + np.sin(TURNS))], 1)
    return points.round(2).ravel().tolist()


def boxes_in(rng, count):
    """Boxes of all sizes within the picture, shape (count, 4)."""
    size = np.exp(rng.uniform(1.5, 5.5, (count, 2)))
    return np.concatenate([rng.uniform(0, 1, (count, 2)) * ((WIDTH, HEIGHT) - size), size], 1)


def make(images, folder):
    """Write an evaluation as `make eval` leaves it."""
    rng = np.random.default_rng(0)
    truth, found = [], []
    for image in range(1, images + 1):
        objects, labels = boxes_in(rng, OBJECTS), rng.integers(1, CLASSES + 1, OBJECTS)
        for box, label in zip(objects.tolist(), labels.tolist(), strict=True):
            mask = [polygon(box)]
            fields = dict(id=len(truth) + 1, image_id=image, category_id=label, iscrowd=0)
            truth.append(fields | dict(bbox=box, area=box[2] * box[3] * 0.78, segmentation=mask))
        boxes, classes = boxes_in(rng, DETECTIONS), rng.integers(1, CLASSES + 1, DETECTIONS)
        near = rng.integers(0, OBJECTS, DETECTIONS // 3)
        boxes[: len(near)] = (
            objects[near] + rng.normal(0, 0.08, (len(near), 4)) * objects[near][:, [2, 3, 2, 3]]
        )
        classes[: len(near)] = labels[near]
        boxes[:, :2] = boxes[:, :2].clip(0, (WIDTH - 4, HEIGHT - 4))
        boxes[:, 2:] = boxes[:, 2:].clip(2, (WIDTH, HEIGHT) - boxes[:, :2])
        masks = coco_mask.frPyObjects([polygon(box) for box in boxes.tolist()], HEIGHT, WIDTH)
        for box, label, mask in zip(boxes.tolist(), classes.tolist(), masks, strict=True):
            rle = dict(size=mask["size"], counts=mask["counts"].decode())
            score = float(rng.random())
            found.append(dict(image_id=image, category_id=label, bbox=box, score=score, segmentation=rle))
    pictures = [
        dict(id=one, file_name=f"{one}.jpg", width=WIDTH, height=HEIGHT) for one in range(1, images + 1)
    ]
    categories = [dict(id=one, name=f"class {one}") for one in range(1, CLASSES + 1)]
    annotations = folder / "instances_val.json"
    annotations.write_text(json.dumps(dict(images=pictures, annotations=truth, categories=categories)))
    (folder / "images.json").write_text(
        json.dumps(dict(annotations=str(annotations), images=list(range(1, images + 1))))
    )
    (folder / "predictions.json").write_text(json.dumps(found))
    print(f"{images} images, {len(truth)} objects, {len(found)} detections of {CLASSES} classes")


def reference(folder, kind):
    """Precision by pycocotools, shape (10, 101, classes), and the seconds of matching and accumulating."""
    found = json.loads((folder / "predictions.json").read_bytes())
    if kind == "segm":
        found = [{key: value for key, value in item.items() if key != "bbox"} for item in found]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(folder / "instances_val.json")
        evaluation = COCOeval(coco, coco.loadRes(found), kind)
        start = time.process_time()
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"][:, :, :, 0, -1], time.process_time() - start


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=500)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(args.images, folder)
        held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.process_time()
        evaluation = inputs.read(folder / "predictions.json", folder / "images.json")
        middle = time.process_time()
        program.find(evaluation, 0.3, "en", folder)
        end = time.process_time()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(f"findings: {middle - start:.1f} s to read, {end - middle:.1f} s for all else")
        print(f"most memory: {peak / 1024:.0f} MiB ({held / 1024:.0f} MiB to make the data)")
        print(f"\n{'':6}{'pycocotools':>14}{'findings':>12}{'ratio':>8}  matching and precision")
        for kind in ("bbox", "segm"):
            expected, slow = reference(folder, kind)
            start = time.process_time()
            found = numbers.precision(evaluation, matching.pair(evaluation, kind))
            fast = time.process_time() - start
            same = "equal" if np.array_equal(expected, found) else "DIFFERENT"
            print(f"{kind:6}{slow:>12.1f} s{fast:>10.1f} s{slow / fast:>8.1f}  {same}")


if __name__ == "__main__":
    main()
