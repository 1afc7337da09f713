"""Level aclnn: torch_npu's own kernels on the functions of libopapi.so. Values equal the CPU's; refusals are CANN's.

Each case runs in a process of its own with CANN_SIM_LEVEL, as the level is read once.
"""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path

import cann_sim
import pytest
from cann_sim import audit
from conftest import RunPython

torch_npu = pytest.importorskip(
    "torch_npu", reason="torch_npu does not load: run it by `make test-sim`", exc_type=Exception
)
TABLES = Path(__file__).parents[2] / "wheels" / "cann_sim" / "opapi"
OBJECTS = {
    f"aclCreate{kind}".encode()
    for kind in ("Tensor", "Scalar", "IntArray", "FloatArray", "BoolArray", "TensorList", "ScalarList")
}

# {aclnn function, or operator at level aten, that it calls: an expression}
# of x (6, 5) and y (5, 4) floats, i (3) rows, m (6, 5) bools
VALUES = {
    "aclnnAdd": "x + x[0]",
    "aclnnAdds": "x + 2",
    "aclnnSub": "x - x.abs()",
    "aclnnMuls": "x * 2.5",
    "aclnnInplaceMul": "x.clone().mul_(x)",
    "aclnnDiv": "x / (x + 10)",
    "aclnnMatmul": "x @ y",
    "aclnnMm": "torch.mm(x, y)",
    "aclnnSoftmax": "x.softmax(-1)",
    "aclnnLogSoftmax": "x.log_softmax(0)",
    "aclnnSigmoid": "x.sigmoid()",
    "aclnnExp": "x.exp()",
    "aclnnGelu": "F.gelu(x)",
    "aclnnRelu": "x.relu()",
    "aclnnReduceSum": "x.sum(1)",
    "aclnnMean": "x.mean(0, keepdim=True)",
    "aclnnMaxDim": "x.max(0)",
    "aclnnArgMax": "x.argmax(1)",
    "aclnnSort": "x.sort(1, descending=True)",
    "aclnnTopk": "x.topk(2)",
    "aclnnCumsum": "x.cumsum(0)",
    "aclnnCat": "torch.cat([x, x[:2]])",
    "aclnnStack": "torch.stack([x, x], 1)",
    "aclnnIndexSelect": "x.index_select(0, i)",
    "aclnnIndex": "x[i]",
    "aclnnGather": "x.gather(0, i.view(3, 1).expand(3, 5))",
    "aclnnSWhere": "torch.where(m, x, x * 2)",
    "aclnnMaskedSelect": "x.masked_select(m)",
    "aclnnNonzero": "m.nonzero()",
    "aclnnInplaceMaskedFillScalar": "x.masked_fill(m, 3.0)",
    "aclnnClamp": "x.clamp(0, 1)",
    "aclnnGeScalar": "x >= 0.5",
    "aclnnLayerNorm": "F.layer_norm(x, (5,), x[0], x[1])",
    "aclnnEmbedding": "F.embedding(i, x)",
    "aclnnUpsampleBilinear2d": "F.interpolate(x.view(1, 1, 6, 5), size=(9, 7), mode='bilinear')",
    "aclnnUnique2": "i.unique()",
    "aclnnMaxPool2dWithMask": "F.max_pool2d(x.view(1, 1, 6, 5), 2)",
    "aclnnStd": "x.std()",
    "aclnnVarMean": "torch.var_mean(x, 0, correction=0)",
    "aclnnSearchSorted": "torch.searchsorted(x[0].sort()[0], x[1], right=True)",
    "aclnnInplaceFillScalar": "torch.ones_like(x.half())",
    # Held back: torch_npu would give something else than torch in these calls of the same operators.
    "aten::std.correction": "x.std(correction=1.3)",
    "aten::var_mean.correction": "torch.var_mean(x, 0, correction=0.5)",
    "aten::searchsorted.Tensor": "torch.searchsorted(x[0].sort()[0], x[1], side='right')",
    "aten::ones_like": "torch.ones_like(x.half(), device=x.device)",
}
PRELUDE = textwrap.dedent("""
    import json, torch, torch_npu
    from cann_sim import counters
    F = torch.nn.functional
    def leaves(result):
        return list(result) if isinstance(result, (tuple, list)) else [result]
    def inputs(device):
        g = torch.Generator().manual_seed(0)
        x, y = torch.randn(6, 5, generator=g), torch.randn(5, 4, generator=g)
        return {"x": x.to(device), "y": y.to(device), "i": torch.tensor([0, 5, 2]).to(device), "m": (x > 0).to(device)}
    def adamw(parameter, gradient, first, second):
        step = torch.ones((), device=parameter.device)
        torch._fused_adamw_([parameter], [gradient], [first], [second], [], [step],
            lr=0.5, beta1=0.5, beta2=0.5, weight_decay=0.5, eps=0.5, amsgrad=False, maximize=False)
    def launches(expression, names):
        counters.start()
        found = leaves(eval(expression, globals() | names))
        torch.npu.synchronize()
        return found, counters.snapshot()["launches"]
""")


