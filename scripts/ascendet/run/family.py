"""A family of models: the one wheel of a stack that knows a framework; `[family]` in its wheel.toml describes it.

The tool uses only its configurations and programs. A program reports its progress, its error and its last checkpoint
in three files in the work folder (see wheels/common).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ascendet.core.spec import Spec
from ascendet.core.stack import Stack, load_all
from ascendet.errors import AscendetError

# The make target of each program; those with a dot are of another package than the family's, and atc is CANN's.
MAKE_TARGETS = {
    "train": "train",
    "predict": "eval",
    "infer": "infer",
    "speed": "speed",
    "export": "export",
    "atc": "om",
    "staged_om.infer": "infer-om",
    "staged_om.ranges": "om-forecast",
    "staged_om.compare": "om-compare",
    "staged_om.bisect": "om-bisect",
    "staged_om.precision": "om-precision",
}


@dataclass(frozen=True, kw_only=True)
class Family:
    """The content of `[family]`.

    Attributes
    ----------
    package
        The Python package; a program is started as `python -m <package>.<program>`.
    source
        The package's folder in this repository.
    configs
        The path of a model's configuration in the package, with `{model}` for the model's name.
    programs
        The names of the programs that the family has: `train`, `predict`, `infer`, `speed`, `export`.
    """

    package: str
    source: Path
    configs: str
    programs: tuple[str, ...]

    def config(self, model: str) -> Path:
        """Return the path of a model's configuration in this repository.

        Raises
        ------
        AscendetError
            `config-missing`: the family has no configuration of this model.
        """
        file = self.source / self.configs.format(model=model)
        if not file.is_file():
            known = self._models()
            raise AscendetError(
                "config-missing",
                f"{self.package} has no configuration of {model}",
                expected=", ".join(known),
                found=self.configs.format(model=model),
                hint=f"MODEL={known[0]}",
            )
        return file

    def _models(self) -> Sequence[str]:
        before, _, after = self.configs.partition("{model}")
        return sorted(file.name.removesuffix(after) for file in self.source.glob(f"{before}*{after}"))

    def check_program(self, name: str) -> None:
        """Check that the family has a program of this name.

        Raises
        ------
        AscendetError
            `program-missing`.
        """
        if name not in self.programs:
            raise AscendetError(
                "program-missing",
                f"{self.package} has no program {name}",
                expected=", ".join(self.programs),
                hint="another STACK; docs/add-a-family.md says what a family consists of",
            )


def of(stack: Stack) -> Family:
    """Return the family of a stack.

    Raises
    ------
    AscendetError
        `stack-invalid`: none of the stack's wheels has a `[family]` table, or several have one.
    """
    specs = [Spec.load(name) for name in stack.wheels]
    found = [(spec, spec.family) for spec in specs if spec.family]
    if len(found) != 1:
        raise AscendetError(
            "stack-invalid",
            f"the {stack.name} stack has {len(found)} wheels with a family of models",
            expected="exactly one wheel with [family] in its wheel.toml",
            found=", ".join(stack.wheels) or "no wheels: this stack is declared, but not built yet",
            hint=f"STACK={next(iter(load_all()))}; docs/add-a-family.md",
        )
    ((spec, table),) = found
    try:
        return Family(
            package=str(table["package"]),
            source=spec.home / str(table["package"]),
            configs=str(table["configs"]),
            programs=tuple(str(name) for name in _list(table["programs"])),
        )
    except (KeyError, TypeError) as error:
        raise AscendetError(
            "wheel-invalid",
            f"wheels/{spec.name}/wheel.toml has an incomplete [family]",
            expected="package, configs and programs",
            found=repr(error),
            hint=f"edit wheels/{spec.name}/wheel.toml",
        ) from error


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise TypeError(f"programs must be a list, not {value!r}")
    return value
