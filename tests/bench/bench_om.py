"""ViT-B's backbone at 1024 px as an OM model (simulated) beside ONNX Runtime on the same ONNX graph: time, difference.

The graph is the one that `make export` writes for the blocks of a backbone; cann_sim's ATC lowers it in mode `origin`,
float32. Each runs in a process of its own with as many threads; the two take turns, so that a busy machine slows both.

    python tests/bench/bench_om.py [--size 1024] [--depth 12] [--rounds 5] [--threads 2]
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
WINDOW_BLOCKS = (0, 1, 3, 4, 6, 7, 9, 10)
KINDS = {"om": "cann_sim's executor", "onnxruntime": "ONNX Runtime"}


def export(size: int, depth: int, file: Path) -> None:
    """Write the ONNX graph of a ViT-B with random weights: patches, positions, blocks."""
    import torch
    from vitdet.attention import Attention
    from vitdet.backbone import ViT
    from vitdet.stages import Options, StaticBlock

    class Blocks(torch.nn.Module):
        def __init__(self, vit: ViT) -> None:
            super().__init__()
            self.patch_embed = vit.patch_embed
            options = Options(size=(size, size))
            grid = (vit.grid, vit.grid)
            self.blocks = torch.nn.ModuleList(StaticBlock(block, 1, grid, options) for block in vit.blocks)
            self.positions = torch.nn.Parameter(torch.randn(1, *grid, 768) * 0.02)

        def forward(self, picture: torch.Tensor) -> torch.Tensor:
            x = self.patch_embed(picture) + self.positions
            for block in self.blocks:
                x = block(x)
            return x.permute(0, 3, 1, 2)

    torch.manual_seed(0)
    windows = [block for block in WINDOW_BLOCKS if block < depth]
    vit = ViT(img_size=size, depth=depth, window_block_indexes=windows)
    for module in vit.modules():
        if isinstance(module, Attention):
            torch.nn.init.normal_(module.rel_pos_h, std=0.02)
            torch.nn.init.normal_(module.rel_pos_w, std=0.02)
    with torch.no_grad():
        torch.onnx.export(
            Blocks(vit).eval(), (torch.randn(1, 3, size, size),), str(file), opset_version=17, dynamo=False,
            input_names=["picture"], output_names=["features"],
        )  # fmt: skip


def convert(graph: Path, om: Path) -> None:
    """Write the OM file of an ONNX graph, in float32."""
    import onnx
    from cann_sim.atc import om_file
    from cann_sim.atc.lowering import lower
    from cann_sim.atc.precision import Precision
    from cann_sim.atc.program import Model
    from cann_sim.atc.socs import soc_named

    model, soc = onnx.load(graph), soc_named("Ascend910B3")
    shape = tuple(dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim)
    made = lower(model, soc=soc, precision=Precision(mode="origin"), shapes={"picture": shape})
    om_file.write(
        Model(
            name="backbone", soc=soc.name, command="bench", opset=17, inputs=made.program.inputs,
            outputs=made.program.outputs, gears="", programs={(): made.program}, constants=made.constants,
        ),
        om,
    )  # fmt: skip


def serve(kind: str, file: Path, size: int, threads: int) -> None:
    """Run the model once for each line of standard input; print wall and CPU seconds, and keep the last output."""
    picture = np.random.default_rng(0).standard_normal((1, 3, size, size)).astype(np.float32)
    if kind == "om":
        sys.path.insert(0, str(Path(__file__).parents[1] / "sim"))
        import cann_sim
        from om_models import Executor

        loaded = Executor(cann_sim.home() / "lib64" / "libcann_sim_executor.so").load(file)
        model = loaded.__enter__()
        run = lambda: model.run([picture])  # noqa: E731
    else:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        run = lambda: session.run(None, {"picture": picture})  # noqa: E731
    for _ in sys.stdin:
        start = time.perf_counter(), time.process_time()
        (features,) = run()
        print(time.perf_counter() - start[0], time.process_time() - start[1], flush=True)
    np.save(file.with_name(f"{kind}.npy"), features)


def main() -> None:
    """Export, convert, run in turns, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=int, default=1024, help="pixels")
    parser.add_argument("--depth", type=int, default=12, help="blocks")
    parser.add_argument("--rounds", type=int, default=5, help="of which the figures are medians")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--serve", nargs=2, metavar=("KIND", "FILE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve[0], Path(args.serve[1]), args.size, args.threads)
        return
    with tempfile.TemporaryDirectory() as folder:
        files = {"om": Path(folder, "backbone.om"), "onnxruntime": Path(folder, "backbone.onnx")}
        export(args.size, args.depth, files["onnxruntime"])
        convert(files["onnxruntime"], files["om"])
        options = ["--size", str(args.size), "--threads", str(args.threads)]
        environ = os.environ | {"OMP_NUM_THREADS": str(args.threads)}
        servers = {
            kind: subprocess.Popen([sys.executable, __file__, *options, "--serve", kind, file], env=environ, text=True,
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            for kind, file in files.items()
        }  # fmt: skip
        seconds: dict[str, list[list[float]]] = {kind: [] for kind in KINDS}
        for _ in range(1 + args.rounds):  # the first also allocates and plans
            for kind, server in servers.items():
                server.stdin.write("run\n")
                server.stdin.flush()
                seconds[kind].append([float(word) for word in server.stdout.readline().split()])
        for server in servers.values():
            server.communicate()
        one, other = (np.load(Path(folder, f"{kind}.npy")) for kind in KINDS)
    print(f"ViT-B, {args.depth} blocks, 1 picture of {args.size} px, float32, CPU, {args.threads} threads")
    print(f"medians of {args.rounds} in turns{'seconds':>13}{'CPU s':>9}")
    medians = {
        kind: [statistics.median(column) for column in zip(*runs[1:], strict=True)]
        for kind, runs in seconds.items()
    }
    for kind, (wall, cpu) in medians.items():
        print(f"  {KINDS[kind]:<26}{wall:>10.2f}{cpu:>9.2f}")
    ratio = [ours / theirs for ours, theirs in zip(*medians.values(), strict=True)]
    print(f"  ratio{ratio[0]:>30.3f} x{ratio[1]:>7.3f} x")
    difference = np.abs(one - other).max() / np.abs(other).max()
    print(
        f"largest difference, relative to the largest value: {difference:.1e} (GE's Gelu is the form with tanh)"
    )


if __name__ == "__main__":
    main()
