"""faster-coco-eval, which `make eval` scores with, beside pycocotools: seconds, and whether all 24 numbers agree.

Made-up truth and detections, boxes and masks, of as many images as asked; both read the same lists.

    python tests/bench/bench_score.py [--images 1000]
"""

import argparse
import contextlib
import copy
import io
import random
import time

import numpy as np
from ascendet.run.score import NAMES, score
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

WIDTH, HEIGHT = 640, 480
CLASSES = 80


def shape(box):
    """RLE of an ellipse in `box` [x, y, width, height]."""
    x, y, width, height = box
    rows, columns = np.ogrid[:HEIGHT, :WIDTH]
    inside = ((columns - x - width / 2) / (width / 2)) ** 2 + (
        (rows - y - height / 2) / (height / 2)
    ) ** 2 <= 1
    rle = coco_mask.encode(np.asfortranarray(inside.astype(np.uint8)))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def make(images):
    """COCO annotations with 7 objects per image, as COCO has, and 20 detections per image, a third of them right."""
    draw = random.Random(0)
    truth = {"info": {}, "images": [], "annotations": [], "categories": []}
    truth["categories"] = [{"id": number, "name": str(number)} for number in range(1, CLASSES + 1)]
    found = []
    for image in range(1, images + 1):
        truth["images"].append({"id": image, "width": WIDTH, "height": HEIGHT})
        for index in range(20):
            width, height = draw.uniform(10, 300), draw.uniform(10, 300)
            box = [draw.uniform(0, WIDTH - width), draw.uniform(0, HEIGHT - height), width, height]
            category = draw.randint(1, CLASSES)
            rle = shape(box)
            if index < 7:
                area = float(coco_mask.area(rle))
                number = len(truth["annotations"]) + 1
                truth["annotations"].append(
                    dict(
                        id=number,
                        image_id=image,
                        category_id=category,
                        bbox=box,
                        area=area,
                        iscrowd=0,
                        segmentation=rle,
                    )
                )
                box = [box[0] + draw.uniform(0, width / 4), *box[1:]]
                rle = shape(box)
            found.append(
                dict(image_id=image, category_id=category, bbox=box, score=draw.random(), segmentation=rle)
            )
    return truth, found


def reference(truth, found, kind):
    """pycocotools' 12 numbers."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        if kind == "segm":
            found = [{key: value for key, value in item.items() if key != "bbox"} for item in found]
        evaluation = COCOeval(coco, coco.loadRes(found), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(NAMES, map(float, evaluation.stats), strict=True))


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=1000)
    args = parser.parse_args()
    truth, found = make(args.images)
    print(f"{args.images} images, {len(truth['annotations'])} objects, {len(found)} detections")
    print(f"{'':6}{'pycocotools':>14}{'faster':>10}{'ratio':>8}  largest difference")
    for kind in ("bbox", "segm"):
        seconds, numbers = [], []
        for judge in (reference, score):
            given = copy.deepcopy(truth), copy.deepcopy(found)
            start = time.perf_counter()
            numbers.append(judge(*given, kind))
            seconds.append(time.perf_counter() - start)
        worst = max(abs(numbers[0][name] - numbers[1][name]) for name in NAMES)
        slow, fast = seconds
        print(f"{kind:6}{slow:>12.1f} s{fast:>8.1f} s{slow / fast:>8.1f}  {worst:.1e}")


if __name__ == "__main__":
    main()
