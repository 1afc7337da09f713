"""Operators on the simulated NPU against the CPU: values and gradients, to the last bit.

The kernels are the CPU's, so anything but equality is a fault of the passage between the two.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from conftest import RunPython

torch_npu = pytest.importorskip(
    "torch_npu", reason="torch_npu does not load: run it by `make test-sim`", exc_type=Exception
)

F = torch.nn.functional
Tensors = tuple[torch.Tensor, ...]


def rand(*shape: int) -> torch.Tensor:
    return torch.rand(shape) - 0.5


# Name: (function, inputs). Inputs of floating type get a gradient.
CASES: dict[str, tuple[Callable[..., torch.Tensor], Callable[[], Tensors]]] = {
    "linear": (F.linear, lambda: (rand(5, 7, 16), rand(8, 16), rand(8))),
    "matmul matrices": (torch.matmul, lambda: (rand(6, 7), rand(7, 5))),
    "matmul transposed": (lambda a, b: a @ b.t(), lambda: (rand(6, 7), rand(5, 7))),
    "matmul batched": (torch.matmul, lambda: (rand(2, 3, 6, 7), rand(2, 3, 7, 5))),
    "matmul broadcast": (torch.matmul, lambda: (rand(2, 1, 6, 7), rand(3, 7, 5))),
    "matmul folded": (torch.matmul, lambda: (rand(2, 3, 6, 7), rand(7, 5))),
    "matmul vectors": (torch.matmul, lambda: (rand(7), rand(7))),
    "matmul matrix vector": (torch.matmul, lambda: (rand(4, 6, 7), rand(7))),
    "matmul vector matrix": (torch.matmul, lambda: (rand(7), rand(4, 7, 5))),
    "convolution": (lambda x, w, b: F.conv2d(x, w, b, 2, 1), lambda: (rand(2, 4, 9, 9), rand(6, 4, 3, 3), rand(6))),
    "convolution grouped": (lambda x, w: F.conv2d(x, w, groups=4), lambda: (rand(2, 4, 9, 9), rand(4, 1, 3, 3))),
    "convolution transposed": (
        lambda x, w, b: F.conv_transpose2d(x, w, b, 2), lambda: (rand(2, 4, 5, 5), rand(4, 6, 2, 2), rand(6)),
    ),
    "layer norm": (lambda x, w, b: F.layer_norm(x, (8,), w, b), lambda: (rand(3, 8), rand(8), rand(8))),
    "batch norm": (
        lambda x, w, b: F.batch_norm(x, None, None, w, b, True), lambda: (rand(3, 4, 5, 5), rand(4), rand(4)),
    ),
    "group norm": (lambda x, w, b: F.group_norm(x, 2, w, b), lambda: (rand(3, 4, 5, 5), rand(4), rand(4))),
    "gelu": (F.gelu, lambda: (rand(4, 5),)),
    "softmax": (lambda x: x.softmax(-1), lambda: (rand(4, 5),)),
    "attention": (F.scaled_dot_product_attention, lambda: tuple(rand(2, 3, 17, 16) for _ in range(3))),
    "attention masked": (
        lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, attn_mask=m),
        lambda: (*(rand(2, 3, 17, 16) for _ in range(3)), torch.rand(17, 17) > 0.3),
    ),
    # The CPU's own flash attention wants a value as wide as query and key.
    "attention with a narrower value": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v)
        if v.is_npu
        else F.scaled_dot_product_attention(q, k, F.pad(v, (0, 11)))[..., :5],
        lambda: (rand(2, 3, 17, 16), rand(2, 3, 17, 16), rand(2, 3, 17, 5)),
    ),
    "max pool": (lambda x: F.max_pool2d(x, 2), lambda: (rand(2, 3, 8, 8),)),
    "bilinear": (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), lambda: (rand(1, 2, 5, 5),)),
    "bicubic": (lambda x: F.interpolate(x, (7, 9), mode="bicubic"), lambda: (rand(1, 2, 5, 5),)),
    "pad": (lambda x: F.pad(x, (0, 2, 1, 0)), lambda: (rand(2, 3, 3),)),
    "cat": (lambda *x: torch.cat(x, 1), lambda: (rand(2, 3), rand(2, 4))),
    "stack": (lambda *x: torch.stack(x), lambda: (rand(2, 3), rand(2, 3))),
    "index": (lambda x, i: x[i], lambda: (rand(6, 3), torch.tensor([0, 5, 5]))),
    "index mask": (lambda x, m: x[m], lambda: (rand(6, 3), torch.tensor([1, 0, 1, 1, 0, 1]).bool())),
    "gather": (lambda x, i: x.gather(1, i), lambda: (rand(3, 5), torch.tensor([[0, 1], [4, 4], [2, 0]]))),
    "repeat_interleave": (lambda x: x.repeat_interleave(3, 1), lambda: (rand(2, 4),)),
    "repeat_interleave by tensor": (
        lambda x, r: x.repeat_interleave(r, 0), lambda: (rand(3, 4), torch.tensor([2, 0, 3])),
    ),
    "where": (lambda c, a, b: torch.where(c, a, b), lambda: (torch.rand(3, 4) > 0.5, rand(3, 4), rand(3, 4))),
    "cross entropy": (F.cross_entropy, lambda: (rand(6, 4), torch.tensor([0, 3, 1, 1, 2, 0]))),
    "bce with logits": (
        lambda x, y: F.binary_cross_entropy_with_logits(x, y.detach()), lambda: (rand(6, 4), torch.rand(6, 4)),
    ),
    "bce with logits weighted": (
        lambda x, *ywp: F.binary_cross_entropy_with_logits(
            x, *(t.detach() for t in ywp[:2]), reduction="sum", pos_weight=ywp[2].detach()
        ),
        lambda: (rand(6, 4), torch.rand(6, 4), torch.rand(6, 4), torch.rand(4)),
    ),
    "l1 loss": (F.l1_loss, lambda: (rand(6, 4), rand(6, 4))),
    "smooth l1 loss": (F.smooth_l1_loss, lambda: (rand(6, 4), rand(6, 4))),
    "kl divergence": (
        lambda x, y: F.kl_div(x, y.detach(), reduction="sum"), lambda: (rand(6, 4), torch.rand(6, 4) + 0.1),
    ),
    "cast": (lambda x: x.to(torch.float16).to(torch.float32) * 2, lambda: (rand(3, 4),)),
    "view chain": (
        lambda x: x.permute(2, 0, 1).contiguous().view(4, 6)[:, ::2].clone(), lambda: (rand(2, 3, 4),),
    ),
    "in place on a view": (lambda x: x.clone().mul_(2).t().add_(1).t()[1:].neg_(), lambda: (rand(3, 4),)),
    "norm": (lambda x: torch.linalg.vector_norm(x), lambda: (rand(3, 4),)),
    "cumsum": (lambda x: x.cumsum(0), lambda: (rand(3, 4),)),
    "gru": (
        lambda x, h, *w: torch.gru(x, h, w, True, 1, 0.0, True, False, True)[0],
        lambda: (rand(2, 5, 4), rand(1, 2, 3), rand(9, 4), rand(9, 3), rand(9), rand(9)),
    ),
    "lstm": (
        lambda x, h, c, *w: torch.lstm(x, (h, c), w, True, 1, 0.0, True, False, True)[0],
        lambda: (rand(2, 5, 4), rand(1, 2, 3), rand(1, 2, 3), rand(12, 4), rand(12, 3), rand(12), rand(12)),
    ),
}  # fmt: skip

# Here torch's CPU path forms the same sums in another order than torch_npu's backward operator does, or than the
# composition that torch has for other devices.
REORDERED = {"matmul vector matrix", "gru", "lstm"}


def evaluate(function: Callable[..., torch.Tensor], inputs: Tensors, device: str) -> list[torch.Tensor]:
    """Result and gradients, on the CPU again; the result's dtype and device are checked on the way."""
    moved = [tensor.detach().to(device).requires_grad_(tensor.is_floating_point()) for tensor in inputs]
    result = function(*moved)
    assert result.device.type == device
    (result * torch.arange(1, result.numel() + 1, device=device).view(result.shape)).sum().backward()
    gradients = [tensor.grad for tensor in moved if tensor.requires_grad]
    return [result.detach().cpu(), *(g.cpu() for g in gradients if g is not None)]


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_equal_the_cpus(name: str) -> None:
    function, make = CASES[name]
    torch.manual_seed(0)
    inputs = make()
    expected, found = evaluate(function, inputs, "cpu"), evaluate(function, inputs, "npu")
    for e, f in zip(expected, found, strict=True):
        if name in REORDERED:
            torch.testing.assert_close(f, e, rtol=1e-6, atol=1e-6)
        else:
            assert torch.equal(e, f), (e - f).abs().max()


