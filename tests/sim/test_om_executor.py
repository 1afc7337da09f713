"""The executor of OM files: its own operators, half precision, memory, and its C interface."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import cann_sim
import numpy as np
import pytest
from cann_sim.atc import om_file
from cann_sim.atc.program import Aipp, Model, Operation, Program, Value
from om_cases import RANDOM, floats
from om_models import RUN_FAILED, UNSUPPORTED, Executor, ExecutorError, model_of

LIBRARY = cann_sim.home() / "lib64" / "libcann_sim_executor.so"


@pytest.fixture(scope="module")
def executor() -> Executor:
    return Executor(LIBRARY)


def one(operator: str, inputs: dict[str, Value | None], output: Value, **attributes: Any) -> Program:
    """Return a program of one operation."""
    operation = Operation(
        name="node", operator=operator, kernel=operator, engine="AiCore", inputs=tuple(inputs), outputs=(output.name,),
        attributes=attributes,
    )  # fmt: skip
    given = tuple(value for value in inputs.values() if value is not None)
    return Program(
        inputs=given,
        outputs=(output,),
        values={value.name: value for value in (*given, output)},
        operations=(operation,),
    )


def value(name: str, *shape: int, dtype: str = "float32") -> Value:
    return Value(name=name, dtype=dtype, shape=shape)


def run(executor: Executor, folder: Path, model: Model, *inputs: np.ndarray) -> list[np.ndarray]:
    om_file.write(model, folder / "model.om")
    with executor.load(folder / "model.om") as loaded:
        return loaded.run(inputs)


def align(features: np.ndarray, box: np.ndarray, size: int, scale: float) -> np.ndarray:
    """Return RoIAlign (aligned, adaptive sampling) of one box [4] in a map [C, H, W], written as its definition."""
    left, top, right, bottom = box * scale - 0.5
    rows, columns = (max(int(np.ceil(length / size)), 0) for length in (bottom - top, right - left))
    result = np.zeros((features.shape[0], size, size))
    for i, j in np.ndindex(size, size):
        for y, x in np.ndindex(rows, columns):
            at_y = top + (i + (y + 0.5) / rows) * (bottom - top) / size
            at_x = left + (j + (x + 0.5) / columns) * (right - left) / size
            if not (-1 <= at_y <= features.shape[1] and -1 <= at_x <= features.shape[2]):
                continue
            at_y, at_x = max(at_y, 0), max(at_x, 0)
            y0, x0 = min(int(at_y), features.shape[1] - 1), min(int(at_x), features.shape[2] - 1)
            y1, x1 = min(y0 + 1, features.shape[1] - 1), min(x0 + 1, features.shape[2] - 1)
            dy, dx = at_y - y0 if y1 > y0 else 0, at_x - x0 if x1 > x0 else 0
            upper = features[:, y0, x0] * (1 - dx) + features[:, y0, x1] * dx
            lower = features[:, y1, x0] * (1 - dx) + features[:, y1, x1] * dx
            result[:, i, j] += upper * (1 - dy) + lower * dy
    return result / max(rows * columns, 1)


def test_roi_extractor_pools_each_box_on_its_level(executor: Executor, tmp_path: Path) -> None:
    """Of 447 px still on P4, of 448 on P5; small ones on P2, and huge ones on the last."""
    maps = [floats(2, 3, 1024 // stride, 1024 // stride) for stride in (4, 8, 16, 32)]
    sides = {10: 0, 111: 0, 113: 1, 223: 1, 225: 2, 447: 2, 449: 3, 1000: 3}
    rois = np.array([[index % 2, 5, 7, 5 + side, 7 + side] for index, side in enumerate(sides)], np.float32)
    inputs = {f"p{index}": value(f"p{index}", *array.shape) for index, array in enumerate(maps)}
    inputs["rois"] = value("rois", *rois.shape)
    scales = [1 / 4, 1 / 8, 1 / 16, 1 / 32]
    program = one(
        "RoiExtractor",
        inputs,
        value("y", len(sides), 3, 2, 2),
        finest_scale=56,
        pooled_height=2,
        pooled_width=2,
        roi_scale_factor=0.0,
        sample_num=0,
        spatial_scale=scales,
        pool_mode="avg",
        aligned=1,
    )
    (found,) = run(executor, tmp_path, model_of(program, {}, opset=16), *maps, rois)
    for ours, roi, level in zip(found, rois, sides.values(), strict=True):
        np.testing.assert_allclose(
            ours, align(maps[level][int(roi[0])], roi[1:], 2, scales[level]), atol=2e-4
        )


def test_flash_attention_is_the_plain_formula(executor: Executor, tmp_path: Path) -> None:
    batch, heads, length, channels = 2, 3, 5, 4
    tensors = [floats(batch, length, heads * channels) for _ in range(3)]
    shift, mask = floats(batch, heads, length, length), RANDOM.random((length, length)) < 0.3
    mask[:, 0] = False
    program = one("NPUFlashAttention", {
        "q": value("q", *tensors[0].shape), "k": value("k", *tensors[0].shape), "v": value("v", *tensors[0].shape),
        "shift": value("shift", *shift.shape), "": None, " ": None, "mask": value("mask", length, length, dtype="bool"),
    }, value("y", *tensors[0].shape), head_num=heads, scale_value=0.5, input_layout="BSH")  # fmt: skip
    operation = replace(program.operations[0], inputs=("q", "k", "v", "shift", "", "", "mask"))
    program = replace(program, operations=(operation,))
    (found,) = run(executor, tmp_path, model_of(program, {}), *tensors, shift, mask)
    query, key, val = (
        x.reshape(batch, length, heads, channels).transpose(0, 2, 1, 3).astype(np.float64) for x in tensors
    )
    scores = np.where(mask, -np.inf, 0.5 * (query @ key.transpose(0, 1, 3, 2) + shift))
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    expected = (weights / weights.sum(-1, keepdims=True)) @ val
    np.testing.assert_allclose(found, expected.transpose(0, 2, 1, 3).reshape(found.shape), atol=1e-5)


@pytest.mark.parametrize(
    ("soc", "largest"),
    [("Ascend910B3", np.inf), ("Ascend910_9392", np.inf), ("Ascend310P3", 65504), ("Ascend910A", 65504)],
)
def test_float16_overflows_as_the_soc_does(
    soc: str, largest: float, executor: Executor, tmp_path: Path
) -> None:
    x = np.array([300, -300, 2], np.float16)
    program = one(
        "Mul",
        {"x": value("x", 3, dtype="float16"), "c": value("c", 3, dtype="float16")},
        value("y", 3, dtype="float16"),
    )
    program = replace(
        program, inputs=program.inputs[:1], values={name: program.values[name] for name in ("x", "y")}
    )
    (found,) = run(
        executor, tmp_path, model_of(program, {"c": np.array([300, 300, 3], np.float16)}, soc=soc), x
    )
    np.testing.assert_array_equal(found, np.array([largest, -largest, 6], np.float16))


def test_a_sum_of_halves_is_rounded_at_its_end_only(executor: Executor, tmp_path: Path) -> None:
    """In float16 all the way, 2048 + 1 + 1 + … would stay 2048."""
    program = one(
        "ReduceSum", {"x": value("x", 1025, dtype="float16")}, value("y", dtype="float16"), keepdims=0
    )
    x = np.ones(1025, np.float16)
    x[0] = 2048
    assert run(executor, tmp_path, model_of(program, {}), x)[0] == 3072


def chain() -> Program:
    """Return (x * x + x) twice: in place where that is allowed, and only there."""
    x, y = value("x", 2, 3), value("y", 2, 3)
    names = [
        ("Mul", ("x", "x"), "a"),
        ("Reshape", ("a", "shape"), "b"),
        ("Add", ("b", "b"), "c"),
        ("Relu", ("a",), "d"),
        ("Reshape", ("d", "back"), "e"),
        ("Add", ("x", "e"), "f"),
        ("Transpose", ("c",), "g"),
        ("Neg", ("g",), "h"),
        ("Reshape", ("h", "back"), "i"),
        ("Add", ("f", "i"), "y"),
    ]
    shapes = {
        "a": (2, 3),
        "b": (3, 2),
        "c": (3, 2),
        "d": (2, 3),
        "e": (2, 3),
        "f": (2, 3),
        "g": (2, 3),
        "h": (2, 3),
        "i": (2, 3),
    }
    operations = tuple(
        Operation(
            name=output, operator=operator, kernel=operator, engine="AiCore", inputs=inputs, outputs=(output,)
        )
        for operator, inputs, output in names
    )
    values = {"x": x, "y": y} | {name: value(name, *shape) for name, shape in shapes.items()}
    return Program(inputs=(x,), outputs=(y,), values=values, operations=operations)


CHAIN_CONSTANTS = {"shape": np.array([3, 2]), "back": np.array([2, 3])}


def test_writing_in_place_changes_no_value_that_is_still_used(executor: Executor, tmp_path: Path) -> None:
    x = floats(2, 3)
    kept = x.copy()
    (found,) = run(executor, tmp_path, model_of(chain(), CHAIN_CONSTANTS), x)
    square = kept * kept
    doubled = (square.reshape(3, 2) * 2).T
    np.testing.assert_allclose(found, kept + np.maximum(square, 0) - doubled, rtol=1e-6)
    np.testing.assert_array_equal(x, kept)


def test_constants_stay_as_they_are(executor: Executor, tmp_path: Path) -> None:
    """A constant that is used for the last time is no free memory: the second run finds it again."""
    program = one("Add", {"c": value("c", 3)}, value("y", 3))
    operation = replace(program.operations[0], operator="Relu")
    program = replace(program, inputs=(), values={"y": program.values["y"]}, operations=(operation,))
    om_file.write(model_of(program, {"c": np.array([-1, 0, 2], np.float32)}), tmp_path / "model.om")
    with executor.load(tmp_path / "model.om") as loaded:
        for _ in range(2):
            np.testing.assert_array_equal(loaded.run([])[0], [0, 0, 2])


def test_an_observer_sees_every_operation_with_its_values(executor: Executor, tmp_path: Path) -> None:
    om_file.write(model_of(chain(), CHAIN_CONSTANTS), tmp_path / "model.om")
    x = floats(2, 3)
    with executor.load(tmp_path / "model.om") as loaded:
        loaded.run([x], observe=True)
        assert [name for name, _, _ in loaded.seen] == list("abcdefghiy")
        np.testing.assert_allclose(loaded.seen[6][2][0], (x * x * 2).reshape(3, 2).T, rtol=1e-6)


def test_aipp_reads_bytes(executor: Executor, tmp_path: Path) -> None:
    aipp = Aipp(
        input="x",
        size=(4, 5),
        channels_swapped=True,
        mean=(1.0, 2.0, 3.0),
        minimum=(0.5, 0.0, 0.0),
        reciprocal=(0.1, 0.2, 0.3),
    )
    program = one("Identity", {"x": value("x", 2, 3, 4, 5)}, value("y", 2, 3, 4, 5))
    model = replace(model_of(program, {}, aipp=(aipp,)), inputs=(value("x", 2, 4, 5, 3, dtype="uint8"),))
    picture = RANDOM.integers(0, 256, (2, 4, 5, 3), np.uint8)
    (found,) = run(executor, tmp_path, model, picture)
    expected = (picture[..., ::-1] - np.array(aipp.mean) - np.array(aipp.minimum)) * np.array(aipp.reciprocal)
    np.testing.assert_allclose(found, expected.transpose(0, 3, 1, 2), rtol=1e-5)


def test_gears_have_their_own_shapes_and_share_constants(executor: Executor, tmp_path: Path) -> None:
    def program(batch: int) -> Program:
        made = one("Add", {"x": value("x", batch, 3), "c": value("c", 3)}, value("y", batch, 3))
        return replace(made, inputs=made.inputs[:1], values={name: made.values[name] for name in ("x", "y")})

    constant = {"c": np.array([1, 2, 3], np.float32)}
    model = replace(
        model_of(program(4), constant), inputs=(value("x", -1, 3),), gears="batch",
        programs={(1,): program(1), (4,): program(4), (2,): program(2)},
    )  # fmt: skip
    om_file.write(model, tmp_path / "model.om")
    with executor.load(tmp_path / "model.om") as loaded:
        assert (loaded.info.gear_kind, loaded.info.num_gears, loaded.info.largest_gear) == (1, 3, 1)
        assert loaded.info.inputs[0].value().shape == (-1, 3)
        assert loaded.info.inputs[0].size == 48
        for gear, batch in enumerate((1, 4, 2)):
            x = floats(batch, 3)
            np.testing.assert_array_equal(loaded.run([x], gear)[0], x + constant["c"])
        with pytest.raises(ExecutorError, match="no such gear"):
            loaded.run([floats(1, 3)], 3)


def test_a_buffer_that_is_too_short_is_never_left(executor: Executor, tmp_path: Path) -> None:
    """The C ABI allows 64 bytes less; what an output has no room for is dropped, what an input lacks is 0."""
    program = one("Neg", {"x": value("x", 100)}, value("y", 100))
    om_file.write(model_of(program, {}), tmp_path / "model.om")
    x = floats(100)
    with executor.load(tmp_path / "model.om") as loaded:
        np.testing.assert_array_equal(loaded.run([x], short=64)[0], np.concatenate([-x[:84], np.zeros(16)]))
        np.testing.assert_array_equal(loaded.run([x[:84]])[0], np.concatenate([-x[:84], np.zeros(16)]))


def test_an_operator_that_is_not_simulated_is_refused_at_load(executor: Executor, tmp_path: Path) -> None:
    program = one("Einsum", {"x": value("x", 3)}, value("y", 3))
    om_file.write(model_of(program, {}), tmp_path / "model.om")
    with (
        pytest.raises(
            ExecutorError, match="operation node: cann_sim does not simulate the operator Einsum"
        ) as caught,
        executor.load(tmp_path / "model.om"),
    ):
        pass
    assert caught.value.code == UNSUPPORTED


def test_a_failing_operation_is_named(executor: Executor, tmp_path: Path) -> None:
    program = one("MatMul", {"x": value("x", 3, 4), "w": value("w", 5, 6)}, value("y", 3, 6))
    with pytest.raises(ExecutorError, match="operation node: MatMul") as caught:
        run(executor, tmp_path, model_of(program, {}), floats(3, 4), floats(5, 6))
    assert caught.value.code == RUN_FAILED


def test_a_result_of_another_shape_than_the_program_says_is_refused(
    executor: Executor, tmp_path: Path
) -> None:
    program = one("Relu", {"x": value("x", 3, 4)}, value("y", 4, 3))
    with pytest.raises(ExecutorError, match=r"its result y has the shape \[3, 4\] instead of \[4, 3\]"):
        run(executor, tmp_path, model_of(program, {}), floats(3, 4))


JOB = """
import sys, time
sys.path.insert(0, {tests!r})
{imports}
import numpy as np
from pathlib import Path
from om_models import Executor
executor = Executor(Path({library!r}))
with executor.load(Path({model!r})) as model:
    begin = time.perf_counter()
    (found,) = model.run([np.array([-1, 2, 3], np.float32)])
    print(found.tolist(), round(time.perf_counter() - begin, 2), model.info.milliseconds, "torch" in sys.modules)
