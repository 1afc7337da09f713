"""Ask a source's own setup.py what it would build, and print that as JSON.

The list of sources, macros, packages and requirements is therefore upstream's, not a copy of ours. setup.py imports
torch and torch_npu, which need CANN's libraries and cannot be imported at all for another architecture. It uses only a
few of their names, and stand-in modules provide these. torch_npu's own `NpuExtension` runs unchanged, on a
`CppExtension` that does what torch's does.

usage: cd <unpacked source> && [variables of its setup.py] python record.py <site-packages that holds torch_npu>
"""

from __future__ import annotations

import importlib.util
import json
import os
import runpy
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pkg_resources
import setuptools


def main() -> None:
    """Run setup.py up to its call of `setup()` and print what it passed."""
    site = Path(sys.argv[1]).resolve()
    passed: dict[str, Any] = {}
    setuptools.setup = lambda **arguments: passed.update(arguments)  # type: ignore[assignment]  # returns nothing
    install_stand_ins(site)
    sys.path.insert(0, str(Path.cwd()))
    stdout, sys.stdout = sys.stdout, sys.stderr  # setup.py's own output must not mix with the JSON
    runpy.run_path("setup.py", run_name="__main__")
    sys.stdout = stdout
    (extension,) = passed.pop("ext_modules")
    tree = Path.cwd()
    content = {
        "sources": sorted(os.path.relpath(source, tree) for source in extension.sources),
        "include_dirs": [relative(folder, tree, site) for folder in extension.include_dirs],
        "library_dirs": [relative(folder, tree, site) for folder in extension.library_dirs],
        "libraries": extension.libraries,
        "macros": [f"{name}={value}" if value else name for name, value in extension.define_macros],
        "flags": compiler_flags(extension.extra_compile_args),
        "files": package_files(passed, tree),
        "metadata": {
            name: value
            for name, value in sorted(passed.items())
            if name != "packages" and isinstance(value, str | list)
        },
    }
    json.dump(content, sys.stdout, indent=1)


def compiler_flags(passed: dict[str, list[str]] | list[str]) -> list[str]:
    """Return the C++ compiler's flags; torch allows a setup.py to give flags by compiler."""
    return passed.get("cxx", []) if isinstance(passed, dict) else passed


def package_files(passed: dict[str, Any], tree: Path) -> dict[str, str]:
    """Return the packages' modules and data files: their paths below the source, by their paths in the wheel."""
    found = {}
    for package in sorted(passed["packages"]):
        folder = tree / package_folder(package, passed.get("package_dir") or {})
        for pattern in ["*.py", *(passed.get("package_data") or {}).get(package, [])]:
            for path in sorted(folder.glob(pattern)):
                if path.is_file():
                    below = path.relative_to(folder).as_posix()
                    found[f"{package.replace('.', '/')}/{below}"] = path.relative_to(tree).as_posix()
    return found


def package_folder(package: str, folders: dict[str, str]) -> str:
    """Return the folder of a package, by distutils' rule: its own entry, else its parent's, else its name."""
    parent, _, name = package.rpartition(".")
    if package in folders:
        return folders[package]
    return f"{package_folder(parent, folders)}/{name}" if parent else str(Path(folders.get("", "."), package))


def relative(folder: str, tree: Path, site: Path) -> str:
    """Return a folder as `{tree}/…` or `{site}/…`, because the record must not hold paths of this machine."""
    path = Path(folder).resolve()
    for name, home in (("tree", tree), ("site", site)):
        if path.is_relative_to(home):
            return f"{{{name}}}/{path.relative_to(home)}".removesuffix("/.")
    raise SystemExit(f"setup.py names {folder}, which is in neither the source nor {site}")


def install_stand_ins(site: Path) -> None:
    """Put modules into `sys.modules` that provide only the names that setup.py reads."""
    version = runpy.run_path(f"{site}/torch/version.py")
    torch = module("torch", __version__=str(version["__version__"]), version=SimpleNamespace(**version))
    torch.cuda = module("torch.cuda", is_available=lambda: False)
    torch.backends = module("torch.backends")
    torch.utils = module("torch.utils")
    headers = [f"{site}/torch/include", f"{site}/torch/include/torch/csrc/api/include"]

    def extension(name: str, sources: list[str], **options: Any) -> setuptools.Extension:
        """Do what torch's `CppExtension` does."""
        options["include_dirs"] = [*options.get("include_dirs", []), *headers]
        options["library_dirs"] = [*options.get("library_dirs", []), f"{site}/torch/lib"]
        options["libraries"] = [*options.get("libraries", []), "c10", "torch", "torch_cpu", "torch_python"]
        return setuptools.Extension(name, sources, **options)

    torch.utils.cpp_extension = module(
        "torch.utils.cpp_extension",
        BuildExtension=object,
        CppExtension=extension,
        CUDAExtension=None,
        CUDA_HOME=None,
        ROCM_HOME=None,
        include_paths=lambda: headers,
        library_paths=lambda: [f"{site}/torch/lib"],
    )
    module("torch_npu", __file__=f"{site}/torch_npu/__init__.py")
    module("torch_npu.utils")
    name = "torch_npu.utils.cpp_extension"
    spec = importlib.util.spec_from_file_location(name, site / "torch_npu/utils/cpp_extension.py")
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    # setup.py requires the OpenCV distribution that is installed. Pretend that it is the headless one, without libGL.
    sys.modules["cv2"] = None  # type: ignore[assignment]  # importing it fails
    pkg_resources.get_distribution = lambda name: name


def module(name: str, **content: Any) -> Any:
    """Create a stand-in module, put it into `sys.modules` and return it."""
    made = ModuleType(name)
    made.__spec__ = ModuleSpec(name, None)
    made.__path__ = []
    made.__dict__.update(content)
    sys.modules[name] = made
    return made


if __name__ == "__main__":
    main()