@pytest.mark.parametrize(
    "expression",
    ["x.clone().fill_diagonal_(2).square().sum()", "torch.slogdet(x)[1]"],
    ids=["fill_diagonal_", "slogdet"],
)
def test_level_aten_has_the_gradient_that_torch_npu_loses(run_forked: RunPython, expression: str) -> None:
    """torch_npu's kernel above autograd has a wrong one or none: DIFFERENCES.md."""
    code = f"""
        import torch, torch_npu
        value = torch.rand(4, 4)
        gradients = []
        for device in ("cpu", "npu"):
            x = value.to(device).requires_grad_()
            gradients.append(torch.autograd.grad({expression}, x)[0].cpu())
        print(torch.equal(*gradients))
    """
    done = run_forked(code, CANN_SIM_LEVEL="aten")
    assert done.stdout == "True\n", done.stderr


def test_out_argument_is_resized() -> None:
    out = torch.empty(0, device="npu")
    torch.add(torch.ones(3, 4, device="npu"), 1, out=out)
    assert torch.equal(out.cpu(), torch.full((3, 4), 2.0))


def test_results_that_share_memory() -> None:
    parts = torch.arange(6.0).npu().split(2)
    parts[1].zero_()
    assert parts[1].sum().item() == 0
    values, indices = torch.arange(6.0).npu().flip(0).sort()
    assert values.cpu().tolist() == sorted(values.cpu().tolist())
    assert indices.cpu().tolist() == [5, 4, 3, 2, 1, 0]


