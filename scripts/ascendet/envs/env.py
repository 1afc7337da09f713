"""Virtual environments: the tool's own, and one per stack with the locked wheels and, without NPUs, cann_sim.

An environment cannot be built under another name and renamed (its scripts hold its path), so its manifest is
what is written last: without one, or with another lock's digest in it, the environment is made anew.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from ascendet import paths
from ascendet.core import files, manifest, process
from ascendet.core.stack import Stack
from ascendet.errors import AscendetError
from ascendet.machine import host, needs
from ascendet.supply import index, lock

TOOLS_PYTHON = "3.11"
# Variables for another Python than our environments', where byte code may, and must, be kept: an import of torch_npu
# takes seconds less with it.
FOREIGN = ("PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE")


def configure_parser(parser: argparse.ArgumentParser) -> None:
    """Add the stage's options."""
    parser.add_argument("--stack", default="vitdet", help="a stack of requirements/stacks.toml")


def execute(args: argparse.Namespace) -> None:
    """Create or repair the stack's environment and say what it holds."""
    stack = Stack.load(args.stack)
    ensure_base(stack)
    npu = "cann_sim" if host.npu_kind() == "sim" else f"CANN {find_cann(stack).version}"
    print(f"{paths.shorten(stack_home(stack))}: Python {stack.python}, {stack.pair}, {npu}")


def tools_home() -> Path:
    """The tool's own environment."""
    return paths.BUILD / "venv" / "tools"


def stack_home(stack: Stack) -> Path:
    """The environment of a stack."""
    return paths.BUILD / "venv" / stack.name


def stack_python(stack: Stack) -> Path:
    """The interpreter of a stack's environment."""
    return stack_home(stack) / "bin" / "python"


def ensure_tools() -> Path:
    """Make the tools environment if it is missing or stale; its interpreter."""
    home = tools_home()
    locked = paths.LOCK / "tools.txt"
    _ensure(home, TOOLS_PYTHON, [locked], {})
    return home / "bin" / "python"


def ensure_base(stack: Stack) -> Path:
    """Make a stack's environment without our wheels: torch, locked wheels and, without NPUs, cann_sim."""
    locks = [lock.packages_lock(stack.packages), lock.torch_lock(stack, platform.machine())]
    home = stack_home(stack)
    layers: dict[str, Layer] = {}
    if host.npu_kind() == "sim":
        inputs = {
            "source": digest_cann_sim(),
            "stack": {"torch": stack.torch, "torch_npu": stack.torch_npu, "python": stack.python},
            "lock": files.digest(locks[1]),
            "machine": platform.machine(),
        }
        layers["cann_sim"] = (
            manifest.digest_inputs(inputs),
            lambda: install_wheels(stack, [_build_cann_sim(stack, inputs)]),
        )
    ensure_tools()
    _ensure(home, stack.python, locks, layers)
    return stack_python(stack)


# The key of what a layer holds, and the function that installs it.
Layer = tuple[str, Callable[[], None]]


def ensure_layers(stack: Stack, layers: Mapping[str, Layer]) -> None:
    """Install what is missing or stale among `layers` (by name) on top of the stack's base."""
    home = stack_home(stack)
    content = manifest.read(home) or {}
    if _missing(content, layers):
        with files.holding_lock(home.parent / f".{home.name}.lock", f"venv/{home.name}"):
            _install_layers(home, layers)


def install_wheels(stack: Stack, wheels: list[Path]) -> None:
    """Install wheel files that we built into the stack's environment, in the place of older ones."""
    uv_install(stack_python(stack), ["--no-index", "--reinstall", *map(str, wheels)])


def local_wheels(lock_file: Path) -> Path:
    """Where a bundle puts all files of a lock; where they are, no index is asked."""
    return paths.CACHE / "wheels" / files.digest(lock_file)[:16]


def has_wheels(lock_file: Path) -> bool:
    """Whether all files of a lock are in its folder."""
    present = [path for path in local_wheels(lock_file).glob("*") if not path.name.startswith(".")]
    return len(present) >= len(lock.pins(lock_file.read_text(encoding="utf-8"))) > 0


def tools_pip() -> list[str]:
    """The command that runs the locked pip."""
    return [str(ensure_tools()), "-m", "pip"]


def find_cann(stack: Stack) -> host.CannTree:
    """The CANN tree that the stack runs on: the machine's, or the one of cann_sim in the environment."""
    if host.npu_kind() == "real":
        tree = host.find_cann()
        assert tree is not None, "npu_kind() says real only with a tree"
        return tree
    home = process.run(
        [stack_python(stack), "-m", "cann_sim", "home"],
        error="install-failed",
        what="cann_sim does not answer",
        hint=f"rm -r {paths.shorten(stack_home(stack))} && make env STACK={stack.name}",
    )
    return host.CannTree(home=Path(home.strip()), version=None)


def find_cann_libraries(stack: Stack) -> tuple[str, Path]:
    """Whose CANN libraries the stack runs on ("CANN", "cann_sim"), and their folder."""
    return "cann_sim" if host.npu_kind() == "sim" else "CANN", find_cann(stack).home / "lib64"


