"""A configuration of the user's own in place of one of the stack's models: MODEL=path/to/mine.yaml.

Only a family whose `[family]` has `inherits` takes one. Its configurations are YAML, which holds no code, and
`inherits` is the key by which such a file names the files that it is based on. The tool reads nothing else of them: it
must know the files to find a finished training again, to show them to a container, and to keep them with the results.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ascendet import paths
from ascendet.core import again, files
from ascendet.core.spec import Spec
from ascendet.core.stack import Stack
from ascendet.errors import AscendetError

_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True, kw_only=True)
class OwnConfig:
    """A configuration's files: the one that MODEL names, then those that it is based on."""

    files: tuple[Path, ...]

    @property
    def name(self) -> str:
        """What the model is called, in the names of folders: the file's name without suffix."""
        return re.sub(r"[^\w.-]+", "-", self.files[0].stem)

    @property
    def digests(self) -> list[str]:
        """The SHA-256 of each file."""
        return [files.digest(file) for file in self.files]

    @property
    def texts(self) -> dict[str, str]:
        """What each file says, for the manifest of a run."""
        return {paths.shorten(file): file.read_text(encoding="utf-8") for file in self.files}


def is_file_name(model: str) -> bool:
    """Return whether MODEL means a file and not one of the stack's models.

    >>> [is_file_name(model) for model in ("vitdet-b", "mine.yaml", "configs/mine")]
    [False, True, True]
    """
    return "/" in model or model.endswith(_SUFFIXES)


def find(stack: Stack, model: str) -> OwnConfig | None:
    """Return the configuration that MODEL names, or None if it means one of the stack's models.

    Raises
    ------
    AscendetError
        `config-missing`: there is no such file, or none that it is based on. `config-invalid`: one of them is no YAML.
        `config-unsupported`: the stack's models have no such configurations, or the file is based on an address.
        `usage`: it is called like one of the stack's models, so that their runs would share a folder.
    """
    if not is_file_name(model):
        return None
    tables = [spec.family for spec in map(Spec.load, stack.wheels) if spec.family]
    key = str(tables[0].get("inherits", "")) if tables else ""
    if not key:
        raise AscendetError(
            "config-unsupported",
            f"the {stack.name} stack takes no configuration from a file",
            expected=", ".join(stack.models),
            found=f"MODEL={model}",
            hint=f"MODEL={stack.models[0]}; docs/add-a-model.md" if stack.models else "another STACK",
        )
    found: list[Path] = []
    _follow(Path(model).expanduser().absolute(), key, found)
    own = OwnConfig(files=tuple(found))
    if own.name in stack.models:
        raise AscendetError(
            "usage",
            "MODEL must be a file with a name of its own",
            expected=f"another name than {', '.join(stack.models)}",
            found=f"MODEL={model}",
            hint=f"MODEL={own.name}, or a copy of the file with another name",
        )
    return own


def _follow(file: Path, key: str, found: list[Path]) -> None:
    """Add a file and, depth first, those that it is based on to `found`, each once."""
    if file in found:
        return
    found.append(file)
    based = _read(file, found[0]).get(key) or []
    for base in [based] if isinstance(based, str) else based:
        if "://" in str(base):
            raise AscendetError(
                "config-unsupported",
                f"{paths.shorten(file)} is based on an address",
                expected=f"{key} with the name of a file",
                found=str(base),
                hint=f"fetch that file, write its name into {key}, then: {again.command('train')}",
            )
        _follow(Path(os.path.normpath(file.parent / Path(str(base)).expanduser())), key, found)


def _read(file: Path, first: Path) -> Mapping[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError) as error:
        why = "" if file == first else f", which {paths.shorten(first)} is based on"
        raise AscendetError(
            "config-missing",
            f"there is no configuration {paths.shorten(file)}{why}",
            found="a folder" if file.is_dir() else "no such file",
            hint="MODEL=<file>, or one of the stack's models",
        ) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise _invalid(file, " ".join(str(error).split())) from error
    if not isinstance(content, dict):
        raise _invalid(file, f"a {type(content).__name__}, not keys and values")
    return content


def _invalid(file: Path, why: str) -> AscendetError:
    return AscendetError(
        "config-invalid",
        f"{paths.shorten(file)} cannot be read",
        expected="YAML with keys and values, without Python objects",
        found=why,
        hint=f"edit {paths.shorten(file)}",
    )
