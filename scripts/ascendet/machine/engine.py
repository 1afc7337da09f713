"""The Docker engine: find a client that can build with BuildKit, run it, and name the errors that it prints.

It is used through its command line, which everybody has, and which is the only interface with BuildKit everywhere.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ascendet.core import process
from ascendet.errors import AscendetError

Json = dict[str, Any]

# A pattern in the output of engines, drivers and programs in containers, the error's name, its sentence, the next
# command. The first match wins.
_CAUSES = (
    (
        r"permission denied while trying to connect|dial unix \S+: connect: permission denied",
        "engine-permission",
        "this user has no permission to use the Docker engine",
        "sudo usermod --append --groups docker $USER, then log in again",
    ),
    (
        r"Cannot connect to the Docker daemon|error during connect|failed to connect to the docker API",
        "engine-missing",
        "no Docker engine answers",
        "sudo systemctl start docker (or set DOCKER_HOST)",
    ),
    (
        r"buildx component is missing|unknown flag: --secret|mount option requires BuildKit|buildkit not supported",
        "buildkit-missing",
        "this Docker cannot build with BuildKit",
        "install docker-buildx-plugin, or Docker 20.10 or newer (Debian: docker.io)",
    ),
    (
        r"no space left on device",
        "disk-full",
        "the engine's disk is full",
        "docker system df; docker builder prune",
    ),
    (
        r"no matching manifest|no match for platform|exec format error|does not match the specified platform",
        "base-mismatch",
        "an image is for another architecture",
        "ARCH=<the image's architecture>, or for emulation: apt-get install qemu-user-static binfmt-support",
    ),
    (
        r"pull access denied|manifest unknown|manifest for .* not found|failed to resolve|no such host|"
        r"repository .* not found|No such image|dial tcp|TLS handshake|i/o timeout",
        "base-missing",
        "cannot pull the image",
        "docker pull it, docker load it, or name another one: BASE_IMAGE=… (without a CANN image: make base-sim)",
    ),
    (
        r"container name \S+ is already in use",
        "name-in-use",
        "a container of this name already exists",
        "docker ps --all, then docker rm --force <name>",
    ),
    (
        r"port is already allocated|[Aa]ddress already in use|EADDRINUSE",
        "port-in-use",
        "the port is in use",
        "ss --listening --tcp --processes, or another MASTER_PORT",
    ),
    (
        r"error gathering device information|not a device node",
        "npu-missing",
        "a device node cannot be passed to the container",
        "ls -l /dev/davinci*; make doctor NPU=real",
    ),
    (
        r"(?:ret|err|code)\D{0,12}-80(?:05|20)(?![.\d])",
        "device-busy",
        "the driver refuses the device: another container uses it, or mounts are missing (-8005, -8020)",
        "npu-smi info, docker ps; make plan-run shows what is mounted",
    ),
)


def explain(text: str) -> AscendetError | None:
    r"""Return the error that matches a program's output, or None.

    >>> explain("Error response from daemon: Conflict. The container name /a is already in use by …").name
    'name-in-use'
    """
    for pattern, name, what, hint in _CAUSES:
        found = re.search(rf"^.*(?:{pattern}).*$", text, re.MULTILINE)
        if found:
            return AscendetError(name, what, found=found[0].strip()[:300], hint=hint)
    return None


def command_name() -> str:
    """Return the command of the Docker client, `DOCKER` or docker, without checking what it can do."""
    return os.environ.get("DOCKER") or "docker"


@functools.cache
def client() -> str:
    """Return a Docker client that can build with BuildKit: `DOCKER`, or the first such client on the PATH.

    Raises
    ------
    AscendetError
        `engine-missing`, `engine-permission`, `buildkit-missing`.
    """
    named = os.environ.get("DOCKER")
    folders = [] if named else os.get_exec_path()
    clients = [path for folder in folders if (path := shutil.which("docker", path=folder))]
    for path in [named] if named else clients:
        if _has_buildkit(path):
            _check_engine(path)
            return path
    if not named and not clients:
        raise AscendetError(
            "engine-missing",
            "docker is not installed",
            hint="install Docker 20.10 or newer (Debian: docker.io)",
        )
    raise AscendetError(
        "buildkit-missing",
        "no docker command here can build with BuildKit",
        expected="docker 20.10 to 22, or a newer one with its buildx plug-in",
        found=named or ", ".join(clients),
        hint="install docker-buildx-plugin (Debian: docker.io), or set DOCKER=<client>",
    )


def _has_buildkit(path: str) -> bool:
    """Return whether a client can build with BuildKit: from 23 on with the plug-in buildx, 20.10 to 22 without."""
    if process.ask([path, "buildx", "version"]) is not None:
        return True
    version = re.search(r"version (\d+)\.(\d+)", process.ask([path, "--version"]) or "")
    return version is not None and (20, 10) <= (int(version[1]), int(version[2])) < (23, 0)


def _check_engine(path: str) -> None:
    command = [path, "version", "--format", "{{.Server.Version}}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise explain(done.stderr) or AscendetError(
            "engine-missing", "no Docker engine answers", found=done.stderr.strip(), hint="docker version"
        )


def run(*arguments: str, log: Path | None = None, shown: str | None = None) -> str:
    """Run the client to its end and return its standard output.

    With `log`, all output (both streams) is written to that file and returned, and lines that match `shown` are also
    printed.

    Raises
    ------
    AscendetError
        The error that `explain` finds in the output, else `command-failed`.
    """
    command = [client(), *arguments]
    environ = os.environ | {"DOCKER_BUILDKIT": "1", "DOCKER_CLI_HINTS": "false"}
    if log is None:
        done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
        code, out, text = done.returncode, done.stdout, done.stderr
    else:
        lines = []
        with (
            log.open("w", encoding="utf-8") as file,
            subprocess.Popen(
                command,
                env=environ,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            ) as child,
        ):
            assert child.stdout is not None
            for line in child.stdout:
                file.write(line)
                file.flush()
                lines.append(line)
                if shown and re.search(shown, line):
                    print(line.rstrip(), flush=True)
        code, out = child.returncode, "".join(lines)
        text = out
    if code:
        raise explain(text) or AscendetError(
            "command-failed",
            f"docker {' '.join(arguments[:2])} failed",
            found=process.tail(text),
            hint=f"less {log}" if log else "docker version; docker info",
        )
    return out


def inspect(kind: str, names: Sequence[str]) -> list[Json]:
    """Return the engine's descriptions of objects of a kind ("image", "container"), without those that do not exist."""
    if not names:
        return []
    command = [client(), kind, "inspect", *names]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and not re.search("no such", done.stderr, re.IGNORECASE):
        raise explain(done.stderr) or AscendetError(
            "command-failed", f"docker {kind} inspect failed", found=done.stderr.strip(), hint="docker info"
        )
    found: list[Json] = json.loads(done.stdout or "[]")
    return found
