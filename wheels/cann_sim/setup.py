"""Build the shared libraries of the simulated CANN with g++ into the package's CANN-shaped tree.

The libraries have CANN's names, because torch_npu loads them by name; they are no Python extensions, so setuptools'
build_ext cannot be used. The build needs the torch and torch_npu that cann_sim is built for in its environment
(pip install --no-build-isolation), and nothing of CANN: the headers are inside the torch_npu wheel.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent / "opapi"))
import generate  # the tables of aclnn functions
from cann_sim import __version__

SOURCE = Path(__file__).parent / "src"
CXX = [*(["ccache"] if shutil.which("ccache") else []), os.environ.get("CXX", "g++")]
FLAGS = [
    "-std=c++17",
    "-O2",
    "-fPIC",
    "-fvisibility=hidden",
    "-fvisibility-inlines-hidden",
    "-Wall",
    "-Wextra",
]

PARSER = "libfmk_onnx_parser.so"
PYACL = "acl.so"  # the Python module, in CANN's place for it, which set_env.sh puts on PYTHONPATH
# The folders of src whose sources make each library. Only the compute plug-in and the executor are linked to libtorch,
# and only these are loaded on demand.
LIBRARIES = {
    "libascendcl.so": ["runtime", "model"],
    "libacl_op_compiler.so": ["compiler"],
    "libhccl.so": ["hccl"],
    "libcann_sim_compute.so": ["compute", "acl", "aclnn"],
    "libcann_sim_executor.so": ["executor"],
    "libopapi.so": ["opapi"],
    "libmsprofiler.so": ["msprofiler"],
    "libascend_hal.so": ["driver"],
    PARSER: ["graph"],
    PYACL: ["pyacl"],
    # torch_npu links or loads these, but calls no function of them here.
    "libge_runner.so": [], "libgraph.so": [], "libacl_tdt_channel.so": [],
}  # fmt: skip
COMPUTE, EXECUTOR = "libcann_sim_compute.so", "libcann_sim_executor.so"


def sources_of(library: str, objects: Path) -> list[Path]:
    """Return a library's sources, generated ones too, sorted, so that the linker's input is the same everywhere."""
    folders = [root / folder for folder in LIBRARIES[library] for root in (SOURCE, objects)]
    return sorted(
        (source for folder in folders for source in folder.glob("*.cpp")),
        key=lambda source: (source.parent.name, source.name),
    )


def object_of(source: Path, objects: Path) -> Path:
    """Return the object file of a source, in a folder like the source's: two folders may have sources of one name."""
    return objects / source.parent.name / f"{source.stem}.o"


def package_folder(distribution: str, module: str) -> Path:
    """Return the folder of `module` without importing it: torch_npu cannot be imported before this build is done."""
    found = importlib.metadata.distribution(distribution).locate_file(module)
    return Path(str(found)).resolve()


def public_version(distribution: str) -> str:
    """Return the version of an installed distribution without its local part: +cpu has the same interface."""
    return importlib.metadata.version(distribution).partition("+")[0]


def run(command: list[str | Path]) -> None:
    """Run a compiler command; the compiler prints its own errors."""
    subprocess.run([str(word) for word in command], check=True)