def stack_environ(stack: Stack) -> dict[str, str]:
    """The environment variables for a program that runs in the stack's environment on its CANN tree.

    The tree's own `set_env.sh` sets them, the same way for a real and for a simulated tree.
    """
    home = find_cann(stack).home
    environ = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    if host.npu_kind() == "real":
        # The driver is outside the toolkit, and set_env.sh leaves it to the image.
        driver = Path("/usr/local/Ascend/driver/lib64")
        folders = [
            str(folder) for folder in (driver, driver / "common", driver / "driver") if folder.is_dir()
        ]
        _prepend(environ, "LD_LIBRARY_PATH", folders)
    else:
        for name in [
            name for name in environ if name.startswith("ASCEND_") and name.endswith(("PATH", "HOME"))
        ]:
            del environ[name]  # left over from another tree
        libraries = environ.pop("LD_LIBRARY_PATH", "").split(os.pathsep)
        own = [part for part in libraries if part and not (Path(part) / "libascendcl.so").exists()]
        if own:
            environ["LD_LIBRARY_PATH"] = os.pathsep.join(own)
    environ = sourced(home, environ)
    _prepend(environ, "PATH", [str(stack_home(stack) / "bin")])
    environ["VIRTUAL_ENV"] = str(stack_home(stack))
    return environ


def _prepend(environ: dict[str, str], name: str, folders: list[str]) -> None:
    environ[name] = os.pathsep.join([*folders, *filter(None, [environ.get(name)])])


