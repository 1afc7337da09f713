"""The C interface of models as strangers call it: aclruntime's calls (ais_bench), in their order, through ctypes.

ais_bench is on no package index; its native part calls the functions of `SYMBOLS`, and so does this client, which knows
CANN's C interface and nothing of cann_sim.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Callable, Iterator
from ctypes import POINTER, byref, c_char_p, c_int, c_int32, c_int64, c_size_t, c_uint32, c_uint64, c_void_p
from pathlib import Path
from typing import Any

import acl_models
import numpy as np
import pytest

RunPython = Callable[..., "subprocess.CompletedProcess[str]"]

# What aclruntime is linked to of libascendcl.so.
SYMBOLS = [
    "aclInit", "aclFinalize", "aclGetRecentErrMsg", "aclDataTypeSize", "aclrtSetDevice", "aclrtResetDevice",
    "aclrtGetDevice", "aclrtGetDeviceCount", "aclrtCreateContext", "aclrtDestroyContext", "aclrtSetCurrentContext",
    "aclrtGetCurrentContext", "aclrtMalloc", "aclrtFree", "aclrtMallocHost", "aclrtFreeHost", "aclrtMemcpy",
    "aclrtMemset", "aclrtGetRunMode", "aclrtSetExceptionInfoCallback", "aclrtGetTaskIdFromExceptionInfo",
    "aclrtGetStreamIdFromExceptionInfo", "aclrtGetThreadIdFromExceptionInfo", "aclrtGetDeviceIdFromExceptionInfo",
    "aclrtGetErrorCodeFromExceptionInfo", "aclrtCreateStream", "aclrtDestroyStream", "aclrtSynchronizeStream",
    "aclCreateDataBuffer", "aclDestroyDataBuffer", "aclGetDataBufferAddr", "aclGetDataBufferSizeV2",
    "aclUpdateDataBuffer", "aclCreateTensorDesc", "aclDestroyTensorDesc", "aclGetTensorDescType",
    "aclGetTensorDescFormat", "aclGetTensorDescSize", "aclGetTensorDescNumDims", "aclGetTensorDescDimV2",
    "aclGetTensorDescByIndex", "aclGetTensorDescElementCount", "aclmdlLoadFromFile", "aclmdlLoadFromMem",
    "aclmdlLoadFromFileWithMem", "aclmdlLoadFromMemWithMem", "aclmdlLoadWithConfig", "aclmdlCreateConfigHandle",
    "aclmdlDestroyConfigHandle", "aclmdlSetConfigOpt", "aclmdlUnload", "aclmdlQuerySize", "aclmdlQuerySizeFromMem",
    "aclmdlCreateDesc", "aclmdlDestroyDesc", "aclmdlGetDesc", "aclmdlGetNumInputs", "aclmdlGetNumOutputs",
    "aclmdlGetInputSizeByIndex", "aclmdlGetOutputSizeByIndex", "aclmdlGetInputNameByIndex",
    "aclmdlGetOutputNameByIndex", "aclmdlGetInputFormat", "aclmdlGetOutputFormat", "aclmdlGetInputDataType",
    "aclmdlGetOutputDataType", "aclmdlGetInputDims", "aclmdlGetOutputDims", "aclmdlGetCurOutputDims",
    "aclmdlGetInputIndexByName", "aclmdlGetDynamicBatch", "aclmdlGetDynamicHW", "aclmdlGetInputDynamicGearCount",
    "aclmdlGetInputDynamicDims", "aclmdlSetDynamicBatchSize", "aclmdlSetDynamicHWSize", "aclmdlSetInputDynamicDims",
    "aclmdlCreateDataset", "aclmdlDestroyDataset", "aclmdlAddDatasetBuffer", "aclmdlGetDatasetNumBuffers",
    "aclmdlGetDatasetBuffer", "aclmdlSetDatasetTensorDesc", "aclmdlGetDatasetTensorDesc", "aclmdlExecute",
    "aclmdlExecuteAsync", "aclmdlCreateAndGetOpDesc", "aclmdlCreateAIPP", "aclmdlDestroyAIPP",
    "aclmdlSetAIPPInputFormat", "aclmdlSetAIPPCscParams", "aclmdlSetAIPPRbuvSwapSwitch", "aclmdlSetAIPPAxSwapSwitch",
    "aclmdlSetAIPPSrcImageSize", "aclmdlSetAIPPScfParams", "aclmdlSetAIPPCropParams", "aclmdlSetAIPPPaddingParams",
    "aclmdlSetAIPPDtcPixelMean", "aclmdlSetAIPPDtcPixelMin", "aclmdlSetAIPPPixelVarReci", "aclmdlSetInputAIPP",
    "aclmdlSetAIPPByInputIndex", "aclmdlGetAippType", "aclmdlGetFirstAippInfo",
]  # fmt: skip


class IODims(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char * 128), ("count", c_size_t), ("dims", c_int64 * 128)]


class Batch(ctypes.Structure):
    _fields_ = [("count", c_size_t), ("batch", c_uint64 * 128)]


class Library:
    """libascendcl.so with the types of the functions that return no aclError or take 64-bit values."""

    def __init__(self) -> None:
        if "ASCEND_HOME_PATH" not in os.environ:
            pytest.skip('no CANN tree: run it by `make test-sim`, or after eval "$(python -m cann_sim env)"')
        self.library = ctypes.CDLL("libascendcl.so")
        pointer, size = [c_void_p], [c_void_p, c_size_t]
        for name, result, arguments in (
            ("aclGetRecentErrMsg", c_char_p, []),
            ("aclCreateDataBuffer", c_void_p, size), ("aclDestroyDataBuffer", c_int, pointer),
            ("aclGetDataBufferAddr", c_void_p, pointer), ("aclGetDataBufferSizeV2", c_size_t, pointer),
            ("aclrtMalloc", c_int, [POINTER(c_void_p), c_size_t, c_int]), ("aclrtFree", c_int, pointer),
            ("aclrtMemcpy", c_int, [c_void_p, c_size_t, c_void_p, c_size_t, c_int]),
            ("aclrtCreateContext", c_int, [POINTER(c_void_p), c_int32]),
            ("aclrtSetCurrentContext", c_int, pointer), ("aclrtDestroyContext", c_int, pointer),
            ("aclmdlLoadFromFile", c_int, [c_char_p, POINTER(c_uint32)]),
            ("aclmdlLoadWithConfig", c_int, [c_void_p, POINTER(c_uint32)]),
            ("aclmdlCreateConfigHandle", c_void_p, []), ("aclmdlDestroyConfigHandle", c_int, pointer),
            ("aclmdlSetConfigOpt", c_int, [c_void_p, c_int, c_void_p, c_size_t]),
            ("aclmdlCreateDesc", c_void_p, []), ("aclmdlDestroyDesc", c_int, pointer),
            ("aclmdlGetDesc", c_int, [c_void_p, c_uint32]),
            ("aclmdlGetNumInputs", c_size_t, pointer), ("aclmdlGetNumOutputs", c_size_t, pointer),
            ("aclmdlGetInputSizeByIndex", c_size_t, size), ("aclmdlGetOutputSizeByIndex", c_size_t, size),
            ("aclmdlGetInputNameByIndex", c_char_p, size), ("aclmdlGetOutputNameByIndex", c_char_p, size),
            ("aclmdlGetInputDataType", c_int, size), ("aclmdlGetOutputDataType", c_int, size),
            ("aclmdlGetInputFormat", c_int, size),
            ("aclmdlGetInputDims", c_int, [*size, POINTER(IODims)]),
            ("aclmdlGetCurOutputDims", c_int, [*size, POINTER(IODims)]),
            ("aclmdlGetInputIndexByName", c_int, [c_void_p, c_char_p, POINTER(c_size_t)]),
            ("aclmdlGetDynamicBatch", c_int, [c_void_p, POINTER(Batch)]),
            ("aclmdlSetDynamicBatchSize", c_int, [c_uint32, c_void_p, c_size_t, c_uint64]),
            ("aclmdlCreateDataset", c_void_p, []), ("aclmdlDestroyDataset", c_int, pointer),
            ("aclmdlAddDatasetBuffer", c_int, [c_void_p, c_void_p]),
            ("aclmdlGetDatasetNumBuffers", c_size_t, pointer), ("aclmdlGetDatasetBuffer", c_void_p, size),
            ("aclmdlExecute", c_int, [c_uint32, c_void_p, c_void_p]),
            ("aclCreateTensorDesc", c_void_p, [c_int, c_int, POINTER(c_int64), c_int]),
            ("aclmdlSetDatasetTensorDesc", c_int, [c_void_p, c_void_p, c_size_t]),
            ("aclDestroyTensorDesc", None, pointer),
        ):  # fmt: skip
            function = getattr(self.library, name)
            function.restype, function.argtypes = result, arguments

    def __getattr__(self, name: str) -> Any:
        return getattr(self.library, name)

    def succeed(self, name: str, *arguments: object) -> None:
        """Call a function that must return 0."""
        code = getattr(self.library, name)(*arguments)
        assert code == 0, (name, code, self.library.aclGetRecentErrMsg())


@pytest.fixture(scope="module")
def acl() -> Iterator[Library]:
    library = Library()
    library.succeed("aclInit", None)
    yield library
    library.succeed("aclFinalize")


class Stranger:
    """ais_bench's session: device, context, model, description; memory for each run; kinds 1 and 2 of copies."""

    def __init__(self, acl: Library, path: str) -> None:
        self.acl = acl
        acl.succeed("aclrtSetDevice", 0)
        self.context, self.id = c_void_p(), c_uint32()
        acl.succeed("aclrtCreateContext", byref(self.context), 0)
        mode = c_int()
        acl.succeed("aclrtGetRunMode", byref(mode))
        assert mode.value == 1
        acl.succeed("aclmdlLoadFromFile", path.encode(), byref(self.id))
        self.desc = acl.aclmdlCreateDesc()
        acl.succeed("aclmdlGetDesc", self.desc, self.id)
        self.input_sizes = [
            acl.aclmdlGetInputSizeByIndex(self.desc, index)
            for index in range(acl.aclmdlGetNumInputs(self.desc))
        ]
        self.output_sizes = [
            acl.aclmdlGetOutputSizeByIndex(self.desc, index)
            for index in range(acl.aclmdlGetNumOutputs(self.desc))
        ]

    def dims(self, function: str, index: int) -> list[int]:
        found = IODims()
        self.acl.succeed(function, self.desc, index, byref(found))
        return list(found.dims[: found.count])

    def dataset(self, sizes: list[int]) -> int:
        dataset = self.acl.aclmdlCreateDataset()
        for size in sizes:
            memory = c_void_p()
            self.acl.succeed("aclrtMalloc", byref(memory), size, 0)
            buffer = self.acl.aclCreateDataBuffer(memory, size)
            self.acl.succeed("aclmdlAddDatasetBuffer", dataset, buffer)
        return int(dataset)

    def free(self, dataset: int) -> None:
        for index in range(self.acl.aclmdlGetDatasetNumBuffers(dataset)):
            buffer = self.acl.aclmdlGetDatasetBuffer(dataset, index)
            self.acl.succeed("aclrtFree", self.acl.aclGetDataBufferAddr(buffer))
            self.acl.succeed("aclDestroyDataBuffer", buffer)
        self.acl.succeed("aclmdlDestroyDataset", dataset)

    def infer(self, array: np.ndarray, batch: int = 0) -> np.ndarray:
        """Copy, set the gear, execute, copy back with the current shape of the output."""
        inputs, outputs = self.dataset(self.input_sizes), self.dataset(self.output_sizes)
        first = self.acl.aclmdlGetDatasetBuffer(inputs, 0)
        self.acl.succeed(
            "aclrtMemcpy", self.acl.aclGetDataBufferAddr(first), self.acl.aclGetDataBufferSizeV2(first),
            array.ctypes.data, array.nbytes, 1,
        )  # fmt: skip
        if batch:
            index = c_size_t()
            name = b"ascend_mbatch_shape_data"
            self.acl.succeed("aclmdlGetInputIndexByName", self.desc, name, byref(index))
            self.acl.succeed("aclmdlSetDynamicBatchSize", self.id, inputs, index, batch)
        dims = (c_int64 * array.ndim)(*array.shape)
        description = self.acl.aclCreateTensorDesc(0, array.ndim, dims, 2)
        self.acl.succeed("aclmdlSetDatasetTensorDesc", inputs, description, 0)
        self.acl.succeed("aclmdlExecute", self.id, inputs, outputs)
        result = np.empty(self.dims("aclmdlGetCurOutputDims", 0), np.float32)
        buffer = self.acl.aclmdlGetDatasetBuffer(outputs, 0)
        address = self.acl.aclGetDataBufferAddr(buffer)
        self.acl.succeed("aclrtMemcpy", result.ctypes.data, result.nbytes, address, result.nbytes, 2)
        self.acl.aclDestroyTensorDesc(description)
        self.free(inputs)
        self.free(outputs)
        return result

    def close(self) -> None:
        self.acl.succeed("aclmdlDestroyDesc", self.desc)
        self.acl.succeed("aclmdlUnload", self.id)
        self.acl.succeed("aclrtDestroyContext", self.context)
        self.acl.succeed("aclrtResetDevice", 0)


