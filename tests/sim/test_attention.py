"""Fused attention on the simulated NPU, by torch_npu's own kernels, against the plain formulation on the CPU."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import pytest
import torch
from conftest import RunPython

torch_npu = pytest.importorskip(
    "torch_npu", reason="torch_npu does not load: run it by `make test-sim`", exc_type=Exception
)
AXES = {"BNSD": (0, 1, 2, 3), "BSND": (0, 2, 1, 3), "BSH": (0, 2, 1, 3), "SBH": (2, 0, 1, 3)}
ALL = 2147483647  # torch_npu's default for pre_tockens and next_tockens
TRIANGLE = torch.ones(2048, 2048, dtype=torch.bool).triu(1)
SCALE = 0.3


@pytest.mark.parametrize(("size", "batch"), [(14, 3), (20, 1)])
def test_fused_on_the_npu_equals_plain_on_the_cpu(size: int, batch: int) -> None:
    """ViTDet's attention: values and gradients of a window's and a global block's kind."""
    attention_of = pytest.importorskip("vitdet.attention", reason="the stack has no vitdet").Attention
    found = []
    for formulation, device in (("plain", "cpu"), ("fused", "npu")):
        torch.manual_seed(1)
        attention = attention_of(24, 3, size, formulation)
        for table in (attention.rel_pos_h, attention.rel_pos_w):
            torch.nn.init.normal_(table)
        x = torch.randn(batch, size, size, 24)
        attention, x = attention.to(device), x.to(device).requires_grad_()
        out = attention(x)
        (out * torch.linspace(-1, 1, out.numel(), device=device).view_as(out)).sum().backward()
        found.append([out, x.grad, *(parameter.grad for parameter in attention.parameters())])
    for plain, fused in zip(*found, strict=True):
        assert (plain - fused.cpu()).abs().max() <= 1e-5 * plain.abs().max()


