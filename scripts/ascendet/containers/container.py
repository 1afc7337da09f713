"""Run the image on chosen devices: a pure function makes the docker command from facts about the host.

The container gets only what it needs: no --privileged, no root, no capability, no writable folder but the results. Its
process opens the device nodes through their group on the host, so it does not need the capability DAC_OVERRIDE.

There are three kinds of device numbers. DEVICES numbers the devices of this host from 0 (logical). /dev/davinciN and
ascend-docker-runtime's variable use the driver's numbers (physical), which differ if a card is missing. In the
container, the runtime numbers the devices that it received from 0 again. `Container.command` translates them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import stat
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ascendet import paths
from ascendet.containers import image
from ascendet.containers.image import ImageRequest
from ascendet.core import own_config, process
from ascendet.core.stack import Stack
from ascendet.envs import activation
from ascendet.errors import AscendetError
from ascendet.machine import devices, engine, host, needs
from ascendet.supply import assets

# The driver's files on hosts; npu-smi is in one of two folders.
_DRIVER = (
    "/usr/local/Ascend/driver/lib64",
    "/usr/local/Ascend/driver/version.info",
    "/usr/local/dcmi",
    "/usr/local/bin/npu-smi",
    "/usr/local/sbin/npu-smi",
    "/etc/ascend_install.info",
)
_USER = 1000  # the image's user, used if the caller is root
SCRIPTS = "/opt/ascendet/scripts"
VENV = "/opt/ascendet/venv"


@dataclass(frozen=True, kw_only=True)
class Host:
    """Facts about the host that the docker command depends on.

    Attributes
    ----------
    root
        The folder that replaces `/` in the search for devices and driver.
    nodes
        The physical numbers of the NPUs' device nodes, ascending.
    missing
        The other device nodes of the driver, needed by every program, that do not exist.
    groups
        The groups that the device nodes belong to.
    driver
        The files of the driver that exist.
    runtime
        Whether the engine has ascend-docker-runtime.
    user, group
        The owner of the results.
    """

    root: Path
    nodes: tuple[int, ...]
    missing: tuple[str, ...]
    groups: tuple[int, ...]
    driver: tuple[str, ...]
    runtime: bool
    user: int
    group: int


@dataclass(frozen=True, kw_only=True)
class Container:
    """An image and the host that runs it; `mapped` says whether the host's device nodes are passed to it."""

    image: image.Image
    host: Host
    mapped: bool

    @property
    def count(self) -> int:
        """The number of devices that DEVICES can choose from."""
        return len(self.host.nodes) if self.mapped else devices.available("sim")

    def command(
        self,
        chosen: Sequence[int],
        program: Sequence[str],
        *,
        name: str,
        work_dir: Path,
        inputs: Sequence[Path] = (),
        environ: Mapping[str, str] | None = None,
        interactive: bool = False,
    ) -> list[str]:
        """Return the arguments of `docker` that run `program` on the devices `chosen` (logical).

        The program may write only to `work_dir` and read `inputs`; both have the same paths in the container.
        `work_dir` is also the current folder, so that files written there (CANN's kernel_meta) are allowed.
        """
        inside = ",".join(str(number) for number in range(len(chosen)))
        given = {"DEVICES": inside} | dict(environ or {})
        words = ["run", "--rm", "--init", f"--name={name}"]
        words += ["--interactive"] if interactive else []
        words += ["--tty"] if interactive and sys.stdin.isatty() else []
        words += ["--read-only", "--tmpfs=/tmp:rw,exec,nosuid,nodev,mode=1777", "--cap-drop=ALL"]
        words += ["--security-opt=no-new-privileges", f"--shm-size={needs.SHM_GIB_PER_DEVICE * len(chosen)}g"]
        words += [f"--user={self.host.user}:{self.host.group}", f"--workdir={work_dir}"]
        if self.mapped:
            words += [f"--group-add={group}" for group in self.host.groups]
            words += self._device_options([self.host.nodes[number] for number in chosen])
        if self.image.simulated:
            given["CANN_SIM_DEVICES"] = str(len(chosen))
        for path in inputs:
            words.append(f"--mount=type=bind,source={path},target={path},readonly")
        words.append(f"--mount=type=bind,source={work_dir},target={work_dir}")
        words += [f"--env={key}={value}" for key, value in given.items()]
        return [*words, self.image.tag, *program]

    def _device_options(self, physical: Sequence[int]) -> list[str]:
        if self.host.runtime:  # it adds nodes, driver and tools
            return ["--runtime=ascend", f"--env=ASCEND_VISIBLE_DEVICES={','.join(map(str, physical))}"]
        names = [*(f"davinci{number}" for number in physical), *host.MANAGERS]
        options = [f"--device={self.host.root / 'dev' / name}:/dev/{name}" for name in names]
        for path in self.host.driver:
            source = self.host.root / path.removeprefix("/")
            options.append(f"--mount=type=bind,source={source},target={path},readonly")
        return options

    def physical(self, chosen: Sequence[int]) -> list[int]:
        """Return the numbers of the device nodes that are passed to the container."""
        return [self.host.nodes[number] for number in chosen] if self.mapped else []

    def prepare(self, work_dir: Path) -> None:
        """Create the results' folder; if we are root, make the container's user its owner (root keeps access)."""
        work_dir.mkdir(parents=True, exist_ok=True)
        if os.geteuid() == 0:
            for path in (work_dir, *work_dir.rglob("*")):
                os.chown(path, self.host.user, self.host.group, follow_symlinks=False)


