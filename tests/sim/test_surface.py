"""What Python sees of the runtime, in one process: saving, pinned memory, statistics, events, random state."""

from __future__ import annotations

import gc
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
