"""The simulated runtime through the unmodified torch_npu: devices, memory, streams, events, errors."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from conftest import RunPython

pytestmark = pytest.mark.skipif(
    "cann_sim" not in os.environ.get("ASCEND_HOME_PATH", ""),
    reason="the CANN tree is not cann_sim's: its rules are not under test",
)

COUNT = "import torch, torch_npu; print(torch.npu.device_count())"


def output(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


# Lists that the reference and the cards' logs agree on; then those that only the reference cuts.
AGREED = [(None, 4), ("1,3", 2), ("0", 1), ("0, 1", 1), ("1,1", 1), ("0,4,1", 1)]
REFUSED = [("3,1", 1), ("0,2,1", 2), ("4", 0), ("x", 0), ("", 0)]


@pytest.mark.parametrize(("visible", "count"), [*AGREED, *REFUSED])
def test_visible_devices_end_at_the_first_bad_entry(
    run_forked: RunPython, visible: str | None, count: int
) -> None:
    """CANN's reference: integers, commas only, ascending; from the first other entry on the list is dropped."""
    environ = {} if visible is None else {"ASCEND_RT_VISIBLE_DEVICES": visible}
    if (visible, count) in REFUSED:
        environ["CANN_SIM_VISIBLE_DEVICES"] = "cut"
    assert output(run_forked(COUNT, CANN_SIM_DEVICES="4", **environ)) == str(count)


@pytest.mark.parametrize("visible", [visible for visible, _ in REFUSED])
def test_a_list_that_descends_or_has_no_device_is_refused(run_forked: RunPython, visible: str) -> None:
    """As on cards (gpustack's issues 2527 and 3352): no device, and 207004 with EE1001 where one is asked for."""
    code = """
        import torch, torch_npu
        print(torch.npu.is_available())
        try:
            torch.npu.set_device(0)
        except RuntimeError as error:
            print("207004" in str(error), "EE1001" in str(error), "ASCEND_RT_VISIBLE_DEVICES=" in str(error))
    """
    lines = output(run_forked(code, CANN_SIM_DEVICES="4", ASCEND_RT_VISIBLE_DEVICES=visible)).splitlines()
    assert lines == ["False", "True True True"]


FORKED = """
    import multiprocessing, os, sys
    import torch, torch_npu

    kept = torch.ones(2).npu()
    calls = {
        "factory": lambda: torch.ones(2, device="npu"),
        "random": lambda: torch.rand(2, device="npu"),
        "copy": lambda: torch.ones(2).npu(),
        "back": lambda: kept.cpu(),
        "operator": lambda: kept + 1,
        "by name": lambda: torch_npu.npu_iou(torch.rand(2, 4).npu(), torch.rand(2, 4).npu()),
        "synchronize": torch.npu.synchronize,
    }

    def child():
        for name, call in calls.items():
            try:
                call()
                print(name, "computed")
            except RuntimeError as error:
                print(name, "spawn" in str(error))
        sys.stdout.flush()
        os._exit(0)
"""


@pytest.mark.parametrize("queue", ["0", "1"])
@pytest.mark.parametrize("by", ["os", "multiprocessing"])
def test_a_forked_child_of_a_process_that_used_the_npu_gets_an_error(
    run_python: RunPython, by: str, queue: str
) -> None:
    """Also where torch_npu's own check is not asked: os.fork, and memory that its allocator has at hand."""
    start = {
        "os": "pid = os.fork()\n    child() if pid == 0 else os.waitpid(pid, 0)",
        "multiprocessing": "p = multiprocessing.get_context('fork').Process(target=child); p.start(); p.join()",
    }[by]
    done = run_python(FORKED + f"\n    {start}\n    print(kept.sum().item())", TASK_QUEUE_ENABLE=queue)
    answers = dict(line.rsplit(" ", 1) for line in output(done).splitlines()[:-1])
    assert answers == dict.fromkeys(
        ["factory", "random", "copy", "back", "operator", "by name", "synchronize"], "True"
    )
    assert output(done).splitlines()[-1] == "2.0"  # the parent computes on


def test_visible_devices_are_numbered_from_zero(run_forked: RunPython) -> None:
    code = """
        import torch, torch_npu
        print(torch.ones(1, device="npu:1").device)
        try:
            torch.npu.set_device(2)
        except Exception as error:
            print(type(error).__name__)
    """
    assert output(run_forked(code, ASCEND_RT_VISIBLE_DEVICES="6,7")).split() == ["npu:1", "RuntimeError"]


@pytest.mark.parametrize(
    ("variable", "value"),
    [("CANN_SIM_SOC", "Ascend999"), ("CANN_SIM_DEVICES", "many"), ("CANN_SIM_HBM_GB", "0")],
)
def test_a_wrong_setting_is_a_named_error(run_forked: RunPython, variable: str, value: str) -> None:
    done = run_forked(COUNT, **{variable: value})
    assert done.returncode == 90
    assert "error[cann-sim-config]" in done.stderr
    assert variable in done.stderr
    assert value in done.stderr


