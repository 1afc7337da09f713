"""Staged OM inference overlapped, beside one batch after another and beside two threads with blocking `execute`.

The devices are simulated: cann_sim's models take the port report's times (ViTDet at 1024 px: backbone 157.7, RPN 1.2,
RoI and mask head 59.3 ms) instead of computing, and leave their outputs as they are. Buffers have the sizes of our
export of ViTDet-B, so copies cost what they cost on this host. The report's 85.5 ms of host work are made twice: by
sleeping, which needs no core, and by numpy, which needs one.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

STAGES = {"backbone": 157.7, "rpn": 1.2, "roi": 40.0, "mask": 19.3}
# How the report's 85.468 ms are divided among steps is ours.
HOST = {"preprocess": 15.0, "proposals": 30.0, "select": 15.0, "paste": 25.5}
# Read when a model is loaded.
os.environ["CANN_SIM_MODEL_MS"] = ",".join(f"{name}:{time}" for name, time in STAGES.items())

import numpy as np  # noqa: E402
from cann_sim.atc import om_file  # noqa: E402
from cann_sim.atc.program import Model, Operation, Program, Value  # noqa: E402
from staged_om.device import Device  # noqa: E402
from staged_om.host import Batch, Detections, DeviceStep, HostStep, Step  # noqa: E402
from staged_om.meta import Meta, Port, Stage  # noqa: E402
from staged_om.schedule import LANES, overlapped, run_batch  # noqa: E402
from staged_om.session import Session  # noqa: E402

PICTURES = 40
LIMIT = 1e3 / sum(STAGES.values())
Ports = dict[str, tuple[int, ...]]
FEATURES: Ports = {f"p{level}": (1, 256, 1024 >> level, 1024 >> level) for level in range(2, 7)}
ANCHORS = 3 * sum((1024 >> level) ** 2 for level in range(2, 7))
PORTS: dict[str, tuple[Ports, Ports]] = {
    "backbone": ({"image": (1, 3, 1024, 1024)}, FEATURES),
    "rpn": (FEATURES, {"objectness": (1, ANCHORS), "deltas": (1, ANCHORS, 4)}),
    "roi": (FEATURES | {"rois": (1000, 5)}, {"scores": (1000, 81), "boxes": (1000, 320)}),
    "mask": (FEATURES | {"mask_rois": (100, 5)}, {"masks": (100, 28, 28)}),
}


def make(folder: Path, soc: str) -> Meta:
    """Write the OM files of the four stages and om.json, and return the metadata."""
    stages, record = [], {}
    for name, (inputs, outputs) in PORTS.items():
        values = {
            port: Value(name=port, dtype="float32", shape=shape) for port, shape in (inputs | outputs).items()
        }
        first = next(iter(inputs))
        operations = tuple(
            Operation(
                name=port,
                operator="Expand",
                kernel="BroadcastTo",
                engine="AiCore",
                inputs=(first, "shape"),
                outputs=(port,),
            )
            for port in outputs
        )  # never computed: they only make the program whole
        program = Program(
            inputs=tuple(values[port] for port in inputs),
            outputs=tuple(values[port] for port in outputs),
            values=values,
            operations=operations,
        )
        model = Model(
            name=name, soc=soc, command="bench", opset=17, inputs=program.inputs, outputs=program.outputs,
            gears="", programs={(): program}, constants={"shape": np.array([1], np.int64)},
        )  # fmt: skip
        om_file.write(model, folder / f"{name}.om")
        digest = hashlib.sha256((folder / f"{name}.om").read_bytes()).hexdigest()
        record[name] = {"om": f"{name}.om", "sha256": digest}
        sides = [
            tuple(Port(name=port, dtype="float32", shape=shape) for port, shape in side.items())
            for side in (inputs, outputs)
        ]
        stages.append(
            Stage(name=name, file=f"{name}.onnx", sha256="", opset=17, inputs=sides[0], outputs=sides[1])
        )
    (folder / "om.json").write_text(json.dumps({"export_id": "bench", "soc": soc, "stages": record}))
    return Meta(
        family="bench", model="bench", checkpoint="", checkpoint_sha256="", height=1024, width=1024, batch=1,
        classes=("thing",), category_ids=(1,), stages=tuple(stages), export_id="bench",
    )  # fmt: skip


def compute(milliseconds: float) -> None:
    """Keep a core busy with numpy for so much of its time, as NMS, decoding and pasting do."""
    end = time.thread_time() + milliseconds / 1e3
    data = np.ones((256, 1024), np.float32)
    while time.thread_time() < end:
        np.multiply(data, 1.0001, out=data)


def pipeline(work: Callable[[float], None]) -> tuple[Step, ...]:
    """Return the steps, whose host parts take their time by `work`, in milliseconds."""
    image, rois = np.zeros((1, 3, 1024, 1024), np.float32), np.zeros((1000, 5), np.float32)

    def host(name: str, reads: tuple[str, ...] = (), **writes: np.ndarray) -> HostStep:
        def run(batch: Batch) -> None:
            work(HOST[name])
            batch.values |= writes
            if name == "paste":
                nothing = np.zeros((0,), np.float32)
                batch.detections = [
                    Detections(boxes=nothing.reshape(0, 4), scores=nothing, labels=nothing.astype(np.int64))
                ]

        return HostStep(name=name, run=run, reads=reads, writes=tuple(writes))

    return (
        host("preprocess", image=image),
        DeviceStep(stage="backbone"),
        DeviceStep(stage="rpn"),
        host("proposals", ("objectness", "deltas"), rois=rois),
        DeviceStep(stage="roi"),
        host("select", ("scores", "boxes"), mask_rois=rois[:100]),
        DeviceStep(stage="mask"),
        host("paste", ("masks",)),
    )


def picture() -> Batch:
    """Return a batch of one picture."""
    return Batch(pictures=[np.zeros((8, 8, 3), np.uint8)])


def blocking(session: Session, pictures: int) -> float:
    """Return pictures per second of two threads, each with a lane, that call the blocking `execute`: the control."""
    device = session.device
    counter = iter(range(pictures))
    guard = threading.Lock()

    def launch(lane: object, stage: str) -> None:
        inputs, outputs = lane.sets[stage]  # type: ignore[attr-defined]
        device.call("mdl.execute", session.models[stage].number, inputs, outputs)

    def work(number: int) -> None:
        device.attach()
        lane = session.lanes[number]
        lane.execute = lambda stage: (lane.wait(), launch(lane, stage))  # type: ignore[method-assign]
        while True:
            with guard:
                if next(counter, None) is None:
                    return
            run_batch(session, lane, picture())

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    clock = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return pictures / (time.perf_counter() - clock)


def main() -> None:
    """Print the figures."""
    together = sum(STAGES.values()) + sum(HOST.values())
    print(f"simulated device; stages {STAGES} ms, host {HOST} ms")
    print(f"one after another {1e3 / together:.2f} img/s, limit of the device {LIMIT:.2f} img/s\n")
    print(f"{'host work by':<14}{'':<34}{'img/s':>7}{'of limit':>10}{'latency ms':>12}{'of the sum':>12}")
    with tempfile.TemporaryDirectory() as name, Device() as device:
        folder = Path(name)
        meta = make(folder, device.soc)
        for label, work in (("sleeping", lambda ms: time.sleep(ms / 1e3)), ("numpy", compute)):
            with Session(device, meta, pipeline(work), folder, lanes=LANES) as session:
                run_batch(session, session.lanes[0], picture())  # pinned memory is allocated
                alone = [run_batch(session, session.lanes[0], picture()).seconds for _ in range(8)]
                latency = 1e3 * float(np.median(alone))
                rate = 1 / float(np.mean(alone))
                line(label, "one after another", rate, latency, together)
                for _ in overlapped(session, [picture] * (2 * LANES)):
                    pass
                clock = time.perf_counter()
                for _ in overlapped(session, [picture] * PICTURES):
                    pass
                line(label, f"overlapped, {LANES} in flight", PICTURES / (time.perf_counter() - clock))
            with Session(device, meta, pipeline(work), folder, lanes=2) as session:
                line(label, "control: 2 threads with execute", blocking(session, PICTURES // 2))


def line(label: str, what: str, rate: float, latency: float | None = None, together: float = 1.0) -> None:
    """Print a row."""
    more = f"{latency:>12.1f}{latency / together:>12.3f}" if latency else ""
    print(f"{label:<14}{what:<34}{rate:>7.2f}{rate / LIMIT:>10.1%}{more}", flush=True)


if __name__ == "__main__":
    main()
