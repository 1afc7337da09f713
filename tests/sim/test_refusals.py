"""What real cards refused, in public issues, is refused at level aclnn; what a careless table would refuse is computed.

Each issue quotes torch_npu's error: the function and, in CANN's message, the argument's data type or what was wrong.
"""

from __future__ import annotations

import json
import re
import textwrap

import pytest
from conftest import RunPython

torch_npu = pytest.importorskip(
    "torch_npu", reason="torch_npu does not load: run it by `make test-sim`", exc_type=Exception
)

# {issue: (call, function, words of the message)}; x is (2, 3) float32, c the same as complex64, r int64 rows.
REFUSED = {
    "huggingface/diffusers#10428": (
        "torch.repeat_interleave(x.double().npu(), 2, dim=0)", "aclnnRepeatInterleaveIntWithDim", "DT_DOUBLE",
    ),
    "huggingface/diffusers#10820": (
        "x.double().npu().cos().repeat_interleave(2, dim=1)", "aclnnRepeatInterleaveIntWithDim", "DT_DOUBLE",
    ),
    "huggingface/diffusers#12979": ("c.npu()[r.npu()]", "aclnnIndex", "DT_COMPLEX64"),
    "vllm-project/vllm-omni#4911": ("c.npu()[:, r.npu()]", "aclnnIndex", "DT_COMPLEX64"),
    "vllm-project/vllm-omni#6571": (
        "c.to(torch.complex128).npu().gather(0, r.view(1, 2).npu())", "aclnnGather", "DT_COMPLEX128",
    ),
    "sgl-project/sglang#29011": ("torch.expm1(x.double().npu())", "aclnnExpm1", "DT_DOUBLE"),
    "sgl-project/sglang#14159": (
        "torch.ones([2] * 9).npu().transpose(0, 8).contiguous()", "aclnnInplaceCopy", "9 dimensions",
    ),
    "sgl-project/sglang#10402": ("torch.cat([u.npu(), u.npu()], dim=0)", "aclnnCat", "DT_UINT64"),
    "Ascend/pytorch#83": ("torch.cat([u.npu()] * 3, dim=0)", "aclnnCat", "DT_UINT64"),
    "Ascend/pytorch#158": ("u.npu() + 1", "aclnnAdds", "DT_UINT64"),
    "Ascend/pytorch#45": ("x.npu().masked_fill_(x.npu(), 1.0)", "aclnnInplaceMaskedFillScalar", "mask.*DT_FLOAT"),
    "flagos-ai/FlagGems#3267": (
        "torch.empty(2, dtype=torch.complex32, device='npu').normal_()", "aclnnInplaceNormal", "DT_COMPLEX32",
    ),
    "vllm-project/vllm-ascend#5297": (
        "torch.addmm(torch.ones(3).npu(), x.npu(), torch.ones(4, 3).npu())", "aclnnAddmm", "inner sizes",
    ),
    # Three models, one message: a scale of half precision.
    "vllm-project/vllm-ascend#6636": ("quantised(scale=torch.float16)", "aclnnQuantMatmulWeightNz", "cale.*DT_FLOAT16"),
    "vllm-project/vllm-ascend#7443": (
        "quantised(scale=torch.float16, by_row=True)", "aclnnQuantMatmulWeightNz", "cale.*DT_FLOAT16",
    ),
    "vllm-project/vllm-ascend#12907": (
        "quantised(scale=torch.float16, rows=1)", "aclnnQuantMatmulWeightNz", "cale.*DT_FLOAT16",
    ),
}  # fmt: skip

# On older products: {issue: (SoC, call, function, words)}
REFUSED_OLDER = {
    "hiyouga/LlamaFactory#4165": ("Ascend910A", "x.bfloat16().npu().float()", "aclnnCast", "DT_BF16"),
    "hiyouga/LlamaFactory#7522": ("Ascend310P3", "x.bfloat16().npu().to(torch.float16)", "aclnnCast", "DT_BF16"),
    "vllm-project/vllm-ascend#14152": (
        "Ascend310P3", "quantised(bias=torch.float16)", "aclnnQuantMatmulWeightNz", "bias.*DT_FLOAT16.*DT_INT32",
    ),
    "vllm-project/vllm-ascend#14792": (
        "Ascend310P3", "quantised(bias=torch.float16, by_row=True)", "aclnnQuantMatmulWeightNz",
        "bias.*DT_FLOAT16.*DT_INT32",
    ),
    # Paddle asked for it; torch_npu does with this setting.
    "PaddlePaddle/Paddle#70866": ("Ascend310P3", "kept() @ kept().t()", "aclnnMatmul", "DT_FLOAT.*keep type"),
}  # fmt: skip

