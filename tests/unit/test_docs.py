"""Pages: generated ones are what their tables say, the tables what the code says, and both languages the same."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ascendet import cli, paths
from ascendet.core import spec
from ascendet.dev import docs
from ascendet.dev.suites import SUITES
from ascendet.errors import ELSEWHERE, EXIT_CODES

NAMES = EXIT_CODES | ELSEWHERE
ERRORS, SETTINGS = docs.load("errors"), docs.load("settings")
SECTIONS = {name: set(SETTINGS[name]) for name in SETTINGS["section"]}
KNOWN = set().union(*SECTIONS.values())
MAKEFILE = (paths.ROOT / "Makefile").read_text(encoding="utf-8")
# Read by libraries that we call: requests, curl's habits in it.
BY_LIBRARIES = {"HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"}


def tracked(*patterns: str) -> list[Path]:
    """Files of the repository that git knows or would add."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns]
    listed = subprocess.run(command, cwd=paths.ROOT, capture_output=True, text=True, check=True).stdout
    return [paths.ROOT / name for name in listed.splitlines() if (paths.ROOT / name).is_file()]


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


PROGRAMS = [
    path
    for path in tracked("scripts", "wheels", "docker", ".ci", "Makefile")
    if path.suffix not in (".md", ".toml")
]
PAGES = tracked("*.md")
PAIRS = [(path, path.with_suffix("").with_suffix(".md")) for path in PAGES if path.name.endswith(".zh-CN.md")]


# -- generated pages --


def test_generated_pages_are_what_their_tables_say() -> None:
    for page, text in docs.render().items():
        assert read(page) == text, f"{page.name} is stale: make docs"


def test_a_stale_page_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("errors", "settings"):
        (tmp_path / f"{name}.toml").write_text(read(docs.HOME / f"{name}.toml"), encoding="utf-8")
    monkeypatch.setattr(docs, "HOME", tmp_path)
    assert cli.main(["docs"]) == 0
    assert cli.main(["docs", "--check"]) == 0
    page = tmp_path / "settings.zh-CN.md"
    page.write_text(read(page).replace("CXX", "CC"), encoding="utf-8")
    capsys.readouterr()
    assert cli.main(["docs", "--check"]) == EXIT_CODES["docs-stale"]
    shown = capsys.readouterr().err
    assert "settings.zh-CN.md: out of date" in shown
    assert "settings.md" not in shown


# -- errors --


def test_every_error_is_explained_in_both_languages_with_the_same_commands() -> None:
    assert list(ERRORS) == list(NAMES)
    for name, entry in ERRORS.items():
        for language in docs.LANGUAGES:
            assert len(entry[language]) == 3, name
            assert all(text.endswith((".", "。")) for text in entry[language]), name
        commands = [sorted(re.findall(r"`[^`]+`", " ".join(entry[language]))) for language in docs.LANGUAGES]
        assert commands[0] == commands[1], name


def test_errors_of_other_programs_have_names_of_their_own() -> None:
    assert EXIT_CODES.keys() & ELSEWHERE.keys() == set()


def test_every_name_that_a_program_prints_is_in_the_table() -> None:
    printed = {}
    for path in PROGRAMS:
        for name in re.findall(r"error\[([a-z]+(?:-[a-z]+)*)\]", read(path).replace("error[name]", "")):
            printed.setdefault(name, path)
    assert {name: path for name, path in printed.items() if name not in NAMES} == {}
    assert ELSEWHERE.keys() - printed.keys() == set()


def test_the_images_scripts_use_the_same_codes() -> None:
    calls = [
        (path.name, *call)
        for path in tracked("docker/*.sh")
        for call in re.findall(r"\bfail ([a-z-]+) (\d+) ", read(path))
    ]
    assert len(calls) >= 5
    assert [call for call in calls if EXIT_CODES.get(call[1]) != int(call[2])] == []


def test_programs_that_copy_a_code_have_it_right() -> None:
    copies = [
        (path.name, *copy)
        for path in tracked("wheels/*.py", "scripts/*.py")
        for copy in re.findall(r'#.*errors\.EXIT_CODES\["([a-z-]+)"\].*\n[A-Z_]+ = (\d+)', read(path))
    ]
    assert {name for name, _, _ in copies} >= {"__main__.py", "resume.py"}
    assert [copy for copy in copies if EXIT_CODES[copy[1]] != int(copy[2])] == []