def test_scalars_keep_the_type_promotion_of_the_cpu() -> None:
    half = torch.ones(3, dtype=torch.float16)
    assert (half.npu() * 2.5).dtype == torch.float16
    assert (half.npu() * torch.tensor(2.5)).dtype == torch.float16
    assert (torch.ones(3, dtype=torch.int32).npu() * 2.5).dtype == torch.float32


def test_a_kernel_that_fails_says_why_and_leaves_the_device_usable() -> None:
    with pytest.raises(RuntimeError, match="size"):
        torch.ones(3, device="npu") + torch.ones(4, device="npu")
    assert torch.ones(3, device="npu").sum().item() == 3


def test_an_operator_that_fails_in_the_task_queue_ends_the_process(run_forked: RunPython) -> None:
    done = run_forked(
        """
        import torch, torch_npu
        status, indices = torch.zeros(8).npu(), torch.arange(3).npu()
        try:
            torch_npu.npu_get_float_status(status, 1).cpu()
        except RuntimeError as error:
            assert "does not simulate the ACL operator NPUGetFloatDebugStatus" in str(error), error
        # torch_npu raises once more at most, then it drops what is queued: results would be memory that nobody wrote.
        for attempt in range(2):
            try:
                print("no error", torch_npu.npu_one_hot(indices, -1, 3, 1, 0).cpu())
            except RuntimeError as error:
                print(error)
        """,
        TASK_QUEUE_ENABLE="1",
    )
    assert "no error" not in done.stdout, done.stdout
    assert "TASK_QUEUE_ENABLE=0" in done.stdout, done.stderr


def test_nothing_of_a_detector_falls_back_to_the_cpu(
    recwarn: pytest.WarningsRecorder, capfd: pytest.CaptureFixture[str]
) -> None:
    x = torch.rand(2, 3, 8, 8, device="npu", requires_grad=True)
    F.conv2d(x, torch.rand(4, 3, 3, 3, device="npu")).relu().mean().backward()
    assert "fall back to run on the CPU" not in capfd.readouterr().err + "".join(
        str(w.message) for w in recwarn
    )


def test_packed_sequences_keep_their_batch_sizes_on_the_host() -> None:
    """As on a card: the host reads them. There and back, and through a GRU, with the CPU's values and gradients."""
    pack, pad = torch.nn.utils.rnn.pack_padded_sequence, torch.nn.utils.rnn.pad_packed_sequence
    torch.manual_seed(0)
    x, lengths, gru = rand(3, 5, 4), torch.tensor([5, 2, 1]), torch.nn.GRU(4, 6, batch_first=True)
    results = []
    for device in ("cpu", "npu"):
        inputs, net = x.clone().to(device).requires_grad_(), copy.deepcopy(gru).to(device)
        packed = pack(inputs, lengths, batch_first=True)
        assert packed.data.device.type == device
        assert packed.batch_sizes.device.type == "cpu"
        there_and_back, back_lengths = pad(packed, batch_first=True)
        assert back_lengths.device.type == "cpu"
        assert back_lengths.tolist() == [5, 2, 1]
        out, _ = pad(net(packed)[0], batch_first=True)
        (out.square().sum() + there_and_back.sum()).backward()
        assert inputs.grad is not None
        results.append(
            (packed.batch_sizes, there_and_back.detach().cpu(), out.detach().cpu(), inputs.grad.cpu())
        )
    for expected, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)