def plain(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    blocked: torch.Tensor | None = None,
    shift: torch.Tensor | float = 0.0,
    factors: torch.Tensor | float = 1.0,
) -> torch.Tensor:
    """The definition, heads first; `factors` are dropout's. A row that sees no key gives zeros."""
    key, value = (t.repeat_interleave(query.shape[-3] // t.shape[-3], -3) for t in (key, value))
    scores = query @ key.transpose(-2, -1) * SCALE + shift
    if blocked is not None:
        scores = scores.masked_fill(blocked, -math.inf)
    return scores.softmax(-1).nan_to_num(0.0) * factors @ value


def band(rows: int, keys: int, mode: int, before: int, after: int) -> torch.Tensor:
    """What a row does not see, by the documents' words: mode 4 and 3 count from the lower right corner."""
    i, j = torch.arange(rows)[:, None], torch.arange(keys)[None, :]
    if mode in (3, 4):
        i = i + keys - rows
    if mode in (2, 3):
        before, after = ALL, 0
    return (j < i - before) | (j > i + after)


def tensors(*shapes: Sequence[int], dtype: torch.dtype = torch.float32, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def pulled(out: torch.Tensor, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """The result and the gradients of something that weighs all its elements differently, on the CPU in float32."""
    weights = torch.linspace(-1, 1, out.numel()).view(out.shape).to(out.device)
    (out.float() * weights).sum().backward()
    return [out.detach().float().cpu(), *(t.grad.float().cpu() for t in inputs if t.grad is not None)]


def leaves(inputs: list[torch.Tensor], device: str) -> list[torch.Tensor]:
    """Leaves on a device; the CPU computes in float32."""
    moved = (t.clone().npu() if device == "npu" else t.float().clone() for t in inputs)
    return [t.requires_grad_() for t in moved]


def agree(found: list[torch.Tensor], expected: list[torch.Tensor], tolerance: float = 1e-5) -> None:
    assert len(found) == len(expected) > 1
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).abs().max() <= tolerance * max(1.0, theirs.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows", [1, 6])
@pytest.mark.parametrize("layout", sorted(AXES))
def test_every_layout(layout: str, rows: int, dtype: torch.dtype) -> None:
    """Query of 4 heads, key and value of 2, value of fewer channels; a mask of each batch, and pse."""
    given = tensors((2, 4, rows, 8), (2, 2, 5, 8), (2, 2, 5, 3), dtype=dtype)
    shift = tensors((1, 4, rows, 5), dtype=dtype, seed=1)[0]
    blocked = torch.zeros(2, 1, rows, 5, dtype=torch.bool)
    blocked[0, ..., 3:] = blocked[1, ..., :2] = True
    inputs = leaves(given, "npu")
    moved = [t.permute(AXES[layout]) for t in inputs]
    if layout.endswith("H"):
        moved = [t.flatten(2) for t in moved]
    out = torch_npu.npu_fusion_attention(
        *moved, 4, layout, pse=shift.npu(), atten_mask=blocked.npu(), scale=SCALE
    )[0]
    assert out.dtype == dtype
    if layout.endswith("H"):
        out = out.unflatten(2, (4, 3))
    found = pulled(out.permute([AXES[layout].index(axis) for axis in range(4)]), inputs)
    inputs = leaves(given, "cpu")
    expected = pulled(plain(*inputs, blocked, shift.float() * SCALE), inputs)
    agree(found, expected, 1e-5 if dtype == torch.float32 else 0.03)


@pytest.mark.parametrize(
    ("mode", "before", "after"),
    [(0, ALL, 0), (0, 2, 1), (0, 4, -1), (1, 1, 1), (2, 1, 1), (3, 1, 1), (4, 2, 1), (4, 3, 0), (4, ALL, -1)],
)
@pytest.mark.parametrize(("rows", "keys"), [(6, 6), (4, 9), (9, 4)])
def test_every_sparse_mode(mode: int, before: int, after: int, rows: int, keys: int) -> None:
    """In mode 0 the tokens narrow the mask; 1, 2 and 3 do not look at them; rows that see nothing give 0."""
    given = tensors((1, 2, rows, 8), (1, 2, keys, 8), (1, 2, keys, 8))
    full = torch.zeros(rows, keys, dtype=torch.bool)
    full[:, 1] = True
    mask = full if mode < 2 else TRIANGLE
    unseen = band(rows, keys, mode, before, after) if mode != 1 else torch.zeros_like(full)
    inputs = leaves(given, "npu")
    words = {"sparse_mode": mode, "pre_tockens": before, "next_tockens": after, "scale": SCALE}
    out = torch_npu.npu_fusion_attention(*inputs, 2, "BNSD", atten_mask=mask.npu(), **words)[0]
    found = pulled(out, inputs)
    inputs = leaves(given, "cpu")
    expected = pulled(plain(*inputs, unseen | full if mode < 2 else unseen), inputs)
    assert all(t.isfinite().all() for t in found)
    agree(found, [t.nan_to_num(0.0) for t in expected])


@pytest.mark.parametrize("across", [(0,), (1,), (2,), (0, 1, 2)], ids=str)
def test_channels_that_do_not_lie_one_after_the_other(across: tuple[int, ...]) -> None:
    """As a convolution's channels are made the heads'; torch's own flash attention on the CPU would not take them."""
    shape = (2, 3, 5, 8)
    plain = tensors(shape, shape, shape)
    results = []
    for device in ("cpu", "npu"):
        inputs = leaves(plain, device)
        used = [
            x.transpose(2, 3).contiguous().transpose(2, 3) if device == "npu" and i in across else x
            for i, x in enumerate(inputs)
        ]
        out = torch.nn.functional.scaled_dot_product_attention(*used)
        results.append(pulled(out, inputs))
    agree(results[1], results[0])


def test_no_mode_means_anything_without_a_mask() -> None:
    query, key, value = tensors((1, 2, 5, 8), (1, 2, 7, 8), (1, 2, 7, 8))
    for mode in range(5):
        out = torch_npu.npu_fusion_attention(
            query.npu(), key.npu(), value.npu(), 2, "BNSD", scale=SCALE, sparse_mode=mode, next_tockens=0
        )[0]
        assert (out.cpu() - plain(query, key, value)).abs().max() < 1e-5


LENGTHS = ((5, 0, 1, 7, 3), (6, 2, 1, 7, 0))  # of the queries and of the keys of 5 sequences
MODES = [
    (0, ALL, ALL, False),
    (0, 2, 1, True),
    (1, 0, 0, True),
    (2, 0, 0, True),
    (3, 0, 0, True),
    (4, 2, 1, True),
]


@pytest.mark.parametrize("keep", [1.0, 0.6])
@pytest.mark.parametrize(("mode", "before", "after", "masked"), MODES)
def test_sequences_one_after_the_other(mode: int, before: int, after: int, masked: bool, keep: float) -> None:
    """TND: the same formula for each sequence, and what torch_npu says of its softmax, in both orders."""
    row_lengths, key_lengths = LENGTHS if mode != 3 else ((5, 0, 1, 7), (6, 2, 1, 7))
    rows, keys = sum(row_lengths), sum(key_lengths)
    given = tensors((rows, 4, 8), (keys, 2, 8), (keys, 2, 3))
    ends = [torch.tensor(lengths).cumsum(0).tolist() for lengths in (row_lengths, key_lengths)]
    full = torch.zeros(max(row_lengths), max(key_lengths), dtype=torch.bool)
    full[:, 3] = True
    words = {"actual_seq_qlen": ends[0], "actual_seq_kvlen": ends[1], "keep_prob": keep, "scale": SCALE}
    if masked:
        words |= {"sparse_mode": mode, "pre_tockens": before, "next_tockens": after}
        words["atten_mask"] = (full if mode < 2 else TRIANGLE).npu()
    state = torch.npu.get_rng_state()

    def attend(inputs: list[torch.Tensor], **more: str) -> tuple[torch.Tensor, ...]:
        torch.npu.set_rng_state(state)
        return torch_npu.npu_fusion_attention(*inputs, 4, "TND", **words, **more)

    bits = kept_bits(attend(leaves(given, "npu")), keep)
    inputs, expected_inputs = leaves(given, "npu"), leaves(given, "cpu")
    outs, maxima, sums = [], [], []
    row = key = bit = 0
    for m, n in zip(row_lengths, key_lengths, strict=True):
        parts = [expected_inputs[0][row : row + m], *(t[key : key + n] for t in expected_inputs[1:])]
        q, k, v = (t.transpose(0, 1) for t in parts)
        unseen = torch.zeros(m, n, dtype=torch.bool)
        if masked:
            unseen = band(m, n, mode, before, after) if mode != 1 else unseen
            unseen = unseen | full[:m, :n] if mode < 2 else unseen
        factors = 1.0 if bits is None else bits[bit : bit + 4 * m * n].view(4, m, n) / keep
        outs.append(plain(q, k, v, unseen, factors=factors).transpose(0, 1) if n else torch.zeros(m, 4, 3))
        if n and m:
            scores = (q @ k.repeat_interleave(2, 0).mT * SCALE).masked_fill(unseen, -math.inf).detach()
            maxima.append(scores.amax(-1))
            sums.append((scores - scores.amax(-1, keepdim=True)).exp().sum(-1))
        else:
            maxima.append(torch.zeros(4, m))
            sums.append(torch.zeros(4, m))
        row, key, bit = row + m, key + n, bit + 4 * m * n
    found = pulled(attend(inputs)[0], inputs)
    agree(found, pulled(torch.cat(outs), expected_inputs))
    by_sequence = attend(inputs)[1:3]
    in_order = attend(inputs, softmax_layout="TND")
    for index, parts in ((0, maxima), (1, sums)):
        heads_first = torch.cat([part.flatten() for part in parts])
        tokens_first = torch.cat([part.T for part in parts])
        seen = heads_first.isfinite()
        ours = by_sequence[index].cpu().view(-1, 8)
        assert (ours[seen] - heads_first[seen, None]).abs().max() < 1e-5
        seen = tokens_first.isfinite()
        assert (in_order[1 + index].cpu()[seen] - tokens_first[seen][:, None]).abs().max() < 1e-5
    again = leaves(given, "npu")
    agree(pulled(attend(again, softmax_layout="TND")[0], again), found, 0.0)


def kept_bits(results: tuple[torch.Tensor, ...], keep: float) -> torch.Tensor | None:
    """Dropout's mask, drawn again from the seed, the offset and the number that torch_npu hands to the gradient."""
    seed, offset, count = results[4:7]
    if keep == 1:
        return None
    mask = torch_npu._npu_dropout_gen_mask(
        torch.empty(0, device="npu"),
        [count],
        p=1 - keep,
        seed=seed,
        offset=offset,
        parallel=False,
        sync=False,
    )
    bits = (mask.cpu()[:, None] >> torch.arange(8)) & 1
    return bits.flatten()[:count].float()


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_gradient_drops_what_was_dropped(dtype: torch.dtype, parallel: bool) -> None:
    """With the identity as value the result is softmax · mask / keep_prob itself."""
    query, key, value = tensors((2, 4, 9, 8), (2, 2, 8, 8), (2, 2, 8, 8), dtype=dtype)
    state = torch.npu.get_rng_state()

    def attend(inputs: list[torch.Tensor]) -> torch.Tensor:
        torch.npu.set_rng_state(state)
        words = {"scale": SCALE, "keep_prob": 0.5, "gen_mask_parallel": parallel}
        return torch_npu.npu_fusion_attention(*inputs, 4, "BNSD", **words)[0]

    identity = torch.eye(8, dtype=dtype).expand(2, 2, 8, 8)
    factors = (attend([query.npu(), key.npu(), identity.npu()]).cpu() != 0).float() / 0.5
    assert 0.3 < (factors != 0).float().mean() < 0.7
    inputs = leaves([query, key, value], "npu")
    found = pulled(attend(inputs), inputs)
    inputs = leaves([query, key, value], "cpu")
    agree(found, pulled(plain(*inputs, factors=factors), inputs), 1e-5 if dtype == torch.float32 else 0.03)


@pytest.mark.parametrize("keep", [1.0, 0.5])
def test_more_scores_than_are_formed_at_a_time(keep: float) -> None:
    """Blocks of rows of one head: what the later ones see, drop and keep of the softmax."""
    given = tensors((1, 2, 600, 8), (1, 2, 600, 8), (1, 2, 600, 8))
    words = {"atten_mask": TRIANGLE.npu(), "sparse_mode": 2, "scale": SCALE, "keep_prob": keep}
    inputs = leaves(given, "npu")
    results = torch_npu.npu_fusion_attention(*inputs, 2, "BNSD", **words)
    bits = kept_bits(results, keep)
    unseen = band(600, 600, 2, 0, 0)
    highest = (given[0] @ given[1].mT * SCALE).masked_fill(unseen, -math.inf).amax(-1)
    assert (results[1].cpu()[..., 0] - highest).abs().max() < 1e-5
    found = pulled(results[0], inputs)
    inputs = leaves(given, "cpu")
    factors = 1.0 if bits is None else bits.view(1, 2, 600, 600) / keep
    agree(found, pulled(plain(*inputs, unseen, factors=factors), inputs), 1e-4)


def test_what_is_kept_of_the_softmax_means_what_it_says() -> None:
    """The rows' maxima and sums of exponentials, in 8 equal columns; the gradient is the CPU's to the last bit."""
    query, key, value = tensors((2, 3, 70, 16), (2, 3, 50, 16), (2, 3, 50, 16))
    inputs = leaves([query, key, value], "npu")
    out, maximum, total, *_ = torch_npu.npu_fusion_attention(*inputs, 3, "BNSD", scale=SCALE)
    assert maximum.shape == total.shape == (2, 3, 70, 8)
    scores = query @ key.mT * SCALE
    highest = scores.amax(-1, keepdim=True)
    assert (maximum.cpu() - highest).abs().max() < 1e-6
    torch.testing.assert_close(
        total.cpu(), (scores - highest).exp().sum(-1, keepdim=True).expand(2, 3, 70, 8)
    )
    softmax = (scores - maximum.cpu()[..., :1]).exp() / total.cpu()[..., :1]
    torch.testing.assert_close(softmax @ value, out.detach().cpu())
    found = pulled(out, inputs)
    inputs = leaves([query, key, value], "cpu")
    fused = torch.nn.functional.scaled_dot_product_attention(*inputs, scale=SCALE)
    for ours, theirs in zip(found, pulled(fused, inputs), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("kind", [0, 1])
def test_version_2_adds_pse_before_or_after_the_scale(kind: int) -> None:
    given = tensors((2, 4, 6, 8), (2, 2, 5, 8), (2, 2, 5, 8))
    shift = tensors((2, 4, 1, 5), seed=1)[0]
    inputs = leaves(given, "npu")
    words = {"pse": shift.npu(), "pse_type": kind, "scale": SCALE}
    found = pulled(torch_npu.npu_fusion_attention_v2(*inputs, 4, "BNSD", **words)[0], inputs)
    inputs = leaves(given, "cpu")
    agree(found, pulled(plain(*inputs, shift=shift * (SCALE if kind else 1)), inputs))


def test_version_2_adds_products_of_rotated_channels() -> None:
    """query_rope and key_rope, in TND; with grouped heads."""
    given = tensors((9, 4, 8), (7, 2, 8), (7, 2, 5), (9, 4, 4), (7, 2, 4))
    words = {"actual_seq_qlen": [4, 9], "actual_seq_kvlen": [3, 7], "scale": SCALE}
    inputs = leaves(given, "npu")
    q, k, v, q_rope, k_rope = inputs
    out = torch_npu.npu_fusion_attention_v2(q, k, v, 4, "TND", query_rope=q_rope, key_rope=k_rope, **words)[0]
    found = pulled(out, inputs)
    inputs = leaves(given, "cpu")
    whole = torch.cat([inputs[0], inputs[3]], -1), torch.cat([inputs[1], inputs[4]], -1), inputs[2]
    outs = []
    for rows, keys in ((slice(0, 4), slice(0, 3)), (slice(4, 9), slice(3, 7))):
        outs.append(plain(*(t[s].transpose(0, 1) for t, s in zip(whole, (rows, keys, keys), strict=True))))
    agree(found, pulled(torch.cat([out.transpose(0, 1) for out in outs]), inputs))


REFUSED = {
    "query has data type DT_DOUBLE": "f(d, d, d, 2, 'BNSD')",
    "one data type": "f(q, k.half(), v, 2, 'BNSD')",
    "BSH/SBH/BNSD/BSND/TND": "f(q, k, v, 2, 'NSBD')",  # torch_npu's own
    "3 dimensions, not 4": "f(q, k, v, 2, 'BSH')",
    "head_num 3 is no multiple": "f(q, k, v, 3, 'BNSD')",
    "head_num is 4": "f(q, k, v, 4, 'BNSD')",
    "the same and cannot be empty": "f(q[0], k[0], v[0], 4, 'TND')",  # torch_npu's own
    "which grow up to 2": "f(q[0], k[0], v[0], 4, 'TND', actual_seq_qlen=[3], actual_seq_kvlen=[2])",
    "TND takes them": "f(q, k, v, 2, 'BNSD', actual_seq_qlen=[4], actual_seq_kvlen=[4])",
    "value no more; not 8, 8 and 16": "f(q, k, torch.cat([v, v], -1), 2, 'BNSD')",
    "sparse_mode 6 is not simulated": "f(q, k, v, 2, 'BNSD', sparse_mode=6, prefix=[1], atten_mask=m)",
    "leave no key": "f(q, k, v, 2, 'BNSD', atten_mask=z, pre_tockens=-1, next_tockens=0)",
    "must have shape [2048, 2048]": "f(q, k, v, 2, 'BNSD', sparse_mode=2, atten_mask=z)",
    "1 above the diagonal": "f(q, k, v, 2, 'BNSD', sparse_mode=3, atten_mask=~m)",
    "padding_mask is reserved": "f(q, k, v, 2, 'BNSD', padding_mask=z)",
    "pse must have shape": "f(q, k, v, 2, 'BNSD', pse=q[:, :, :2, :3])",
    "pse_type 2 is not simulated": "g(q, k, v, 2, 'BNSD', pse=q, pse_type=2)",
    "q_start_idx": "g(q, k, v, 2, 'BNSD', q_start_idx=[5], kv_start_idx=[0])",
    "atten_mask has data type DT_FLOAT": "f(q, k, v, 2, 'BNSD', atten_mask=z.float())",
}


@pytest.mark.parametrize("queue", ["0", "1"])
def test_refusals_say_why(run_forked: RunPython, queue: str) -> None:
    """At the call and not in the queue, but for the mask's elements; the next call computes."""
    done = run_forked(
        f"""
        import json, torch, torch_npu
        f, g = torch_npu.npu_fusion_attention, torch_npu.npu_fusion_attention_v2
        q, k, v = (torch.randn(1, 2, 4, 8).npu() for _ in range(3))
        d = torch.randn(1, 2, 4, 8, dtype=torch.float64).npu()  # .double() of an NPU's tensor gives float32
        m, z = torch.ones(2048, 2048).triu(1).bool().npu(), torch.zeros(4, 4).bool().npu()
        wrong = {{}}
        for why, call in {REFUSED!r}.items():
            if call.endswith("~m)") and {queue} == 1:
                continue
            try:
                eval(call)
                wrong[why] = "computes"
            except RuntimeError as error:
                if why.replace("atten_mask has", "attenMaskOptional has") not in str(error):
                    wrong[why] = str(error)
        out = f(q, k, v, 2, "BNSD")[0].cpu()
        print(json.dumps([wrong, bool(out.isfinite().all())]))
        """,
        TASK_QUEUE_ENABLE=queue,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [{}, True]


def test_the_gradient_of_pse_is_no_number() -> None:
    """CANN reserves that output and writes nothing: what a card gives is what the memory held."""
    query, key, value, shift = leaves(tensors((1, 2, 4, 8), (1, 2, 4, 8), (1, 2, 4, 8), (1, 2, 4, 4)), "npu")
    torch_npu.npu_fusion_attention(query, key, value, 2, "BNSD", pse=shift)[0].sum().backward()
    assert query.grad is not None
    assert query.grad.isfinite().all()
    assert shift.grad is None or shift.grad.isnan().all()


@pytest.mark.parametrize("level", ["aclnn", "aten"])
def test_torch_npus_own_kernel_runs_at_both_levels(run_forked: RunPython, level: str) -> None:
    done = run_forked(
        """
        import json, torch, torch_npu
        from cann_sim import counters
        q, k, v = (torch.randn(1, 2, 4, 8).npu().requires_grad_() for _ in range(3))
        counters.start()
        torch_npu.npu_fusion_attention(q, k, v, 2, "BNSD", keep_prob=0.5)[0].sum().backward()
        torch.npu.synchronize()
        found = counters.snapshot()["launches"]
        print(json.dumps({name: count for name, count in found.items() if "Attention" in name or "Drop" in name}))
        """,
        CANN_SIM_LEVEL=level,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "aclnnDropoutGenMaskV2": 2,
        "aclnnFlashAttentionScore": 1,
        "aclnnFlashAttentionScoreGrad": 1,
    }
