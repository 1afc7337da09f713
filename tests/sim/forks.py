"""Programs that need torch_npu but not its import: each runs in a fork of one process that has imported it.

Importing torch and torch_npu takes four seconds of CPU, most tests' programs a few milliseconds. Nothing has touched a
device in the process that is forked, so what the environment says is read in the fork, as in a process of its own.
What a test says of how a process starts or ends, or of the interpreter itself (hash seeds, multiprocessing), needs a
real one: `run_python`.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

# What `python -c` runs, so that `__main__` is no file.
_SERVER = """
import atexit, ctypes, json, os, socket, sys, threading
import torch, torch_npu

def serve(channel):
    # Forks for each request; only a fork returns.
    for line in channel:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            channel.close()
            for number, name in enumerate((os.devnull, request["stdout"], request["stderr"])):
                os.dup2(os.open(name, os.O_RDWR), number)
            os.environ.clear()
            os.environ.update(request["environ"])
            return request["code"]
        channel.write(f"{pid}\\n")
        channel.flush()
        status = os.waitpid(pid, 0)[1]
        channel.write(f"{os.waitstatus_to_exitcode(status)}\\n")
        channel.flush()
    os._exit(0)

def run(code):
    # Ends as the interpreter does, but for taking every module apart: that copies all of the parent's memory, a second.
    names = {"__name__": "__main__"}
    status = 0
    try:
        exec(compile(code, "<string>", "exec"), names)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    names.clear()
    sys.stdout.flush()
    sys.stderr.flush()
    ctypes.CDLL(None).exit(status)

run(serve(socket.socket(fileno=int(sys.argv.pop())).makefile("rw")))
"""


class Forks:
    """The process that has imported torch_npu; started when it is first needed."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _SERVER, str(theirs.fileno())],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )
        with ours:
            self._channel = ours.makefile("rw")

    def run(self, code: str, environ: dict[str, str], timeout: float) -> subprocess.CompletedProcess[str]:
        """Run a program as `subprocess.run` would run `python -c`; raises TimeoutExpired."""
        with tempfile.TemporaryDirectory() as folder:
            files = {name: Path(folder, name) for name in ("stdout", "stderr")}
            for file in files.values():
                file.touch()
            request = {"code": code, "environ": environ} | {name: str(file) for name, file in files.items()}
            self._channel.write(json.dumps(request) + "\n")
            self._channel.flush()
            pid = int(self._channel.readline())
            alarm = signal.signal(signal.SIGALRM, lambda *_: os.kill(pid, signal.SIGKILL))
            signal.setitimer(signal.ITIMER_REAL, timeout)
            try:
                returncode = int(self._channel.readline())
            finally:
                left = signal.setitimer(signal.ITIMER_REAL, 0)[0]
                signal.signal(signal.SIGALRM, alarm)
            if not left:
                raise subprocess.TimeoutExpired(code, timeout)
            shown = {name: file.read_text() for name, file in files.items()}
        return subprocess.CompletedProcess(code, returncode, **shown)

    def close(self) -> None:
        """End the process."""
        self._channel.close()
        self._process.wait()