def test_every_function_that_ais_bench_is_linked_to_is_there(acl: Library) -> None:
    assert len(SYMBOLS) == len(set(SYMBOLS)) >= 75
    assert [name for name in SYMBOLS if not hasattr(acl.library, name)] == []


def test_a_stranger_runs_a_static_model(acl: Library, tmp_path: Path) -> None:
    client = Stranger(acl, acl_models.write(acl_models.add_one(2, 3, name="static"), tmp_path))
    assert acl.aclmdlGetInputNameByIndex(client.desc, 0) == b"x"
    assert acl.aclmdlGetOutputDataType(client.desc, 0) == 0
    assert client.dims("aclmdlGetInputDims", 0) == [2, 3]
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    for _ in range(3):
        assert np.array_equal(client.infer(array), array + 1)
    client.close()


def test_a_stranger_runs_gears(acl: Library, tmp_path: Path) -> None:
    gears = acl_models.add_gears("batch", [(1,), (8,), (2,)], (-1, 2))
    client = Stranger(acl, acl_models.write(gears, tmp_path))
    batches = Batch()
    acl.succeed("aclmdlGetDynamicBatch", client.desc, byref(batches))
    assert list(batches.batch[: batches.count]) == [1, 8, 2]
    for batch in (2, 8, 1):
        array = np.random.default_rng(batch).random((batch, 2), np.float32)
        assert np.array_equal(client.infer(array, batch), array + 1)
    client.close()


