"""Read pip's settings about package indexes, and find the links to single files there."""

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
    """Return the user's settings for `pip install`, which say where packages come from."""
    return read_config(
        process.run(
            [*pip, "config", "list"], what="pip cannot read its configuration", hint="pip config debug"
        )
    )


def read_config(shown: str) -> dict[str, str]:
    r"""Return the settings that apply to `pip install` from the output of `pip config list`.

    >>> read_config("global.index-url='https://a/simple'\n:env:.index-url='https://b/simple'\n")
    {'index-url': 'https://b/simple'}
    """
    # A later scope has priority.
    scopes: dict[str, dict[str, str]] = {"global": {}, "install": {}, ":env:": {}}
    for line in shown.splitlines():
        name, separator, value = line.partition("=")
        scope, _, key = name.rpartition(".")
        if separator and scope in scopes:
            scopes[scope][key] = str(ast.literal_eval(value))
    return {key: value for settings in scopes.values() for key, value in settings.items()}


def default(environ: Mapping[str, str] | None = None) -> str:
    """Return the address of the index that this interpreter's pip uses by default."""
    shown = process.run(
        [sys.executable, "-c", _DEFAULT],
        env=environ,
        error="lock-failed",
        what="the default index of pip cannot be found",
        hint="set PIP_INDEX_URL",
    )
    return shown.strip()


def links(index: str, project: str) -> list[str]:
    """Return the addresses of a project's files on an index (PEP 503), with the hash in the fragment if it is stated.

    Raises
    ------
    requests.RequestException
        The index does not answer, or does not have the project.
    """
    import requests  # it is installed only in the tools environment

    page = f"{index.rstrip('/')}/{project}/"
    response = requests.get(page, timeout=60)
    response.raise_for_status()
    return [urllib.parse.urljoin(page, link) for link in links_in(response.text)]


def links_in(page: str) -> list[str]:
    """Return the `href` of all links in an HTML page.

    >>> links_in('<a href="a-1.whl#sha256=0">a-1.whl</a> <a>none</a>')
    ['a-1.whl#sha256=0']
    """
    parser = _Links()
    parser.feed(page)
    return parser.found


def find_link(configured: Mapping[str, str], project: str, file_name: str) -> str:
    """Return the address of a project's file on the first configured index that has it.

    Raises
    ------
    AscendetError
        `sdist-download-failed`: no index has the file, or none can be reached by HTTP.
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
        f"no package index has a link to {file_name}",
        found="\n".join(problems),
        hint="check the network and pip's index (pip config list), then run the command again",
    )


class _Links(html.parser.HTMLParser):
    """Collects the `href` of all links in a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if tag == "a" and name == "href" and value]
