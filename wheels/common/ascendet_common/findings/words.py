"""The words of charts and pictures, in English and Chinese."""

from __future__ import annotations

from typing import Literal

Language = Literal["en", "zh"]

_WORDS = {
    "bbox": ("boxes", "边界框"),
    "segm": ("masks", "掩码"),
    "recall": ("recall", "召回率"),
    "precision": ("precision", "精确率"),
    "mean": ("IoU 0.50 to 0.95", "IoU 0.50 至 0.95"),
    "class": ("wrong class", "类别错误"),
    "place": ("wrong place", "位置错误"),
    "both": ("class and place", "类别与位置"),
    "duplicate": ("duplicate", "重复"),
    "background": ("background", "背景"),
    "missed": ("missed", "漏检"),
    "detected as": ("detected as", "检测为"),
    "object": ("object", "标注类别"),
    "not detected": ("not detected", "未检出"),
    "no object": ("background", "背景"),
    "part": ("the {shown} of {all} classes that are confused most", "{all} 个类别中混淆最多的 {shown} 个"),
    "no objects": ("no objects to measure on", "没有可用于评测的目标"),
    "crowd": ("crowd", "密集区域"),
    "unreadable": (
        "pictures that are not there or cannot be read: {count} ({names}); make data-check DATASET=… says why",
        "不存在或无法读取的图片：{count} 张（{names}）；make data-check DATASET=… 说明原因",
    ),
    "lost objects": (
        "objects that are not counted, because the annotations do not list their category: {count}",
        "{count} 个目标未计入：标注文件没有列出其类别",
    ),
    "lost detections": (
        "detections that are not counted, because the annotations do not list their category: {count}",
        "{count} 个检测结果未计入：标注文件没有列出其类别",
    ),
    "other size": (
        "masks of detections that find nothing, because their size is not their picture's: {count}",
        "{count} 个检测掩码与图片尺寸不同，无法匹配任何目标",
    ),
    "no masks": (
        "the detections have masks, the annotations have not: only boxes are compared",
        "检测结果有掩码而标注没有：只比较边界框",
    ),
}


def say(key: str, language: Language, **values: object) -> str:
    """Return a word or phrase in a language.

    >>> say("part", "en", shown=20, all=80)
    'the 20 of 80 classes that are confused most'
    """
    return _WORDS[key][language == "zh"].format(**values)
