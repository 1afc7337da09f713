"""The command line of ATC: which options there are, what each takes, and how a word becomes one of them.

Names, defaults and ranges are those of CANN's ATC; an option that changes nothing in the simulation is accepted with
any value that the real tool takes, so that a user's command works here unchanged.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from cann_sim.atc.errors import AtcError, UsageError

ZERO_ONE = ("0", "1")
TRUE, FALSE = ("1", "t", "true", "y", "yes"), ("0", "f", "false", "n", "no")


@dataclass(frozen=True)
class Option:
    """One option: its default, what it is for, the values that it takes (none: any), and if it is a number."""

    name: str
    default: str = ""
    help: str = ""
    values: tuple[str, ...] = ()
    number: bool = False
    flag: bool = False


# (title of a section of the help, its options)
SECTIONS: tuple[tuple[str, tuple[Option, ...]], ...] = (
    ("General", (
        Option("help", help="print this text (also -h)", flag=True),
        Option("mode", "0", "0 converts, 1 writes a model as JSON, 3 only checks, 6 shows an OM",
               ("0", "1", "3", "5", "6", "30"), number=True),
    )),
    ("Input", (
        Option("model", help="the ONNX file"),
        Option("framework", "-1", "5 (ONNX)", ("0", "1", "3", "5"), number=True),
        Option("weight", help="weights of a Caffe model"),
        Option("input_format", help="NCHW (the default) or ND"),
        Option("input_shape", help='"name:n,c,h,w;name2:..."'),
        Option("input_shape_range", help="old form of ranges in --input_shape"),
        Option("dynamic_batch_size", help='batch sizes, "1,2,4"; the first size of an input is -1'),
        Option("dynamic_image_size", help='heights and widths, "800,1344;1344,800"; both are -1'),
        Option("dynamic_dims", help='sizes of every -1, "1,200;4,400"'),
        Option("om", help="the model of modes 1 and 6"),
        Option("singleop", help="description of single operators"),
    )),
    ("Output", (
        Option("output", help="path of the OM without .om"),
        Option("output_type", help='FP32, FP16, UINT8 or INT8; also "node:0:FP16"'),
        Option("json", help="the file that mode 1 writes"),
        Option("check_report", "check_result.json", "the file that mode 3 writes"),
        Option("host_env_os", help="operating system of the machine that runs the model"),
        Option("host_env_cpu", help="x86_64 or aarch64"),
    )),
    ("Target", (
        Option("soc_version", help="such as Ascend910B3"),
        Option("virtual_type", "0", "", ZERO_ONE, number=True),
        Option("core_type", "AiCore", "", ("AiCore", "VectorCore")),
        Option("aicore_num"),
    )),
    ("Function", (
        Option("out_nodes", help='outputs, "node:0;node:1" or names of tensors'),
        Option("input_fp16_nodes", help="inputs that are float16, separated by semicolons"),
        Option("insert_op_conf", help="file that configures AIPP"),
        Option("external_weight", "0", "where weights are kept; here 0 only", ("0", "1", "2")),
        Option("op_name_map"),
        Option("cal_conf"),
        Option("device_id", "0"),
        Option("is_input_adjust_hw_layout"),
        Option("is_output_adjust_hw_layout"),
    )),
    ("Precision", (
        Option("precision_mode", "", "force_fp16 (the default), force_fp32, cube_fp16in_fp32out, "
               "allow_mix_precision[_fp16|_bf16], allow_fp32_to_fp16, must_keep_origin_dtype",
               ("force_fp16", "force_fp32", "cube_fp16in_fp32out", "allow_mix_precision", "allow_fp32_to_fp16",
                "must_keep_origin_dtype", "allow_mix_precision_fp16", "allow_mix_precision_bf16",
                "allow_fp32_to_bf16")),
        Option("precision_mode_v2", "", "fp16, origin, cube_fp16in_fp32out, mixed_float16, mixed_bfloat16",
               ("fp16", "origin", "cube_fp16in_fp32out", "mixed_float16", "mixed_bfloat16", "cube_hif8",
                "mixed_hif8")),
        Option("keep_dtype", help="file of nodes and OpType::X that keep their data type"),
        Option("customize_dtypes", help="file of nodes and OpType::X with their data types"),
        Option("modify_mixlist", help="JSON that changes the black and white list of mixed precision"),
        Option("op_precision_mode", help="ini of operators with high_precision or high_performance"),
        Option("op_select_implmode", "", "", ("high_precision", "high_performance", "high_precision_for_all",
                                              "high_performance_for_all")),
        Option("optypelist_for_implmode"),
        Option("allow_hf32", "", "", ("true", "false")),
        Option("is_weight_clip", "1", "", ZERO_ONE),
    )),
    ("Tuning", (
        Option("fusion_switch_file", help="fusion passes to switch off"),
        Option("disable_reuse_memory", "0", "", ZERO_ONE, number=True),
        Option("buffer_optimize", "l2_optimize", "", ("l1_optimize", "l2_optimize", "off_optimize")),
        Option("enable_scope_fusion_passes"),
        Option("enable_single_stream", "", "", ("true", "false")),
        Option("enable_small_channel", "0", "", ZERO_ONE),
        Option("enable_compress_weight", "false", "", ("true", "false")),
        Option("compress_weight_conf"),
        Option("compression_optimize_conf"),
        Option("sparsity", "0", "", ZERO_ONE, number=True),
        Option("ac_parallel_enable", "0", "", ZERO_ONE),
        Option("tiling_schedule_optimize", "0", "", ZERO_ONE),
        Option("quant_dumpable", "", "", ZERO_ONE),
        Option("cluster_config"),
        Option("mdl_bank_path"),
        Option("op_bank_path"),
        Option("jit_compile", "1", "", ("0", "1", "2")),
        Option("oo_level", "O3"),
        Option("oo_constant_folding"),
        Option("oo_dead_code_elimination"),
        Option("auto_tune_mode"),
        Option("topo_sorting_mode"),
    )),
    ("Debug", (
        Option("log", "null", "debug, info, warning, error or null", ("debug", "info", "warning", "error", "null")),
        Option("display_model_info", "0", "1 shows the OM after its conversion", ZERO_ONE),
        Option("export_compile_stat", "1", "0 writes no fusion_result.json", ("0", "1", "2")),
        Option("dump_mode", "0", "", ZERO_ONE),
        Option("debug_dir", "kernel_meta", "folder of the kernels"),
        Option("op_debug_level", "0", "", ("0", "1", "2", "3", "4"), number=True),
        Option("op_debug_config"),
        Option("save_original_model", "", "", ("true", "false")),
        Option("status_check", "0", "", ZERO_ONE),
        Option("op_compiler_cache_dir"),
        Option("op_compiler_cache_mode", "disable", "", ("enable", "disable", "force")),
        Option("atomic_clean_policy", "0", "", ZERO_ONE),
        Option("deterministic", "0", "", ZERO_ONE),
        Option("deterministic_level", "0", "", ("0", "1", "2")),
        Option("shape_generalized_build_mode", "shape_precise", "", ("shape_generalized", "shape_precise")),
    )),
)  # fmt: skip
OPTIONS = {option.name: option for _, options in SECTIONS for option in options}


@dataclass
class Options:
    """The values of a command line by option name, and the command itself."""

    command: str
    values: dict[str, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> str:
        return self.values.get(name, OPTIONS[name].default)

    def given(self, name: str) -> bool:
        """Return whether the option is on the command line."""
        return name in self.values


def parse(words: list[str]) -> Options:
    """Return the options of `words`, the command line without the program's name.

    A name may begin with one or two dashes, be shortened while it stays unique, and have `-` for `_`; its value
    follows after `=` or as the next word.

    >>> parse(["--soc-version=Ascend910B3", "-mode", "6"])["soc_version"]
    'Ascend910B3'

    Raises
    ------
    UsageError
        An unknown option, one without a value, or a word that is no option.
    AtcError
        A value that the option does not take: E10001, E10003, E10005, E10006, E10007 or E10010.
    """
    options = Options(command=" ".join(["atc", *words]))
    rest = list(words)
    stray = []
    while rest:
        word = rest.pop(0)
        if not re.match(r"--?[A-Za-z]", word):
            stray.append(word)
            continue
        name, equals, value = word.lstrip("-").partition("=")
        option = _option(name)
        if not equals and not option.flag:
            if not rest:
                raise UsageError(f"flag '{word}' is missing its argument")
            value = rest.pop(0)
        options.values[option.name] = _checked(option, value)
        if option.name == "help" and options["help"] == "true":
            return options
    if stray:
        raise UsageError("\n".join(f"Non-option parameter: {word}" for word in stray))
    return options


def _option(name: str) -> Option:
    """Return the option of a name, which may be shortened."""
    wanted = "help" if name == "h" else name.replace("-", "_")
    if wanted in OPTIONS:
        return OPTIONS[wanted]
    found = [option for option in OPTIONS.values() if option.name.startswith(wanted)]
    if len(found) != 1:
        raise UsageError(f"unknown command line flag '{name}'")
    return found[0]


def _checked(option: Option, value: str) -> str:
    """Return the value, or raise the error that the real tool has for one that is not allowed."""
    if option.flag:
        if value.lower() in (*FALSE, "", *TRUE):
            return "false" if value.lower() in FALSE else "true"
        raise AtcError("E10003", parameter=option.name, value=value, reason="it must be true or false")
    if option.values and value not in option.values:
        if option.name == "log":
            raise AtcError("E10010", value=value)
        if option.name == "framework":
            support = "0 (Caffe), 1 (MindSpore), 3 (TensorFlow) or 5 (ONNX)"
            raise AtcError("E10007", parameter=option.name, support=support)
        if option.values == ("true", "false"):
            raise AtcError("E10005", parameter=option.name, value=value)
        if option.values == ZERO_ONE or option.name == "external_weight":
            raise AtcError("E10006", parameter=option.name, value=value, expected=" or ".join(option.values))
        reason = f"it must be one of {', '.join(option.values)}"
        raise AtcError("E10001", parameter=f"--{option.name}", value=value, reason=reason)
    if option.number and not value.isdigit():
        raise AtcError("E10003", parameter=option.name, value=value, reason="it must be a number")
    return value


def usage() -> str:
    """Return the text of --help; options without a text are accepted and change nothing in the simulation."""
    lines = [
        "usage: atc <options>   (simulated by cann_sim: checks as CANN's ATC, the OM runs on cann_sim only)"
    ]
    silent = []
    for title, options in SECTIONS:
        lines += ["", f"[{title}]"]
        lines += [f"  --{option.name:<22}{option.help}" for option in options if option.help]
        silent += [option.name for option in options if not option.help]
    return "\n".join([*lines, "", "Accepted without effect here:", "  --" + ", --".join(silent)])