# What torch_npu tells generations apart by: its number for the SoC, bf16, the INF/NaN overflow mode.
SOCS = {
    "Ascend910B1": (220, True, True),
    "Ascend910B2": (221, True, True),
    "Ascend910B3": (223, True, True),
    "Ascend910B4": (224, True, True),
    "Ascend910_9391": (250, True, True),
    "Ascend910_9392": (251, True, True),
    "Ascend310P3": (202, False, False),
    "Ascend910A": (102, False, False),
}


@pytest.mark.parametrize("soc", SOCS)
def test_socs_differ_where_torch_npu_branches(run_forked: RunPython, soc: str) -> None:
    code = """
        import torch, torch_npu
        print(torch.npu.get_device_name(), torch_npu.npu.utils.get_soc_version(), torch.npu.is_bf16_supported(),
              torch_npu.npu.utils.is_support_inf_nan(), torch.npu.utils.get_cann_version())
    """
    expected = " ".join(map(str, (soc, *SOCS[soc], "8.5.0")))
    assert output(run_forked(code, CANN_SIM_SOC=soc)) == expected


def test_a_device_too_many_is_an_error_that_says_how_many_there_are(run_forked: RunPython) -> None:
    code = """
        import torch, torch_npu
        for ask in (lambda: torch.npu.set_device(2), lambda: torch.ones(1, device="npu:3")):
            try:
                ask()
            except RuntimeError as error:
                print(" ".join(str(error).split()))
    """
    lines = output(run_forked(code, CANN_SIM_DEVICES="4", ASCEND_RT_VISIBLE_DEVICES="1,3")).splitlines()
    for device, line in zip((2, 3), lines, strict=True):
        assert "107001" in line
        assert f"device id {device} is invalid: 2 device(s) are visible, numbered from 0, of 4" in line


def test_memory_is_counted_and_given_back(run_forked: RunPython) -> None:
    code = """
        import torch, torch_npu
        x = torch.zeros(3, 1 << 20, device="npu")
        y = x + x
        print(torch.npu.memory_allocated() // 2**20)
        del x, y
        print(torch.npu.memory_allocated(), torch.npu.max_memory_allocated() // 2**20)
        torch.npu.empty_cache()
        free, total = torch.npu.mem_get_info()
        print(total - free)
    """
    for allocator in ("expandable_segments:False", "expandable_segments:True"):
        lines = output(run_forked(code, PYTORCH_NPU_ALLOC_CONF=allocator)).splitlines()
        assert lines == ["24", "0 24", "0"], (allocator, lines)


def test_the_memory_limit_ends_in_torch_npus_own_error(run_forked: RunPython) -> None:
    code = """
        import torch, torch_npu
        kept = torch.ones(1 << 20, device="npu")
        try:
            torch.empty(3, 1 << 28, device="npu")
        except RuntimeError as error:
            print(str(error).split(".")[0])
        print(kept.sum().item())
    """
    lines = output(run_forked(code, CANN_SIM_HBM_GB="1")).splitlines()
    assert lines[0] == "NPU out of memory"
    assert lines[1] == str(float(1 << 20))


def test_the_limit_is_the_devices_not_the_processs(run_forked: RunPython) -> None:
    code = """
        import os, subprocess, sys, torch, torch_npu
        take = "import torch, torch_npu; held = torch.empty(700 << 20, dtype=torch.uint8, device='npu')"
        exec(take)
        other = subprocess.run([sys.executable, "-c", take], capture_output=True, text=True)
        print(other.returncode != 0 and "NPU out of memory" in other.stderr)
        table = subprocess.run(["npu-smi", "info"], capture_output=True, text=True, check=True).stdout
        print([line for line in table.splitlines() if f"| {os.getpid()} " in line])
    """
    lines = output(run_forked(code, CANN_SIM_HBM_GB="1")).splitlines()
    assert lines[0] == "True"
    assert "python" in lines[1]
    held = int(lines[1].rsplit("|", 2)[1])
    assert 700 <= held < 750  # MiB; torch_npu's allocator takes whole pages


def test_an_operator_that_is_not_simulated_is_named(run_forked: RunPython) -> None:
    code = """
        import torch, torch_npu
        torch_npu.npu_get_float_status(torch.zeros(8).npu(), 1)
        torch.npu.synchronize()
    """
    for queue in ("0", "1"):
        done = run_forked(code, TASK_QUEUE_ENABLE=queue)
        assert done.returncode != 0
        assert "NPUGetFloatDebugStatus" in done.stdout + done.stderr


def test_double_becomes_float_with_torch_npus_warning(run_forked: RunPython) -> None:
    done = run_forked("import torch, torch_npu; print(torch.ones(2).npu().double().dtype)")
    assert output(done) == "torch.float32"
    assert "Device do not support double dtype" in done.stderr


