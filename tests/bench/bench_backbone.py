"""ViT-B at 1024 px: our attention beside the usual one, on this machine's CPU: time, peak memory, difference.

"Usual" is the formulation of MViTv2's and ViTDet's public implementations, written out here: the logits of all pairs of
tokens in memory, relative positions picked by indices from the host and added to them, the position embedding resized
in every forward. Each runs in a process of its own, so that the peak of its memory is its own. Times are medians of
rounds in which all take turns; memory and differences come from a round before them, in which every large tensor is
mapped by itself: otherwise the peak also counts what the allocator holds back.

    python tests/bench/bench_backbone.py [--depth 12] [--size 1024] [--rounds 3]
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"

import torch
import torch.nn.functional as F
import torch_npu  # noqa: F401  mmcv's operators link to it
from torch import Tensor
from vitdet.attention import Attention
from vitdet.backbone import ViT

KINDS = {"usual": "all logits in memory", "plain": "ours, plain (export)", "fused": "ours, fused"}
WINDOW_BLOCKS = (0, 1, 3, 4, 6, 7, 9, 10)


def usual_forward(self: Attention, x: Tensor) -> Tensor:
    """`Attention.forward` with a bias matrix: (batch, size, size, dim) to the same."""
    batch, size, _, dim = x.shape
    qkv = self.qkv(x).reshape(batch, size * size, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
    query, key, value = qkv.reshape(3, batch * self.num_heads, size * size, -1).unbind(0)
    logits = (query * self.scale) @ key.transpose(-2, -1)
    offset = torch.arange(size)[:, None] - torch.arange(size)[None, :] + size - 1
    by_row, by_column = self.rel_pos_h[offset], self.rel_pos_w[offset]
    grid = query.reshape(batch * self.num_heads, size, size, -1)
    row = torch.einsum("byxc,yvc->byxv", grid, by_row)
    column = torch.einsum("byxc,xuc->byxu", grid, by_column)
    logits = logits.view(-1, size, size, size, size) + row[..., None] + column[..., None, :]
    out = logits.view(-1, size * size, size * size).softmax(dim=-1) @ value
    out = out.view(batch, self.num_heads, size, size, -1).permute(0, 2, 3, 1, 4)
    return self.proj(out.reshape(batch, size, size, dim))


class UsualViT(ViT):
    """Ours with the usual attention, and the checkpoint's 14 x 14 position embedding resized in each forward."""

    def forward(self, image: Tensor) -> Tensor:
        """(batch, 3, size, size) to one map."""
        x = self.patch_embed(image)
        table = self.pos_embed.view(1, 14, 14, -1).permute(0, 3, 1, 2)
        table = F.interpolate(table, size=(self.grid, self.grid), mode="bicubic", align_corners=False)
        x = x + table.permute(0, 2, 3, 1)
        for block in self.blocks:
            x = block(x)
        return x.permute(0, 3, 1, 2)


def clock() -> tuple[float, float]:
    """Wall and CPU seconds; the latter, of all threads, count the same on a busy machine."""
    return time.perf_counter(), time.process_time()


def elapsed(start: tuple[float, float]) -> tuple[float, float]:
    """Wall and CPU seconds since then."""
    return time.perf_counter() - start[0], time.process_time() - start[1]


def peak() -> float:
    """The most memory that this process has held so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure(kind: str, size: int, depth: int, out: Path) -> None:
    """One formulation: seconds, GiB above what the weights take, and the output for comparison."""
    torch.manual_seed(0)
    blocks = [block for block in WINDOW_BLOCKS if block < depth]
    model = (UsualViT if kind == "usual" else ViT)(
        img_size=size,
        depth=depth,
        window_block_indexes=blocks,
        attention="plain" if kind == "plain" else "fused",
    )
    for module in model.modules():
        if isinstance(module, Attention):
            torch.nn.init.normal_(module.rel_pos_h, std=0.02)
            torch.nn.init.normal_(module.rel_pos_w, std=0.02)
    table = torch.randn(1, 14 * 14, 768) * 0.02
    if kind == "usual":
        model.pos_embed = torch.nn.Parameter(table)
        Attention.forward = usual_forward  # type: ignore[method-assign]
    else:
        model.load_state_dict({**model.state_dict(), "pos_embed": table})
    image = torch.randn(1, 3, size, size)
    before, result = peak(), {}
    with torch.no_grad():
        model.eval()
        model(image)  # the first one also allocates
        start = clock()
        features = model(image)
        result["forward"] = (*elapsed(start), peak() - before)
    start = clock()
    model(image).square().mean().backward()
    result["forward + backward"] = (*elapsed(start), peak() - before)
    gradient = model.blocks[-1].attn.rel_pos_h.grad
    torch.save({"result": json.dumps(result), "features": features, "gradient": gradient}, out)


def figures(rounds: list[list[float]]) -> tuple[float, float, float]:
    """Wall and CPU seconds, medians of all rounds but the first, and the first one's memory."""
    return (
        statistics.median(wall for wall, _, _ in rounds[1:]),
        statistics.median(cpu for _, cpu, _ in rounds[1:]),
        rounds[0][2],
    )


def main() -> None:
    """Measure each, print them side by side."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=int, default=1024, help="pixels")
    parser.add_argument("--depth", type=int, default=12, help="blocks")
    parser.add_argument("--rounds", type=int, default=3, help="of measuring times")
    parser.add_argument("--beside", nargs="+", default=["plain", "fused"], choices=["plain", "fused"])
    parser.add_argument("--measure", nargs=2, metavar=("KIND", "FILE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measure(args.measure[0], args.size, args.depth, Path(args.measure[1]))
        return
    kinds = ("usual", *args.beside)
    found, results = {}, {kind: [] for kind in kinds}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(1 + args.rounds):
            mapped = {} if number else {"MALLOC_MMAP_THRESHOLD_": str(10**6)}
            for kind in kinds:
                file = Path(folder) / f"{kind}.pt"
                same = ["--size", str(args.size), "--depth", str(args.depth)]
                command = [sys.executable, __file__, *same, "--measure", kind, file]
                subprocess.run(command, check=True, env=os.environ | mapped)
                content = torch.load(file, weights_only=True)
                results[kind].append(json.loads(content["result"]))
                if not number:
                    found[kind] = content
    threads = torch.get_num_threads()
    print(f"ViT-B, {args.depth} blocks, 1 image of {args.size} px, float32, CPU, {threads} threads")
    print(f"times: medians of {args.rounds}")
    for step in results["usual"][0]:
        print(f"{step:<24}{'seconds':>9}{'faster':>8}{'CPU s':>9}{'faster':>8}{'peak GiB':>10}{'less':>6}")
        table = {kind: figures([result[step] for result in results[kind]]) for kind in kinds}
        for kind, (wall, cpu, memory) in table.items():
            faster = (table["usual"][0] / wall, table["usual"][1] / cpu)
            less = 1 - memory / table["usual"][2]
            times = f"{wall:>9.2f}{faster[0]:>7.2f}x{cpu:>9.2f}{faster[1]:>7.2f}x"
            print(f"  {KINDS[kind]:<22}{times}{memory:>10.2f}{less:>6.0%}")
    for kind in args.beside:
        for what in ("features", "gradient"):
            one, other = found["usual"][what], found[kind][what]
            print(
                f"largest difference of {what}, {KINDS[kind]}: {((one - other).abs().max() / one.abs().max()):.1e}"
            )
    print("(relative to the largest value; memory is what the process holds above its weights)")


if __name__ == "__main__":
    main()
