"""COCO's annotations with ids that every evaluator can live with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

Json = dict[str, Any]


def number(annotations: Json) -> tuple[Json, dict[Any, int], int]:
    """Return a COCO instances file's content with ids 1, 2, …, the images' by their old ones, and what is lost.

    pycocotools and what comes from it take an object with the id 0 for one that was not found, lose all but one of
    several that have the same id, and fail at ids that are text. What is lost is the number of objects whose
    category or image is not listed.

    Images and categories keep the order of their ids, which decides which of two results of equal score comes first.
    """
    images = _numbers(image["id"] for image in annotations["images"])
    categories = _numbers(category["id"] for category in annotations["categories"])
    objects = annotations["annotations"]
    known = [one for one in objects if one["image_id"] in images and one["category_id"] in categories]
    return (
        annotations
        | {
            "images": [image | {"id": images[image["id"]]} for image in annotations["images"]],
            "categories": [one | {"id": categories[one["id"]]} for one in annotations["categories"]],
            "annotations": [
                one
                | {
                    "id": count,
                    "image_id": images[one["image_id"]],
                    "category_id": categories[one["category_id"]],
                }
                for count, one in enumerate(known, 1)
            ],
        },
        images,
        len(objects) - len(known),
    )


def _numbers(ids: Iterable[Any]) -> dict[Any, int]:
    """Return numbers from 1 for ids, in the order of the ids: numbers first, then text."""
    return {
        one: count
        for count, one in enumerate(sorted(set(ids), key=lambda one: (isinstance(one, str), one)), 1)
    }
