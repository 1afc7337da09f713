"""The package indexes that the user has told pip about: what pip's configuration says, and links to single files."""

from __future__ import annotations

import ast
import html.parser
import sys
import urllib.parse
from collections.abc import Mapping, Sequence

from ascendet.core import process
from ascendet.errors import AscendetError

_DEFAULT = "from pip._internal.models.index import PyPI; print(PyPI.simple_url)"


def settings(pip: Sequence[str]) -> dict[str, str]:
    """Return what the user has told pip about `pip install`: where packages come from, and how."""
    return read_config(
        process.run(
            [*pip, "config", "list"], what="pip cannot read its configuration", hint="pip config debug"
        )
    )


def read_config(shown: str) -> dict[str, str]:
    r"""Return the settings that hold for `pip install`, from what `pip config list` prints.

    >>> read_config("global.index-url='https://a/simple'\n:env:.index-url='https://b/simple'\n")
    {'index-url': 'https://b/simple'}
    """
    scopes: dict[str, dict[str, str]] = {"global": {}, "install": {}, ":env:": {}}  # the later one wins
    for line in shown.splitlines():
        name, separator, value = line.partition("=")
        scope, _, key = name.rpartition(".")
        if separator and scope in scopes:
            scopes[scope][key] = str(ast.literal_eval(value))
    return {key: value for settings in scopes.values() for key, value in settings.items()}


def default(environ: Mapping[str, str] | None = None) -> str:
    """Return the address of the index that this interpreter's pip uses where nobody configured one."""
    shown = process.run(
        [sys.executable, "-c", _DEFAULT],
        env=environ,
        error="lock-failed",
        what="pip does not say which index is its default",
        hint="set PIP_INDEX_URL",
    )
    return shown.strip()


def links(index: str, project: str) -> list[str]:
    """Return the addresses of a project's files on an index (PEP 503), with the hash in the fragment if it states one.

    Raises
    ------
    requests.RequestException
        The index does not answer, or does not have the project.
    """
    import requests  # only the tools environment has it

    page = f"{index.rstrip('/')}/{project}/"
    response = requests.get(page, timeout=60)
    response.raise_for_status()
    parser = _Links()
    parser.feed(response.text)
    return [urllib.parse.urljoin(page, link) for link in parser.found]


def find_link(configured: Mapping[str, str], project: str, file_name: str) -> str:
    """Return the address of a project's file on the first configured index that has it.

    Raises
    ------
    AscendetError
        `sdist-download-failed`: no index that can be asked by HTTP has it.
    """
    import requests

    indexes = [configured.get("index-url") or default(), *configured.get("extra-index-url", "").split()]
    problems = []
    for index in indexes:
        try:
            for link in links(index, project):
                if urllib.parse.urlsplit(link).path.rpartition("/")[2] == file_name:
                    return link.partition("#")[0]
            problems.append("a package index does not have it")
        except requests.RequestException as error:
            problems.append(f"a package index does not answer ({type(error).__name__})")
    raise AscendetError(
        "sdist-download-failed",
        f"there is no link to {file_name}",
        found="\n".join(problems),
        hint="check the network and pip's index (pip config list), then run the command again",
    )


class _Links(html.parser.HTMLParser):
    """Collects the `href` of every link of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if tag == "a" and name == "href" and value]
