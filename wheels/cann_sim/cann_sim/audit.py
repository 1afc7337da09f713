"""`python -m cann_sim check`: check that the installed torch_npu finds the CANN functions that it needs.

torch_npu needs CANN in two ways. Functions that its libraries are linked to must exist, or it does not load (or fails
at the first call). Functions that it looks up by name may be missing: it then works without them, or reports an error
of its own. In addition, cann_sim's compute plug-in is linked to torch and torch_npu, whose C++ symbols change between
versions.

ELF files are read with `struct` and not with pyelftools, because this wheel has no dependencies.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import mmap
import re
import struct
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cann_sim

# The torch_npu versions that cann_sim's tests run with.
TESTED = ("2.8.0", "2.8.0.post2", "2.9.0")
COMPUTE = "libcann_sim_compute.so"
# Names of CANN's C functions, and mangled C++ names of torch and torch_npu.
_CANN = re.compile(rb"(?:acl[a-z]{0,4}[A-Z]|Hccl[A-Z]|hal[A-Z])\w{2,60}")
_TORCH = re.compile(rb"_Z\w*(?:2at|3c10|5torch|6at_npu|7c10_npu|9torch_npu)")
# A string that is the name of a runtime function, or torch_npu's message that it did not find a function. aclnn
# functions are excluded: op-plugin's aten kernels look them up, and cann_sim replaces those kernels.
_LOOKED_UP = re.compile(
    rb"\0(?:(acl(?:rt|mdl|op|prof|sys)[A-Z]\w{2,60})|Failed to find function (?!aclnn)((?:acl|Hccl)\w{2,60})\.?)\0"
)


@dataclass(frozen=True)
class Symbols:
    """The dynamic symbols of a library."""

    undefined: frozenset[bytes]  # without weak ones
    defined: frozenset[bytes]


@dataclass
class Findings:
    """The missing symbols; `pair` is None if torch or torch_npu is not installed."""

    pair: tuple[str, str] | None = None
    linked: list[str] = field(default_factory=list)
    plug_in: list[str] = field(default_factory=list)
    by_name: list[str] = field(default_factory=list)
    simulated: int = 0

    @property
    def usable(self) -> bool:
        """Whether torch_npu can load and compute."""
        return self.pair is not None and not self.linked and not self.plug_in


def execute(_: argparse.Namespace) -> int:
    """Print the findings; return 1 if the installed pair cannot work, else 0."""
    findings = check()
    print(report(findings), file=sys.stdout if findings.usable else sys.stderr)
    return 0 if findings.usable else 1


def check() -> Findings:
    """Compare the symbols of the installed torch and torch_npu with cann_sim's, without loading any library."""
    findings = Findings()
    try:
        findings.pair = (importlib.metadata.version("torch"), importlib.metadata.version("torch_npu"))
    except importlib.metadata.PackageNotFoundError:
        return findings
    ours = {path.name: read_symbols(path) for path in (cann_sim.home() / "lib64").glob("*.so")}
    offered = frozenset().union(*(symbols.defined for name, symbols in ours.items() if name != COMPUTE))
    npu = list(_libraries("torch_npu", ("libtorch_npu.so", "libtensorpipe.so", "libnpu_profiler.so")))
    read = {path: read_symbols(path) for path in npu}
    wanted = frozenset().union(*(symbols.undefined for symbols in read.values()))
    findings.linked = _names(name for name in wanted - offered if _CANN.fullmatch(name))
    torch = [
        *npu,
        *_libraries("torch", ("libtorch.so", "libtorch_cpu.so", "libtorch_python.so", "libc10.so")),
    ]
    given = frozenset().union(*((read.get(path) or read_symbols(path)).defined for path in torch))
    findings.plug_in = _names(name for name in ours[COMPUTE].undefined - given if _TORCH.match(name))
    asked = frozenset().union(*map(_looked_up, npu))
    findings.by_name = _names(
        asked - offered - frozenset().union(*(symbols.defined for symbols in read.values()))
    )
    findings.simulated = len((wanted | asked) & offered)
    return findings


