"""The ladder names the rung that breaks, and the step at which it does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from conftest import hand_made, hand_made_steps
from staged_om.host import Batch, Detections, HostStep
from staged_om.ladder import RUNGS, climb, first_broken, first_divergence
from staged_om.meta import Meta
from staged_om.onnx_runner import PortMismatch, Runner, StageFunction, Tensors

META = hand_made()
PICTURE = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)


def stages() -> dict[str, StageFunction]:
    """Return the hand-made model's stages."""

    def features(given: Tensors) -> Tensors:
        image = given["image"]
        maps = np.concatenate([image, image.mean(axis=1, keepdims=True)], axis=1)
        return {"p2": maps, "p3": maps * 2, "hint": image.mean(axis=(2, 3))[:, :2]}

    def head(given: Tensors) -> Tensors:
        total = (
            given["p2"].mean(axis=(1, 2, 3)) + given["p3"].mean(axis=(1, 2, 3)) + given["rois"].mean(axis=1)
        )
        return {"scores": (total / 4)[:, None].astype(np.float32)}

    return {"features": features, "head": head}


def runner(meta: Meta = META, **changed: StageFunction) -> Runner:
    return Runner(meta, hand_made_steps(meta), stages() | changed)


def detect(one: Runner) -> Callable[[], list[Detections]]:
    return lambda: one.run([PICTURE]).batch.detections


def scaled(stage: str, factor: float) -> Runner:
    """Return a runner whose stage gives other numbers."""
    function = stages()[stage]
    return runner(
        **{stage: lambda given: {name: value * np.float32(factor) for name, value in function(given).items()}}
    )


def ladder(**changed: Runner) -> dict[str, Callable[[], list[Detections]]]:
    """Return rungs that agree but for those given."""
    return {name: detect(changed.get(name.replace("-", "_"), runner())) for name in ("pytorch", *RUNGS)}


# -- the runner --


def test_features_stay_on_the_device() -> None:
    """Only what a host step reads or writes is in the batch's values."""
    done = runner().run([PICTURE])
    assert set(done.batch.values) == {"image", "hint", "rois", "scores"}
    assert set(done.inputs["head"]) == {"p2", "p3", "rois"}
    assert set(done.outputs) == {"features", "head"}


def test_a_batch_that_is_not_full_is_padded() -> None:
    meta = hand_made(batch=3)
    assert len(runner(meta).run([PICTURE, PICTURE]).batch.detections) == 2


def test_a_stage_that_gives_another_shape_than_the_metadata_says_is_refused() -> None:
    wrong = runner(head=lambda _: {"scores": np.zeros((1, 2), np.float32)})
    with pytest.raises(PortMismatch, match=r"stage head: scores is float32\[1, 2\].*float32\[1, 1\]"):
        wrong.run([PICTURE])


# -- rungs --


def test_a_ladder_of_equals_holds() -> None:
    rungs, found = climb(ladder(), meta=META, score_thr=0.0)
    assert [rung.name for rung in rungs] == list(RUNGS)
    assert first_broken(rungs) is None
    assert list(found) == ["pytorch", *RUNGS]


@pytest.mark.parametrize("name", RUNGS)
def test_the_rung_with_a_fault_is_named_and_those_above_it_hold(name: str) -> None:
    wrong = scaled("head", 1.2)
    above = list(RUNGS)[list(RUNGS).index(name) :]
    rungs, _ = climb(ladder(**{one.replace("-", "_"): wrong for one in above}), meta=META, score_thr=0.0)
    broken = [rung for rung in rungs if rung.broken]
    assert [rung.name for rung in broken] == [name]
    value, limit = broken[0].broken["score"]
    assert value > limit == RUNGS[name].limits.score
    assert "BROKEN: score" in broken[0].describe()
    assert broken[0].facts()["broken"]["score"] == {"value": value, "limit": limit}


