"""The host's steps of a staged OM, per picture: milliseconds of CPU time, with 1,000 candidates and 100 masks.

The device's outputs are made up: as many locations as asked have an object's score and box, the rest is below the
threshold. `preprocess` reads a picture of 640 x 480; the limit of 10 ms is for the steps after it.

    OPENBLAS_NUM_THREADS=1 python tests/bench/bench_om_host.py [--candidates 1000] [--rounds 30]
"""

import argparse
import importlib.util
import time

import cv2
import numpy as np
from staged_om.host import Batch, DeviceStep
from staged_om.meta import Meta, Port, Stage

HEIGHT, WIDTH, CLASSES = 800, 1344, 80


def blendmask(candidates):
    """R-50's pipeline, and what its device stages would give."""
    from blendmask import om

    levels, strides = ("p3", "p4", "p5", "p6", "p7"), (8, 16, 32, 64, 128)
    sizes = [(-(-HEIGHT // stride), -(-WIDTH // stride)) for stride in strides]
    draw = np.random.default_rng(0)
    values = {}
    objects = [
        (*draw.uniform((20, 20), (1047, 780)), *np.exp(draw.normal(4.8, 0.7, 2)), draw.integers(CLASSES))
        for _ in range(150)
    ]
    for number, (level, stride, size) in enumerate(zip(levels, strides, sizes, strict=True)):
        scores = draw.uniform(0, 0.04, (1, CLASSES, *size)).astype(np.float32)
        sides = draw.uniform(0, 4 * stride, (1, 4, *size)).astype(np.float32)
        # Some locations around the objects' centres, each with a box that is about the object's.
        for place in range(candidates // 5):
            x, y, width, height, kind = objects[(5 * place + number) % len(objects)]
            row = int(np.clip(y / stride + draw.integers(-2, 3), 0, size[0] - 1))
            column = int(np.clip(x / stride + draw.integers(-2, 3), 0, size[1] - 1))
            scores[0, (kind + place // 300) % CLASSES, row, column] = draw.uniform(0.06, 0.9)
            dx, dy = x - column * stride - stride // 2, y - row * stride - stride // 2
            box = np.array([width / 2 - dx, height / 2 - dy, width / 2 + dx, height / 2 + dy])
            sides[0, :, row, column] = np.maximum(box * draw.uniform(0.9, 1.1, 4), 0)
        values[om.scores_of(level)], values[om.sides_of(level)] = scores, sides
    small = draw.uniform(-0.2, 1.2, (100, 7, 7)).clip(0, 1).astype(np.float32)
    small[:, 2:5, 2:5] = 1
    values[om.MASKS] = np.stack([cv2.resize(one, (56, 56)) for one in small])

    def ports(names):
        return tuple(Port(name=name, dtype="float32", shape=values[name].shape) for name in names)

    def stage(name, inputs, outputs):
        return Stage(name=name, file="", sha256="", opset=16, inputs=inputs, outputs=outputs)

    picture = Port(name=om.PICTURE, dtype="float32", shape=(1, 3, HEIGHT, WIDTH))
    neighbours = Port(name=om.NEIGHBOURS, dtype="int32", shape=(900,))
    maps = [name for name in values if name != om.MASKS]
    meta = Meta(
        family="blendmask",
        model="blendmask-r50",
        checkpoint="",
        checkpoint_sha256="",
        height=HEIGHT,
        width=WIDTH,
        batch=1,
        classes=tuple(map(str, range(CLASSES))),
        category_ids=tuple(range(CLASSES)),
        stages=(stage("detector", (picture,), ports(maps)), stage("blend", (neighbours,), ports([om.MASKS]))),
        host={
            "mean": [103.53, 116.28, 123.675],
            "std": [1.0, 1.0, 1.0],
            "min_size": 800,
            "max_size": 1333,
            "levels": levels,
            "strides": strides,
            "threshold": 0.05,
            "overlap": 0.6,
            "candidates": 1000,
            "slots": 100,
        },
        export_id="",
    )
    return om.pipeline(meta), values


def vitdet(candidates):
    """ViTDet-B's pipeline at 1024 px, and what its device stages would give."""
    from vitdet import om

    side, levels, strides = 1024, 5, (4, 8, 16, 32, 64)
    draw = np.random.default_rng(0)
    ratios = np.sqrt([0.5, 1, 2])
    anchors = [
        np.stack([-1 / ratios, -ratios, 1 / ratios, ratios], axis=1) * 4 * stride for stride in strides
    ]
    sizes = np.exp(draw.uniform(np.log(24), np.log(400), (60, 2)))
    middles = draw.uniform(0, side, (60, 2))
    values = {}
    for stride, base, scores, deltas in zip(
        strides, anchors, om.rpn_scores(levels), om.rpn_deltas(levels), strict=True
    ):
        rows, columns = np.mgrid[0:side:stride, 0:side:stride]
        logits = draw.normal(-5, 1, (3, *rows.shape))
        moves = draw.normal(0, 0.15, (3, 4, *rows.shape))
        for number, box in enumerate(base):
            extent = box[2:] - box[:2]
            # The anchors around an object, if about of its size, are sure of it and move towards it.
            for middle, size in zip(middles, sizes, strict=True):
                away = np.stack([middle[0] - columns, middle[1] - rows]) / extent[:, None, None]
                near = (np.abs(away) < 0.3).all(axis=0) & (np.abs(np.log(size / extent)) < 1).all()
                logits[number][near] += draw.uniform(3, 9, near.sum())
                moves[number, :2, near] = away[:, near].T + draw.normal(0, 0.05, (near.sum(), 2))
                moves[number, 2:, near] = np.log(size / extent) + draw.normal(0, 0.08, (near.sum(), 2))
        values[scores] = logits[None].astype(np.float32)
        values[deltas] = moves.reshape(1, 12, *rows.shape).astype(np.float32)
    logits = draw.normal(0, 1, (1000, CLASSES + 1))
    logits[:, -1] += 12
    chosen = draw.permutation(600)[: candidates // 2]
    for kind in (0, 1):  # each of them of two classes
        logits[chosen, (chosen + kind) % CLASSES] += draw.uniform(11, 14, len(chosen))
    values[om.SCORES] = logits.astype(np.float32)
    values[om.DELTAS] = draw.normal(0, 0.3, (1000, 4 * CLASSES)).astype(np.float32)
    y, x = np.mgrid[-1:1:28j, -1:1:28j]
    values[om.MASKS] = (6 - 8 * np.hypot(x, y) + draw.normal(0, 0.6, (100, 28, 28))).astype(np.float32)
    meta = Meta(
        family="vitdet",
        model="vitdet-b",
        checkpoint="",
        checkpoint_sha256="",
        height=side,
        width=side,
        batch=1,
        classes=tuple(map(str, range(CLASSES))),
        category_ids=tuple(range(CLASSES)),
        stages=(),
        host={
            "mean": [123.675, 116.28, 103.53],
            "std": [58.395, 57.12, 57.375],
            "pad": [114, 114, 114],
            "levels": levels,
            "strides": [[stride, stride] for stride in strides],
            "anchors": [base.tolist() for base in anchors],
            "rpn_coder": {"means": [0.0] * 4, "stds": [1.0] * 4},
            "rpn": {"candidates": 1000, "proposals": 1000, "overlap": 0.7, "smallest": 0},
            "box_coder": {"means": [0.0] * 4, "stds": [0.1, 0.1, 0.2, 0.2]},
            "class_agnostic_boxes": False,
            "class_agnostic_masks": False,
            "score": 0.05,
            "overlap": 0.5,
            "detections": 100,
            "mask": 0.5,
        },
        export_id="",
    )
    return om.pipeline(meta), values


def measure(steps, values, rounds):
    """Milliseconds of CPU time of each host step in each round; and how many detections there were."""
    picture = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    times = {step.name: [] for step in steps if not isinstance(step, DeviceStep)}
    for _ in range(rounds):
        batch = Batch(pictures=[picture], values=dict(values))
        for step in steps:
            if not isinstance(step, DeviceStep):
                begin = time.process_time()
                step.run(batch)
                times[step.name].append(1e3 * (time.process_time() - begin))
    return {name: np.array(row) for name, row in times.items()}, len(batch.detections[0].scores)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--candidates", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=30)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    print(f"{'family':<12}{'candidates':>12}{'detections':>12}  ms, medians of {args.rounds} rounds")
    for name, make in FAMILIES.items():
        if not importlib.util.find_spec(name):
            print(f"{name:<12}  not measured: its package is not in this environment")
            continue
        steps, values = make(args.candidates)
        times, found = measure(steps, values, args.rounds)
        after = sum(value for step, value in times.items() if step != "preprocess")
        row = ", ".join(f"{step} {np.median(each):.1f}" for step, each in times.items())
        total = f"without preprocess {np.median(after):.1f}, at least {after.min():.1f}"
        print(f"{name:<12}{args.candidates:>12}{found:>12}  {row}; {total}")


FAMILIES = {"blendmask": blendmask, "vitdet": vitdet}

if __name__ == "__main__":
    main()