def report(findings: Findings) -> str:
    """Return the findings as text."""
    if findings.pair is None:
        return (
            "error[cann-sim-torch-npu]: torch or torch_npu is not installed here\n"
            f"  expected: both, for {sys.executable}\n"
            "  next:     pip install torch==2.8.0 && pip install --no-deps torch_npu==2.8.0"
        )
    torch, torch_npu = findings.pair
    about = f"torch {torch}, torch_npu {torch_npu}"
    lines = []
    if not findings.usable:
        lines += [
            f"error[cann-sim-torch-npu]: cann_sim {cann_sim.__version__} does not fit {about}",
            f"  expected: torch_npu {', '.join(TESTED)}, with the torch that it was built for",
        ]
        for names, role in ((findings.linked, "CANN symbols that torch_npu is linked to"),
                            (findings.plug_in, "torch symbols that cann_sim's compute plug-in needs")):  # fmt: skip
            if names:
                lines.append(f"  found:    {len(names)} missing {role}: {_shorten(names)}")
        lines.append(
            "  next:     build cann_sim for this pair (pip install --no-build-isolation cann_sim), "
            "or install a tested pair"
        )
    else:
        lines.append(f"{about}: all functions that torch_npu is linked to are simulated")
        if torch_npu not in TESTED:
            lines.append(
                f"warning: cann_sim is tested with torch_npu {', '.join(TESTED)}, not with {torch_npu}"
            )
    lines.append(
        f"{findings.simulated} functions of CANN's runtime are simulated. {len(findings.by_name)} that torch_npu looks "
        "up by name are not; it works without them or reports an error:"
    )
    return "\n".join([*lines, *(f"  {name}" for name in findings.by_name)])


def _shorten(names: list[str]) -> str:
    return ", ".join(names[:20]) + (", …" if len(names) > 20 else "")


def _names(symbols: Iterable[bytes]) -> list[str]:
    return sorted(symbol.decode() for symbol in symbols)


def _libraries(distribution: str, names: Iterable[str]) -> Iterator[Path]:
    found = Path(str(importlib.metadata.distribution(distribution).locate_file(distribution))) / "lib"
    yield from (path for path in map(found.joinpath, names) if path.exists())


def _looked_up(library: Path) -> frozenset[bytes]:
    """Return the function names among a library's strings: arguments of dlsym, and names in messages about it."""
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        found = set()
        position = 0
        while match := _LOOKED_UP.search(content, position):
            found.add(match.group(1) or match.group(2))
            position = match.end() - 1  # the zero byte between two strings belongs to both
        return frozenset(found)


def read_symbols(library: Path) -> Symbols:
    """Return the dynamic symbols of an ELF file (gABI: .dynsym); ValueError if it is not 64-bit little-endian ELF."""
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content[:6] != b"\x7fELF\x02\x01":
            raise ValueError(f"{library} is no 64-bit little-endian ELF file")
        (table,) = struct.unpack_from("<Q", content, 40)
        size, count = struct.unpack_from("<HH", content, 58)
        sections = [struct.unpack_from("<IIQQQQIIQQ", content, table + size * i) for i in range(count)]
        undefined, defined = set(), set()
        for _, kind, _, _, offset, length, link, _, _, _ in sections:
            if kind != 11:  # SHT_DYNSYM
                continue
            strings = sections[link][4]
            for name, info, _, index, _, _ in struct.iter_unpack(
                "<IBBHQQ", content[offset : offset + length]
            ):
                text = content[strings + name : content.find(b"\0", strings + name)]
                if index:
                    defined.add(text)
                elif info >> 4 != 2:  # STB_WEAK
                    undefined.add(text)
        return Symbols(frozenset(undefined), frozenset(defined))