def test_the_library_has_what_the_tables_say_and_torch_npu_asks_for() -> None:
    functions = {
        line.split("\t")[0]
        for line in (TABLES / "functions.tsv").read_text().splitlines()
        if line.startswith("aclnn")
    }
    exported = audit.read_symbols(cann_sim.home() / "lib64" / "libopapi.so").defined
    pairs = {name + end for name in functions for end in ("", "GetWorkspaceSize")}
    assert {name.decode() for name in exported if name.startswith(b"aclnn")} == pairs
    assert exported >= OBJECTS
    wheel = (Path(torch_npu.__file__).parent / "lib" / "libtorch_npu.so").read_bytes()
    asked = {name.decode() for name in re.findall(rb"\x00(aclnn\w+)(?=\x00)", wheel)}
    assert functions <= asked, "a function that torch_npu does not know"


@pytest.mark.parametrize("queue", ["0", "1"])
def test_values_equal_the_cpus_and_the_launches_are_functions(run_forked: RunPython, queue: str) -> None:
    code = PRELUDE + textwrap.dedent(f"""
    wrong = {{}}
    for function, expression in {VALUES}.items():
        expected = leaves(eval(expression, globals() | inputs("cpu")))
        found, counted = launches(expression, inputs("npu"))
        equal = all(torch.equal(e, f.cpu()) and e.dtype == f.dtype for e, f in zip(expected, found, strict=True))
        if not equal or function not in counted:
            wrong[function] = [equal, counted]
    print(json.dumps(wrong))
    """)
    done = run_forked(code, CANN_SIM_LEVEL="aclnn", TASK_QUEUE_ENABLE=queue)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {}


def test_level_aten_calls_none_of_them(run_forked: RunPython) -> None:
    code = PRELUDE + textwrap.dedent(f"""
    print(json.dumps([launches(e, inputs("npu"))[1] for e in {list(VALUES.values())}]))
    """)
    done = run_forked(code, CANN_SIM_LEVEL="aten", TASK_QUEUE_ENABLE="0")
    assert done.returncode == 0, done.stderr
    names = set().union(*json.loads(done.stdout.splitlines()[-1]))
    assert not [name for name in names if name.startswith("aclnn")]


DRAWS = """
    import json, torch, torch_npu
    F = torch.nn.functional
    torch.manual_seed(5)
    half = torch.full((8,), 0.5, device="npu")
    draws = [
        torch.rand(5, device="npu"), torch.rand_like(half), half.clone().uniform_(1, 2), torch.randn(64, device="npu"),
        half.clone().normal_(1, 2), torch.normal(1.0, 2.0, (5,), device="npu"), torch.normal(half, half),
        torch.randint(0, 100, (5,), device="npu"), half.long().random_(50), torch.randperm(10, device="npu"),
        torch.bernoulli(half), half.clone().bernoulli_(0.3), torch.multinomial(half, 4), F.dropout(half, 0.5),
        torch.native_dropout(half, 0.5, True)[0], F.rrelu(-half, training=True), half.clone().exponential_(),
        torch.rand(5, device="npu"), torch.rand(5),
    ]
    print(json.dumps([draw.tolist() for draw in draws]))
"""


@pytest.mark.parametrize("queue", ["0", "1"])
def test_random_numbers_are_those_of_level_aten(run_forked: RunPython, queue: str) -> None:
    """Operators that draw otherwise are held back; a draw moves the generator as far at both levels."""
    found = []
    for level in ("aten", "aclnn"):
        done = run_forked(DRAWS, CANN_SIM_LEVEL=level, TASK_QUEUE_ENABLE=queue)
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout.splitlines()[-1]))
    assert found[0] == found[1]
    assert found[0][0] != found[0][-2]


def test_an_unknown_level_ends_the_process_with_a_reason(run_forked: RunPython) -> None:
    done = run_forked("import torch, torch_npu; torch.ones(1).npu()", CANN_SIM_LEVEL="2")
    assert done.returncode == 90
    assert "error[cann-sim-config]: CANN_SIM_LEVEL=2" in done.stderr


