"""OM files: what is written is read again, by Python and by the executor, and nothing else is taken for one."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cann_sim
import ml_dtypes
import numpy as np
import pytest
from cann_sim.atc import footprint, om_file
from cann_sim.atc.program import Aipp, Model, Operation, Program, Value
from om_models import BAD_FILE, NO_FILE, Executor, ExecutorError

LIBRARY = cann_sim.home() / "lib64" / "libcann_sim_executor.so"


@pytest.fixture(scope="module")
def executor() -> Executor:
    return Executor(LIBRARY)


def value(name: str, *shape: int, dtype: str = "float32") -> Value:
    return Value(name=name, dtype=dtype, shape=shape)


def operation(operator: str, inputs: tuple[str, ...], output: str, **attributes: object) -> Operation:
    return Operation(
        name=f"node of {output}", operator=operator, kernel=operator, engine="AiCore", inputs=inputs, outputs=(output,),
        attributes=attributes,
    )  # fmt: skip


def program(batch: int) -> Program:
    """Return a small network: a convolution, a softmax, a pad, which have attributes of several kinds."""
    x, y = value("x", batch, 3, 8, 8), value("y", batch, 4, 8, 9)
    inner = {"a": value("a", batch, 4, 8, 8), "b": value("b", batch, 4, 8, 8), "x": x, "y": y}
    return Program(inputs=(x,), outputs=(y,), values=inner, operations=(
        operation("Conv", ("x", "weight", ""), "a", pads=[1, 1, 1, 1], auto_pad="NOTSET", group=1),
        operation("Softmax", ("a",), "b", axis=-1),
        operation("Pad", ("b", "widths", "fill"), "y", mode="constant"),
    ))  # fmt: skip


CONSTANTS = {
    "weight": np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32),
    "widths": np.array([0, 0, 0, 0, 0, 0, 0, 1]),
    "fill": np.array(0.5, np.float32),
    "nothing": np.zeros((0, 2), np.float16),
    "brain": np.ones(3, ml_dtypes.bfloat16),
}


def make_model() -> Model:
    return Model(
        name="backbone", soc="Ascend910B3", command="atc --model=x.onnx --soc_version=Ascend910B3", opset=17,
        inputs=(value("x", -1, 3, 8, 8),), outputs=(value("y", 4, 4, 8, 9),), gears="batch",
        programs={(1,): program(1), (4,): program(4)}, constants=CONSTANTS,
        aipp=(Aipp(input="x", size=(8, 8), channels_swapped=True, mean=(1.0, 2.0, 3.0), minimum=(0.0, 0.0, 0.0),
                   reciprocal=(0.1, 0.2, 0.3)),),
        metadata={"export_id": "7f3a", "stage": "主干"},
    )  # fmt: skip


@pytest.fixture
def om(tmp_path: Path) -> Path:
    path = tmp_path / "backbone.om"
    om_file.write(make_model(), path)
    return path


def seal(data: bytes) -> bytes:
    """Return the file with the checksum that fits it, so that a reader looks further."""
    cleared = data[:12] + bytes(64) + data[76:]
    return data[:12] + f"crc32:{zlib.crc32(cleared):08x}".encode().ljust(64, b"\0") + data[76:]


def test_a_model_comes_back_as_it_was(om: Path) -> None:
    found, written = om_file.read(om), make_model()
    assert replace(found, constants={}) == replace(written, constants={})
    assert list(found.constants) == list(CONSTANTS)
    for name, constant in CONSTANTS.items():
        assert (found.constants[name].dtype, found.constants[name].shape) == (constant.dtype, constant.shape)
        np.testing.assert_array_equal(found.constants[name], constant)
        assert not found.constants[name].flags.writeable


def test_every_kind_of_attribute_comes_back(tmp_path: Path) -> None:
    attributes = {"i": -3, "f": 2.5, "s": "text", "I": [1, -2], "F": [0.5, 1.0], "S": ["a", ""], "none": []}
    made = replace(
        program(1),
        operations=(*program(1).operations[:2], operation("Pad", ("b", "widths"), "y", **attributes)),
    )
    om_file.write(replace(make_model(), programs={(1,): made}), tmp_path / "model.om")
    found = om_file.read(tmp_path / "model.om").programs[1,].operations[2].attributes
    assert found == attributes
    assert [type(attribute) for attribute in found.values()] == [
        type(attribute) for attribute in attributes.values()
    ]


def test_the_header_is_that_of_an_om(om: Path) -> None:
    """Offsets as in CANN's header: tools read the length at 184, the name at 84, the user's text at 120."""
    data = om.read_bytes()
    assert data[:4] == b"IMOD"
    assert struct.unpack_from("<II", data, 4) == (256, 0x20000000)
    assert struct.unpack_from("<I", data, 76) == struct.unpack_from("<I", data, 184) == (len(data) - 256,)
    assert data[84:116].rstrip(b"\0") == b"backbone"
    assert data[120:152].rstrip(b"\0") == b"simulated by cann_sim"
    assert data[160:180].rstrip(b"\0") == b"8.5.0"
    kinds = [struct.unpack_from("<IQQ", data, 260 + index * 20) for index in range(2)]
    assert all(kind > 26 for kind, _, _ in kinds), (
        "a real runtime must not take a partition for one of its own"
    )
    assert sum(size for _, _, size in kinds) <= len(data) - 256


def test_weights_begin_at_multiples_of_64_bytes(om: Path) -> None:
    data = om.read_bytes()
    at = data.index(CONSTANTS["weight"].tobytes())
    assert at % 64 == 0


def test_the_same_model_gives_the_same_bytes(om: Path, tmp_path: Path) -> None:
    om_file.write(make_model(), tmp_path / "again.om")
    assert (tmp_path / "again.om").read_bytes() == om.read_bytes()


def test_the_executor_describes_what_was_written(executor: Executor, om: Path) -> None:
    with executor.load(om) as model:
        info = model.info
        assert (info.name, info.soc, info.opset) == (b"backbone", b"Ascend910B3", 17)
        assert info.command.startswith(b"atc --model")
        assert [info.metadata[index].decode() for index in range(2 * info.num_metadata)] == [
            "export_id",
            "7f3a",
            "stage",
            "主干",
        ]
        assert info.weight_size == footprint.weight_size(make_model())
        assert info.work_size == footprint.model_work_size(make_model()) > 0
        assert [info.gears[index].values[0] for index in range(info.num_gears)] == [1, 4]
        # AIPP's input is a picture of bytes.
        assert model.values("inputs", 1) == [value("x", 4, 8, 8, 3, dtype="uint8")]
        assert model.values("outputs", 0) == [value("y", 1, 4, 8, 9)]


def test_a_model_in_memory_outlives_the_bytes_it_came_from(executor: Executor, om: Path) -> None:
    picture = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(1, 8, 8, 3)
    with executor.load(om) as model:
        expected = model.run([picture])[0]
    data = bytearray(om.read_bytes())
    with executor.load(bytes(data)) as model:
        data[:] = bytes(len(data))
        np.testing.assert_array_equal(model.run([picture])[0], expected)


def test_work_memory_is_the_peak_of_what_is_alive() -> None:
    """x -> a (1 KiB) -> b (4 KiB) -> c (2 KiB, b under another name does not count) -> y."""
    sizes = {"a": (256,), "b": (1024,), "renamed": (32, 32), "c": (512,)}
    values = {name: value(name, *shape) for name, shape in sizes.items()} | {
        "x": value("x", 4),
        "y": value("y", 4),
    }
    names = [
        ("Tile", "x", "a"),
        ("Tile", "a", "b"),
        ("Reshape", "b", "renamed"),
        ("Slice", "renamed", "c"),
        ("Slice", "c", "y"),
    ]
    made = Program(
        inputs=(values["x"],), outputs=(values["y"],), values=values,
        operations=tuple(operation(operator, (source,), target) for operator, source, target in names),
    )  # fmt: skip
    assert footprint.work_size(made) == 4096 + 2048


Damage = Callable[[bytes], bytes]
DAMAGES: dict[str, tuple[Damage, str]] = {
    "an empty file": (lambda data: b"", "shorter than the header"),
    "half a header": (lambda data: data[:100], "shorter than the header"),
    "a header alone": (lambda data: data[:256], "truncated"),
    "a file without its last byte": (lambda data: data[:-1], "truncated"),
    "a file with one byte more": (lambda data: data + b"x", "truncated"),
    "another format": (lambda data: b"\x08\x08\x12\x07pytorch".ljust(400, b"\0"), "IMOD"),
    "another header size": (lambda data: data[:4] + struct.pack("<I", 512) + data[8:], "IMOD"),
    "an OM for a card": (lambda data: seal(data[:120] + bytes(32) + data[152:]), "another ATC"),
    "a changed SoC": (lambda data: data.replace(b"Ascend910B3", b"Ascend310P3"), "altered"),
    "a changed weight": (lambda data: data[:-70] + bytes([data[-70] ^ 1]) + data[-69:], "altered"),
    "a changed checksum": (lambda data: data[:20] + bytes([data[20] ^ 1]) + data[21:], "altered"),
    "a partition outside": (lambda data: seal(data[:264] + struct.pack("<Q", 2**63) + data[272:]), ""),
    "a partition that is too long": (lambda data: seal(data[:272] + struct.pack("<Q", 2**64 - 1) + data[280:]), ""),
    "millions of partitions": (lambda data: seal(data[:256] + struct.pack("<I", 2**31) + data[260:]), ""),
    "no partition of ours": (lambda data: seal(data[:260] + struct.pack("<I", 0) + data[264:]), ""),
    "a format of the future": (lambda data: seal(data[:300] + struct.pack("<I", 99) + data[304:]), "format"),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGES)
def test_a_file_that_is_no_whole_om_of_ours_is_refused(what: str, executor: Executor, om: Path) -> None:
    damage, reason = DAMAGES[what]
    om.write_bytes(damage(om.read_bytes()))
    with pytest.raises(om_file.OmError, match=reason or None) as refused:
        om_file.read(om)
    assert str(om) in str(refused.value)
    with pytest.raises(ExecutorError, match=reason or None) as caught, executor.load(om):
        pass
    assert caught.value.code == BAD_FILE
    assert str(om) in str(caught.value)


@pytest.mark.parametrize("name", ["missing.om", "."])
def test_a_file_that_cannot_be_read_is_refused(name: str, executor: Executor, tmp_path: Path) -> None:
    with pytest.raises(ExecutorError) as caught, executor.load(tmp_path / name):
        pass
    assert caught.value.code == NO_FILE


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda made: replace(made, operations=made.operations[1:]),
            "uses a, which nothing computes before it",
        ),
        (
            lambda made: replace(made, operations=made.operations[::-1]),
            "uses b, which nothing computes before it",
        ),
        (lambda made: replace(made, operations=made.operations[:2]), "nothing computes the output y"),
    ],
)
def test_a_program_that_cannot_run_is_not_written(
    change: Callable[[Program], Program], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=reason):
        om_file.write(replace(make_model(), programs={(1,): change(program(1))}), tmp_path / "model.om")
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_leaves_the_old_file(om: Path) -> None:
    before = om.read_bytes()
    broken = replace(program(1), operations=(operation("Conv", ("x", "weight"), "y", bad=[None]),))
    with pytest.raises(ValueError, match="attribute"):
        om_file.write(replace(make_model(), programs={(1,): broken}), om)
    assert om.read_bytes() == before
    assert [path.name for path in om.parent.iterdir()] == [om.name]


FUZZ = """
import random, resource, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
import numpy as np
from om_models import Executor, ExecutorError
from test_om_file import seal
executor = Executor(Path({library!r}))
# A damaged size may ask for any memory: not that of this host.
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**29, used + 2**29))
whole = Path({model!r}).read_bytes()
picture = np.arange(192, dtype=np.uint8).reshape(1, 8, 8, 3)
choice = random.Random({seed})
refused = ran = failed = 0
for _ in range(1500):
    data = bytearray(whole)
    for _ in range(choice.choice((1, 1, 2, 8))):
        at = choice.randrange(len(data) - {tail})
        data[at] = choice.choice((data[at] ^ 1 << choice.randrange(8), 0, 255, choice.randrange(256)))
    if choice.random() < 0.2:
        at, length = choice.randrange(256, len(data)), choice.randrange(1, 40)
        del data[at:at + length]
        data[184:192] = (len(data) - 256).to_bytes(8, "little")
    try:
        with executor.load(seal(bytes(data))) as model:
            sizes = [np.zeros(min(value.size, 1 << 16), np.uint8) for value in model.raw("inputs")]
            model.run_bytes(sizes)
            ran += 1
    except ExecutorError as error:
        refused += error.code in (2, 3)
        failed += error.code in (4, 5, 6)
print(refused, ran, failed)
"""


@pytest.mark.parametrize("seed", [1, 2])
def test_damage_behind_a_checksum_that_fits_never_ends_the_process(seed: int, om: Path) -> None:
    """Flipped, random and missing bytes of header, table and programs: refused, or run, or failed with a code."""
    constants = footprint.weight_size(make_model())
    text = FUZZ.format(
        tests=str(Path(__file__).parent), library=str(LIBRARY), model=str(om), seed=seed, tail=constants
    )
    done = subprocess.run([sys.executable, "-c", text], env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    refused, ran, _ = (int(word) for word in done.stdout.split())
    assert refused > 500
    assert ran > 10
