"""Virtual environments: one for the tool, and one for each stack, with the locked wheels and layers on top of them.

An environment cannot be renamed, because its scripts hold its path. Therefore its manifest is written as the last step,
and an environment without a manifest, or with one for other locks, is created again.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from ascendet import paths
from ascendet.core import files, manifest, process
from ascendet.core.stack import Stack
from ascendet.errors import AscendetError
from ascendet.machine import needs
from ascendet.supply import index, lockfiles

TOOLS_PYTHON = "3.11"


# Variables that are meant for another Python and are not passed on. Our environments must keep byte code, which saves
# seconds at each import of torch_npu.
FOREIGN = ("PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE")


def tools_home() -> Path:
    """Return the folder of the tools environment."""
    return paths.BUILD / "venv" / "tools"


def stack_home(stack: Stack) -> Path:
    """Return the folder of a stack's environment."""
    return paths.BUILD / "venv" / stack.name


def stack_python(stack: Stack) -> Path:
    """Return the interpreter of a stack's environment."""
    return stack_home(stack) / "bin" / "python"


def from_source(wheel: str) -> dict[str, str]:
    """Return the variables with which Python runs a wheel of ours from its source, and writes nothing into that."""
    return {"PYTHONPATH": str(paths.WHEELS / wheel), "PYTHONDONTWRITEBYTECODE": "1"}


def ensure_tools() -> Path:
    """Create the tools environment if it is missing or stale and return its interpreter."""
    home = tools_home()
    locked = paths.LOCK / "tools.txt"
    ensure(home, TOOLS_PYTHON, [locked], {})
    return home / "bin" / "python"


# A layer's key, which changes with its content, and the function that installs it.
Layer = tuple[str, Callable[[], None]]


def ensure_layers(stack: Stack, layers: Mapping[str, Layer]) -> None:
    """Install the layers (by name) that are missing or stale on top of the stack's environment."""
    home = stack_home(stack)
    content = manifest.read(home) or {}
    if _missing(content, layers):
        with files.holding_lock(home.parent / f".{home.name}.lock", f"venv/{home.name}"):
            _install_layers(home, layers)


def install_wheels(stack: Stack, wheels: list[Path]) -> None:
    """Install wheels that we built into the stack's environment, replacing older ones."""
    uv_install(stack_python(stack), ["--no-index", "--reinstall", *map(str, wheels)])


def local_wheels(lock_file: Path) -> Path:
    """Return the folder for all files of a lock, which a bundle fills; if they are there, no index is used."""
    return paths.CACHE / "wheels" / files.digest(lock_file)[:16]


def has_wheels(lock_file: Path) -> bool:
    """Return whether the folder `local_wheels` has all files of a lock."""
    present = [path for path in local_wheels(lock_file).glob("*") if not path.name.startswith(".")]
    return len(present) >= len(lockfiles.pins(lock_file.read_text(encoding="utf-8"))) > 0


def tools_pip() -> list[str]:
    """Return the command that runs the locked pip, after creating the tools environment if it is missing."""
    return [str(ensure_tools()), "-m", "pip"]


# -- environments --


def ensure(home: Path, python: str, locks: list[Path], layers: Mapping[str, Layer]) -> None:
    """Create or repair the environment `home`, so that it has exactly the packages of the locks, and the layers."""
    missing = [path for path in locks if not path.exists()]
    if missing:
        raise AscendetError("lock-missing", f"{paths.shorten(missing[0])} is missing", hint=lockfiles.COMMAND)
    base = manifest.digest_inputs(
        {
            "home": str(home),  # the scripts hold this path, so a moved clone needs a new environment
            "python": python,
            "locks": {path.name: files.digest(path) for path in locks},
        }
    )
    if not _stale(home, base) and not _missing(manifest.read(home) or {}, layers):
        return
    with files.disk_errors(home):
        home.parent.mkdir(parents=True, exist_ok=True)
        with files.holding_lock(home.parent / f".{home.name}.lock", f"venv/{home.name}"):
            if _stale(home, base):
                _create(home, python, locks, base)
            _install_layers(home, layers)


def build_pins(locks: list[Path]) -> list[str]:
    """Return uv's options by which a source distribution is built with packages of the locks only, by their hashes.

    Without them uv takes the newest setuptools of the index, which no lock knows, and runs it.
    """
    pins = [f"--build-constraints={path}" for path in locks]
    return [*pins, "--require-build-hashes", "--preview-features=build-dependency-hashes"]


def _stale(home: Path, base: str) -> bool:
    content = manifest.read(home)
    return content is None or content.get("base") != base or not (home / "bin/python").exists()


def _missing(content: Mapping[str, object], layers: Mapping[str, Layer]) -> list[str]:
    """Return the names of the layers that the manifest does not list with the same key."""
    installed = content.get("layers")
    known = installed if isinstance(installed, dict) else {}
    return [name for name, (key, _) in layers.items() if known.get(name) != key]


