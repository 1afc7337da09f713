"""Which locations learn which object: against the definition, written out for every location and object."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from blendmask.grid import Grid
from blendmask.targets import OBJECTS, POSITIVES, Assigned, Truth, assign, pack

STRIDES = (8, 16, 32, 64, 128)
GRID = Grid([(32, 40), (16, 20), (8, 10), (4, 5), (2, 3)], STRIDES)
SIZES = [64.0, 128.0, 256.0, 512.0]


def random_boxes(count: int, seed: int) -> np.ndarray:
    draw = np.random.default_rng(seed)
    corner = draw.uniform(-10, [300, 240], (count, 2))
    size = np.exp(draw.uniform(0, np.log(300), (count, 2)))
    boxes = np.concatenate([corner, corner + size], axis=1)
    boxes[::3] = boxes[::3].round()  # sides at locations, and sizes of interest met exactly
    return boxes.astype(np.float32)


def by_definition(boxes: np.ndarray, radius: float | None) -> dict[int, tuple[int, list[float], float]]:
    found = {}
    place = 0
    bounds = [-1, *SIZES, np.inf]
    for level, (stride, (height, width)) in enumerate(zip(STRIDES, GRID.sizes, strict=True)):
        for row in range(height):
            for column in range(width):
                x, y = np.float32(column * stride + stride // 2), np.float32(row * stride + stride // 2)
                best = None
                for number, (x0, y0, x1, y1) in enumerate(boxes):
                    sides = [x - x0, y - y0, x1 - x, y1 - y]
                    inside = min(sides) > 0
                    if radius is not None:
                        middle = (x0 + x1) / 2, (y0 + y1) / 2
                        reach = np.float32(radius * stride)
                        inside &= abs(x - middle[0]) < reach and abs(y - middle[1]) < reach
                    if not inside or not bounds[level] <= max(sides) <= bounds[level + 1]:
                        continue
                    area = (x1 - x0) * (y1 - y0)
                    if best is None or area < best[0]:
                        best = (area, number, sides)
                if best is not None:
                    left, top, right, bottom = best[2]
                    centre = np.sqrt(
                        min(left, right) / max(left, right) * min(top, bottom) / max(top, bottom)
                    )
                    found[place] = (best[1], [side / stride for side in best[2]], centre)
                place += 1
    return found


@pytest.mark.parametrize("radius", [1.5, None])
@pytest.mark.parametrize("seed", range(3))
def test_positive_locations_are_those_of_the_definition(radius: float | None, seed: int) -> None:
    boxes = random_boxes(12, seed)
    found, wanted = assign(boxes, GRID, SIZES, radius), by_definition(boxes, radius)
    assert len(found.location) == len(wanted) > 12
    for location, owner, sides, centre in zip(
        found.location, found.object, found.sides, found.centreness, strict=True
    ):
        number, expected, middle = wanted[int(location)]
        assert owner == number
        assert sides == pytest.approx(expected, rel=1e-5)
        assert centre == pytest.approx(middle, rel=1e-5)


def test_of_equal_boxes_the_first_one_gets_the_location() -> None:
    boxes = np.array([[20, 20, 60, 60]] * 3, np.float32)
    assert set(assign(boxes, GRID, SIZES, 1.5).object.tolist()) == {0}


@pytest.mark.parametrize(
    "boxes",
    [[], [[10, 10, 10, 50]], [[-80, -80, -10, -10]], [[400, 400, 500, 500]]],
    ids=["none", "without width", "left of the image", "outside of the maps"],
)
def test_what_is_nowhere_has_no_location(boxes: list[list[float]]) -> None:
    assert len(assign(np.array(boxes, np.float32).reshape(-1, 4), GRID, SIZES, 1.5).location) == 0


def truth(boxes: np.ndarray, seed: int = 0) -> Truth:
    draw = np.random.default_rng(seed)
    return Truth(
        boxes=boxes,
        classes=draw.integers(0, 80, len(boxes)),
        crops=draw.random((len(boxes), 28, 28)) < 0.5,
    )


def check_packed(truths: list[Truth], found: list[Assigned]) -> int:
    """Every location is packed once, with its own; returns how many chunks there are."""
    targets = pack(truths, found, GRID, 80, torch.device("cpu"))
    seen = []
    for chunk in targets.chunks:
        assert chunk.neighbours.shape == (POSITIVES * 9,)
        assert chunk.regions.shape == (OBJECTS, 5)
        around = chunk.neighbours.view(POSITIVES, 9)
        for slot in range(POSITIVES):
            if not chunk.valid[slot]:
                assert chunk.centreness[slot] == 0
                assert set(around[slot].tolist()) == {GRID.count}  # zeros
                continue
            image, location = divmod(int(around[slot, 4]), GRID.count + 1)
            place = found[image].location.tolist().index(location)
            owner = found[image].object[place]
            region = chunk.regions[chunk.owners[slot]]
            assert region.tolist() == pytest.approx([image, *truths[image].boxes[owner]])
            assert torch.equal(
                chunk.crops[chunk.owners[slot]], torch.from_numpy(truths[image].crops[owner]).byte()
            )
            assert chunk.logits[slot] == (image * 80 + truths[image].classes[owner]) * GRID.count + location
            assert chunk.sides[slot].tolist() == pytest.approx(found[image].sides[place].tolist())
            assert float(chunk.centreness[slot]) == pytest.approx(float(found[image].centreness[place]))
            seen.append((image, location))
    wanted = [(image, int(place)) for image, one in enumerate(found) for place in one.location]
    assert sorted(seen) == sorted(wanted)
    assert targets.totals[0] == len(wanted)
    assert targets.totals[1] == pytest.approx(sum(one.centreness.sum() for one in found), rel=1e-5)
    return len(targets.chunks)


def test_a_batch_is_packed_completely() -> None:
    boxes = [random_boxes(5, 0), np.zeros((0, 4), np.float32), random_boxes(40, 1)]
    found = [assign(one, GRID, SIZES, 1.5) for one in boxes]
    assert check_packed([truth(one) for one in boxes], found) > 1


def test_seven_hundred_objects_are_packed_completely() -> None:
    draw = np.random.default_rng(0)
    corner = draw.uniform(0, [300, 240], (700, 2))
    boxes = np.concatenate([corner, corner + draw.uniform(4, 24, (700, 2))], axis=1).astype(np.float32)
    found = [assign(boxes, GRID, SIZES, 1.5)]
    assert check_packed([truth(boxes)], found) >= 700 / OBJECTS * 0.5


def test_nothing_at_all_is_one_chunk_without_weight() -> None:
    nothing = np.zeros((0, 4), np.float32)
    assert check_packed([truth(nothing)] * 2, [assign(nothing, GRID, SIZES, 1.5)] * 2) == 1


def test_neighbours_are_the_window_of_a_convolution() -> None:
    maps = [torch.arange(1.0, 1 + height * width).view(1, 1, height, width) for height, width in GRID.sizes]
    rows = torch.cat([one.flatten() for one in maps] + [torch.zeros(1)])
    windows = torch.cat([torch.nn.functional.unfold(one, 3, padding=1)[0].T for one in maps])
    assert torch.equal(rows[torch.from_numpy(GRID.neighbours).long()], windows)
