"""Compile a PyTorch C++ extension quickly, and to the same bytes every time.

A stock build parses torch's headers once per source file, writes debug information that nobody needs, and starts again
when a timestamp changes. Here the sources are grouped into a few translation units, the units share one precompiled
header, and a hash of all inputs names a unit's object. Only units with changed inputs are therefore compiled again,
even if the source is in another folder.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from ascendet import paths
from ascendet.core import files
from ascendet.errors import AscendetError
from ascendet.wheels import toolchain
from ascendet.wheels.toolchain import Compiler, Target

# The largest units of mmcv take 1.3 GiB to compile.
_MEMORY_PER_JOB = 2 * 2**30


_INCLUDE = re.compile(rb'^\s*#\s*include\s*["<]([^">]+)[">]', re.MULTILINE)


# Part of the name under which pybind11 shares types between torch and its extensions.
_PYBIND11_ABI = re.compile(rb"_gcc_libstdcpp(_cxxabi\d+)")


@dataclass(frozen=True, kw_only=True)
class Extension:
    """An extension to compile: the facts from upstream's setup.py (see wheels/record.py), and our flags.

    Folders start with `{tree}` (the source) or `{site}` (torch's site-packages).
    """

    module: str
    include_dirs: Sequence[str]
    library_dirs: Sequence[str]
    libraries: Sequence[str]
    macros: Sequence[str]
    flags: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Sources that are compiled as one translation unit, with or without the precompiled header."""

    name: str
    sources: tuple[str, ...]
    precompiled: bool = True

    @property
    def text(self) -> str:
        """The unit's C++ source."""
        return "".join(f'#include "{source}"\n' for source in self.sources)


@dataclass(kw_only=True)
class Log:
    """The names of the units that a build compiled, and of those whose object it reused, for the manifest."""

    compiled: list[str] = field(default_factory=list)
    reused: list[str] = field(default_factory=list)


def make_units(sources: Sequence[str], groups: Mapping[str, Mapping[str, object]]) -> list[Unit]:
    """Group upstream's sources into units and return these.

    `groups` has, by unit name, `sources` (patterns for `PurePath.match`) and `precompiled`. A source belongs to the
    first group that matches it, in the order of the patterns; a source that no group matches is a unit of its own.
    """
    rest = list(sources)
    units = []
    for name, group in groups.items():
        patterns = group["sources"]
        assert isinstance(patterns, list)
        taken: list[str] = []
        for pattern in patterns:
            taken += [source for source in rest if source not in taken and PurePath(source).match(pattern)]
        rest = [source for source in rest if source not in taken]
        if taken:
            precompiled = group.get("precompiled", True) is True
            units.append(Unit(name=name, sources=tuple(taken), precompiled=precompiled))
    units += [Unit(name=source.replace("/", "_"), sources=(source,)) for source in rest]
    return units


def build(
    extension: Extension,
    units: Sequence[Unit],
    header: str,
    *,
    tree: Path,
    target: Target,
    compiler: Compiler,
    output: Path,
    store: Path,
) -> Log:
    """Compile and link `extension` from the source in `tree` to the shared library `output`.

    `header` is the text of the precompiled header, which most units include first. `store` is the folder of objects and
    precompiled headers, which is kept between builds; a second build waits until the first has finished with it.

    Raises
    ------
    AscendetError
        `compile-failed`, `disk-full`.
    """
    with files.disk_errors(store):
        store.mkdir(parents=True, exist_ok=True)
        with files.holding_lock(store / ".lock", paths.shorten(store)):
            return _Build(extension, header, tree, target, compiler, store).run(units, output)


class _Build:
    """One build, which compiles the units that are missing in the store."""

    def __init__(
        self, extension: Extension, header: str, tree: Path, target: Target, compiler: Compiler, store: Path
    ) -> None:
        self.extension = extension
        self.header = header
        self.tree = tree.resolve()
        self.target = target
        self.compiler = compiler
        self.store = store.resolve()
        where = {"tree": ".", "site": str(target.site)}
        self.includes = [folder.format_map(where) for folder in extension.include_dirs]
        self.libraries = [folder.format_map(where) for folder in extension.library_dirs]
        name = extension.module.rpartition(".")[2]
        self.flags = [
            *("-fPIC", "-pipe", *extension.flags),
            *(f"-D{macro}" for macro in extension.macros),
            # The macros that torch.utils.cpp_extension.BuildExtension defines.
            *(
                "-DTORCH_API_INCLUDE_EXTENSION_H",
                "-D_GLIBCXX_USE_CXX11_ABI=1",
                f"-DTORCH_EXTENSION_NAME={name}",
            ),
            *_pybind11_macros(target),
            # No warnings, because the sources are not ours; no debug information, because it is not shipped.
            *("-w", "-g0"),
        ]
        self.locations = [
            *("-I.", *(f"-I{folder}" for folder in self.includes), f"-I{target.python_include}"),
            # Keep paths of this machine out of the library: __FILE__ in torch's headers becomes site-packages/….
            f"-ffile-prefix-map={target.site}=site-packages",
            f"-ffile-prefix-map={self.store}=store",
        ]
        self.common = _digest(
            compiler.identity,
            "\0".join([*self.flags, *extension.include_dirs]),
            toolchain.identify(target, "torch"),
            toolchain.identify(target, "torch_npu"),
            files.digest_tree(target.python_include),
            header,
        )

    def run(self, units: Sequence[Unit], output: Path) -> Log:
        log = Log()
        objects = {unit.name: self.store / f"{unit.name}-{self._key(unit)}.o" for unit in units}
        missing = [unit for unit in units if not objects[unit.name].exists()]
        log.compiled = [unit.name for unit in missing]
        log.reused = [unit.name for unit in units if unit not in missing]
        if missing:
            self._compile([(unit, objects[unit.name]) for unit in missing])
        self._link([objects[unit.name] for unit in units], output)
        return log

    def _key(self, unit: Unit) -> str:
        """Return the hash of everything that a unit's object depends on."""
        text = self.header + unit.text if unit.precompiled else unit.text
        return _digest(self.common, unit.name, unit.text, str(unit.precompiled), *self._included(text))[:32]

    def _included(self, text: str) -> list[str]:
        """Return name and hash of each file of the tree that `text` may include, whatever its #if conditions are."""
        seen: set[str] = set()
        queue = self._includes_of(text.encode(), ".")
        while queue:
            name = queue.pop()
            if name not in seen:
                seen.add(name)
                queue += self._includes_of((self.tree / name).read_bytes(), str(Path(name).parent))
        return [f"{name}\0{files.digest(self.tree / name)}" for name in sorted(seen)]

    def _includes_of(self, content: bytes, folder: str) -> list[str]:
        """Return the files of the tree that a source in `folder` includes directly."""
        found = []
        for match in _INCLUDE.finditer(content):
            for place in (folder, ".", *self.includes):
                name = os.path.normpath(f"{place}/{match[1].decode()}")
                if not name.startswith(("/", "..")) and (self.tree / name).is_file():
                    found.append(name)
                    break
        return found

    def _compile(self, missing: Sequence[tuple[Unit, Path]]) -> None:
        """Compile the missing units, with as many processes as processors and memory allow.

        Units that do not use the precompiled header are compiled at the same time as the header.
        """
        early = [item for item in missing if not item[0].precompiled]
        late = [item for item in missing if item[0].precompiled]
        folder = self.store / f"header-{_digest(self.common, *self._included(self.header))[:32]}"
        with concurrent.futures.ThreadPoolExecutor(_jobs()) as pool:
            waiting: list[concurrent.futures.Future[None]] = []
            try:
                if late:
                    first = pool.submit(self._precompile, folder)
                    waiting += [pool.submit(self._unit, *item, None) for item in early]
                    first.result()
                    waiting += [pool.submit(self._unit, *item, folder / "all.hpp") for item in late]
                else:
                    waiting += [pool.submit(self._unit, *item, None) for item in early]
                for future in concurrent.futures.as_completed(waiting):
                    future.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _precompile(self, folder: Path) -> None:
        """Compile the precompiled header, and remove those for other inputs, because each takes 350 MB."""
        if (folder / "all.hpp.gch").exists():
            return
        for other in self.store.glob("header-*"):
            files.remove_tree(other)
        folder.mkdir()
        (folder / "all.hpp").write_text(self.header, encoding="utf-8")
        with files.replacing(folder / "all.hpp.gch") as temp:
            self._run("header", ["-x", "c++-header", str(folder / "all.hpp"), "-o", str(temp)])

    def _unit(self, unit: Unit, final: Path, header: Path | None) -> None:
        source = f".ascendet-unit-{unit.name}.cpp"
        (self.tree / source).write_text(unit.text, encoding="utf-8")
        included = ["-include", str(header)] if header else []
        # With the seed, the names of internal symbols depend only on the unit.
        arguments = [*included, f"-frandom-seed={unit.name}", "-c", source]
        with files.replacing(final) as temp:
            self._run(unit.name, [*arguments, "-o", str(temp)])

    def _link(self, objects: Sequence[Path], output: Path) -> None:
        self._run(
            "link",
            [
                *("-shared", "-s", "-Wl,--as-needed", "-Wl,--build-id=sha1", "-Wl,-z,relro,-z,now"),
                *map(str, objects),
                *(f"-L{folder}" for folder in self.libraries),
                *(f"-l{library}" for library in self.extension.libraries),
                *("-o", str(output)),
            ],
            compiling=False,
        )

    def _run(self, name: str, arguments: Sequence[str], *, compiling: bool = True) -> None:
        command = [self.compiler.command, *([*self.flags, *self.locations] if compiling else []), *arguments]
        environ = os.environ | {"LC_ALL": "C", "TZ": "UTC", "SOURCE_DATE_EPOCH": "0"}
        for variable in ("CPATH", "C_INCLUDE_PATH", "CPLUS_INCLUDE_PATH", "LIBRARY_PATH"):
            environ.pop(variable, None)  # these would change the object, but not its name
        done = subprocess.run(
            command, cwd=self.tree, env=environ, capture_output=True, text=True, check=False
        )
        if done.returncode == 0:
            return
        if "No space left on device" in done.stderr or files.is_full(self.store):
            raise files.disk_full(self.store)
        log = self.store / f"{name}.log"
        log.write_text(f"cd {self.tree}\n{' '.join(command)}\n{done.stderr}", encoding="utf-8")
        killed = re.search(r"Killed signal|out of memory|cannot allocate", done.stderr, re.IGNORECASE)
        errors = [line for line in done.stderr.splitlines() if re.search(r"error|undefined", line)]
        raise AscendetError(
            "compile-failed",
            f"{self.extension.module}: {name} {'ran out of memory' if killed else 'does not compile'}",
            found="\n".join(errors[:3]) or f"exit code {done.returncode}",
            hint="run the command again with MAX_JOBS=1" if killed else f"less {paths.shorten(log)}",
        )


def _jobs() -> int:
    """Return how many compilers to run at the same time: `$MAX_JOBS`, else what CPUs and memory allow."""
    asked = os.environ.get("MAX_JOBS", "")
    if asked.isdigit() and int(asked) > 0:
        return int(asked)
    found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii"))
    fit = int(found[1]) * 1024 // _MEMORY_PER_JOB if found else 1
    return max(1, min(len(os.sched_getaffinity(0)), fit))


def _pybind11_macros(target: Target) -> list[str]:
    """Return the macros by which an extension shares pybind11's types with torch, from torch's library.

    torch.utils.cpp_extension gets them by importing torch, which is impossible here for another architecture.
    """
    library = target.site / "torch/lib/libtorch_python.so"
    found = {match.decode() for match in _PYBIND11_ABI.findall(library.read_bytes())}
    if len(found) > 1:
        raise AscendetError(
            "wheel-invalid",
            f"{library.name} has several pybind11 ABIs",
            expected="one ABI",
            found=", ".join(sorted(found)),
            hint="report this with the torch version",
        )
    if not found:  # pybind11 3 no longer has such macros
        return []
    values = {"COMPILER_TYPE": "_gcc", "STDLIB": "_libstdcpp", "BUILD_ABI": found.pop()}
    return [f'-DPYBIND11_{name}="{value}"' for name, value in values.items()]


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0\0".join(parts).encode()).hexdigest()
