"""`make base-sim`: build a stand-in for the CANN image, for machines without one, from Debian, Python and cann_sim.

The simulated CANN has the folder, names and links that CANN 8.5 has in Ascend's image, so the same Dockerfile builds on
it and the same entry point finds it. A label marks it as simulated, and images that are built on it inherit the label.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import tempfile
from pathlib import Path

from ascendet.containers import container, image
from ascendet.core import files, manifest, process
from ascendet.core.stack import Stack
from ascendet.envs import activation, env
from ascendet.machine import arch, engine
from ascendet.wheels import cross

configure_parser = image.add_image_options


def execute(args: argparse.Namespace) -> None:
    """Build the stand-in and print its name, for BASE_IMAGE."""
    print(ensure(Stack.load(args.stack), arch.parse(args.arch)))


def ensure(stack: Stack, machine: str) -> str:
    """Build the stand-in for the CANN image, unless it is up to date, and return its name.

    Raises
    ------
    AscendetError
        `command-failed`: mmdebstrap is missing or fails.
    """
    name = f"ascendet/cann-sim:{stack.cann}-torch{stack.torch}-{machine}"
    env.ensure_base(stack, "sim")  # simulated, even if this machine has NPUs
    here = machine == platform.machine()
    tree = activation.find_cann(stack, "sim").home if here else cross.ensure_cann_sim(stack, machine)
    inputs = {
        "cann_sim": files.digest_tree(tree.parent),
        "code": files.digest(Path(__file__)),
        "machine": machine,
    }
    key = manifest.digest_inputs(inputs)
    known = engine.inspect("image", [name])
    if known and known[0]["Config"]["Labels"].get("ascendet.key") == key:
        return name
    process.require("mmdebstrap", "mmdebstrap")
    with tempfile.TemporaryDirectory(prefix="ascendet-") as folder, files.disk_errors(Path(folder)):
        root, archive = Path(folder, "root"), Path(folder, "base.tar")
        cann = f"cann-{stack.cann}"
        ascend = root / "usr/local/Ascend"
        shutil.copytree(tree, ascend / cann, symlinks=True)
        # A wheel of it has its package and torch three folders above lib64 and bin: atc is Python, and models run on
        # libtorch, also in a program without torch. The torch is that of the images that are built on this one.
        package = root / "usr/local/cann_sim"
        shutil.copytree(tree.parent, package, ignore=shutil.ignore_patterns(tree.name, "__pycache__"))
        (package / tree.name).symlink_to(f"../Ascend/{cann}")
        site = f"{container.VENV}/lib/python{stack.python}/site-packages"
        (root / "usr/local/torch").symlink_to(f"{site}/torch")
        (ascend / "cann").symlink_to(cann)
        (ascend / "ascend-toolkit").mkdir()
        (ascend / "ascend-toolkit/latest").symlink_to(f"../{cann}")
        (ascend / "ascend-toolkit/set_env.sh").write_text(f"source /usr/local/Ascend/{cann}/set_env.sh\n")
        (ascend / "nnal/atb").mkdir(parents=True)
        (ascend / "nnal/atb/set_env.sh").write_text(
            "export ATB_HOME_PATH=/usr/local/Ascend/nnal/atb/latest/atb/cxx_abi_1\n"
        )
        command = [
            "mmdebstrap",
            "--quiet",
            "--variant=minbase",
            f"--architectures={arch.KNOWN[machine].docker}",
        ]
        command += [f"--include=python{stack.python},python3-pip,libstdc++6"]
        command += ["--dpkgopt=path-exclude=/usr/share/doc/*", f"--customize-hook=sync-in {root} /"]
        process.run(
            [*command, "bookworm", str(archive)],
            capture=False,
            disks=[Path(folder)],
            what="mmdebstrap failed",
            hint="read its message above",
        )
        context = Path(folder, "context")
        context.mkdir()
        archive.rename(context / archive.name)
        # Build it, because engines give every imported archive their own architecture.
        (context / "Dockerfile").write_text(
            f"FROM scratch\nADD {archive.name} /\nLABEL {image.SIMULATED}=true ascendet.key={key}\n"
            f"ENV ASCEND_TOOLKIT_HOME=/usr/local/Ascend/{cann} ASCEND_HOME_PATH=/usr/local/Ascend/{cann}\n"
            'CMD ["bash"]\n'
        )
        engine.run("build", f"--platform=linux/{arch.KNOWN[machine].docker}", f"--tag={name}", str(context))
    return name
