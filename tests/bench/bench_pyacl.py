"""What a call of pyACL costs on cann_sim: a model that does next to nothing, at once and in a stream, and copies.

python tests/bench/bench_pyacl.py [--calls 2000]
"""

import argparse
import tempfile
import time
from pathlib import Path

import acl
from cann_sim.atc import om_file
from cann_sim.atc.program import Model, Operation, Program, Value

SIZE = 4


def load(folder):
    """The id of a model that copies four numbers, and its data sets."""
    values = {name: Value(name=name, dtype="float32", shape=(SIZE,)) for name in ("x", "y")}
    operation = Operation(
        name="copy", operator="Identity", kernel="Identity", engine="AiCore", inputs=("x",), outputs=("y",)
    )
    program = Program(inputs=(values["x"],), outputs=(values["y"],), values=values, operations=(operation,))
    path = folder / "empty.om"
    om_file.write(
        Model(
            name="empty", soc=acl.get_soc_name(), command="", opset=17, inputs=program.inputs,
            outputs=program.outputs, gears="", programs={(): program}, constants={},
        ),
        path,
    )  # fmt: skip
    model, _ = acl.mdl.load_from_file(str(path))
    datasets = []
    for _ in range(2):
        dataset, (memory, _) = acl.mdl.create_dataset(), acl.rt.malloc(4 * SIZE, 0)
        acl.mdl.add_dataset_buffer(dataset, acl.create_data_buffer(memory, 4 * SIZE))
        datasets.append(dataset)
    return model, *datasets, memory


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--calls", type=int, default=2000)
    calls = parser.parse_args().calls
    acl.init()
    acl.rt.set_device(0)
    stream, _ = acl.rt.create_stream()
    with tempfile.TemporaryDirectory() as folder:
        model, inputs, outputs, device = load(Path(folder))
        host, _ = acl.rt.malloc_host(4 * SIZE)

        def in_stream():
            acl.mdl.execute_async(model, inputs, outputs, stream)
            acl.rt.synchronize_stream(stream)

        def copy_in_stream():
            acl.rt.memcpy_async(host, 4 * SIZE, device, 4 * SIZE, 2, stream)
            acl.rt.synchronize_stream(stream)

        print(f"best of 5 x {calls} calls on a simulated device, microseconds")
        for name, call in (
            ("execute of a model that copies 4 numbers", lambda: acl.mdl.execute(model, inputs, outputs)),
            ("execute_async and synchronize_stream", in_stream),
            ("memcpy of 16 bytes to the host", lambda: acl.rt.memcpy(host, 16, device, 16, 2)),
            ("memcpy_async of 16 pinned bytes and synchronize_stream", copy_in_stream),
        ):
            best = float("inf")
            for _ in range(5):
                start = time.perf_counter()
                for _ in range(calls):
                    call()
                best = min(best, (time.perf_counter() - start) / calls)
            print(f"  {name:56} {best * 1e6:7.1f}")


if __name__ == "__main__":
    main()
