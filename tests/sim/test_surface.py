"""What Python sees of the runtime, in one process: saving, pinned memory, statistics, events, random state."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import RunPython

torch_npu = pytest.importorskip(
    "torch_npu", reason="torch_npu does not load: run it by `make test-sim`", exc_type=Exception
)


@pytest.mark.parametrize("weights_only", [True, False])
def test_tensors_are_saved_and_loaded_where_they_are_asked_for(tmp_path: Path, weights_only: bool) -> None:
    file = tmp_path / "tensors.pt"
    shared = torch.arange(6.0)
    tensors = {"npu": shared.npu(), "view": shared.npu(1)[2:4], "cpu": shared}
    torch.save(tensors, file)

    def load(where: object) -> dict[str, torch.Tensor]:
        loaded: dict[str, torch.Tensor] = torch.load(file, map_location=where, weights_only=weights_only)
        for name, tensor in loaded.items():
            assert torch.equal(tensor.cpu(), tensors[name].cpu())
        return loaded

    def devices(where: object) -> list[str]:
        return [str(tensor.device) for tensor in load(where).values()]

    assert devices("cpu") == ["cpu"] * 3
    if torch.__version__ < "2.9":
        # torch_npu's own rule, in its Python: what was on an NPU comes to the current one, whatever is asked for.
        assert devices(None) == ["npu:0", "npu:0", "cpu"]
        assert devices("npu:2") == ["npu:0", "npu:0", "npu:2"]
    else:
        assert devices(None) == ["npu:0", "npu:1", "cpu"]
        assert devices("npu:2") == ["npu:2"] * 3


def test_a_checkpoint_moves_between_devices(tmp_path: Path) -> None:
    model = torch.nn.Linear(4, 2).npu()
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 4).npu()).sum().backward()
    optimizer.step()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "c.pt")
    state = torch.load(tmp_path / "c.pt", map_location="cpu", weights_only=True)
    on_cpu = torch.nn.Linear(4, 2)
    on_cpu.load_state_dict(state["model"])
    resumed = torch.optim.AdamW(on_cpu.parameters())
    resumed.load_state_dict(state["optimizer"])
    for a, b in ((model, optimizer), (on_cpu, resumed)):
        a.zero_grad()
        a(torch.ones(1, 4).to(a.weight.device)).sum().backward()
        b.step()
    assert torch.equal(model.weight.detach().cpu(), on_cpu.weight.detach())


def test_pinned_memory() -> None:
    plain = torch.arange(1000.0)
    pinned = plain.pin_memory()
    assert pinned.is_pinned()
    assert not plain.is_pinned()
    assert torch.equal(pinned, plain)
    on_npu = pinned.to("npu", non_blocking=True)
    back = torch.empty(1000, pin_memory=True)
    back.copy_(on_npu * 2, non_blocking=True)
    torch.npu.synchronize()
    assert torch.equal(back, plain * 2)


def test_memory_statistics_add_up() -> None:
    gc.collect()  # what other tests left in cycles
    torch.npu.synchronize()
    torch.npu.empty_cache()
    torch.npu.reset_peak_memory_stats()
    before = torch.npu.memory_allocated()
    tensors = [torch.empty(1 << 20, dtype=torch.uint8, device="npu") for _ in range(3)]
    held = 3 * ((1 << 20) + 512)  # the allocator adds 32 bytes and rounds up to 512
    assert torch.npu.memory_allocated() - before == held
    del tensors[0]
    stats = torch.npu.memory_stats()
    assert stats["allocated_bytes.all.current"] == torch.npu.memory_allocated() == before + held * 2 // 3
    assert stats["allocated_bytes.all.peak"] == torch.npu.max_memory_allocated() == before + held
    assert torch.npu.memory_reserved() >= torch.npu.memory_allocated()
    free, total = torch.npu.mem_get_info()
    assert total - free >= torch.npu.memory_reserved()
    blocks = [block for segment in torch.npu.memory_snapshot() for block in segment["blocks"]]
    assert sum(b["size"] for b in blocks if b["state"] == "active_allocated") == torch.npu.memory_allocated()
    assert "NPU memory summary" in torch.npu.memory_summary()
    del tensors
    torch.npu.reset_peak_memory_stats()
    assert torch.npu.max_memory_allocated() == before


def test_events_measure_and_order() -> None:
    start, end = torch.npu.Event(enable_timing=True), torch.npu.Event(enable_timing=True)
    start.record()
    for _ in range(3):
        torch.ones(300, 300, device="npu") @ torch.ones(300, 300, device="npu")
    end.record()
    end.synchronize()
    assert end.query()
    assert 0 < start.elapsed_time(end) < 60_000  # ms
    with pytest.raises(RuntimeError, match="Both events must be recorded"):
        start.elapsed_time(torch.npu.Event(enable_timing=True))


def test_random_state_of_every_device_is_its_own() -> None:
    torch.npu.manual_seed_all(5)
    states = torch.npu.get_rng_state_all()
    first = [torch.rand(4, device=f"npu:{i}").cpu() for i in range(2)]
    torch.npu.set_rng_state_all(states)
    torch.rand(9, device="npu:1")  # moves that device's state only
    assert torch.equal(torch.rand(4, device="npu:0").cpu(), first[0])
    assert not torch.equal(torch.rand(4, device="npu:1").cpu(), first[1])
    generator = torch.Generator(device="npu").manual_seed(7)
    drawn = torch.randn(3, device="npu", generator=generator)
    assert torch.equal(torch.randn(3, device="npu", generator=generator.manual_seed(7)), drawn)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_torch_compile_runs_on_backends_without_kernels_of_their_own(backend: str) -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        return (x.sin() + 1).square()

    x, y = (torch.linspace(0, 1, 5).npu().requires_grad_() for _ in range(2))
    compiled = torch.compile(function, backend=backend)(x)
    expected = function(y)
    compiled.sum().backward()
    expected.sum().backward()
    assert torch.equal(compiled, expected)
    assert x.grad is not None
    assert torch.equal(x.grad, y.grad)


def test_torch_compiles_default_backend_is_refused_with_a_reason() -> None:
    x = torch.ones(3).npu()
    with pytest.raises(
        Exception, match=r"cann_sim does not simulate torch\.compile's default backend"
    ) as caught:
        torch.compile(lambda x: x + 1)(x)
    assert 'backend="eager"' in str(caught.value)
    assert (x + 1).sum().item() == 6.0, "and the process goes on"


def test_transfer_to_npu_turns_cuda_calls_into_npu_calls(run_python: RunPython) -> None:
    code = """
        import torch, torch_npu
        from torch_npu.contrib import transfer_to_npu
        model = torch.nn.Linear(4, 2).cuda()
        with torch.autocast("cuda", dtype=torch.float16):
            out = model(torch.ones(1, 4, device="cuda:0"))
        torch.cuda.synchronize()
        print(torch.cuda.is_available(), torch.cuda.device_count(), out.device, out.dtype, torch.cuda.current_device())
    """
    done = run_python(code, CANN_SIM_DEVICES="3")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True", "3", "npu:0", "torch.float16", "0"]


# -- formats, casts, graphs: what torch_npu's own tests found --


@pytest.mark.parametrize(
    ("shape", "asked", "found", "stored"),
    [
        ((2, 3, 4, 5), 3, 3, 2 * 16 * 4 * 5),  # NC1HWC0: channels in groups of 16
        ((15, 17), 29, 29, 16 * 32),  # FRACTAL_NZ: blocks of 16 by 16
        ((12,), 29, 2, 12),  # of a vector there is none
        ((2, 3, 4, 5), 0, 0, 2 * 3 * 4 * 5),
    ],
)
def test_a_cast_tensor_says_its_format_and_keeps_its_values(
    shape: tuple[int, ...], asked: int, found: int, stored: int
) -> None:
    plain = torch.rand(shape)
    cast = torch_npu.npu_format_cast(plain.npu(), asked)
    assert int(torch_npu.get_npu_format(cast)) == found
    assert cast.untyped_storage().size() == 4 * stored
    assert torch.equal(cast.cpu(), plain)
    back = torch_npu.npu_format_cast(cast, 2 if len(shape) != 4 else 0)
    assert torch.equal(back.cpu(), plain)


def test_what_is_of_a_private_format_computes_at_level_aten_and_is_refused_by_name_at_aclnn(
    run_forked: RunPython,
) -> None:
    """torch_npu asks CANN for such an operator by its ACL name, not for an aclnn function."""
    code = """
        import torch, torch_npu
        plain = torch.rand(2, 3, 4, 5)
        cast = torch_npu.npu_format_cast(plain.npu(), 3)
        print(torch.equal((cast + 1).cpu(), plain + 1))
    """
    done = run_forked(code, CANN_SIM_LEVEL="aten", TASK_QUEUE_ENABLE="0")
    assert done.stdout == "True\n", done.stderr
    refused = run_forked(code, TASK_QUEUE_ENABLE="0")
    assert refused.returncode == 1
    assert "cann_sim does not simulate the ACL operator Add" in refused.stderr


def test_a_format_is_cast_in_place() -> None:
    plain = torch.rand(16, 32)
    moved = plain.npu()
    torch_npu.npu_format_cast_(moved, 29)
    assert int(torch_npu.get_npu_format(moved)) == 29
    assert torch.equal(moved.cpu(), plain)
    torch_npu.npu_format_cast_(moved, 2)
    assert int(torch_npu.get_npu_format(moved)) == 2
    assert torch.equal(moved.cpu(), plain)


def test_a_cast_that_moves_no_data_returns_the_tensor_itself() -> None:
    """torch_npu's own rule, with which such a cast keeps the gradient; through a private format it has none."""
    leaf = torch.rand(2, 3, 4, 5).npu().requires_grad_()
    for same in (0, 2):
        cast = torch_npu.npu_format_cast(leaf, same)
        assert int(torch_npu.get_npu_format(cast)) == same
        assert cast.data_ptr() == leaf.data_ptr()
        (cast * 2).sum().backward()
    assert torch.equal(leaf.grad.cpu(), torch.full((2, 3, 4, 5), 4.0))


