"""pyACL on the simulated NPU: arguments, results and codes of each function that inference uses, and their order."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import acl_models
import numpy as np
import pytest

RunPython = Callable[..., "subprocess.CompletedProcess[str]"]
H2D, D2H, D2D = 1, 2, 3
HUGE_FIRST = 0


@pytest.fixture(scope="module")
def acl() -> Iterator[ModuleType]:
    """The module of the CANN tree, initialised, with device 0."""
    if "ASCEND_HOME_PATH" not in os.environ:
        pytest.skip('no CANN tree: run it by `make test-sim`, or after eval "$(python -m cann_sim env)"')
    import acl as module

    assert module.init() == 0
    assert module.rt.set_device(0) == 0
    yield module
    assert module.finalize() == 0


@pytest.fixture
def stream(acl: ModuleType) -> Iterator[int]:
    created, ret = acl.rt.create_stream()
    assert ret == 0
    yield created
    assert acl.rt.destroy_stream(created) == 0


class Session:
    """A loaded model with a device buffer for each input and output, as a program in Python has them."""

    def __init__(self, acl: ModuleType, path: str, short: int = 0) -> None:
        self.acl = acl
        self.id, ret = acl.mdl.load_from_file(path)
        assert ret == 0, acl.get_recent_err_msg()
        self.desc = acl.mdl.create_desc()
        assert acl.mdl.get_desc(self.desc, self.id) == 0
        sizes = [
            acl.mdl.get_input_size_by_index(self.desc, i) for i in range(acl.mdl.get_num_inputs(self.desc))
        ]
        self.inputs, self.input = self._dataset(sizes, short)
        sizes = [
            acl.mdl.get_output_size_by_index(self.desc, i) for i in range(acl.mdl.get_num_outputs(self.desc))
        ]
        self.outputs, self.output = self._dataset(sizes, 0)

    def _dataset(self, sizes: list[int], short: int) -> tuple[int, list[tuple[int, int]]]:
        dataset, buffers = self.acl.mdl.create_dataset(), []
        for size in sizes:
            address, ret = self.acl.rt.malloc(size, HUGE_FIRST)
            assert ret == 0
            buffer = self.acl.create_data_buffer(address, size - short)
            assert self.acl.mdl.add_dataset_buffer(dataset, buffer) == (dataset, 0)
            buffers.append((address, size))
        return dataset, buffers

    def upload(self, array: np.ndarray) -> None:
        data = array.tobytes()
        address, size = self.input[0]
        source = self.acl.util.bytes_to_ptr(data)
        assert self.acl.rt.memcpy(address, size, source, len(data), H2D) == 0

    def download(self, shape: tuple[int, ...]) -> np.ndarray:
        address, size = self.output[0]
        host, ret = self.acl.rt.malloc_host(size)
        assert ret == 0
        assert self.acl.rt.memcpy(host, size, address, size, D2H) == 0
        data = self.acl.util.ptr_to_bytes(host, int(np.prod(shape)) * 4)
        assert self.acl.rt.free_host(host) == 0
        return np.frombuffer(data, np.float32).reshape(shape)

    def execute(self) -> int:
        return int(self.acl.mdl.execute(self.id, self.inputs, self.outputs))

    def close(self) -> None:
        for dataset in (self.inputs, self.outputs):
            for index in range(self.acl.mdl.get_dataset_num_buffers(dataset)):
                buffer = self.acl.mdl.get_dataset_buffer(dataset, index)
                address = self.acl.get_data_buffer_addr(buffer)
                assert address == 0 or self.acl.rt.free(address) == 0
                assert self.acl.destroy_data_buffer(buffer) == 0
            assert self.acl.mdl.destroy_dataset(dataset) == 0
        assert self.acl.mdl.destroy_desc(self.desc) == 0
        assert self.acl.mdl.unload(self.id) == 0


def wait_until(true: Callable[[], bool]) -> None:
    """Wait for what another thread does; its absence fails the assertion that follows."""
    for _ in range(1000):
        if true():
            return
        time.sleep(0.01)


@contextmanager
def session(acl: ModuleType, path: str, short: int = 0) -> Iterator[Session]:
    opened = Session(acl, path, short)
    try:
        yield opened
    finally:
        opened.close()


# ---- the process, devices and contexts ----


def test_the_process_begins_and_ends_once(run_python: RunPython) -> None:
    done = run_python("""
        import acl
        print(acl.get_soc_name())
        print(acl.init(), acl.init(), acl.get_recent_err_msg() is not None, acl.get_recent_err_msg())
        print(acl.rt.get_device()[1], acl.rt.set_device(99), acl.rt.set_device(0), acl.get_soc_name())
        print(acl.rt.get_run_mode(), acl.rt.get_device_count()[1], len(acl.get_version()))
        print(acl.rt.reset_device(0), acl.finalize(), acl.finalize())
        print(acl.init(), acl.finalize_reference())
    """)
    assert done.stdout.splitlines() == [
        "None",
        "0 100002 True None",
        "107002 107001 0 Ascend910B3",
        "(1, 0) 0 4",
        "0 0 100037",
        "0 (0, 0)",
    ], done.stderr


def test_submodules_can_be_imported_and_what_they_lack_is_an_attribute_error(acl: ModuleType) -> None:
    import importlib

    for name in ("rt", "mdl", "util", "op", "media", "prof", "blas", "fv", "himpi"):
        module = importlib.import_module(f"acl.{name}")
        assert module is getattr(acl, name)
        with pytest.raises(AttributeError, match="cann_sim"):
            module.no_such_function()


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        ("rt.malloc", (1,)),
        ("rt.malloc", ("1", 0)),
        ("rt.set_device", (None,)),
        ("rt.memcpy", (0, 0, 0, 0)),
        ("mdl.execute", (1.5, 0, 0)),
        ("mdl.load_from_file", (b"x",)),
        ("create_tensor_desc", (0, (1, 2), 2)),
    ],
)
def test_wrong_arguments_raise_and_name_the_function(
    acl: ModuleType, function: str, arguments: tuple[Any, ...]
) -> None:
    called: Any = acl
    for part in function.split("."):
        called = getattr(called, part)
    with pytest.raises(TypeError, match=rf"acl\.{function} args parse failed"):
        called(*arguments)


def test_threads_need_a_context_of_their_own(acl: ModuleType) -> None:
    context, ret = acl.rt.get_context()
    codes: list[int] = []

    def work() -> None:
        codes.append(acl.rt.create_stream()[1])
        codes.append(acl.rt.set_context(context))
        stream, code = acl.rt.create_stream()
        codes.extend([code, acl.rt.destroy_stream(stream)])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert (ret, codes) == (0, [107002, 0, 0, 0])


def test_a_stream_belongs_to_its_context(acl: ModuleType, stream: int) -> None:
    first, _ = acl.rt.get_context()
    second, ret = acl.rt.create_context(0)
    assert ret == 0
    assert acl.rt.synchronize_stream(stream) == 107003
    assert acl.rt.set_context(first) == 0
    assert acl.rt.synchronize_stream(stream) == 0
    assert acl.rt.destroy_context(second) == 0
    assert acl.rt.set_context(second) == 107002
    assert acl.rt.destroy_context(first) == 100000  # the device's own


# ---- memory ----


def test_memory_and_copies_have_the_documented_codes(acl: ModuleType) -> None:
    assert acl.rt.malloc(0, HUGE_FIRST)[1] == 100000
    device, ret = acl.rt.malloc(64, HUGE_FIRST)
    data = bytes(range(64))
    host = acl.util.bytes_to_ptr(data)
    assert ret == 0
    assert acl.rt.memcpy(device, 64, host, 64, H2D) == 0
    assert acl.rt.memcpy(device, 63, host, 64, H2D) == 107000
    assert acl.rt.memcpy(0, 64, host, 64, H2D) == 100000
    assert acl.rt.memcpy(0, 0, 0, 0, H2D) == 0
    pinned, ret = acl.rt.malloc_host(64)
    assert (ret, acl.rt.memset(pinned, 64, 7, 64)) == (0, 0)
    assert acl.rt.memcpy(pinned, 64, device, 64, H2D) == 0  # the kind of a blocking copy is not looked at
    assert acl.util.ptr_to_bytes(pinned, 64) == data
    assert acl.rt.memset(device, 64, 7, 65) == 107000
    free, total, ret = acl.rt.get_mem_info(1)
    assert ret == 0
    assert 0 < free <= total
    assert (acl.rt.free(device), acl.rt.free(device)) == (0, 100000)
    assert (acl.rt.free_host(pinned), acl.rt.free_host(pinned)) == (0, 100000)


def test_asynchronous_copies_of_pinned_memory_are_ordered_and_of_pageable_memory_wait(
    acl: ModuleType, stream: int
) -> None:
    device, _ = acl.rt.malloc(1 << 20, HUGE_FIRST)
    pinned, _ = acl.rt.malloc_host(1 << 20)
    pageable = bytes(b"\1" * (1 << 20))
    assert acl.rt.memset_async(device, 1 << 20, 0, 1 << 20, stream) == 0
    source = acl.util.bytes_to_ptr(pageable)
    assert acl.rt.memcpy_async(device, 1 << 20, source, 1 << 20, H2D, stream) == 0
    assert acl.rt.stream_query(stream) == (
        0,
        0,
    )  # complete: a copy of pageable memory returns when it is done
    assert acl.rt.memcpy_async(pinned, 1 << 20, device, 1 << 20, D2H, stream) == 0
    assert acl.rt.memset_async(device, 1 << 20, 2, 1 << 20, stream) == 0
    assert acl.rt.synchronize_stream(stream) == 0
    assert acl.util.ptr_to_bytes(pinned, 1 << 20) == pageable
    assert acl.rt.memcpy_async(pinned, 64, source, 64, 0, stream) == 207000  # host to host
    assert acl.rt.free(device) == acl.rt.free_host(pinned) == 0


def test_memory_ends_with_its_code(run_python: RunPython) -> None:
    done = run_python(
        """
        import acl
        acl.init(), acl.rt.set_device(0)
        print(acl.rt.malloc(2 << 30, 0)[1], "EL0004" in acl.get_recent_err_msg())
        print(acl.rt.malloc(1 << 20, 0)[1])
        """,
        CANN_SIM_HBM_GB="1",
    )
    assert done.stdout.split() == ["207018", "True", "0"], done.stderr


def test_pointers_of_python_objects(acl: ModuleType) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    with pytest.warns(Warning, match="deprecated"):
        pointer = acl.util.numpy_to_ptr(array)
    assert pointer == array.ctypes.data
    with pytest.warns(Warning, match="deprecated"):
        pointer, contiguous = acl.util.numpy_contiguous_to_ptr(array.T)
    assert pointer == contiguous.ctypes.data
    assert contiguous.flags.c_contiguous
    with pytest.warns(Warning, match="deprecated"):
        alias = acl.util.ptr_to_numpy(array.ctypes.data, (2, 3), 11)
    alias[0, 0] = 42
    assert array[0, 0] == 42
    assert not alias.flags.owndata
    with pytest.raises(ValueError, match="bytes"):
        acl.util.bytes_to_ptr(bytearray(3))
    with pytest.warns(Warning, match="deprecated"), pytest.raises(TypeError, match="array"):
        acl.util.numpy_to_ptr([1, 2])
    assert acl.float16_to_float(acl.float_to_float16(65504.0)) == 65504.0


def test_tensor_descriptions_and_data_buffers(acl: ModuleType) -> None:
    desc = acl.create_tensor_desc(1, [2, 3], 2)
    assert acl.get_tensor_desc_dim_v2(desc, 1) == (3, 0)
    assert acl.get_tensor_desc_dim_v2(desc, 2)[1] == 100000
    assert acl.get_tensor_desc_num_dims(desc) == 2
    assert acl.get_tensor_desc_size(desc) == 12
    assert acl.get_tensor_desc_type(desc) == 1
    assert acl.destroy_tensor_desc(desc) is None
    buffer = acl.create_data_buffer(0, 0)  # legal: outputs of models with ranges
    assert acl.update_data_buffer(buffer, 4096, (1 << 32) + 8) == 0
    assert acl.get_data_buffer_size(buffer) == 8  # 32 bits
    assert acl.get_data_buffer_size_v2(buffer) == (1 << 32) + 8
    assert acl.get_data_buffer_addr(buffer) == 4096
    assert acl.destroy_data_buffer(buffer) == 0


# ---- models ----


def test_a_model_says_what_it_is_and_computes(acl: ModuleType, tmp_path: Path) -> None:
    path = acl_models.write(acl_models.add_one(1, 3, 4, 5), tmp_path)
    work, weight, ret = acl.mdl.query_size(path)
    assert (ret, work, weight) == (0, 0, 64)
    with session(acl, path) as model:
        mdl, desc = acl.mdl, model.desc
        assert (mdl.get_num_inputs(desc), mdl.get_num_outputs(desc)) == (1, 1)
        assert mdl.get_input_dims(desc, 0) == ({"name": "x", "dimCount": 4, "dims": [1, 3, 4, 5]}, 0)
        assert mdl.get_input_dims_v2(desc, 0) == mdl.get_input_dims(desc, 0)
        assert mdl.get_output_dims(desc, 0) == mdl.get_cur_output_dims(desc, 0)
        assert mdl.get_input_dims(desc, 1) == ({}, 100000)
        assert (mdl.get_input_size_by_index(desc, 0), mdl.get_input_data_type(desc, 0)) == (240, 0)
        assert (mdl.get_input_name_by_index(desc, 0), mdl.get_input_format(desc, 0)) == ("x", 0)
        assert mdl.get_input_index_by_name(desc, "x") == (0, 0)
        assert mdl.get_output_index_by_name(desc, "z")[1] == 100000
        assert mdl.get_dynamic_batch(desc) == ({"batchCount": 0, "batch": []}, 0)
        picture = np.random.default_rng(0).random((1, 3, 4, 5), np.float32)
        model.upload(picture)
        assert model.execute() == 0
        assert np.array_equal(model.download(picture.shape), picture + 1)


def test_a_model_in_memory_and_one_with_memory_of_the_caller(acl: ModuleType, tmp_path: Path) -> None:
    path = acl_models.write(acl_models.add_one(8), tmp_path)
    data = Path(path).read_bytes()
    pointer = acl.util.bytes_to_ptr(data)
    loaded, ret = acl.mdl.load_from_mem(pointer, len(data))
    assert ret == 0
    assert acl.mdl.load_from_mem(pointer, len(data) - 1)[1] == 145006
    work, weight, ret = acl.mdl.query_size_from_mem(pointer, len(data))
    area, ret = acl.rt.malloc(4096, HUGE_FIRST)
    own, ret = acl.mdl.load_from_file_with_mem(path, area, 4096, area, 4096)
    assert ret == 0
    assert own != loaded
    assert acl.mdl.load_from_file_with_mem(path, area, work, area, weight - 1)[1] == 145000
    assert (
        acl.mdl.load_from_file_with_mem(path, pointer, 4096, pointer, 4096)[1] == 145000
    )  # no device memory
    assert acl.mdl.unload(own) == acl.mdl.unload(loaded) == acl.rt.free(area) == 0


def test_files_that_cannot_be_loaded(acl: ModuleType, tmp_path: Path) -> None:
    assert acl.mdl.load_from_file(str(tmp_path / "none.om")) == (0, 145002)
    assert acl.get_recent_err_msg().startswith("E13001")
    whole = Path(acl_models.write(acl_models.add_one(8), tmp_path)).read_bytes()
    for name, content in (
        ("cut", whole[:-1]),
        ("changed", whole[:-1] + b"?"),
        ("empty", b""),
        ("onnx", b"\x08\x08"),
    ):
        file = tmp_path / f"{name}.om"
        file.write_bytes(content)
        assert acl.mdl.load_from_file(str(file))[1] == 145006, name
        assert acl.get_recent_err_msg().startswith("E10001"), name


@pytest.mark.parametrize(
    ("soc", "code"),
    [("Ascend910B1", 0), ("Ascend910_9391", 507008), ("Ascend310P3", 507008), ("Ascend910A", 507008)],
)
def test_a_model_for_another_family_is_refused(acl: ModuleType, tmp_path: Path, soc: str, code: int) -> None:
    loaded, ret = acl.mdl.load_from_file(acl_models.write(acl_models.add_one(4, soc=soc), tmp_path))
    assert ret == code
    if code == 0:
        assert acl.mdl.unload(loaded) == 0
    else:
        message = acl.get_recent_err_msg()
        assert soc in message
        assert "Ascend910B3" in message


def test_ids_end_with_their_model(acl: ModuleType, tmp_path: Path) -> None:
    loaded, ret = acl.mdl.load_from_file(acl_models.write(acl_models.add_one(4), tmp_path))
    desc = acl.mdl.create_desc()
    assert (ret, acl.mdl.unload(loaded), acl.mdl.unload(loaded)) == (0, 0, 145003)
    assert acl.mdl.get_desc(desc, loaded) == 145003
    assert acl.mdl.execute(loaded, acl.mdl.create_dataset(), acl.mdl.create_dataset()) == 145003
    assert acl.mdl.execute(loaded, 0, 0) == 100000
    assert acl.mdl.destroy_desc(desc) == 0


def test_a_model_runs_in_the_context_that_loaded_it(acl: ModuleType, tmp_path: Path) -> None:
    home, _ = acl.rt.get_context()
    with session(acl, acl_models.write(acl_models.add_one(4), tmp_path)) as model:
        other, ret = acl.rt.create_context(0)
        assert (ret, model.execute(), acl.mdl.unload(model.id)) == (0, 107004, 107004)
        assert acl.rt.set_context(home) == acl.rt.destroy_context(other) == 0
        assert model.execute() == 0


@pytest.mark.parametrize(("short", "code"), [(0, 0), (64, 0), (65, 145000)])
def test_a_buffer_may_be_64_bytes_short(acl: ModuleType, tmp_path: Path, short: int, code: int) -> None:
    acl.get_recent_err_msg()
    with session(acl, acl_models.write(acl_models.add_one(64), tmp_path), short) as model:
        assert model.execute() == code
        message = acl.get_recent_err_msg()
        assert message is None if code == 0 else message.startswith("E13025")


def test_data_sets_have_a_buffer_for_each_tensor(acl: ModuleType, tmp_path: Path, stream: int) -> None:
    with session(acl, acl_models.write(acl_models.add_one(4), tmp_path)) as model:
        empty = acl.mdl.create_dataset()
        assert acl.mdl.execute(model.id, empty, model.outputs) == 145000
        assert acl.mdl.execute(model.id, model.inputs, empty) == 145000
        host, _ = acl.rt.malloc_host(16)
        buffer = acl.create_data_buffer(host, 16)
        acl.mdl.add_dataset_buffer(empty, buffer)
        assert (
            acl.mdl.execute(model.id, empty, model.outputs) == 507015
        )  # a core cannot read the host's memory
        assert acl.mdl.execute_async(model.id, empty, model.outputs, stream) == 0
        assert acl.rt.synchronize_stream(stream) == 507015
        assert acl.rt.synchronize_stream(stream) == 0  # it was told
        assert (
            acl.destroy_data_buffer(buffer) == acl.mdl.destroy_dataset(empty) == acl.rt.free_host(host) == 0
        )


# ---- gears ----


def test_gears_of_a_batch(acl: ModuleType, tmp_path: Path) -> None:
    path = acl_models.write(acl_models.add_gears("batch", [(1,), (2,), (4,)], (-1, 3)), tmp_path)
    with session(acl, path) as model:
        mdl = acl.mdl
        assert mdl.get_num_inputs(model.desc) == 2
        index, ret = mdl.get_input_index_by_name(model.desc, "ascend_mbatch_shape_data")
        assert (index, ret) == (1, 0)
        assert mdl.get_dynamic_batch(model.desc) == ({"batchCount": 3, "batch": [1, 2, 4]}, 0)
        assert mdl.get_input_dims(model.desc, 0)[0]["dims"] == [-1, 3]
        assert mdl.get_output_dims(model.desc, 0)[0]["dims"] == [4, 3]
        assert mdl.get_input_size_by_index(model.desc, 0) == 48
        model.upload(np.arange(12, dtype=np.float32))
        assert model.execute() == 0  # no gear: the largest
        assert np.array_equal(model.download((12,)), np.arange(12) + 1)
        assert mdl.set_dynamic_batch_size(model.id, model.inputs, index, 2) == 0
        assert mdl.get_cur_output_dims(model.desc, 0)[0]["dims"] == [2, 3]
        model.upload(np.zeros(12, np.float32))
        assert model.execute() == 0
        assert np.array_equal(model.download((12,)), [1] * 6 + [7, 8, 9, 10, 11, 12])
        assert mdl.set_dynamic_batch_size(model.id, model.inputs, index, 3) == 145013
        assert "1; 2; 4" in acl.get_recent_err_msg()
        assert mdl.set_dynamic_hw_size(model.id, model.inputs, index, 2, 2) == 145013
        assert mdl.set_dynamic_batch_size(model.id, model.inputs, 2, 2) == 100000
        buffer = mdl.get_dataset_buffer(model.inputs, index)
        address = acl.get_data_buffer_addr(buffer)
        acl.update_data_buffer(buffer, address, 3)
        assert mdl.set_dynamic_batch_size(model.id, model.inputs, index, 2) == 145012
        acl.update_data_buffer(buffer, 0, 8)
        assert mdl.set_dynamic_batch_size(model.id, model.inputs, index, 2) == 145011
        acl.update_data_buffer(buffer, address, 8)


def test_gears_of_an_image_and_of_dims(acl: ModuleType, tmp_path: Path) -> None:
    path = acl_models.write(acl_models.add_gears("image", [(2, 3), (4, 6)], (1, 1, -1, -1)), tmp_path)
    with session(acl, path) as model:
        assert acl.mdl.get_dynamic_hw(model.desc, -1) == ({"hwCount": 2, "hw": [[2, 3], [4, 6]]}, 0)
        assert acl.mdl.set_dynamic_hw_size(model.id, model.inputs, 1, 2, 3) == model.execute() == 0
        assert acl.mdl.get_cur_output_dims(model.desc, 0)[0]["dims"] == [1, 1, 2, 3]
        assert acl.mdl.set_dynamic_hw_size(model.id, model.inputs, 1, 3, 2) == 145013
    path = acl_models.write(acl_models.add_gears("dims", [(1, 8), (2, 4)], (-1, -1)), tmp_path)
    with session(acl, path) as model:
        assert acl.mdl.get_input_dynamic_gear_count(model.desc, -1) == (2, 0)
        dims, ret = acl.mdl.get_input_dynamic_dims(model.desc, -1, 2)
        assert (ret, [entry["dims"] for entry in dims]) == (0, [[1, 8], [2, 4]])
        assert acl.mdl.get_input_dynamic_dims(model.desc, -1, 1) == (None, 100000)
        assert acl.mdl.get_input_dynamic_dims(model.desc, -1, 4097) == (None, 100000)
        chosen = {"name": "", "dimCount": 2, "dims": [2, 4]}
        assert acl.mdl.set_input_dynamic_dims(model.id, model.inputs, 1, chosen) == model.execute() == 0
        chosen["dims"] = [4, 2]
        assert acl.mdl.set_input_dynamic_dims(model.id, model.inputs, 1, chosen) == 145013


def test_an_input_with_aipp_takes_bytes(acl: ModuleType, tmp_path: Path) -> None:
    with session(acl, acl_models.write(acl_models.cast_image(2, 2), tmp_path)) as model:
        mdl = acl.mdl
        assert mdl.get_aipp_type(model.id, 0) == (1, 0xFFFFFFFF, 0)
        assert (mdl.get_input_data_type(model.desc, 0), mdl.get_input_format(model.desc, 0)) == (4, 1)
        assert mdl.get_input_dims(model.desc, 0)[0]["dims"] == [1, 2, 2, 3]
        info, ret = mdl.get_first_aipp_info(model.id, 0)
        assert (ret, info["mean_chn0"], info["var_reci_chn2"], info["rbuv_swap_switch"]) == (0, 124, 0.125, 1)
        pixels = np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3)
        model.upload(pixels)
        assert model.execute() == 0
        swapped = pixels[..., ::-1].transpose(0, 3, 1, 2).astype(np.float32)
        expected = (swapped - [[[[124]], [[116]], [[104]]]]) * [[[[0.5]], [[0.25]], [[0.125]]]] + 1
        assert np.allclose(model.download((1, 3, 2, 2)), expected)
        parameters = mdl.create_aipp(1)
        assert mdl.set_aipp_input_format(parameters, 3) == mdl.set_aipp_rbuv_swap_switch(parameters, 1) == 0
        assert mdl.set_aipp_crop_params(parameters, 1, 0, 0, 2, 2, 1) == 100000  # picture 1 of a batch of 1
        assert mdl.set_input_aipp(model.id, model.inputs, 0, parameters) == 145016  # static
        assert mdl.destroy_aipp(parameters) == 0


# ---- order: streams, events, callbacks, the interpreter's lock ----

# A model that sleeps and one that computes; `times` is filled by a thread that runs whenever it gets the lock.
TWO_MODELS = """
    import sys, threading, time
    from pathlib import Path
    sys.path.insert(0, {tests!r})
    import acl, acl_models
    from test_pyacl import Session
    import numpy as np
    acl.init(), acl.rt.set_device(0)
    folder = Path({folder!r})
    stream, _ = acl.rt.create_stream()
    sleeper = Session(acl, acl_models.write(acl_models.add_one(4, name="sleeper"), folder))
    adder = Session(acl, acl_models.write(acl_models.add_one(4), folder))