def test_a_configuration_loads_from_memory_into_memory_of_the_caller(acl: Library, tmp_path: Path) -> None:
    """The options of aclmdlSetConfigOpt, by pointer and size: 1 type, 3 and 4 model, 5 and 6 weights, 7 and 8 work."""
    data = Path(acl_models.write(acl_models.add_one(8), tmp_path)).read_bytes()
    acl.succeed("aclrtSetDevice", 0)
    memory = c_void_p()
    acl.succeed("aclrtMalloc", byref(memory), 4096, 0)
    handle = acl.aclmdlCreateConfigHandle()
    model = ctypes.create_string_buffer(data, len(data))
    options = {
        1: c_size_t(4), 3: c_void_p(ctypes.addressof(model)), 4: c_size_t(len(data)), 5: memory, 6: c_size_t(4096),
        7: memory, 8: c_size_t(4096),
    }  # fmt: skip
    for option, value in options.items():
        acl.succeed("aclmdlSetConfigOpt", handle, option, byref(value), 8)
    assert acl.aclmdlSetConfigOpt(handle, 1, byref(c_size_t(4)), 4) == 100000  # not the size of a size_t
    loaded = c_uint32()
    acl.succeed("aclmdlLoadWithConfig", handle, byref(loaded))
    acl.succeed("aclmdlUnload", loaded)
    acl.succeed("aclmdlDestroyConfigHandle", handle)
    acl.succeed("aclrtFree", memory)