def test_a_tensor_of_a_private_format_is_saved(tmp_path: Path) -> None:
    plain = torch.rand(2, 3, 4, 5)
    torch.save(torch_npu.npu_format_cast(plain.npu(), 3), tmp_path / "tensor.pt")
    loaded = torch.load(tmp_path / "tensor.pt", weights_only=True)
    assert int(torch_npu.get_npu_format(loaded)) == 3
    assert torch.equal(loaded.cpu(), plain)


@pytest.mark.parametrize("cast", [torch.Tensor.double, torch.Tensor.float, torch.Tensor.half])
def test_a_conversion_of_dtype_leaves_a_leaf_a_leaf(cast: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Also one to double, which torch_npu makes one to float: the tensor's own dtype."""
    leaf = torch.ones(3).npu().requires_grad_()
    cast(leaf).sum().backward()
    assert leaf.is_leaf
    assert leaf.grad is not None
    assert leaf.grad.tolist() == [1.0] * 3


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_binary_cross_entropy_of_half_precision_is_rounded_once(reduction: str) -> None:
    values, target, weight = torch.rand(10, 64) * 10, torch.randint(2, (10, 64)).float(), torch.rand(64) * 10
    inputs = [tensor.half() for tensor in (values, target, weight)]

    def loss(x: torch.Tensor, y: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.binary_cross_entropy_with_logits(x, y, pos_weight=w, reduction=reduction)

    found = loss(*(tensor.npu() for tensor in inputs))
    assert torch.equal(found.cpu(), loss(*(tensor.float() for tensor in inputs)).half())


@pytest.mark.parametrize("other", [2, torch.tensor(2.0)], ids=["number", "tensor"])
def test_a_wrong_rounding_mode_has_torch_npu_s_code(other: int | torch.Tensor) -> None:
    x = torch.tensor([3.0, -3.0]).npu()
    divisor = other.npu() if isinstance(other, torch.Tensor) else other
    with pytest.raises(RuntimeError, match="ERR01001 OPS invalid parameter"):
        torch.div(x, divisor, rounding_mode="test")
    assert torch.div(x, divisor, rounding_mode="floor").tolist() == [1.0, -2.0]
    assert torch.div(x, divisor, rounding_mode=None).tolist() == [1.5, -1.5]


@pytest.mark.parametrize("typed", [True, False])
def test_a_storage_is_copied(typed: bool) -> None:
    tensor = torch.arange(4.0).npu()
    storage = tensor.storage() if typed else tensor.untyped_storage()
    copied = copy.deepcopy(storage)
    assert copied.data_ptr() != storage.data_ptr()
    assert copied.cpu().tolist() == storage.cpu().tolist()


def test_one_process_uses_several_devices() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    inputs = torch.rand(8, 2)
    expected = module(inputs)
    first, second = module[0].to("npu:0"), module[1].to("npu:1")
    found = second(first(inputs.to("npu:0")).to("npu:1"))
    assert found.device == torch.device("npu:1")
    assert torch.equal(found.detach().cpu(), expected.detach())
    assert len({torch.npu.current_stream(device).npu_stream for device in (0, 1)}) == 2


def test_a_captured_graph_is_refused_by_name_and_the_process_goes_on(run_forked: RunPython) -> None:
    code = """
        import torch, torch_npu
        x = torch.ones(2).npu()
        try:
            with torch.npu.graph(torch.npu.NPUGraph()):
                x + 1
        except RuntimeError as error:
            print("NPUGraph" in str(error))
        print((torch.ones(3).npu() + x.sum()).tolist(), torch.npu.memory_allocated() > 0)
    """
    done = run_forked(code)
    assert done.stdout.splitlines() == ["True", "[3.0, 3.0, 3.0] True"], done.stderr