"""


def two_models(run_python: RunPython, folder: Path, code: str, **environ: str) -> list[str]:
    head = TWO_MODELS.format(tests=str(Path(__file__).parent), folder=str(folder))
    environ = {"CANN_SIM_MODEL_MS": "sleeper:300", **environ}
    done = run_python(head + code, **environ)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_outputs_are_not_there_before_synchronise(run_python: RunPython, tmp_path: Path) -> None:
    """A copy without it reads what was there before, and no error says so."""
    found = two_models(
        run_python,
        tmp_path,
        """
    adder.upload(np.zeros(4, np.float32))
    print(acl.mdl.execute_async(sleeper.id, sleeper.inputs, sleeper.outputs, stream))
    print(acl.mdl.execute_async(adder.id, adder.inputs, adder.outputs, stream))
    print(adder.download((4,))[0], acl.rt.stream_query(stream)[0])
    print(acl.rt.synchronize_stream(stream), adder.download((4,))[0], acl.rt.stream_query(stream)[0])
    """,
    )
    assert found == ["0", "0", "0.0", "1", "0", "1.0", "0"]


def test_execute_holds_the_interpreters_lock_and_synchronise_gives_it_up(
    run_python: RunPython, tmp_path: Path
) -> None:
    """So threads with `execute` do not overlap with anything that Python does."""
    found = two_models(
        run_python,
        tmp_path,
        """
    times, ended = [], threading.Event()
    def work():
        while not ended.is_set():
            times.append(time.monotonic())
    thread = threading.Thread(target=work)
    thread.start()
    def seen(call):
        begin = time.monotonic()
        assert call() == 0
        end = time.monotonic()
        return sum(begin + 0.05 < moment < end - 0.05 for moment in list(times)) > 0
    print(seen(sleeper.execute))
    acl.mdl.execute_async(sleeper.id, sleeper.inputs, sleeper.outputs, stream)
    print(seen(lambda: acl.rt.synchronize_stream(stream)))
    acl.mdl.execute_async(sleeper.id, sleeper.inputs, sleeper.outputs, stream)
    pageable = bytes(16)
    source = acl.util.bytes_to_ptr(pageable)
    print(seen(lambda: acl.rt.memcpy_async(adder.input[0][0], 16, source, 16, 1, stream)))
    ended.set()
    thread.join()
    """,
    )
    assert found == ["False", "True", "False"]


def test_work_of_the_host_overlaps_with_execute_async_and_pinned_copies(
    run_python: RunPython, tmp_path: Path
) -> None:
    found = two_models(
        run_python,
        tmp_path,
        """
    host, _ = acl.rt.malloc_host(16)
    acl.rt.memset(host, 16, 0, 16)
    event, _ = acl.rt.create_event()
    print(acl.rt.memcpy_async(adder.input[0][0], 16, host, 16, 1, stream))
    acl.mdl.execute_async(sleeper.id, sleeper.inputs, sleeper.outputs, stream)
    acl.mdl.execute_async(adder.id, adder.inputs, adder.outputs, stream)
    print(acl.rt.memcpy_async(host, 16, adder.output[0][0], 16, 2, stream))
    acl.rt.record_event(event, stream)
    print(acl.rt.query_event_status(event)[0], acl.rt.query_event(event)[0])
    print(acl.rt.synchronize_event(event), acl.rt.query_event_status(event)[0], acl.rt.query_event(event)[0])
    print(np.frombuffer(acl.util.ptr_to_bytes(host, 16), np.float32)[0])
    """,
    )
    assert found == ["0", "0", "0", "1", "0", "1", "0", "1.0"]


def test_streams_wait_for_events_and_one_device_computes_one_model_at_a_time(
    run_python: RunPython, tmp_path: Path
) -> None:
    found = two_models(
        run_python,
        tmp_path,
        """
    other, _ = acl.rt.create_stream()
    begin, middle, end = (acl.rt.create_event_with_flag(8)[0] for _ in range(3))
    acl.rt.record_event(begin, stream)
    acl.mdl.execute_async(sleeper.id, sleeper.inputs, sleeper.outputs, stream)
    acl.rt.record_event(middle, stream)
    acl.rt.stream_wait_event(other, middle)
    adder.upload(np.zeros(4, np.float32))
    acl.mdl.execute_async(adder.id, adder.inputs, adder.outputs, other)
    acl.rt.record_event(end, other)
    print(acl.rt.event_elapsed_time(begin, middle)[1])
    print(acl.rt.synchronize_stream(other), adder.download((4,))[0])
    ms, ret = acl.rt.event_elapsed_time(begin, middle)
    print(ret, 300 <= ms, acl.rt.event_elapsed_time(middle, end)[0] >= 0)
    second = Session(acl, acl_models.write(acl_models.add_one(4, name="sleeper"), folder))
    acl.rt.record_event(begin, stream)
    acl.mdl.execute_async(sleeper.id, sleeper.inputs, sleeper.outputs, stream)
    acl.mdl.execute_async(second.id, second.inputs, second.outputs, other)
    acl.rt.synchronize_device()
    acl.rt.record_event(end, other)
    acl.rt.synchronize_stream(other)
    print(acl.rt.event_elapsed_time(begin, end)[0] >= 600)
    print(acl.rt.reset_event(end, other), acl.rt.synchronize_stream(other), acl.rt.query_event_status(end)[0])
    plain, _ = acl.rt.create_event()
    print(acl.rt.reset_event(plain, other), acl.rt.event_elapsed_time(plain, begin)[1])
    """,
    )
    assert found == [
        *("507006", "0", "1.0", "0", "True", "True", "True", "0", "0", "0"),
        *("207000", "107006"),
    ]


def test_one_model_does_not_run_twice_at_a_time(run_python: RunPython, tmp_path: Path) -> None:
    found = two_models(
        run_python,
        tmp_path,
        """
    acl.mdl.execute_async(sleeper.id, sleeper.inputs, sleeper.outputs, stream)
    time.sleep(0.1)
    print(sleeper.execute(), "runs already" in acl.get_recent_err_msg())
    print(acl.rt.synchronize_stream(stream), sleeper.execute())
    """,
    )
    assert found == ["507011", "True", "0", "0"]


def test_callbacks_run_in_the_order_of_their_stream(acl: ModuleType, stream: int) -> None:
    order: list[Any] = []
    context, _ = acl.rt.get_context()
    ended = threading.Event()

    def process(arguments: list[Any]) -> None:
        acl.rt.set_context(arguments[0])
        while not ended.is_set():
            order.append(acl.rt.process_report(20))

    assert acl.rt.launch_callback(order.append, ["a"], 1, stream) == 107015
    assert acl.rt.process_report(10) == 107012
    assert acl.rt.process_report(0) == 107000
    thread, ret = acl.util.start_thread(process, [context])
    assert ret == 0
    assert acl.rt.subscribe_report(thread, stream) == 0
    assert acl.rt.launch_callback(order.append, ["first", 1], 1, stream) == 0
    assert acl.rt.launch_callback(order.append, ["second"], 1, stream) == 0
    assert acl.rt.synchronize_stream(stream) == 0
    assert [entry for entry in order if isinstance(entry, list)] == [["first", 1], ["second"]]
    wait_until(lambda: 507012 in order)  # there is no third report
    ended.set()
    assert acl.util.stop_thread(thread) == 0
    assert acl.rt.unsubscribe_report(thread, stream) == 0
    assert acl.util.stop_thread(thread) == 100000


def test_an_exception_on_the_device_is_told_to_the_callback(
    acl: ModuleType, tmp_path: Path, stream: int
) -> None:
    told: list[int] = []
    assert (
        acl.rt.set_exception_info_callback(
            lambda info: told.append(acl.rt.get_error_code_from_exception_info(info))
        )
        == 0
    )
    with session(acl, acl_models.write(acl_models.add_one(4), tmp_path)) as model:
        buffer = acl.mdl.get_dataset_buffer(model.inputs, 0)
        address = acl.get_data_buffer_addr(buffer)
        host, _ = acl.rt.malloc_host(16)
        acl.update_data_buffer(buffer, host, 16)
        assert acl.mdl.execute_async(model.id, model.inputs, model.outputs, stream) == 0
        assert acl.rt.synchronize_stream(stream) == 507015
        acl.update_data_buffer(buffer, address, 16)
        assert acl.rt.free_host(host) == 0
    wait_until(lambda: bool(told))
    assert told == [507015]
    assert acl.rt.set_exception_info_callback(None) == 0


# ---- faults ----

LOST = """
    import sys
    from pathlib import Path
    sys.path.insert(0, {tests!r})
    import acl, acl_models
    from test_pyacl import Session
    import numpy as np
    acl.init(), acl.rt.set_device(0)
    stream, _ = acl.rt.create_stream()
    adder = Session(acl, acl_models.write(acl_models.add_one(4), Path({folder!r})))
    adder.upload(np.zeros(4, np.float32))
    results = acl.rt.malloc_host(16 * 4)[0]
    acl.rt.memset(results, 64, 0, 64)
    for index in range(4):
        print(acl.mdl.execute_async(adder.id, adder.inputs, adder.outputs, stream))
        print(acl.rt.memcpy_async(results + 16 * index, 16, adder.output[0][0], 16, 2, stream))
    print(acl.rt.synchronize_stream(stream), acl.get_recent_err_msg().split(":")[0])
    print(*np.frombuffer(acl.util.ptr_to_bytes(results, 64), np.float32)[::4])
    print(acl.rt.synchronize_stream(stream), adder.execute())