# {what a card refuses: (call, function, code, words of the message)}
REFUSALS = {
    "a data type": (
        "torch.expm1(x.cpu().double().npu())", "aclnnExpm1", 161002, r"EZ1001.*self has data type DT_DOU.*.*\[DT_FLOAT",
    ),
    "nine dimensions": ("torch.exp(x.view([1] * 7 + [6, 5]))", "aclnnExp", 161002, r"self has 9 dimensions.*0 to 8"),
    "a data type of QR": ("torch.linalg.qr(x.bfloat16())", "aclnnLinalgQr", 161002, r"self has .* DT_BF16.*\[DT_FLOAT"),
    "rows of complex numbers": (
        "torch.unique(x.cpu().to(torch.complex64).npu(), dim=0)", "aclnnUniqueDim", 161002, r"self has .* DT_COMPLEX64",
    ),
    "a parameter of double precision": (
        "adamw(*[x.cpu().double().npu() for _ in range(4)])", "aclnnApplyAdamWV2", 161002, r"varRef .* DT_DOUB",
    ),
    "a moment of another shape": (
        "adamw(x.clone(), x, x.clone(), x[:1].clone())", "aclnnApplyAdamWV2", 161002, r"vRef and varRef must be equal",
    ),
    "a masked softmax of double precision": (
        "torch._masked_softmax(x.cpu().double().npu().view(1, 1, 6, 5), (x > 0).view(1, 1, 6, 5), -1, 2)",
        "aclnnScaledMaskedSoftmax", 161002, r"x has data type DT_DOUBLE.*\[DT_FLOAT,DT_FLOAT16,DT_BF16\]",
    ),
    "a masked softmax of long rows": (
        "torch._masked_softmax(x.new_ones(1, 1, 1, 4097), x.new_ones(1, 1, 1, 4097) > 2, -1, 2)",
        "aclnnScaledMaskedSoftmax", 561103, r"x has 4097 columns, and must have 1 to 4096",
    ),
    "inner sizes": ("torch.bmm(x[None], x[None])", "aclnnBatchMatMul", 161002, r"sizes of self and mat2.*\[1,6,5\]"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_name_function_code_argument_and_list(run_forked: RunPython, case: str) -> None:
    call, function, code, words = REFUSALS[case]
    done = run_forked(
        PRELUDE
        + textwrap.dedent(f"""
        x = inputs("npu")["x"]
        try:
            {call}
        except RuntimeError as error:
            print(str(error).replace("\\n", " "))
        print((x + 1).sum().item() == (x.cpu() + 1).sum().item())
        """),
        CANN_SIM_LEVEL="aclnn",
        TASK_QUEUE_ENABLE="0",
    )
    assert done.returncode == 0, done.stderr
    message, goes_on = done.stdout.splitlines()[-2:]
    assert f"call {function} failed, error code is {code}" in message
    assert re.search(words, message), message
    assert goes_on == "True"


def test_the_older_products_refuse_bfloat16(run_forked: RunPython) -> None:
    code = """
    import torch, torch_npu
    try:
        torch.ones(2, dtype=torch.bfloat16).npu().float()
    except RuntimeError as error:
        print(error)
    """
    for soc, refused in (("Ascend310P3", True), ("Ascend910B3", False)):
        done = run_forked(code, CANN_SIM_LEVEL="aclnn", TASK_QUEUE_ENABLE="0", CANN_SIM_SOC=soc)
        assert done.returncode == 0, done.stderr
        assert ("DT_BF16" in done.stdout) == refused, done.stdout


def test_a_rule_that_is_not_certain_is_counted_and_the_call_computes(run_forked: RunPython) -> None:
    code = PRELUDE + textwrap.dedent("""
    counters.start()
    a = torch.ones(2, 2, device="npu", dtype=torch.int32).float()
    torch.mm(a.double(), a.double())
    print(json.dumps(counters.snapshot()["uncertain"]))
    """)
    done = run_forked(code, CANN_SIM_LEVEL="aclnn", TASK_QUEUE_ENABLE="0")
    assert done.returncode == 0, done.stderr
    assert isinstance(json.loads(done.stdout.splitlines()[-1]), dict)


def test_a_failure_in_the_queue_is_raised_and_ends_the_process(run_forked: RunPython) -> None:
    """A size that only the computation can refuse: the call returns, the queue's thread fails."""
    code = """
    import torch, torch_npu
    x = torch.ones(3, 4).npu()
    for number in range(2):
        try:
            x.index_select(0, torch.tensor([7]).npu())
            torch.npu.synchronize()
            x + 1
            torch.npu.synchronize()
        except RuntimeError as error:
            print(number, "aclnnIndexSelect" in str(error))
    """
    done = run_forked(code, CANN_SIM_LEVEL="aclnn", TASK_QUEUE_ENABLE="1")
    assert "0 True" in done.stdout.splitlines(), done.stderr[-2000:]


@pytest.mark.parametrize(
    ("fault", "expression", "words"),
    [
        ("corrupt@aclnnAdds:2", "print(((x + 1).sum() != 0).item(), (x + 1).sum().item())", "True 0.0"),
        ("device-lost@launch:1", "x + 1; torch.npu.synchronize()", "507010"),
    ],
)
def test_faults_strike_functions(run_forked: RunPython, fault: str, expression: str, words: str) -> None:
    code = f"""
    import torch, torch_npu
    x = torch.ones(3).npu()
    try:
        {expression}
    except RuntimeError as error:
        print(str(error).replace("\\n", " "))
    """
    done = run_forked(code, CANN_SIM_LEVEL="aclnn", TASK_QUEUE_ENABLE="0", CANN_SIM_FAULT=fault)
    assert words in done.stdout, done.stdout + done.stderr[-2000:]