def test_cann_sims_libraries_end_with_the_codes_of_the_table() -> None:
    checked = 0
    for path in tracked("wheels/cann_sim/src/*.cpp", "wheels/cann_sim/src/*.h"):
        codes = {int(code) for code in re.findall(r"\bexit\((\d+)\)", read(path).replace("_exit", "exit"))}
        named = {ELSEWHERE.get(name) for name in re.findall(r"error\[([a-z-]+)\]", read(path))}
        assert codes <= named, path
        checked += len(codes)
    assert checked >= 3


# -- settings --


def reads_of_python(tree: ast.AST) -> Iterator[str]:
    """Yield the environment variables that a program reads, by any of Python's ways with a fixed name."""

    def is_environ(node: ast.AST) -> bool:
        return ast.unparse(node) == "os.environ"

    for node in ast.walk(tree):
        found: ast.AST | None = None
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
            if (node.func.attr == "get" and is_environ(node.func.value)) or node.func.attr == "getenv":
                found = node.args[0]
        elif isinstance(node, ast.Subscript) and is_environ(node.value) and isinstance(node.ctx, ast.Load):
            found = node.slice
        elif isinstance(node, ast.Compare) and is_environ(node.comparators[0]):
            found = node.left
        if isinstance(found, ast.Constant):
            yield str(found.value)
        elif isinstance(found, ast.Name):  # a loop over a fixed list of names
            for item in ast.walk(tree):
                named = isinstance(item, ast.Tuple) and len(item.elts) > 1
                words = [word.value for word in getattr(item, "elts", ()) if isinstance(word, ast.Constant)]
                if named and all(re.fullmatch(r"[A-Z]+(_[A-Z]+)*", str(word)) for word in words):
                    yield from map(str, words)


def reads_of_shell(text: str) -> Iterator[str]:
    """Yield the variables in capitals that a script expands, or gives a default, and does not make itself."""
    text = re.sub(r"(^|\s)#.*", "", text)
    used = set(re.findall(r"\$\{?([A-Z][A-Z0-9_]+)\b", text)) | set(re.findall(r"\bdefault ([A-Z_]+) ", text))
    yield from used - {"BASH_SOURCE", "IFS", "UID"}


def reads_of_cpp(text: str) -> Iterator[str]:
    yield from re.findall(r"\b(?:getenv|read_number|number_from)\(\"([A-Z_]+)\"", text)


def reads_of_compose(text: str) -> Iterator[str]:
    yield from re.findall(r"\$\{([A-Z_]+)[:}]", text)


def reads_of_hcl(text: str) -> Iterator[str]:
    yield from re.findall(r"^variable \"([A-Z_]+)\"", text, re.MULTILINE)


def reads_of_configuration(text: str) -> Iterator[str]:
    """Yield what mmengine's configurations take from the environment."""
    yield from re.findall(r"\{\{\$([A-Z_]+):", text)


def readers() -> Iterator[tuple[Path, Iterator[str]]]:
    for path in PROGRAMS:
        text = read(path)
        first = text.partition("\n")[0]
        if path.suffix == ".py" or "python" in first:
            yield path, reads_of_python(ast.parse(text))
            yield path, reads_of_configuration(text)
        elif path.suffix == ".sh" or "bash" in first:
            yield path, reads_of_shell(text)
        elif path.suffix in (".cpp", ".h"):
            yield path, reads_of_cpp(text)
        elif path.name == "compose.yaml":
            yield path, reads_of_compose(text)
        elif path.suffix == ".hcl":
            yield path, reads_of_hcl(text)


READ: dict[str, Path] = {}
for _path, _names in readers():
    for _name in _names:
        READ.setdefault(_name, _path)


@pytest.mark.parametrize(
    ("reader", "text", "names"),
    [
        (
            lambda text: reads_of_python(ast.parse(text)),
            "os.environ.get('A_B'); os.getenv('C'); os.environ['D']; 'E' in os.environ; os.environ['F'] = ''",
            {"A_B", "C", "D", "E"},
        ),
        (
            lambda text: reads_of_python(ast.parse(text)),
            "for name in ('ONE', 'TWO'):\n    os.environ.get(name)",
            {"ONE", "TWO"},
        ),
        (reads_of_shell, "default A_B 1\necho ${CC:-x} $DD # $EE\n: ${FF:?} $low", {"A_B", "CC", "DD", "FF"}),
        (reads_of_cpp, 'getenv("A_B"); read_number("CC", 1); print("DD")', {"A_B", "CC"}),
        (reads_of_compose, "user: ${UID:-1000} ${IMAGE:?x}", {"UID", "IMAGE"}),
        (reads_of_hcl, 'variable "CHIP" { default = "x" }', {"CHIP"}),
        (reads_of_configuration, 'data = "{{$ASCENDET_DATA:data}}"', {"ASCENDET_DATA"}),
    ],
)
def test_reads_are_found(reader: Callable[[str], Iterator[str]], text: str, names: set[str]) -> None:
    assert set(reader(text)) == names