"""


def job(model: Path, imports: str = "", **environ: str) -> str:
    """Run the model in a process of its own and return what it prints: outputs, seconds, setting, torch imported."""
    text = JOB.format(
        tests=str(Path(__file__).parent), imports=imports, library=str(LIBRARY), model=str(model)
    )
    # Without cann_sim's libraries on the path: the executor finds torch by itself.
    kept = {name: setting for name, setting in os.environ.items() if name != "LD_LIBRARY_PATH"}
    done = subprocess.run([sys.executable, "-c", text], env=kept | environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(("imports", "imported"), [("", False), ("import torch", True)])
def test_it_runs_without_torch_in_the_process_and_with_it(
    imports: str, imported: bool, tmp_path: Path
) -> None:
    om_file.write(model_of(one("Relu", {"x": value("x", 3)}, value("y", 3)), {}), tmp_path / "model.om")
    printed = job(tmp_path / "model.om", imports, TORCH_DEVICE_BACKEND_AUTOLOAD="0")
    assert printed.startswith("[0.0, 2.0, 3.0]")
    assert printed.endswith(str(imported))


def test_a_model_with_a_given_time_takes_it_and_computes_nothing(tmp_path: Path) -> None:
    om_file.write(
        model_of(one("Relu", {"x": value("x", 3)}, value("y", 3)), {}, name="rpn"), tmp_path / "model.om"
    )
    words = job(tmp_path / "model.om", CANN_SIM_MODEL_MS="backbone:1,rpn:150.5").rsplit(" ", 3)
    assert words[0] == "[0.0, 0.0, 0.0]"
    assert 0.15 <= float(words[1]) < 1
    assert words[2] == "150.5"


MEMORY = """
import resource, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
import numpy as np
from om_models import Executor
import torch
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
executor = Executor(Path({library!r}))
with executor.load(Path({model!r})) as model:
    x = np.ones(model.values("inputs")[0].shape, np.float32)
    for _ in range(3):
        before = faults()
        model.run([x])
    print(faults() - before)
tensors = [torch.full((1 << 20,), float(number)) for number in range(9)]
assert sum(tensor.mean() for tensor in tensors) == 36
"""


def test_the_memory_of_a_run_serves_the_next_and_torch_keeps_its_own(tmp_path: Path) -> None:
    """Ten values of 16 MiB are 40,960 pages; the third run touches only those of its outputs and of the test."""
    shape = (2048, 2048)
    names = [f"v{index}" for index in range(11)]
    operations = tuple(
        Operation(
            name=target,
            operator="Mul",
            kernel="Mul",
            engine="AiCore",
            inputs=(source, "x"),
            outputs=(target,),
        )
        for source, target in zip(["x", *names], names, strict=False)
    )
    values = {name: value(name, *shape) for name in ("x", *names)}
    program = Program(inputs=(values["x"],), outputs=(values["v10"],), values=values, operations=operations)
    om_file.write(model_of(program, {}), tmp_path / "model.om")
    text = MEMORY.format(
        tests=str(Path(__file__).parent), library=str(LIBRARY), model=str(tmp_path / "model.om")
    )
    environ = os.environ | {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    done = subprocess.run([sys.executable, "-c", text], env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) < 10000
