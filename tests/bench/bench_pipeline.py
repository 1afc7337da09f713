"""The input pipeline of ViTDet-B's training: images per second on one core, and what 8 cards would need.

The images are made here: JPEG, 640 x 480, noise over smooth colours, 7 polygons each. "Stock" is mmdetection's pipeline
with its own classes; ours is the configuration's, with what our preprocessing does on the host for each image.

    python tests/bench/bench_pipeline.py [--card 8] [--cores 192]
"""

import argparse
import copy
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"

import cv2
import numpy as np
import torch
import torch_npu  # noqa: F401  mmcv's operators link to it
import vitdet
from mmdet.datasets import CocoDataset
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner, set_random_seed
from vitdet.data import fill
from vitdet.preprocess import pad_boxes

IMAGES, POLYGONS, WIDTH, HEIGHT = 64, 7, 640, 480


def make_coco(folder: Path) -> None:
    """A data set in COCO's layout."""
    random = np.random.default_rng(0)
    (folder / "train2017").mkdir(parents=True)
    (folder / "annotations").mkdir()
    images, annotations = [], []
    for number in range(IMAGES):
        smooth = cv2.resize(random.integers(0, 256, (6, 8, 3), np.uint8), (WIDTH, HEIGHT))
        image = np.clip(smooth + random.normal(0, 12, smooth.shape), 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / "train2017" / f"{number:012}.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, 90])
        images.append({"id": number, "file_name": f"{number:012}.jpg", "width": WIDTH, "height": HEIGHT})
        for _ in range(POLYGONS):
            centre = random.uniform((60, 60), (WIDTH - 60, HEIGHT - 60))
            radius = random.uniform(10, 60, 24)
            angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
            points = centre + radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
            low, high = points.min(axis=0), points.max(axis=0)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": 1,
                    "bbox": [*low.tolist(), *(high - low).tolist()],
                    "area": float(np.prod(high - low)) / 2,
                    "segmentation": [points.ravel().tolist()],
                    "iscrowd": 0,
                }
            )
    names = CocoDataset.METAINFO["classes"]
    categories = [{"id": number, "name": name} for number, name in enumerate(names, 1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    for split in ("train2017", "val2017"):
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def seconds(dataset: CocoDataset, ours: bool, images: int) -> float:
    """Of one process on one core, for so many images."""
    start = time.perf_counter()
    for count in range(images):
        sample = dataset[count % len(dataset)]
        if ours:
            truth = sample["data_samples"].gt_instances
            pad_boxes(truth.bboxes.tensor)
            truth.masks.masks  # noqa: B018  made when a worker sends it
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--card", type=float, default=8, help="images per second that one card trains on: assumed"
    )
    parser.add_argument("--cores", type=int, default=192, help="cores of a host with 8 cards: assumed")
    parser.add_argument("--rounds", type=int, default=15, help="of 64 images each, stock and ours in turn")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    init_default_scope("mmdet")
    from mmdet.registry import DATASETS

    with tempfile.TemporaryDirectory() as folder:
        make_coco(Path(folder) / "coco")
        os.environ["ASCENDET_DATA"] = folder
        cfg = Config.fromfile(Path(vitdet.__file__).parent / "configs" / "vitdet-b.py")
        fill(cfg)
        ours = cfg.train_dataloader.dataset
        stock = copy.deepcopy(ours)
        stock.type = "CocoDataset"
        stock.pipeline[0].type, stock.pipeline[1].type = "LoadImageFromFile", "LoadAnnotations"
        datasets = {True: DATASETS.build(ours), False: DATASETS.build(stock)}
        rates = {True: [], False: []}
        for turn in range(args.rounds):
            for kind in (False, True) if turn % 2 else (True, False):
                set_random_seed(turn)  # both see the same images at the same scales
                rates[kind].append(IMAGES / seconds(datasets[kind], kind, IMAGES))
        stock, ours = (statistics.median(rates[kind]) for kind in (False, True))
        ratios = sorted(one / other for one, other in zip(rates[True], rates[False], strict=True))
        workers = os.cpu_count() or 1
        cfg.train_dataloader.update(num_workers=workers, batch_size=4)
        loader = Runner.build_dataloader(cfg.train_dataloader, seed=0)
        for _ in loader:  # the first time around starts the workers
            pass
        start, rounds = time.perf_counter(), 6
        for _ in range(rounds):
            for _ in loader:
                pass
        loaded = rounds * len(loader) * 4 / (time.perf_counter() - start)
    print(f"large-scale jitter at 1024 px, JPEG {WIDTH} x {HEIGHT}, {POLYGONS} polygons each")
    print(f"medians of {args.rounds} rounds of {IMAGES} images, stock and ours in turn on the same draws")
    print(f"  stock, one core               {stock:8.1f} images/s")
    print(f"  ours, one core                {ours:8.1f} images/s")
    middle, low, high = statistics.median(ratios), ratios[0], ratios[-1]
    print(f"  ours / stock, by round        {middle:8.3f} (least {low:.3f}, most {high:.3f})")
    print(f"  ours, loader of {workers} processes   {loaded:8.1f} images/s on {workers} cores")
    print(f"8 cards at an assumed {args.card:g} images/s each take {8 * args.card:g} images/s:")
    need = 8 * args.card / ours
    print(
        f"  {need:.1f} of such cores; an assumed host of {args.cores} has {args.cores / need:.0f} times that"
    )
    print("No card was measured: divide a real card's images/s by the rate of one core of its host.")


if __name__ == "__main__":
    main()