def look_at_host(*, runtime: bool, root: Path = Path("/")) -> Host:
    """Return the facts about this machine; `root` replaces `/`.

    Raises
    ------
    AscendetError
        `device-permission`: neither a device node's group nor others may use it, so only root could.
    """
    nodes = host.device_nodes(root)
    used = [node for node in [*nodes, *(root / "dev" / name for name in host.MANAGERS)] if node.exists()]
    for node in used:
        mode = node.stat().st_mode
        if mode & stat.S_IRWXG < 0o060 and mode & stat.S_IRWXO < 0o006:
            raise AscendetError(
                "device-permission",
                "only root may use a device node; the container is not root",
                expected="group HwHiAiUser, mode 0660",
                found=f"{node}: gid {node.stat().st_gid}, mode {stat.S_IMODE(mode):04o}",
                hint=f"chgrp HwHiAiUser {node} && chmod 660 {node}, or install the driver with --install-for-all",
            )
    user = int(os.environ.get("SUDO_UID") or _USER) if os.getuid() == 0 else os.getuid()
    group = int(os.environ.get("SUDO_GID") or _USER) if os.getuid() == 0 else os.getgid()
    return Host(
        root=root,
        nodes=tuple(int(node.name.removeprefix("davinci")) for node in nodes),
        missing=tuple(name for name in host.MANAGERS if not (root / "dev" / name).exists()),
        groups=tuple(sorted({node.stat().st_gid for node in used})),
        driver=tuple(path for path in _DRIVER if (root / path.removeprefix("/")).exists()),
        runtime=runtime,
        user=user,
        group=group,
    )


def make(built: image.Image, machine: Host) -> Container:
    """Return the container for an image on a host, after checking that they and the variable NPU fit together.

    Raises
    ------
    AscendetError
        `npu-missing`: the image has a real CANN and the host no NPU, or NPU contradicts the image. `driver-missing`.
    """
    wanted = os.environ.get("NPU") or "auto"
    if (wanted == "sim" and not built.simulated) or (
        wanted == "real" and built.simulated and not machine.nodes
    ):
        raise AscendetError(
            "npu-missing",
            f"NPU={wanted}, but the image {built.tag} has {'a simulated' if built.simulated else 'the real'} CANN",
            hint="NPU=auto, or another BASE_IMAGE (make base-sim builds the simulated one)",
        )
    mapped = bool(machine.nodes) and wanted != "sim"
    if not built.simulated and not mapped:
        raise AscendetError(
            "npu-missing",
            "this machine has no NPU for the container",
            expected=f"{machine.root / 'dev'}/davinci0 …",
            hint="make base-sim, then BASE_IMAGE=<its name> for simulated devices",
        )
    if mapped and not machine.runtime:
        if machine.missing:
            raise AscendetError(
                "npu-missing",
                "device nodes are missing",
                found=f"no /dev/{machine.missing[0]}",
                hint="make doctor NPU=real",
            )
        if _DRIVER[0] not in machine.driver:
            raise AscendetError(
                "driver-missing",
                "there are device nodes, but no driver to mount into the container",
                expected=_DRIVER[0],
                hint="install the Ascend HDK driver on this host; npu-smi info must work",
            )
    return Container(image=built, host=machine, mapped=mapped)


