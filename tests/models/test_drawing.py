"""wheels/common's drawing: what stands on a picture."""

import numpy as np
import pytest
from ascendet_common import detect, drawing, images
from ascendet_common.drawing import Thing
from pycocotools import mask as coco_mask

GREY = np.full((120, 160, 3), 60, np.uint8)


def _mask(top, bottom, left, right, shape=GREY.shape[:2]):
    mask = np.zeros(shape, np.uint8)
    mask[top:bottom, left:right] = 1
    rle = coco_mask.encode(np.asfortranarray(mask))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


def test_masks_boxes_and_names_are_drawn_and_nothing_else(tmp_path):
    found = [
        dict(category="thing", score=0.9, bbox=[40, 40, 60, 40], segmentation=_mask(40, 80, 40, 100)),
        dict(category="thing", score=0.8, bbox=[120, 90, 20, 20]),  # without a mask
    ]
    pixels = GREY.copy()
    detect.draw(pixels, found, ("other", "thing"), tmp_path / "图.png")
    drawn = images.read(tmp_path / "图.png")
    assert np.array_equal(pixels, GREY)
    changed = (drawn != GREY).any(2)
    assert changed[45:75, 45:95].all()
    assert not changed[92:108, 122:138].any()
    assert not changed[:20].any()
    assert not changed[:, :38].any()
    assert np.array_equal(drawn[40, 99], drawing.colour(1))


@pytest.mark.parametrize("text", ["thing", "消防栓 0.93", "ключ", "\udcd6\udcd0"])
def test_a_name_in_any_language_is_written(text):
    drawn = drawing.draw(GREY, [Thing(label=0, text=text, box=[40, 40, 60, 40])])
    other = drawing.draw(GREY, [Thing(label=0, text=f"{text}.", box=[40, 40, 60, 40])])
    unnamed = drawing.draw(GREY, [Thing(label=0, text="", box=[40, 40, 60, 40])])
    assert (drawn[:39] != unnamed[:39]).any()
    assert (drawn != other).any() or drawing._chinese() is None


def test_without_a_font_for_a_name_the_number_of_its_class_is_written(monkeypatch):
    expected = drawing.draw(GREY, [Thing(label=6, text="#7", box=[40, 40, 60, 40])])
    drawing._font.cache_clear()
    monkeypatch.setattr(drawing, "_chinese", lambda: None)
    drawn = drawing.draw(GREY, [Thing(label=6, text="消防栓", box=[40, 40, 60, 40])])
    drawing._font.cache_clear()
    assert np.array_equal(drawn, expected)


def test_what_is_doubtful_is_told_from_what_is_not():
    sure, doubtful = (
        drawing.draw(GREY, [Thing(label=0, text="x", box=[40, 40, 60, 40], doubtful=flag)])
        for flag in (False, True)
    )
    edge = doubtful[45:75, 40]
    assert (edge == 255).all(1).any()
    assert (edge == drawing.colour(0)).all(1).any()
    assert (sure[45:75, 40] == drawing.colour(0)).all()


def test_a_scaled_picture_has_its_things_where_they_are():
    thing = Thing(label=0, text="", box=[40, 40, 60, 40], mask=_mask(40, 80, 40, 100))
    for factor in (0.5, 3):
        size = round(120 * factor), round(160 * factor)
        drawn = drawing.draw(GREY, [thing], size)
        assert drawn.shape == (*size, 3)
        inside = drawn[round(45 * factor) : round(75 * factor), round(45 * factor) : round(95 * factor)]
        assert (inside != 60).any(2).all()
        assert (drawn[round(90 * factor) :] == 60).all()


def test_a_mask_of_another_size_is_left_out():
    box = [40, 40, 60, 40]
    other = Thing(label=0, text="x", box=box, mask=_mask(0, 100, 0, 100, (200, 200)))
    without = Thing(label=0, text="x", box=box)
    assert np.array_equal(drawing.draw(GREY, [other]), drawing.draw(GREY, [without]))


@pytest.mark.parametrize("box", [[-30, -30, 20, 10], [200, 200, 10, 10], [0, 0, 0, 0], [159, 119, 500, 500]])
def test_a_box_beyond_the_picture_is_no_error(box):
    assert (
        drawing.draw(GREY, [Thing(label=0, text="a long name", box=box, doubtful=True)]).shape == GREY.shape
    )


def test_pictures_of_any_size_are_drawn_on():
    for shape in ((1, 1, 3), (1, 900, 3), (700, 2, 3)):
        drawn = drawing.draw(np.zeros(shape, np.uint8), [Thing(label=0, text="name", box=[0, 0, 1, 1])])
        assert drawn.shape == shape


def test_labels_of_things_in_one_place_do_not_cover_each_other():
    box = [40, 40, 60, 40]
    things = [Thing(label=at, text="name", box=box) for at in range(4)]
    drawn = drawing.draw(GREY, things)
    alone = [drawing.draw(GREY, [thing]) for thing in things]
    for thing, one in zip(things, alone, strict=True):
        above = (
            (one[:39] == drawing.colour(thing.label)).all(2).sum()
        )  # of its label, where it has the choice
        assert (drawn == drawing.colour(thing.label)).all(2).sum() >= above > 100


@pytest.mark.parametrize("doubtful", [True, False])
def test_a_doubtful_thing_has_no_label_where_there_is_no_place(doubtful):
    small = np.full((40, 40, 3), 60, np.uint8)
    sure = Thing(label=0, text="name", box=[0, 0, 40, 40])
    others = [Thing(label=1, text="other", box=[0, 0, 40, 40], doubtful=doubtful)] * 4
    label = slice(3, 14), slice(4, 30)
    covered = (drawing.draw(small, [*others, sure])[label] != drawing.draw(small, [sure])[label]).any()
    assert covered != doubtful