def test_an_lstm_of_a_packed_sequence_is_refused_by_name(run_forked: RunPython) -> None:
    """torch_npu computes its padding along: torch's composition would be another result in another shape."""
    done = run_forked("""
        import torch, torch_npu
        packed = torch.nn.utils.rnn.pack_padded_sequence(torch.rand(5, 2, 4).npu(), torch.tensor([5, 2]))
        torch.nn.LSTM(4, 6).npu()(packed)
    """)
    assert done.returncode != 0
    assert "DynamicRNN" in done.stderr


@pytest.mark.parametrize("keep", [1.0, 0.5])
@pytest.mark.parametrize("layout", ["BSH", "SBH", "BSND"])
def test_narrower_values_in_every_layout(layout: str, keep: float) -> None:
    """Query of 4 heads, key and value of 2: as with the layout BNSD, which the operators above have."""
    axes = {"BSH": (0, 2, 1, 3), "SBH": (2, 0, 1, 3), "BSND": (0, 2, 1, 3)}[layout]
    torch.manual_seed(0)
    given = [rand(2, heads, 5, channels).npu() for heads, channels in ((4, 8), (2, 8), (2, 3))]
    state = torch.npu.get_rng_state()
    found = []
    for name in ("BNSD", layout):
        torch.npu.set_rng_state(state)
        inputs = [tensor.clone().requires_grad_() for tensor in given]
        moved = inputs if name == "BNSD" else [tensor.permute(axes) for tensor in inputs]
        if name in ("BSH", "SBH"):
            moved = [tensor.flatten(2) for tensor in moved]
        out = torch_npu.npu_fusion_attention(*moved, 4, name, scale=0.3, keep_prob=keep)[0]
        if name in ("BSH", "SBH"):
            out = out.unflatten(2, (4, 3))
        out = out if name == "BNSD" else out.permute([axes.index(axis) for axis in range(4)])
        assert out.shape == (2, 4, 5, 3)
        out.square().sum().backward()
        found.append([out, *(tensor.grad for tensor in inputs)])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_attention_with_a_wider_value_is_refused() -> None:
    query, key, value = (torch.rand(1, 2, 3, channels).npu() for channels in (4, 4, 5))
    with pytest.raises(RuntimeError, match="value no more; not 4, 4 and 5"):
        F.scaled_dot_product_attention(query, key, value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_attention_with_dropout(dtype: torch.dtype, causal: bool) -> None:
    """Dropout scales what it keeps, repeats with the random state, and the gradient uses the same mask."""
    torch.manual_seed(0)
    query, key, value = (rand(2, 2, 9, 9).to("npu", dtype).requires_grad_() for _ in range(3))

    def attend(value: torch.Tensor, p: float = 0.4) -> torch.Tensor:
        return F.scaled_dot_product_attention(query, key, value, dropout_p=p, is_causal=causal)

    state = torch.npu.get_rng_state()
    # With the identity as value the result is softmax(...) * mask / keep_prob itself.
    identity = torch.eye(9, device="npu", dtype=dtype).expand(2, 2, 9, 9)
    whole, dropped = attend(identity, 0.0).float(), attend(identity).float()
    kept = dropped != 0
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(dropped[kept], whole[kept] / 0.6, rtol=tolerance, atol=tolerance)
    assert 0.4 < kept.sum() / (whole != 0).sum() < 0.8
    assert not torch.equal(attend(identity).float(), dropped), "the next call draws anew"
    torch.npu.set_rng_state(state)
    assert torch.equal(attend(identity).float(), dropped)

    torch.npu.set_rng_state(state)
    attend(value).float().square().sum().backward()
    # The same by the definition, with the mask that was seen.
    q, k, v = (t.detach().float().cpu().requires_grad_() for t in (query, key, value))
    scores = q @ k.transpose(-2, -1) / 3
    if causal:
        scores = scores.masked_fill(torch.ones(9, 9, dtype=torch.bool).triu(1), -torch.inf)
    (scores.softmax(-1) * kept.cpu() / 0.6 @ v).square().sum().backward()
    for ours, expected in ((query, q), (key, k), (value, v)):
        assert ours.grad is not None
        torch.testing.assert_close(
            ours.grad.float().cpu(), expected.grad, rtol=20 * tolerance, atol=4 * tolerance
        )
