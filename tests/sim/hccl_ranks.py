"""Run the ranks of an HCCL job as forked processes and call libhccl.so through its C ABI.

No torch here: these are the tests of the library itself, so a failure points at it and not at the framework.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT_INFO_BYTES = 4108

# name -> (HcclDataType, bytes, struct format; bfloat16 is packed by hand)
DTYPES: dict[str, tuple[int, int, str]] = {
    "int8": (0, 1, "b"),
    "int16": (1, 2, "h"),
    "int32": (2, 4, "i"),
    "float16": (3, 2, "e"),
    "float32": (4, 4, "f"),
    "int64": (5, 8, "q"),
    "uint64": (6, 8, "Q"),
    "uint8": (7, 1, "B"),
    "uint16": (8, 2, "H"),
    "uint32": (9, 4, "I"),
    "float64": (10, 8, "d"),
    "bfloat16": (11, 2, ""),
}
REDUCTIONS = {"sum": 0, "prod": 1, "max": 2, "min": 3}

SUCCESS, PARA, PTR, NOT_SUPPORT, UNAVAIL, TIMEOUT, REMOTE = 0, 1, 2, 5, 7, 9, 21


def pack(values: Sequence[float], dtype: str) -> bytes:
    """Encode values that `dtype` holds exactly."""
    if dtype == "bfloat16":
        return b"".join(struct.pack("<f", value)[2:] for value in values)
    form = DTYPES[dtype][2]
    convert = float if form in "efd" else int
    return struct.pack(f"<{len(values)}{form}", *(convert(value) for value in values))


def unpack(data: bytes, dtype: str) -> list[float]:
    if dtype == "bfloat16":
        return [struct.unpack("<f", b"\0\0" + data[i : i + 2])[0] for i in range(0, len(data), 2)]
    return list(struct.unpack(f"<{len(data) // DTYPES[dtype][1]}{DTYPES[dtype][2]}", data))


class SendRecvItem(ctypes.Structure):
    """HcclSendRecvItemDef."""

    _fields_ = (
        ("direction", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("count", ctypes.c_uint64),
        ("dtype", ctypes.c_int),
        ("peer", ctypes.c_uint32),
    )


class CommConfig(ctypes.Structure):
    """HcclCommConfig, as HcclCommConfigInit sets it up."""

    _fields_ = (
        ("size", ctypes.c_size_t),
        ("magic", ctypes.c_uint32),
        ("version", ctypes.c_uint32),
        ("reserved", ctypes.c_uint64),
        ("buffer_size", ctypes.c_uint32),
        ("deterministic", ctypes.c_uint32),
        ("name", ctypes.c_char * 128),
        ("udi", ctypes.c_char * 128),
        ("rest", ctypes.c_uint32 * 4),
        ("job", ctypes.c_uint64),
    )

    def __init__(self, name: bytes = b"") -> None:
        super().__init__(size=ctypes.sizeof(CommConfig), magic=0xF0F0F0F0, version=6, name=name)


class HcclError(RuntimeError):
    def __init__(self, function: str, code: int) -> None:
        super().__init__(function, code)
        self.code = code


class Rank:
    """One rank inside its process: the library, a communicator of all ranks and a blackboard on disk."""

    def __init__(self, library: Path, rank: int, size: int, board: Path) -> None:
        self.lib = ctypes.CDLL(str(library))
        self.rank, self.size, self.board = rank, size, board
        self.comm = ctypes.c_void_p()

    def call(self, function: str, *arguments: Any) -> None:
        """Call an HCCL function; raise HcclError unless it succeeds."""
        code = getattr(self.lib, function)(*arguments)
        if code != SUCCESS:
            raise HcclError(function, code)

    def code(self, function: str, *arguments: Any) -> int:
        return int(getattr(self.lib, function)(*arguments))

    def post(self, name: str, data: bytes = b"") -> None:
        temporary = self.board / f".{name}.{os.getpid()}"
        temporary.write_bytes(data)
        temporary.rename(self.board / name)

    def fetch(self, name: str) -> bytes:
        while not (self.board / name).exists():
            time.sleep(0.002)
        return (self.board / name).read_bytes()

    def root_info(self, name: str, *, owner: bool) -> ctypes.Array[ctypes.c_char]:
        """Let one process make a root info and give it to all that ask for `name`."""
        info = ctypes.create_string_buffer(ROOT_INFO_BYTES)
        if owner:
            self.call("HcclGetRootInfo", info)
            self.post(name, info.raw)
        else:
            info.raw = self.fetch(name)
        return info

    def join(self, name: str = "world", ranks: Sequence[int] | None = None) -> ctypes.c_void_p:
        """Make a communicator of `ranks` (of all by default); the first of them owns the root info."""
        members = list(range(self.size)) if ranks is None else list(ranks)
        comm = ctypes.c_void_p()
        info = self.root_info(name, owner=members[0] == self.rank)
        self.call("HcclCommInitRootInfo", len(members), info, members.index(self.rank), ctypes.byref(comm))
        if ranks is None:
            self.comm = comm
        return comm


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a rank ended: what its function returned or raised, and what it wrote to standard error."""

    value: Any
    error: BaseException | None
    status: int
    stderr: str


def free_port() -> int:
    """A port on which nothing listens on any address of this host."""
    with socket.create_server(("", 0)) as listener:
        return int(listener.getsockname()[1])