class BuildTree(build_py):
    """Build command that compiles the libraries beside the Python files of the package."""

    def run(self) -> None:
        """Copy the Python files, then compile and link beside the tree's own files."""
        super().run()
        tree = Path(self.build_lib) / "cann_sim" / "tree"
        build: Any = self.get_finalized_command("build")
        objects = Path(build.build_temp)
        objects.mkdir(parents=True, exist_ok=True)
        self.compile_sources(objects)
        self.link_libraries(objects, tree / "lib64", tree / "python/site-packages")
        write_info(tree)
        for name in ("bin/atc", "bin/npu-smi", "tools/profiler/bin/msprof", "set_env.sh"):
            (tree / name).chmod(0o755)

    def compile_sources(self, objects: Path) -> None:
        """Compile every source; those of the libraries over ATen share a precompiled header."""
        torch, torch_npu = package_folder("torch", "torch"), package_folder("torch_npu", "torch_npu")
        # Messages hold the names of sources and headers, but must not hold the folders of this machine.
        flags = [*FLAGS, f"-ffile-prefix-map={SOURCE}=cann_sim"]
        flags += [f"-ffile-prefix-map={folder.parent}=site-packages" for folder in (torch, torch_npu)]
        # Foreign headers are system headers: their warnings are not ours.
        acl: list[str | Path] = ["-isystem", torch_npu / "include"]
        aten = ["-isystem", torch / "include", "-isystem", torch / "include/torch/csrc/api/include", *acl]
        header = objects / "pch.h"
        for folder in (folder for folders in LIBRARIES.values() for folder in folders):
            (objects / folder).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(SOURCE / header.name, header)
        generate.write_functions(objects / "opapi")
        generate.write_levels(objects / "compute/levels_table.cpp")
        light: list[list[str | Path]] = []
        heavy: list[list[str | Path]] = []
        for library in LIBRARIES:
            over_aten = library in (COMPUTE, EXECUTOR)
            include = ["-I", objects, *aten] if over_aten else acl
            if library == PARSER:
                include = [*acl, "-isystem", torch_npu / "include/third_party/acl/inc"]
            elif library == PYACL:
                include = [*acl, "-isystem", sysconfig.get_path("include")]
            jobs = heavy if over_aten else light
            for source in sources_of(library, objects):
                words = [*CXX, *flags, *include, "-I", SOURCE, "-c", source, "-o", object_of(source, objects)]
                jobs.append(words)
        with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))) as pool:
            # Start with the header: the heavy sources need it precompiled.
            precompiled = pool.submit(
                run, [*CXX, *flags, *aten, "-x", "c++-header", header, "-o", f"{header}.gch"]
            )
            submitted = [pool.submit(run, job) for job in light]
            precompiled.result()
            for done in submitted + [pool.submit(run, job) for job in heavy]:
                done.result()

    def link_libraries(self, objects: Path, lib64: Path, python: Path) -> None:
        """Link every library under CANN's name for it."""
        torch, torch_npu = package_folder("torch", "torch"), package_folder("torch_npu", "torch_npu")
        lib64.mkdir(parents=True, exist_ok=True)
        python.mkdir(parents=True, exist_ok=True)
        for library in LIBRARIES:
            needs: list[str | Path] = []
            if library == "libhccl.so":
                needs = ["-Wl,-z,nodelete"]  # its sender threads and fork handlers outlive a dlclose
            elif library in ("libacl_op_compiler.so", "libopapi.so", PARSER):
                needs = ["-L", lib64, "-lascendcl"]
            elif library == COMPUTE:
                # libtorch loads the libraries that it needs (CUDA's for that build); they are not linked here.
                needs = ["-L", lib64, "-lascendcl", "-L", torch / "lib", "-ltorch", "-ltorch_cpu", "-lc10",
                         "-L", torch_npu / "lib", "-ltorch_npu",
                         "-Wl,--unresolved-symbols=ignore-in-shared-libs"]  # fmt: skip
            elif library == EXECUTOR:
                # Found in a process without Python, too: from cann_sim/tree/lib64 to torch, its neighbour in
                # site-packages. Where torch is loaded, the loader takes that one, as the names are the same.
                needs = ["-L", torch / "lib", "-ltorch_cpu", "-lc10", "-Wl,-rpath,$ORIGIN/../../../torch/lib",
                         "-Wl,-z,nodelete",  # ATen keeps its allocator
                         "-Wl,--unresolved-symbols=ignore-in-shared-libs"]  # fmt: skip
            elif library == PYACL:
                # Python's own functions are those of the process.
                needs = ["-L", lib64, "-lascendcl", "-Wl,-rpath,$ORIGIN/../../lib64",
                         "-Wl,--unresolved-symbols=ignore-all"]  # fmt: skip
            ours = [object_of(source, objects) for source in sources_of(library, objects)]
            folder = python if library == PYACL else lib64
            run([*CXX, "-shared", "-s", "-o", folder / library, f"-Wl,-soname,{library}", "-Wl,--no-undefined",
                 *ours, *needs, "-ldl", "-lpthread"])  # fmt: skip


def write_info(tree: Path) -> None:
    """Write the version files of a CANN installation, where CANN 8.5 has them; they say that this is simulated."""
    arch = sysconfig.get_platform().rpartition("-")[2]  # honours a cross build's _PYTHON_HOST_PLATFORM
    text = "package_name=Ascend-cann-toolkit\nversion=8.5.0\ninnerversion=cann_sim (simulated)\narch={arch}\nos=linux\n"
    for place in (f"{arch}-linux/ascend_toolkit_install.info", "runtime/version.info", "compiler/version.info",
                  "opp/version.info"):  # fmt: skip
        (tree / place).parent.mkdir(parents=True, exist_ok=True)
        (tree / place).write_text(text.format(arch=arch))


class BinaryDistribution(Distribution):
    """A distribution whose wheel is for one architecture and one torch pair."""

    def has_ext_modules(self) -> bool:
        """Return True: the wheel is not pure Python."""
        return True


setup(
    version=f"{__version__}+npu.torch{public_version('torch_npu')}",
    install_requires=[f"{name}=={public_version(name)}" for name in ("torch", "torch_npu")],
    cmdclass={"build_py": BuildTree},
    distclass=BinaryDistribution,
)