def test_every_variable_that_is_read_is_in_the_table() -> None:
    assert {name: path for name, path in READ.items() if name not in KNOWN} == {}


def test_every_variable_of_the_table_is_read() -> None:
    assert KNOWN - SECTIONS["make"] - READ.keys() == BY_LIBRARIES - READ.keys()


def test_every_variable_of_the_makefile_is_in_the_table() -> None:
    assert list(docs.makefile_defaults()) == list(SETTINGS["make"])


def test_defaults_of_the_run_time_are_those_of_runtime_sh() -> None:
    text = read(paths.ROOT / "scripts/runtime.sh")
    for name, value in re.findall(r"\bdefault ([A-Z_]+) ([\w:]+)", text):
        assert f"`{value}`" in SETTINGS["run"][name]["default"], name


# -- all pages --


def commands(page: Path) -> list[str]:
    """Return the lines of a page's shell blocks, without comments."""
    blocks = re.findall(r"^```sh\n(.*?)^```", read(page), re.MULTILINE | re.DOTALL)
    lines = (re.sub(r"(^|\s)#.*", "", line).strip() for block in blocks for line in block.splitlines())
    return [line for line in lines if line]


def tables(page: Path) -> list[list[str]]:
    """Return what stands in backquotes or is a number, row by row: the part of a table that no language changes."""
    rows = [line for line in read(page).splitlines() if line.startswith("|")]
    return [re.findall(r"`[^`]+`|\d[\d.]*", re.sub(r"\]\([^)]*\)", "]", row)) for row in rows]


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub makes of a page's headings."""
    titles = re.findall(r"^#+ (.*)$", read(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("suffix", ["", ".zh-CN"])
def test_the_readme_has_the_lines_of_the_release_page_which_its_suite_runs(suffix: str) -> None:
    (lines,) = re.findall(
        r"^```sh\n(python3\.11 -m venv .*?)^```", read(paths.ROOT / f"README{suffix}.md"), re.M | re.S
    )
    assert f"```sh\n{lines}```" in read(paths.ROOT / f"docs/release{suffix}.md")


def test_pages_for_users_are_there_in_chinese() -> None:
    assert {english.stem for _, english in PAIRS} >= {
        *("README", "training", "container", "air-gapped", "data", "annotations"),
        *("troubleshooting", "settings", "commands", "stacks"),
    }


@pytest.mark.parametrize(("chinese", "english"), PAIRS, ids=lambda path: path.name)
def test_both_languages_say_the_same(chinese: Path, english: Path) -> None:
    assert commands(chinese) == commands(english)
    assert tables(chinese) == tables(english)
    levels = [re.findall(r"^(#+) ", read(page), re.MULTILINE) for page in (chinese, english)]
    assert levels[0] == levels[1]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(paths.ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```|`[^`\n]+`", "", read(page), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith("https://"):
            path, _, anchor = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            assert file.exists(), target
            assert not anchor or anchor in anchors(file), target


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page.name != "CHANGELOG.md"],
    ids=lambda path: str(path.relative_to(paths.ROOT)),
)
def test_pages_name_only_targets_and_variables_that_exist(page: Path) -> None:
    targets = set(re.findall(r"^(?:\$\(\w+\): )?([a-z0-9-]+):.*## ", MAKEFILE, re.MULTILINE))
    targets |= {f"{name}-wheel" for name in spec.known()} | {f"test-{name}" for name in SUITES}
    quoted = [
        *re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", read(page), flags=re.M | re.S)),
        *commands(page),
    ]
    for text in quoted:
        for command in re.split(r" && |; | \| ", re.sub(r"<[^>]*>|…", "x", text)):
            words = shlex.split(command) if "make " in command else []
            for word in words[words.index("make") + 1 :] if "make" in words else []:
                name, equals, _ = word.partition("=")
                if equals and name.isupper():
                    assert name in KNOWN, text
                elif re.fullmatch(r"[a-z][a-z0-9_-]*", word):
                    assert word in targets or word.startswith(("bench-", "print-")), text


def test_every_page_is_linked_from_another() -> None:
    linked = set()
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)", read(page)):
            linked.add((page.parent / target).resolve())
    alone = {page.name for page in tracked("docs/*.md") if page not in linked}
    assert alone == set()