def _enter(namespace: str) -> None:
    descriptor = os.open(f"/var/run/netns/{namespace}", os.O_RDONLY)
    if ctypes.CDLL(None, use_errno=True).setns(descriptor, 0x40000000) != 0:  # CLONE_NEWNET
        raise OSError(ctypes.get_errno(), "setns")


def start_ranks(
    library: Path,
    size: int,
    body: Callable[[Rank], Any],
    board: Path,
    *,
    environ: dict[str, str] | None = None,
    namespaces: Sequence[str] = (),
    ranks: Sequence[int] | None = None,
    preload: Sequence[Path] = (),
) -> dict[int, int]:
    """Fork one process per rank that loads `preload` and runs `body`; return process ids by rank."""
    processes = {}
    for rank in range(size) if ranks is None else ranks:
        sys.stdout.flush()
        sys.stderr.flush()
        process = os.fork()
        if process:
            processes[rank] = process
            continue
        value, error = None, None
        try:
            os.dup2(os.open(board / f"stderr.{rank}", os.O_CREAT | os.O_WRONLY | os.O_APPEND), 2)
            if namespaces:
                _enter(namespaces[rank])
            for name in [name for name in os.environ if name.startswith(("HCCL_", "CANN_SIM_"))]:
                del os.environ[name]
            # No libascendcl, no device: a port of its own for each rank that opens a root.
            os.environ.update({"HCCL_IF_BASE_PORT": str(free_port())} | (environ or {}))
            for other in preload:
                ctypes.CDLL(str(other), mode=ctypes.RTLD_GLOBAL)
            value = body(Rank(library, rank, size, board))
        except BaseException as exception:
            error = exception
            with (board / f"stderr.{rank}").open("a", encoding="utf-8") as file:
                traceback.print_exc(file=file)
        (board / f"result.{rank}").write_bytes(pickle.dumps((value, error)))
        os._exit(0 if error is None else 1)
    return processes


def wait_ranks(processes: dict[int, int], board: Path, *, limit: float = 50) -> list[Outcome]:
    """Wait for all ranks; one that hangs is killed and ends the test."""
    statuses: dict[int, int] = {}
    deadline = time.monotonic() + limit
    while len(statuses) < len(processes):
        for rank, process in processes.items():
            if rank not in statuses:
                done, status = os.waitpid(process, os.WNOHANG)
                if done:
                    statuses[rank] = os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            hanging = sorted(set(processes) - set(statuses))
            for rank in hanging:
                os.kill(processes[rank], signal.SIGKILL)
                os.waitpid(processes[rank], 0)
            logs = "\n".join((board / f"stderr.{rank}").read_text() for rank in processes)
            raise TimeoutError(f"ranks {hanging} hang\n{logs}")
        time.sleep(0.002)
    outcomes = []
    for rank in processes:
        result = board / f"result.{rank}"
        value, error = pickle.loads(result.read_bytes()) if result.exists() else (None, None)
        log = (board / f"stderr.{rank}").read_text()
        outcomes.append(Outcome(value=value, error=error, status=statuses[rank], stderr=log))
    return outcomes


def run_ranks(library: Path, size: int, body: Callable[[Rank], Any], **options: Any) -> list[Outcome]:
    """Run `body` on `size` ranks and return how each ended, in the order of ranks."""
    with tempfile.TemporaryDirectory() as folder:
        board = Path(folder)
        limit = options.pop("limit", 50)
        return wait_ranks(start_ranks(library, size, body, board, **options), board, limit=limit)


def values_of(outcomes: Sequence[Outcome]) -> list[Any]:
    """What the ranks returned; fails with the log of every rank that did not."""
    failed = [f"rank {rank}: {o.error!r}\n{o.stderr}" for rank, o in enumerate(outcomes) if o.status != 0]
    assert not failed, "\n".join(failed)
    return [outcome.value for outcome in outcomes]


def find_library(build: Path) -> Path:
    """Return libhccl.so, beside libascendcl.so: the installed cann_sim's, or compiled from this tree into `build`."""
    repository = Path(__file__).resolve().parents[2]
    home = subprocess.run(
        [sys.executable, "-m", "cann_sim", "home"], capture_output=True, text=True, check=False
    )
    if home.returncode == 0 and (Path(home.stdout.strip()) / "lib64" / "libhccl.so").exists():
        return Path(home.stdout.strip()) / "lib64" / "libhccl.so"
    headers = [
        Path(entry) / "torch_npu" / "include"
        for entry in sys.path
        if (Path(entry) / "torch_npu" / "include" / "third_party").is_dir()
    ]
    if not headers:
        raise FileNotFoundError("neither cann_sim nor torch_npu (whose headers it needs) is installed")
    source = repository / "wheels" / "cann_sim" / "src"
    flags = ["-std=c++17", "-O2", "-fPIC", "-shared", "-fvisibility=hidden", "-Wl,-z,nodelete", "-pthread"]
    for name, folder in {"libascendcl.so": "runtime", "libhccl.so": "hccl"}.items():
        files = [str(file) for file in sorted((source / folder).glob("*.cpp"))]
        command = ["g++", *flags, f"-I{source}", f"-I{headers[0]}", *files, "-ldl", "-o", str(build / name)]
        subprocess.run(command, check=True)
    return build / "libhccl.so"
