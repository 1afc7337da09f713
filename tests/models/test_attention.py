import itertools

import pytest
import torch
from vitdet import attention as module
from vitdet.attention import Attention, AttentionByRows, resize_offsets, toeplitz
from vitdet.backbone import ViT, merge_windows, resize_positions, split_windows


def _attention(formulation, size=5, dim=12, heads=3):
    torch.manual_seed(1)
    attention = Attention(dim, heads, size, formulation)
    for table in (attention.rel_pos_h, attention.rel_pos_w):
        torch.nn.init.normal_(table)
    return attention


def test_toeplitz_arranges_offsets():
    table = torch.randn(9, 2)
    out = toeplitz(table, 5)
    for query, key in itertools.product(range(5), range(5)):
        assert torch.equal(out[query, key], table[query - key + 4])


def test_attention_follows_its_definition():
    """Against loops over the formula of MViTv2's section 4.1, one logit at a time."""
    size, heads, channels = 3, 2, 4
    attention = _attention("plain", size, heads * channels, heads).double()
    x = torch.randn(1, size, size, heads * channels, dtype=torch.double)
    query, key, value = attention.qkv(x).view(size * size, 3, heads, channels).unbind(1)
    out = torch.empty(size * size, heads, channels, dtype=torch.double)
    for head, pixel in itertools.product(range(heads), range(size * size)):
        y, x_ = divmod(pixel, size)
        logits = []
        for other in range(size * size):
            v, u = divmod(other, size)
            position = attention.rel_pos_h[y - v + size - 1] + attention.rel_pos_w[x_ - u + size - 1]
            logits.append(
                query[pixel, head] @ key[other, head] * channels**-0.5 + query[pixel, head] @ position
            )
        out[pixel, head] = torch.stack(logits).softmax(0) @ value[:, head]
    expected = attention.proj(out.view(1, size, size, -1))
    torch.testing.assert_close(attention(x), expected)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize(
    ("size", "rows", "batch"), [(5, 1, 2), (14, 1, 1), (14, 7, 1), (14, 7, 2), (14, 14, 2)]
)
def test_fused_equals_plain_in_values_and_gradients(size, rows, batch, dtype, tolerance, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", rows * batch * 3 * size**3)
    grads = []
    for formulation in ("plain", "fused"):
        attention = _attention(formulation, size).to(dtype)
        torch.manual_seed(2)
        x = torch.randn(batch, size, size, 12, dtype=dtype, requires_grad=True)
        out = attention(x)
        (out * torch.linspace(-1, 1, out.numel(), dtype=dtype).view_as(out)).sum().backward()
        grads.append([out, x.grad, *(parameter.grad for parameter in attention.parameters())])
    for plain, fused in zip(*grads, strict=True):
        assert (plain - fused).abs().max() <= tolerance * plain.abs().max()


def _by_rows_inputs(dtype):
    torch.manual_seed(0)
    shapes = (3, 4, 4, 2), (3, 16, 2), (3, 16, 2), (3, 4, 4, 4), (3, 4, 4, 4)
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_gradients_of_attention_by_rows(rows, monkeypatch):
    """Against finite differences."""
    monkeypatch.setattr(module, "BLOCK", rows * 3 * 4**3)
    assert torch.autograd.gradcheck(AttentionByRows.apply, _by_rows_inputs(torch.double))


def test_attention_by_rows_is_in_single_precision_under_autocast():
    half = _by_rows_inputs(torch.bfloat16)
    single = [part.detach().float().requires_grad_() for part in half]
    with torch.autocast("cpu", torch.bfloat16):
        found = AttentionByRows.apply(*half)
    found.square().sum().backward()
    expected = AttentionByRows.apply(*single)
    expected.square().sum().backward()
    assert torch.equal(found, expected)
    for one, other in zip(half, single, strict=True):
        assert torch.equal(one.grad, other.grad.bfloat16())


def test_unknown_formulation_is_refused():
    with pytest.raises(ValueError, match="'fused' or 'plain', not 'flash'"):
        Attention(12, 3, 5, "flash")


@pytest.mark.parametrize(("rows", "columns", "window"), [(4, 4, 2), (5, 7, 3), (3, 3, 4)])
def test_windows_split_and_merge(rows, columns, window):
    x = torch.randn(2, rows, columns, 3)
    windows = split_windows(x, window)
    assert windows.shape[1:] == (window, window, 3)
    assert torch.equal(merge_windows(windows, window, x.shape), x)
    assert torch.equal(windows[0, : min(rows, window), : min(columns, window)], x[0, :window, :window])
    assert windows.sum().item() == pytest.approx(x.sum().item(), abs=1e-4)  # the padding is zeros


def test_positions_are_resized_and_lose_the_class_token():
    table = torch.randn(1, 1 + 14 * 14, 8)
    assert torch.equal(resize_positions(table, 14), table[:, 1:])
    assert resize_positions(table, 64).shape == (1, 64 * 64, 8)
    constant = torch.ones(1, 14 * 14, 8)
    torch.testing.assert_close(resize_positions(constant, 20), torch.ones(1, 400, 8))
    with pytest.raises(ValueError, match="no square map"):
        resize_positions(torch.randn(1, 12, 8), 4)


def test_offsets_are_resized_with_their_ends():
    line = torch.linspace(-1, 1, 27)[:, None]
    resized = resize_offsets(line, 13)
    assert resized.shape == (13, 1)
    torch.testing.assert_close(resized, -resized.flip(0))  # symmetric stays symmetric


def _vit(**changed):
    return ViT(
        **dict(
            img_size=64,
            patch_size=16,
            embed_dim=24,
            depth=2,
            num_heads=2,
            window_size=3,
            window_block_indexes=[0],
        )
        | changed
    )


def test_a_checkpoint_of_another_image_size_is_fitted_when_loaded():
    small, large = _vit(), _vit(img_size=128)
    large.load_state_dict(small.state_dict())
    torch.testing.assert_close(large.pos_embed, resize_positions(small.pos_embed, 8))
    assert torch.equal(
        large.blocks[0].attn.rel_pos_h, small.blocks[0].attn.rel_pos_h
    )  # windows keep their size
    assert large.blocks[1].attn.rel_pos_h.shape == (15, 12)
    again = large.state_dict()
    large.load_state_dict(again)
    assert torch.equal(large.pos_embed, again["pos_embed"])


def test_forward_neither_resizes_nor_indexes():
    """What an NPU would wait for: index tensors from the host, resizing, einsum, reading a value back."""
    model = _vit(drop_path_rate=0.5)
    image = torch.randn(2, 3, 64, 64)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        model(image).square().mean().backward()
    names = {event.key for event in profile.key_averages()}
    assert "aten::native_layer_norm" in names  # the profiler did record
    for word in ("index", "upsample", "einsum", "arange", "nonzero", "item", "_local_scalar_dense", "unfold"):
        assert not [name for name in names if name.startswith("aten::") and word in name]


def test_an_image_of_another_size_is_refused():
    with pytest.raises(ValueError, match="64 x 64 images, not \\(64, 96\\)"):
        _vit()(torch.zeros(1, 3, 64, 96))