def check_free(physical: Sequence[int]) -> None:
    """Check that no running container uses these devices; the driver would fail later, with -8005 or -8020.

    Raises
    ------
    AscendetError
        `device-busy`.
    """
    for other in engine.inspect("container", engine.run("ps", "--quiet").split()):
        visible = re.findall(r"ASCEND_VISIBLE_DEVICES=([\d,-]+)", "\n".join(other["Config"]["Env"] or []))
        held = _ranges(visible[-1]) if visible else set()
        for item in other["HostConfig"]["Devices"] or []:
            held |= {int(number) for number in re.findall(r"davinci(\d+)$", item["PathOnHost"])}
        if held & set(physical):
            raise AscendetError(
                "device-busy",
                "another container uses a device of DEVICES",
                found=f"{other['Name'].lstrip('/')} has /dev/davinci{min(held & set(physical))}",
                hint=f"other DEVICES, or docker stop {other['Name'].lstrip('/')}",
            )


def _ranges(text: str) -> set[int]:
    """Return the numbers in a text in ascend-docker-runtime's notation.

    >>> sorted(_ranges("0-2,4"))
    [0, 1, 2, 4]
    """
    found = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found


def open_container(request: ImageRequest, *, build: bool = True) -> Container:
    """Return the container for an image on this host; build the image first if it is stale and `build` is set."""
    built = image.ensure(request) if build or request.ready else image.latest(request)
    runtimes = json.loads(engine.run("info", "--format={{json .Runtimes}}") or "{}")
    return make(built, look_at_host(runtime="ascend" in runtimes))


# -- the stage: start a shell, or print the command --


def configure_parser(parser: argparse.ArgumentParser) -> None:
    """Add the stage's options."""
    parser.add_argument(
        "what",
        choices=["shell", "plan"],
        help="start a shell in the image, or print the command of a training",
    )
    image.add_image_options(parser)
    add_run_options(parser)


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for model, data set, devices and place of a run."""
    parser.add_argument(
        "--run-in", default="venv", help="venv (the stack's environment) or docker (its image)"
    )
    parser.add_argument("--model", required=True, help="one of the stack's models, or a configuration file")
    parser.add_argument("--dataset", required=True, help="one of the stack's data sets")
    parser.add_argument(
        "--dataset-by-default",
        action="store_true",
        help="nobody asked for the data set: it is make's default",
    )
    parser.add_argument("--devices", required=True, help="logical device ids, such as 0,1")


def in_docker(run_in: str) -> bool:
    """Return whether to run in the image; raise `usage` if RUN_IN is neither venv nor docker."""
    if run_in not in ("venv", "docker"):
        raise AscendetError(
            "usage", "RUN_IN must be venv or docker", found=f"RUN_IN={run_in}", hint="RUN_IN=docker"
        )
    return run_in == "docker"


def execute(args: argparse.Namespace) -> None:
    """Print the command of a training in the image, or replace this process with a shell."""
    if args.what == "shell" and not in_docker(args.run_in):
        chosen = devices.choose(args.devices, devices.available(host.npu_kind()))
        visible = {"ASCEND_RT_VISIBLE_DEVICES": ",".join(map(str, chosen))}
        environ = activation.stack_environ(Stack.load(args.stack)) | visible
        os.execvpe("bash", ["bash"], environ)
    container = open_container(ImageRequest.read(args), build=args.what == "shell")
    chosen = devices.choose(args.devices, container.count)
    folder = assets.root()
    work_dir = paths.BUILD / "runs"
    own = own_config.find(Stack.load(args.stack), args.model)
    model = own.name if own else args.model
    work_dir /= "shell" if args.what == "shell" else f"{model}_{args.dataset}/by-hand"
    environ = {"ASCENDET_DATA": str(folder)}
    program = ["bash"]
    if args.what == "plan":
        environ |= {"MODEL": model, "DATASET": args.dataset, "WORK_DIR": str(work_dir)}
        environ |= {"CONFIG": str(own.files[0])} if own else {}
        program = [f"{SCRIPTS}/train.sh"]
    command = container.command(
        chosen,
        program,
        name=f"ascendet-{args.what}-{os.getpid()}",
        work_dir=work_dir,
        inputs=[*([folder] if folder.is_dir() else []), *(own.files if own else [])],
        environ=environ,
        interactive=args.what == "shell",
    )
    container.prepare(work_dir)
    if args.what == "plan":
        print(process.show([engine.client(), *command]))
        return
    check_free(container.physical(chosen))
    os.execv(engine.client(), [engine.client(), *command])