def test_a_fault_that_one_rung_forgives_breaks_a_stricter_one() -> None:
    """float16's rounding is nothing for the precision mode, and a fault of the export."""
    rungs, _ = climb(ladder(om=scaled("head", 1.001)), meta=META, score_thr=0.0)
    assert first_broken(rungs) is None
    rungs, _ = climb(ladder(wrappers=scaled("head", 1.001)), meta=META, score_thr=0.0)
    assert first_broken(rungs).name == "wrappers"  # type: ignore[union-attr]


def test_a_rung_that_finds_nothing_is_broken_whatever_else_holds() -> None:
    empty = Detections(
        boxes=np.zeros((0, 4), np.float32), scores=np.zeros(0, np.float32), labels=np.zeros(0, np.int64)
    )
    rungs, _ = climb(ladder() | {"om": lambda: [empty]}, meta=META, score_thr=0.0)
    assert rungs[-1].broken["detections"] == (0.0, 1.0)


def detections(scores: np.ndarray) -> Detections:
    """Return objects far from each other with these scores."""
    corners = np.arange(len(scores), dtype=np.float32)[:, None] * 20
    boxes = np.hstack([corners, corners, corners + 10, corners + 10])
    return Detections(boxes=boxes, scores=scores.astype(np.float32), labels=np.zeros(len(scores), np.int64))


@pytest.mark.parametrize(("count", "broken"), [(20, {"score"}), (150, set())])
def test_one_pair_of_a_hundred_decides_nothing(count: int, broken: set[str]) -> None:
    """Where two boxes of an object are nearly equal, a last bit decides which suppression keeps, with its score."""
    below, above = np.full(count, 0.8), np.full(count, 0.8)
    above[3] = 0.6
    rungs, _ = climb(
        {"om-origin": lambda: [detections(below)], "om": lambda: [detections(above)]},
        meta=META,
        score_thr=0.3,
    )
    assert set(rungs[-1].broken) == broken
    assert rungs[-1].facts()["pairs"]["score"] == pytest.approx(0.2)


def test_rungs_may_be_left_out() -> None:
    plan = ladder()
    rungs, _ = climb({name: plan[name] for name in ("onnx", "om")}, meta=META, score_thr=0.0)
    assert [(rung.name, rung.below) for rung in rungs] == [("om", "onnx")]


# -- steps --


@pytest.mark.parametrize("stage", ["features", "head"])
def test_the_first_diverging_stage_is_named(stage: str) -> None:
    found = first_divergence(runner(), scaled(stage, 1.2), [PICTURE])
    assert found is not None
    assert (found.step, found.device) == (stage, True)
    assert "RelativeEuclideanDistance 0.2 (must be < 0.05)" in str(found)


def test_a_stage_behind_the_broken_one_is_not_blamed() -> None:
    """`head` gets what the reference's features were, not the broken ones."""
    both = runner(features=scaled("features", 1.2).stages["features"])
    assert first_divergence(runner(), both, [PICTURE]).step == "features"  # type: ignore[union-attr]


def test_equal_runners_do_not_diverge() -> None:
    assert first_divergence(runner(), runner(), [PICTURE]) is None


@pytest.mark.parametrize(
    ("name", "change", "value"),
    [
        ("preprocess", lambda batch: batch.values.update(image=batch.values["image"] * 1.5), "image"),
        ("propose", lambda batch: batch.values.update(rois=batch.values["rois"] + 9), "rois"),
        (
            "paste",
            lambda batch: setattr(batch.detections[0], "boxes", batch.detections[0].boxes + 9),
            "detections",
        ),
    ],
)
def test_the_first_diverging_host_step_is_named(
    name: str, change: Callable[[Batch], Any], value: str
) -> None:
    def broken(step: HostStep) -> HostStep:
        def run(batch: Batch) -> None:
            step.run(batch)
            change(batch)

        return replace(step, run=run)

    good = runner()
    steps = [
        broken(step) if isinstance(step, HostStep) and step.name == name else step for step in good.steps
    ]
    found = first_divergence(good, Runner(META, steps, stages()), [PICTURE])
    assert found is not None
    assert (found.step, found.device, found.value) == (name, False, value)