"""


@pytest.mark.parametrize(("fault", "code"), [("device-lost@launch:3", "507010"), ("ecc@launch:3", "507054")])
def test_a_lost_device_surfaces_at_synchronise_and_results_so_far_are_kept(
    run_python: RunPython, tmp_path: Path, fault: str, code: str
) -> None:
    done = run_python(
        LOST.format(tests=str(Path(__file__).parent), folder=str(tmp_path)), CANN_SIM_FAULT=fault
    )
    expected = ["0"] * 8 + [code, "EE9999", "1.0", "1.0", "0.0", "0.0", code, code]
    assert done.stdout.split() == expected, done.stderr


def test_a_corrupt_result_is_that_of_the_model_named(run_python: RunPython, tmp_path: Path) -> None:
    code = """
    adder.upload(np.zeros(4, np.float32))
    for _ in range(3):
        adder.execute()
        print(adder.download((4,))[0])
    """
    found = two_models(run_python, tmp_path, code, CANN_SIM_FAULT="corrupt@model::add:2")
    assert found == ["1.0", "0.0", "1.0"]


def test_torch_npu_and_models_share_a_process(run_python: RunPython, tmp_path: Path) -> None:
    """Whichever begins, and a tensor of torch_npu is a buffer of a model."""
    code = """
    import torch, torch_npu
    tensor = torch.zeros(4).npu() + 1
    buffer = acl.mdl.get_dataset_buffer(adder.inputs, 0)
    own = acl.get_data_buffer_addr(buffer)
    acl.update_data_buffer(buffer, tensor.data_ptr(), 16)
    acl.mdl.execute_async(sleeper.id, sleeper.inputs, sleeper.outputs, stream)
    acl.mdl.execute_async(adder.id, adder.inputs, adder.outputs, stream)
    print(acl.rt.synchronize_stream(stream), adder.download((4,))[0], (tensor * 3).cpu()[0].item())
    acl.update_data_buffer(buffer, own, 16)
    """
    assert two_models(run_python, tmp_path, code) == ["0", "2.0", "3.0"]


def test_memory_of_a_model_counts_and_its_lack_is_said(run_python: RunPython, tmp_path: Path) -> None:
    """Weights of 2 matrices and the work area are the device's; 107 MiB of constants do not fit beside 1000 MiB."""
    path = acl_models.write(acl_models.busy(5300, 1), tmp_path)  # 107 MiB of weights
    done = run_python(
        f"""
        import acl
        acl.init(), acl.rt.set_device(0)
        before = acl.rt.get_mem_info(1)[0]
        loaded, ret = acl.mdl.load_from_file({path!r})
        print(ret, before - acl.rt.get_mem_info(1)[0] >= 5300 * 5300 * 4, acl.mdl.unload(loaded))
        print(before == acl.rt.get_mem_info(1)[0])
        block, ret = acl.rt.malloc(1000 << 20, 0)
        print(ret, acl.mdl.load_from_file({path!r})[1], "weight memory" in acl.get_recent_err_msg())
        """,
        CANN_SIM_HBM_GB="1",
    )
    assert done.stdout.split() == ["0", "True", "0", "True", "0", "245000", "True"], done.stderr


def test_runs_are_counted_as_launches_and_waits(run_python: RunPython, tmp_path: Path) -> None:
    code = """
    from cann_sim import counters
    counters.start()
    adder.execute()
    acl.mdl.execute_async(adder.id, adder.inputs, adder.outputs, stream)
    acl.rt.synchronize_stream(stream)
    counted = counters.snapshot()
    print(counted["launches"])
    print(sum(wait["count"] for wait in counted["host_syncs"]))
    """
    assert " ".join(two_models(run_python, tmp_path, code)) == "{'model::add': 2} 2"


def test_a_process_may_end_while_a_model_runs(run_python: RunPython, tmp_path: Path) -> None:
    code = """
    long = Session(acl, acl_models.write(acl_models.busy(256, 40), folder))
    for _ in range(20):
        acl.mdl.execute_async(long.id, long.inputs, long.outputs, stream)
    """
    assert two_models(run_python, tmp_path, code) == []
