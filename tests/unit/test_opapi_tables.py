"""The tables that libopapi.so is generated from: they are whole, and equal tables give equal sources."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from ascendet import paths

WHEEL = paths.WHEELS / "cann_sim"


def load_generator() -> ModuleType:
    """Load the program beside the tables, which is in no package."""
    spec = importlib.util.spec_from_file_location("opapi_generate", WHEEL / "opapi" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


generate = load_generator()


def test_every_function_has_arguments_and_rules_that_name_them() -> None:
    functions = generate.read_functions()
    assert len(functions) > 500
    for function in functions.values():
        assert function.arguments, function.name
        assert f"{function.name}GetWorkspaceSize(" in generate.define(function)


def test_every_word_is_an_argument() -> None:
    for function in generate.read_functions().values():
        for word in re.findall(r"(?<![#.\d])\d+", function.words):
            assert int(word) < len(function.arguments), function.name


def test_functions_by_hand_are_those_that_the_sources_register() -> None:
    registered = re.findall(
        r'\{"(aclnn\w+)", ',
        "".join(source.read_text() for source in (WHEEL / "src" / "aclnn").glob("*.cpp")),
    )
    by_hand = [name for name, function in generate.read_functions().items() if function.operator == "hand"]
    assert sorted(registered) == sorted(by_hand)


def test_operators_that_are_held_back_would_be_ready() -> None:
    functions, operators = generate.read_functions(), generate.read_operators()
    for name, held in generate.read_held_back().items():
        assert set(operators[name]) <= set(functions), name
        assert held.reason, name


def test_equal_tables_give_equal_sources(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        generate.write_functions(folder)
        generate.write_levels(folder / "levels.cpp")
    files = sorted(file.name for file in one.iterdir())
    assert len(files) == generate.PARTS + 1
    for file in files:
        assert (one / file).read_bytes() == (other / file).read_bytes()


@pytest.mark.parametrize(
    ("table", "line", "message"),
    [
        ("functions.tsv", "aclnnAbs\tabs", "aclnnAbs twice"),
        ("arguments.tsv", "aclnnNone\tself\ttensor", "aclnnNone"),
        ("arguments.tsv", "aclnnAbs\tself\tmatrix", "matrix"),
        ("functions.tsv", "aclnnAbs2\tabs\t0\t\tand more", "5 columns"),
    ],
)
def test_a_wrong_line_is_refused(
    table: str, line: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in (WHEEL / "opapi").glob("*.tsv"):
        text = file.read_text() + (line + "\n" if file.name == table else "")
        (tmp_path / file.name).write_text(text)
    monkeypatch.setattr(generate, "FOLDER", tmp_path)
    with pytest.raises(generate.TableError, match=message):
        generate.read_functions()


def test_a_rule_about_an_unknown_argument_is_refused() -> None:
    function = generate.Function("aclnnX", "abs", "0 1", ["same_shape:self,other"], [])
    with pytest.raises(generate.TableError, match="no argument self"):
        generate.define(function)
