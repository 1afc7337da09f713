"""Run batches through a pipeline, one after another or overlapped: host steps beside other batches' device stages.

pyACL holds Python's lock while it executes or copies, so two threads with `execute` do not overlap anything. Here every
batch has a thread that puts device stages on the stream and waits in `synchronize_stream`, which gives the lock free;
numpy and OpenCV do so too in what takes time. With enough batches in flight, an execution waits on the stream whenever
another ends.
"""

from __future__ import annotations

import queue
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from ascendet_common.errors import RunError

from staged_om.host import Batch, DeviceStep
from staged_om.session import Lane, Session

# With the port report's times the (simulated) device was busy 91, 95, 98 and 97 % of the time with 2, 3, 4 and 5 lanes
# (measured on two cores that others used, too); each lane has device memory of its own.
LANES = 4


@dataclass(kw_only=True)
class Finished:
    """A batch that went through the pipeline.

    Attributes
    ----------
    batch
        With its detections; `values` is empty.
    number
        Its place among the sources that were run.
    milliseconds
        By step: of a host step its duration, of a device stage its time on the device; and `copies`, the rest of
        `seconds`, in which an overlapped batch also waits for others.
    seconds
        From the first step to the end of the last one.
    """

    batch: Batch
    number: int = 0
    milliseconds: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0


def run_batch(session: Session, lane: Lane, batch: Batch) -> Finished:
    """Run all steps of a batch in a lane; a batch without pictures runs none.

    Raises
    ------
    AclError
        A device stage or a copy failed.
    RunError
        `usage`: more pictures than the model's batch.
    """
    if not batch.pictures:
        return Finished(batch=batch)
    if len(batch.pictures) > session.meta.batch:
        raise RunError(
            "a pass must not have more pictures than the exported batch",
            name="usage",
            expected=f"at most {session.meta.batch}",
            found=f"{len(batch.pictures)} pictures",
        )
    begun = time.perf_counter()
    host: dict[str, float] = {}
    order: list[str] = []
    for step in session.steps:
        if isinstance(step, DeviceStep):
            lane.execute(step.stage)
            order.append(step.stage)
            continue
        if step.reads:
            for name, value in lane.download(step.reads).items():
                batch.values[name] = value.astype(np.float32) if value.dtype == np.float16 else value
        clock = time.perf_counter()
        step.run(batch)
        host[step.name] = 1e3 * (time.perf_counter() - clock)
        order.append(step.name)
        for name in step.writes:
            lane.upload(name, batch.values[name])
    lane.wait()
    for found in batch.detections:  # nothing of the lane's memory may stay
        found.boxes, found.scores, found.labels = found.boxes.copy(), found.scores.copy(), found.labels.copy()
    batch.values.clear()
    session.count_batch(lane)
    seconds = time.perf_counter() - begun
    times = {name: host.get(name, lane.milliseconds.get(name, 0.0)) for name in order}
    times["copies"] = max(0.0, 1e3 * seconds - sum(times.values()))
    return Finished(batch=batch, milliseconds=times, seconds=seconds)


def overlapped(session: Session, sources: Iterable[Callable[[], Batch]]) -> Iterator[Finished]:
    """Run batches in all lanes of a session, and yield them in the order of their sources.

    Parameters
    ----------
    session
        Its lanes are how many batches are in flight.
    sources
        Functions that return a batch; they are called in the lanes' threads, so that they may read files.

    Raises
    ------
    Exception
        The first failure of a batch, after all batches that came through have been yielded.
    """
    free: queue.SimpleQueue[Lane] = queue.SimpleQueue()
    for lane in session.lanes:
        free.put(lane)

    def work(number: int, source: Callable[[], Batch]) -> Finished:
        # Not as the pool's initializer: where that fails, on a lost device, Python 3.11's pool can wait for ever.
        session.device.attach()
        batch = source()
        lane = free.get()
        try:
            finished = run_batch(session, lane, batch)
        finally:
            free.put(lane)
        finished.number = number
        return finished

    waiting: deque[Future[Finished]] = deque()
    failure: Exception | None = None
    with ThreadPoolExecutor(len(session.lanes) + 1) as pool:
        remaining = enumerate(sources)
        more = True
        while more or waiting:
            # One more than lanes, so that a lane that gets free finds its next batch read.
            while more and failure is None and len(waiting) <= len(session.lanes):
                source = next(remaining, None)
                more = source is not None
                if source is not None:
                    waiting.append(pool.submit(work, *source))
            more = more and failure is None
            if waiting:
                try:
                    finished = waiting.popleft().result()
                except Exception as error:  # raised below
                    failure = failure or error
                else:
                    yield finished
    if failure is not None:
        raise failure