def _create(home: Path, python: str, locks: list[Path], base: str) -> None:
    tools = home == tools_home()
    base_python = interpreter(python)
    if home.exists():
        print(f"{paths.shorten(home)}: creating it again: its locks changed or it is incomplete", flush=True)
        files.remove_tree(home)
    else:
        print(f"{paths.shorten(home)}: creating it", flush=True)
    if not tools:
        others = [other for other in home.parent.iterdir() if other not in (home, tools_home())]
        further = any(manifest.read(other) is not None for other in others)
        files.check_space(home.parent, needs.disk_gib(further=further) * 2**30)
    command = [base_python, "-m", "venv", str(home)] + ([] if tools else ["--without-pip"])
    process.run(
        command,
        error="install-failed",
        what=f"{base_python} cannot create a virtual environment",
        hint=f"install python{python}-venv (Debian, Ubuntu), or make doctor",
    )
    inside = home / "bin" / "python"
    wanted = [option for path in locks for option in ("--requirement", str(path))]
    if all(map(has_wheels, locks)):
        wanted += ["--no-index", *(f"--find-links={local_wheels(path)}" for path in locks)]
    (_pip_install if tools else uv_install)(
        inside, ["--require-hashes", *wanted, *([] if tools else build_pins(locks))]
    )
    manifest.write(
        home, {"stage": "venv", "base": base, "locks": [path.name for path in locks], "layers": {}}
    )


def _install_layers(home: Path, layers: Mapping[str, Layer]) -> None:
    """Install each missing layer; the manifest lists it only after that."""
    content = dict(manifest.read(home) or {})
    installed = content.get("layers")
    known: dict[str, object] = dict(installed) if isinstance(installed, dict) else {}
    for name in _missing(content, layers):
        key, install = layers[name]
        known.pop(name, None)
        manifest.write(home, content | {"layers": known})
        install()
        known[name] = key
        manifest.write(home, content | {"layers": known})


def _pip_install(python: Path, requirements: list[str]) -> None:
    """Install into the environment of `python` with its own pip; used only for the tools, which contain uv."""
    command = [str(python), "-m", "pip", "install", "--no-deps", "--disable-pip-version-check"]
    # Without --compile: byte code is written when a module is first imported.
    command += ["--no-compile", "--cache-dir", str(paths.CACHE / "pip"), "--no-warn-script-location"]
    # The user's configuration decides where packages come from, but must not change the environment they go to.
    elsewhere = ("PIP_REQUIRE_VIRTUALENV", "PIP_USER", "PIP_TARGET", "PIP_PREFIX")
    environ = {name: value for name, value in os.environ.items() if name not in elsewhere}
    _install([*command, *requirements], python, environ)


def uv_install(python: Path, arguments: list[str], environ: Mapping[str, str] | None = None) -> None:
    """Run `uv pip install --no-deps` for the interpreter `python`, with additional environment variables.

    uv downloads and unpacks in parallel, and links files from its cache: torch's 6 GB take 40 s, not 120, and a second
    environment takes 1 s. A file in an environment is therefore the cache's file: replace it, never write to it.

    Raises
    ------
    AscendetError
        `install-failed`, `disk-full`.
    """
    command = [str(tools_home() / "bin" / "uv"), "pip", "install", f"--python={python}", "--no-deps"]
    _install([*command, *arguments], python, {**uv_environ(), **(environ or {})})


def _install(command: list[str], python: Path, environ: Mapping[str, str]) -> None:
    process.run(
        command,
        env=environ,
        capture=False,
        disks=[paths.BUILD, *(paths.CACHE / name for name in ("uv", "pip")), Path(tempfile.gettempdir())],
        room=256 * 2**20,  # the installer has removed again what it had written
        error="install-failed",
        what=f"packages could not be installed into {paths.shorten(python.parent.parent)}",
        hint="check the network and pip's index (pip config list), then run the command again",
    )


# uv does not read pip's configuration, but the user's settings there about the origin of packages apply to us, too.
_UV_NAMES = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "trusted-host": "UV_INSECURE_HOST",
    "cert": "SSL_CERT_FILE",
    "proxy": "ALL_PROXY",
    "timeout": "UV_HTTP_TIMEOUT",
}


def uv_environ() -> dict[str, str]:
    """Return the environment variables for uv, with pip's settings under uv's names if the user has not set these."""
    found = {
        uv: ",".join(value.split()) if uv == "UV_FIND_LINKS" else " ".join(value.split())
        for name, value in pip_settings().items()
        if (uv := _UV_NAMES.get(name))
    }
    return {
        **found,
        **os.environ,
        "UV_CACHE_DIR": str(paths.CACHE / "uv"),
        "UV_PYTHON_DOWNLOADS": "never",
        # pip treats several indexes equally; the hashes in the locks verify the files anyway.
        "UV_INDEX_STRATEGY": "unsafe-best-match",
    }


def pip_settings() -> dict[str, str]:
    """Return the user's settings for `pip install`, which say where packages come from."""
    return index.settings(tools_pip())


def interpreter(version: str) -> str:
    """Return an interpreter of exactly this minor version, for which the wheels in the locks are built."""
    if "{}.{}".format(*sys.version_info[:2]) == version:
        return str(getattr(sys, "_base_executable", sys.executable))
    found = shutil.which(f"python{version}")
    if found is None:
        raise AscendetError(
            "python-version",
            f"the locked wheels need Python {version}",
            expected=f"python{version} on the PATH",
            found=f"Python {platform.python_version()} ({sys.executable})",
            hint=f"install Python {version}, then: make PYTHON=/path/to/python{version} doctor",
        )
    return found
