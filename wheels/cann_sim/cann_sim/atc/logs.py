"""ATC's log: one file per process in CANN's log folder, in its line format, off unless --log says otherwise."""

from __future__ import annotations

import logging
import os
import sys
import time
from pathlib import Path

LOG = logging.getLogger("cann_sim.atc")
LOG.propagate = False
LOG.addHandler(logging.NullHandler())
LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


class LineFormatter(logging.Formatter):
    """CANN's line: `[INFO] GE(pid,atc.bin):date-time [file:line]thread text`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        stamp = time.strftime("%Y-%m-%d-%H:%M:%S", time.localtime(record.created))
        micros = f"{int(record.created * 1e6) % 1_000_000:06d}"
        place = f"[{record.filename}:{record.lineno}]{record.thread}"
        return (
            f"[{record.levelname}] GE({record.process},atc.bin):{stamp}.{micros[:3]}.{micros[3:]} {place} "
            f"{record.getMessage()}"
        )


def start(level: str) -> None:
    """Send the log where CANN would: to ASCEND_PROCESS_LOG_PATH or $HOME/ascend/log, or to stdout.

    ASCEND_SLOG_PRINT_TO_STDOUT=1 chooses stdout. With the level `null` nothing is written.
    """
    stop()
    if level not in LEVELS:
        LOG.setLevel(logging.CRITICAL)
        return
    LOG.setLevel(LEVELS[level])
    handler: logging.Handler
    if os.environ.get("ASCEND_SLOG_PRINT_TO_STDOUT") == "1":
        handler = logging.StreamHandler(sys.stdout)
    else:
        root = Path(os.environ.get("ASCEND_PROCESS_LOG_PATH") or Path.home() / "ascend" / "log")
        folder = root / "debug" / "plog"
        stamp = time.strftime("%Y%m%d%H%M%S") + f"{int(time.time() * 1000) % 1000:03d}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handler = logging.FileHandler(folder / f"plog-{os.getpid()}_{stamp}.log", encoding="utf-8")
        except OSError:  # as with CANN, a log that cannot be written stops nothing
            return
    handler.setFormatter(LineFormatter())
    LOG.addHandler(handler)


def stop() -> None:
    """Close the log."""
    for handler in [handler for handler in LOG.handlers if not isinstance(handler, logging.NullHandler)]:
        LOG.removeHandler(handler)
        handler.close()