def test_streams_and_events(run_forked: RunPython) -> None:
    code = """
        import torch, torch_npu
        start, end = torch.npu.Event(enable_timing=True), torch.npu.Event(enable_timing=True)
        side = torch.npu.Stream()
        x = torch.ones(500, 500, device="npu")
        start.record()
        with torch.npu.stream(side):
            side.wait_stream(torch.npu.default_stream())
            y = x @ x
        torch.npu.current_stream().wait_stream(side)
        z = y.sum()
        end.record()
        torch.npu.synchronize()
        print(start.elapsed_time(end) > 0, end.query(), z.item() == 500.0**3)
    """
    assert output(run_forked(code)) == "True True True"


def test_random_state_is_saved_and_restored(run_forked: RunPython) -> None:
    code = """
        import torch, torch_npu
        torch.manual_seed(3)
        host = torch.get_rng_state()
        state = torch.npu.get_rng_state()
        first = torch.rand(8, device="npu"), torch.nn.functional.dropout(torch.ones(64, device="npu"), 0.5)
        torch.npu.set_rng_state(state)
        second = torch.rand(8, device="npu"), torch.nn.functional.dropout(torch.ones(64, device="npu"), 0.5)
        print(all(torch.equal(a, b) for a, b in zip(first, second)))
        print(torch.equal(torch.rand(8, device="npu"), first[0]), torch.equal(host, torch.get_rng_state()))
    """
    assert output(run_forked(code)).splitlines() == ["True", "False True"]


def test_no_kernel_copies_its_operands(run_forked: RunPython) -> None:
    """A result takes the memory that the kernel wrote: at the peak there are two operands and one result."""
    code = """
        import torch, torch_npu
        size = 4 << 22
        x, y = torch.ones(1 << 22, device="npu"), torch.ones(1 << 22, device="npu")
        torch.npu.reset_peak_memory_stats()
        z = x * y
        address = x.data_ptr()
        x.add_(y)
        print(x.data_ptr() == address, 3 <= torch.npu.max_memory_allocated() / size < 3.01)
    """
    assert output(run_forked(code)) == "True True"


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_data_loader_workers_and_a_clean_end(run_python: RunPython, start: str) -> None:
    code = f"""
        import torch, torch_npu
        from torch.utils.data import DataLoader, TensorDataset
        total = torch.zeros(1, device="npu")
        loader = DataLoader(TensorDataset(torch.arange(32.0)), batch_size=8, num_workers=2, pin_memory=True,
                            pin_memory_device="npu", multiprocessing_context="{start}")
        for (batch,) in loader:
            assert batch.is_pinned()
            total += batch.to("npu", non_blocking=True).sum()
        print(total.item())
    """
    done = run_python(code)
    assert output(done) == "496.0"
    assert "Error" not in done.stderr


@pytest.mark.parametrize(
    ("ending", "code"),
    [
        ("raise SystemExit(7)", 7),
        ("raise KeyError('x')", 1),
        ("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
        ("signal.alarm(1); [x.add_(1) for _ in iter(int, 1)]", -signal.SIGALRM),
    ],
)
def test_a_process_ends_as_it_was_told_to(run_python: RunPython, ending: str, code: int) -> None:
    """With tensors, streams, events and a graph alive: no hang, no crash while the interpreter goes away."""
    program = f"""
        import os, signal, torch, torch_npu
        x = torch.ones(4, device="npu", requires_grad=True)
        kept = [x.exp().sum(), torch.npu.Stream(), torch.npu.Event()]
        kept[2].record()
        x = x.detach()
        {ending}
    """
    done = run_python(program)
    assert done.returncode == code, done.stderr
    assert "core dumped" not in done.stderr
    assert "terminate called" not in done.stderr


def test_npu_smi_reads_as_the_real_one(run_python: RunPython) -> None:
    environ = {**os.environ, "CANN_SIM_SOC": "Ascend910_9391", "CANN_SIM_DEVICES": "2"}

    def smi(*words: str) -> str:
        command = ["npu-smi", "info", *words]
        return subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout

    assert "Total Count                    : 2" in smi("-l")
    board = dict(line.split(":", 1) for line in smi("-t", "board", "-i", "1", "-c", "0").splitlines())
    fields = {name.strip(): value.strip() for name, value in board.items()}
    # Documented for A3: the SoC name is <Chip Name>_<NPU Name>.
    assert (fields["Chip Name"], fields["NPU Name"]) == ("Ascend910", "9391")
    assert "simulated" in smi()
    command = ["npu-smi", "info", "-t", "board", "-i", "5"]
    absent = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert absent.returncode != 0
    assert "-8008" in absent.stderr


def test_the_shell_exports_are_complete(run_python: RunPython) -> None:
    """`eval "$(python -m cann_sim env)"` is all that a job needs, also where torch_npu loads by itself."""
    bare = {name: value for name, value in os.environ.items() if not name.startswith("ASCEND")}
    bare.pop("LD_LIBRARY_PATH", None)
    program = "import torch; print(torch.npu.is_available())"
    script = f'eval "$({sys.executable} -m cann_sim env)" && {sys.executable} -c "{program}"'
    done = subprocess.run(["bash", "-c", script], env=bare, capture_output=True, text=True, check=False)
    assert output(done) == "True"
