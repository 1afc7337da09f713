"""The report's words in English and Chinese: `words.toml`, where the two stand side by side."""

from __future__ import annotations

import functools
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from ascendet.errors import AscendetError
from ascendet.report.reading import Reason

Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, ...] = ("en", "zh")
FILE = Path(__file__).with_name("words.toml")


@functools.cache
def load() -> Mapping[str, Mapping[str, str]]:
    """Return each key's text by language: the table [section] and its keys, as "section.key"."""
    tables = tomllib.loads(FILE.read_text(encoding="utf-8"))
    return {f"{section}.{key}": text for section, keys in tables.items() for key, text in keys.items()}


class Words:
    """The words of one language."""

    def __init__(self, language: Language) -> None:
        self.language = language

    def __call__(self, key: str, **values: object) -> str:
        """Return the text of a key with its placeholders filled in; raise KeyError if there is no such key."""
        return load()[key][self.language].format(**values)


def because(words: Words, why: Reason) -> str:
    """Return why a file cannot be used, as a part of a sentence."""
    text = words(f"reason.{why.key}", **why.values)
    return f"{why.file}{words('page.colon')}{text}" if why.file else text


def choose(asked: str, environ: Mapping[str, str] | None = None) -> Language:
    """Return the language to write in: REPORT_LANG, or where that is empty, the locale's.

    >>> choose("", {"LC_ALL": "", "LC_MESSAGES": "zh_CN.UTF-8", "LANG": "C"}), choose("", {})
    ('zh', 'en')
    >>> choose("en", {"LANG": "zh_CN.UTF-8"})
    'en'

    Raises
    ------
    AscendetError
        `usage`: REPORT_LANG is another language.
    """
    environ = os.environ if environ is None else environ
    if asked:
        if asked not in LANGUAGES:
            raise AscendetError(
                "usage", "REPORT_LANG must be en or zh", found=f"REPORT_LANG={asked}", hint="REPORT_LANG=zh"
            )
        return "zh" if asked == "zh" else "en"
    locale = next((environ[name] for name in ("LC_ALL", "LC_MESSAGES", "LANG") if environ.get(name)), "")
    return "zh" if locale.lower().startswith("zh") else "en"