def test_the_description_of_what_failed_is_told_in_the_callback(
    run_python: RunPython, tmp_path: Path
) -> None:
    path = acl_models.write(acl_models.add_one(2, 3), tmp_path)
    done = run_python(f"""
        import ctypes, sys, threading
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from ctypes import byref, c_char_p, c_size_t, c_uint32, c_void_p, create_string_buffer
        from test_aclmdl import Library, Stranger
        acl = Library()
        acl.succeed("aclInit", None)
        def failed(info):
            name, inputs, outputs = create_string_buffer(100), c_void_p(), c_void_p()
            numbers = c_size_t(), c_size_t()
            ids = [getattr(acl.library, f"aclrtGet{{part}}IdFromExceptionInfo")(c_void_p(info))
                   for part in ("Device", "Stream", "Task")]
            print(acl.aclmdlCreateAndGetOpDesc(*ids, name, c_size_t(100), byref(inputs), byref(numbers[0]),
                                               byref(outputs), byref(numbers[1])))
            acl.library.aclGetTensorDescNumDims.argtypes = [c_void_p]
            print(name.value.decode(), numbers[0].value, numbers[1].value, acl.aclGetTensorDescNumDims(inputs))
            acl.aclDestroyTensorDesc(inputs), acl.aclDestroyTensorDesc(outputs)
            told.set()
        told = threading.Event()
        callback = ctypes.CFUNCTYPE(None, c_void_p)(failed)
        client = Stranger(acl, {path!r})
        acl.succeed("aclrtSetExceptionInfoCallback", callback)
        inputs, outputs, stream = client.dataset([24]), client.dataset([24]), c_void_p()
        acl.succeed("aclrtCreateStream", byref(stream))
        acl.library.aclmdlExecuteAsync.argtypes = [c_uint32, c_void_p, c_void_p, c_void_p]
        acl.succeed("aclmdlExecuteAsync", client.id, inputs, outputs, stream)
        code = acl.aclrtSynchronizeStream(stream)
        told.wait(60)
        print(code)
        acl.succeed("aclrtDestroyStream", stream)
    """, CANN_SIM_FAULT="device-lost@launch:1")  # fmt: skip
    lines = done.stdout.splitlines()
    assert sorted(lines) == ["0", "507010", "add 1 1 2"], done.stdout + done.stderr