# Calls that the document or the source alone would refuse, or a rule of one branch only; d moves to a device.
ACCEPTED = {
    "numbers are stacked": "torch.stack([d(x).sum(), d(x).mean()])",
    "indices of a minimum are int64": "d(x).min(0)",
    "log1p of integers": "torch.log1p(d(r))",
    "expm1 of integers": "torch.expm1(d(r))",
    "complex128 is multiplied (modelscope/DiffSynth-Studio#1191: on the AI CPU)": "d(c.to(torch.complex128)) * 2",
    "the absolute of complex numbers is real": "d(c).abs()",
    "float64 is added up": "d(x.double()).sum()",
    "a limit is broadcast": "torch.clamp(d(x), min=d(x)[0])",
    "another limit is broadcast": "torch.clamp_max(d(x), d(x)[:, :1])",
    "a loss of a map is a number": "F.nll_loss(d(x).view(1, 2, 1, 3).log_softmax(1), d(r)[[0, 1, 0]].view(1, 1, 3))",
    "a mask of max pooling has its own shape": "F.max_pool2d(d(torch.arange(36.0).view(1, 1, 6, 6)), 2)",
    "unique values without their places": "d(r).unique()",
    "an index is left out": "d(x)[:, d(r)]",
    "eight dimensions": "torch.exp(d(x).view(1, 1, 1, 1, 1, 1, 2, 3))",
    "a number is a tensor": "d(x).sum() + d(x)",
    "truth values are counted": "(d(x) > 0).sum()",
    "what is empty is concatenated": "torch.cat([d(x), d(torch.empty(0))])",
    "one row of an embedding": "F.embedding(d(r)[0], d(x))",
    "no weight of a norm": "F.layer_norm(d(x), (3,))",
    "conditions are broadcast": "torch.where(d(x)[:1] > 0, d(x), d(x).new_zeros(()))",
    "a matrix without rows": "torch.empty(0, 3).to(d(x).device) @ d(x).t()",
}
# On the SoC of a refusal above, what it accepts; the values are those of test_npu_functions.py.
ACCEPTED_OLDER = ("quantised(bias=torch.int32)", "x.npu() @ x.npu().t()")
PRELUDE = textwrap.dedent("""
    import json, torch, torch_npu
    F = torch.nn.functional
    x = torch.arange(6.0).view(2, 3) - 2
    c, r, u = torch.complex(x, x), torch.tensor([1, 0]), torch.ones(2, dtype=torch.uint64)
    def kept():
        torch.npu.set_option({"ACL_PRECISION_MODE": "must_keep_origin_dtype"})
        return x.npu()
    def quantised(scale=torch.float32, bias=None, by_row=False, rows=4):
        torch.npu.config.allow_internal_format = True
        weight = torch_npu.npu_format_cast(torch.ones(32, 64, dtype=torch.int8).npu(), 29)
        return torch_npu.npu_quant_matmul(
            torch.ones(rows, 32, dtype=torch.int8).npu(), weight, torch.ones(64, dtype=scale).npu(),
            pertoken_scale=torch.ones(rows).npu() if by_row else None,
            bias=None if bias is None else torch.ones(64, dtype=bias).npu(), output_dtype=torch.float16,
        )
    def refusal(call):
        try:
            eval(call)
            torch.npu.synchronize()
        except RuntimeError as error:
            return str(error)
        return "computed"
    """)


def judge(message: str, function: str, words: str) -> str:
    """Return what is wrong with a refusal; nothing if it is the function's, with the code and the words."""
    wanted = rf"call {function} failed, error code is 161002[\s\S]*EZ1001[\s\S]*{words}"
    return "" if re.search(wanted, message) else message


def test_cards_refusals(run_forked: RunPython) -> None:
    calls = {issue: call for issue, (call, _, _) in REFUSED.items()}
    code = PRELUDE + f"print(json.dumps({{issue: refusal(call) for issue, call in {calls}.items()}}))"
    done = run_forked(code, CANN_SIM_LEVEL="aclnn", TASK_QUEUE_ENABLE="0")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    wrong = {issue: judge(found[issue], *REFUSED[issue][1:]) for issue in REFUSED}
    assert {issue: text for issue, text in wrong.items() if text} == {}


@pytest.mark.parametrize("issue", REFUSED_OLDER)
def test_older_products_refusals(run_forked: RunPython, issue: str) -> None:
    soc, call, function, words = REFUSED_OLDER[issue]
    done = run_forked(
        PRELUDE + f"print(json.dumps(refusal({call!r})))",
        CANN_SIM_LEVEL="aclnn",
        TASK_QUEUE_ENABLE="0",
        CANN_SIM_SOC=soc,
    )
    assert done.returncode == 0, done.stderr
    assert judge(json.loads(done.stdout.splitlines()[-1]), function, words) == ""


def test_older_products_accept_the_rest(run_forked: RunPython) -> None:
    code = PRELUDE + f"print(json.dumps([refusal(call) for call in {ACCEPTED_OLDER}]))"
    done = run_forked(code, TASK_QUEUE_ENABLE="0", CANN_SIM_SOC="Ascend310P3")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == ["computed"] * len(ACCEPTED_OLDER)


def test_what_cards_accept_is_computed(run_forked: RunPython) -> None:
    code = PRELUDE + textwrap.dedent(f"""
    def leaves(result):
        return list(result) if isinstance(result, (tuple, list)) else [result]
    wrong = {{}}
    for name, call in {ACCEPTED}.items():
        found = {{}}
        for device in ("cpu", "npu"):
            try:
                found[device] = leaves(eval(call, globals() | {{"d": lambda tensor: tensor.to(device)}}))
            except RuntimeError as error:
                wrong[name] = str(error)
        if len(found) == 2 and not all(torch.equal(a, b.cpu()) for a, b in zip(*found.values(), strict=True)):
            wrong[name] = str(found)
    print(json.dumps(wrong))
    """)
    done = run_forked(code, CANN_SIM_LEVEL="aclnn", TASK_QUEUE_ENABLE="0")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {}