def sourced(home: Path, environ: dict[str, str]) -> dict[str, str]:
    """`environ` after sourcing the tree's `set_env.sh`."""
    script = host.set_env_script(home)
    if script is None:
        raise AscendetError(
            "npu-missing",
            f"the CANN tree {home} has no set_env.sh",
            expected=f"{home}/set_env.sh",
            hint="make doctor",
        )
    # CANN's scripts read unset variables, hence no `set -u`; what they print must not mix with env's output.
    command = ["bash", "-c", 'source "$1" >&2 && exec env --null', "bash", str(script)]
    done = subprocess.run(command, env=environ, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        raise AscendetError(
            "npu-missing",
            f"{script} fails",
            found=f"exit code {done.returncode}",
            hint=f"bash -x {script}",
        )
    pairs = (line.partition("=") for line in done.stdout.decode(errors="surrogateescape").split("\0") if line)
    return {name: value for name, _, value in pairs if name not in ("_", "SHLVL")}


# -- environments --


def _ensure(home: Path, python: str, locks: list[Path], layers: Mapping[str, Layer]) -> None:
    """Make the environment `home` hold exactly the locks, plus the layers."""
    missing = [path for path in locks if not path.exists()]
    if missing:
        raise AscendetError("lock-missing", f"{paths.shorten(missing[0])} is missing", hint=lock.COMMAND)
    base = manifest.digest_inputs(
        {
            "home": str(home),  # scripts hold it: a moved clone needs a new environment
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


def _stale(home: Path, base: str) -> bool:
    content = manifest.read(home)
    return content is None or content.get("base") != base or not (home / "bin/python").exists()


def _missing(content: Mapping[str, object], layers: Mapping[str, Layer]) -> list[str]:
    """The names of layers that the manifest does not state with the same key."""
    installed = content.get("layers")
    known = installed if isinstance(installed, dict) else {}
    return [name for name, (key, _) in layers.items() if known.get(name) != key]


def _create(home: Path, python: str, locks: list[Path], base: str) -> None:
    tools = home == tools_home()
    interpreter = _interpreter(python)
    if home.exists():
        print(f"{paths.shorten(home)}: its locks changed or it is incomplete; making it anew", flush=True)
        shutil.rmtree(home)
    else:
        print(f"{paths.shorten(home)}: making it", flush=True)
    if not tools:
        files.check_space(home.parent, needs.disk_gib() * 2**30)
    command = [interpreter, "-m", "venv", str(home)] + ([] if tools else ["--without-pip"])
    process.run(
        command,
        error="install-failed",
        what=f"{interpreter} cannot make a virtual environment",
        hint=f"install python{python}-venv (Debian, Ubuntu), or make doctor",
    )
    inside = home / "bin" / "python"
    wanted = [option for path in locks for option in ("--requirement", str(path))]
    if all(map(has_wheels, locks)):
        wanted += ["--no-index", *(f"--find-links={local_wheels(path)}" for path in locks)]
    (_pip_install if tools else uv_install)(inside, ["--require-hashes", *wanted])
    manifest.write(
        home, {"stage": "venv", "base": base, "locks": [path.name for path in locks], "layers": {}}
    )


def _install_layers(home: Path, layers: Mapping[str, Layer]) -> None:
    """Install each missing layer; while that goes on, the manifest does not name it."""
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
    """Install into the environment of `python` with its own pip: only the tools, which bring uv for all others."""
    command = [str(python), "-m", "pip", "install", "--no-deps", "--disable-pip-version-check"]
    # Byte code is written at the first import, of what is imported.
    command += ["--no-compile", "--cache-dir", str(paths.CACHE / "pip"), "--no-warn-script-location"]
    # The user's configuration says where packages come from, but not into which environment they go.
    elsewhere = ("PIP_REQUIRE_VIRTUALENV", "PIP_USER", "PIP_TARGET", "PIP_PREFIX")
    environ = {name: value for name, value in os.environ.items() if name not in elsewhere}
    _install([*command, *requirements], python, environ)


def uv_install(python: Path, arguments: list[str]) -> None:
    """`uv pip install --no-deps` for the interpreter `python`.

    uv downloads and unpacks in parallel, and links what its cache has: torch's 6 GB take 40 s, not 120, and a second
    environment takes one. So what lies in an environment is the cache's file: replace it, do not write into it.

    Raises
    ------
    AscendetError
        `install-failed`, `disk-full`.
    """
    command = [str(tools_home() / "bin" / "uv"), "pip", "install", f"--python={python}", "--no-deps"]
    _install([*command, *arguments], python, _uv_environ())


def _install(command: list[str], python: Path, environ: Mapping[str, str]) -> None:
    process.run(
        command,
        env=environ,
        capture=False,
        disks=[paths.BUILD, paths.CACHE, Path(tempfile.gettempdir())],
        room=256 * 2**20,  # what it had written is gone again by now
        error="install-failed",
        what=f"packages could not be installed into {paths.shorten(python.parent.parent)}",
        hint="check the network and pip's index (pip config list), then run the command again",
    )


# uv reads no pip configuration. What a user has told pip about where packages come from is meant for us as well.
_UV_NAMES = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "trusted-host": "UV_INSECURE_HOST",
    "cert": "SSL_CERT_FILE",
    "proxy": "ALL_PROXY",
    "timeout": "UV_HTTP_TIMEOUT",
}


def _uv_environ() -> dict[str, str]:
    """The environment variables for uv: pip's settings under uv's names, where uv has none of its own."""
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
        # Several indexes are equals for pip; what they serve is held to the locks' hashes anyway.
        "UV_INDEX_STRATEGY": "unsafe-best-match",
    }


def pip_settings() -> dict[str, str]:
    """Return what the user has told pip about `pip install`: where packages come from, and how."""
    return index.settings(tools_pip())


def _interpreter(version: str) -> str:
    """An interpreter of exactly this minor version: the locks' wheels are made for it."""
    if "{}.{}".format(*sys.version_info[:2]) == version:
        return str(getattr(sys, "_base_executable", sys.executable))
    found = shutil.which(f"python{version}")
    if found is None:
        raise AscendetError(
            "python-version",
            "the locked wheels need another Python",
            expected=f"python{version} on the PATH",
            found=f"Python {platform.python_version()} ({sys.executable})",
            hint=f"install Python {version}, then: make PYTHON=/path/to/python{version} doctor",
        )
    return found


# -- cann_sim --


def digest_cann_sim() -> str:
    """The digest of what cann_sim is built from: not the table that is made with it."""
    return files.digest_tree(paths.WHEELS / "cann_sim", without={"COVERAGE.md"})


def _build_cann_sim(stack: Stack, inputs: Mapping[str, object]) -> Path:
    """Build the simulated CANN's wheel against the torch pair in the stack's environment; its path."""
    with manifest.stage("wheelhouse/cann_sim", inputs, cached=True) as stage:
        if not stage.fresh:
            compile_cann_sim(stack, stage.path, {})
            stage.record(stack=stack.name, simulated=False)
    return next(stage.final.glob("*.whl"))


def compile_cann_sim(stack: Stack, output: Path, environ: Mapping[str, str]) -> Path:
    """Compile the simulated CANN into a wheel in the folder `output`, with more variables if need be; its path."""
    print("cann_sim: compiling the simulated CANN", flush=True)
    with tempfile.TemporaryDirectory(prefix="cann_sim-") as folder:
        copy = Path(folder, "cann_sim")  # setuptools writes into the source folder
        ignored = shutil.ignore_patterns("__pycache__", "build", "*.egg-info")
        shutil.copytree(paths.WHEELS / "cann_sim", copy, ignore=ignored)
        command = [*tools_pip(), f"--python={stack_python(stack)}", "wheel", "--no-build-isolation"]
        command += ["--no-deps", "--no-index", "--wheel-dir", str(output), str(copy)]
        # torch must not load torch_npu here: that needs the CANN libraries that are only now built.
        complete = (
            {"MAX_JOBS": str(os.cpu_count() or 1)} | os.environ | {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
        )
        complete["PATH"] = f"{stack_home(stack) / 'bin'}{os.pathsep}{complete['PATH']}"
        process.run(
            command,
            env=complete | dict(environ),
            capture=False,
            disks=[output],
            what="cann_sim does not compile",
            hint="make doctor, then make cann-sim",
        )
    return next(output.glob("*.whl"))
