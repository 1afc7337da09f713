"""What each mode of ATC does with its options, after the checks that come before the model is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from cann_sim.atc import checks, configs, convert, gears, graphs, info, paths, reports, socs
from cann_sim.atc.errors import AtcError, AtcErrors
from cann_sim.atc.kernels import Soc
from cann_sim.atc.options import Options
from cann_sim.atc.precision import Precision

Read = TypeVar("Read")


def show_om(options: Options) -> None:
    """Print what an OM is (mode 6).

    Raises `AtcError`: E10004 without --om, E10057 with --framework, E10001 for a file that is no OM.
    """
    path = paths.checked_input(options["om"], "om")
    if options["framework"] != "-1":
        raise AtcError("E10057", first="om", second="mode")
    print(info.display(path))


def write_json(options: Options) -> None:
    """Write an OM, or with --framework=5 an ONNX file, as JSON (mode 1)."""
    if not options["json"]:
        raise AtcError("E10004", parameter="json")
    path = paths.checked_input(options["om"], "om")
    target = paths.checked_output(options["json"], "json")
    reports.write_text(target, info.onnx_json(path) if options["framework"] == "5" else info.om_json(path))


def check_only(options: Options) -> list[AtcError]:
    """Check the operators of a model and write the report (mode 3).

    Raises
    ------
    AtcErrors
        The errors that the report lists.
    """
    _check_options(options)
    path = paths.checked_input(options["model"], "model")
    given = options.given("check_report")
    report = Path(options["check_report"]) if given else reports.work_folder() / options["check_report"]
    model = graphs.load(path, weights=False)
    checks.check_model(model)
    errors = checks.check_nodes(model) or checks.check_plugins(model)
    reports.write_json(report, reports.check_result(model, errors))
    if errors:
        raise AtcErrors(errors)
    return []


def make_om(options: Options) -> list[AtcError]:
    """Convert a model (mode 0) and return the warnings: a W11001 for each node that AI Core cannot run."""
    request, soc = _check_options(options)
    converted = convert.convert(options, soc, request, _precision(options), Path(options["output"]))
    reports.make_folder(Path(options["debug_dir"]))
    if options["export_compile_stat"] != "0":
        reports.write_fusion_result(converted.findings)
    if options["display_model_info"] == "1":
        print(info.display(converted.path))
    return reports.warnings(converted.findings)


def _check_options(options: Options) -> tuple[gears.Request, Soc]:
    """Check the options of a conversion in the real tool's order, and return what they say of shapes and SoC."""
    input_format = options["input_format"] or "NCHW"
    if input_format not in ("NCHW", "ND", "NCDHW"):
        reason = "for ONNX it must be NCHW, NCDHW or ND"
        raise AtcError("E10001", parameter="--input_format", value=input_format, reason=reason)
    paths.checked_host(options["host_env_os"], options["host_env_cpu"])
    required = ("soc_version", "output", "model") if options["mode"] == "0" else ("soc_version", "model")
    for name in required:
        if not options[name]:
            raise AtcError("E10054", parameter=f"--{name}")
    paths.checked_input(options["model"], "model")
    if options["mode"] == "0":
        paths.checked_output(options["output"], "output", suffix=".om")
    for name in ("op_precision_mode", "modify_mixlist", "keep_dtype", "customize_dtypes", "fusion_switch_file",
                 "insert_op_conf"):  # fmt: skip
        if options.given(name):
            paths.checked_input(options[name], name)
    _check_precision(options)
    request = gears.read_request(
        options["input_shape"],
        options["input_shape_range"],
        {name: options[name] for name in gears.KINDS},
        input_format,
    )
    if options["insert_op_conf"] and request.gears.kind == "dims":
        reason = "gears of any dimensions (--dynamic_dims) do not go with AIPP"
        raise AtcError("E10001", parameter="--insert_op_conf", value=options["insert_op_conf"], reason=reason)
    if options["external_weight"] != "0":
        reason = "weights outside of the OM (--external_weight) are not simulated"
        raise AtcError("SIM001", reason=reason)
    if options["optypelist_for_implmode"] and not options["op_select_implmode"]:
        reason = "--optypelist_for_implmode needs it"
        raise AtcError("E10001", parameter="--op_select_implmode", value="missing", reason=reason)
    if options["enable_compress_weight"] == "true" or options["compression_optimize_conf"]:
        raise AtcError("SIM001", reason="compression of weights is not simulated")
    soc = socs.soc_named(options["soc_version"])
    mode = options["precision_mode"] or options["precision_mode_v2"]
    if mode in ("mixed_bfloat16", "allow_mix_precision_bf16") and soc.family not in ("910B", "910_93"):
        option = "--precision_mode" if options["precision_mode"] else "--precision_mode_v2"
        raise AtcError("E10001", parameter=option, value=mode, reason=f"{soc.name} has no bfloat16")
    return request, soc


def _check_precision(options: Options) -> None:
    """Check the modes of precision and what goes with them."""
    old, new = options["precision_mode"], options["precision_mode_v2"]
    if old and new:
        raise AtcError("E10056", first="--precision_mode", second="--precision_mode_v2")
    if "hif8" in new:
        raise AtcError(
            "E10055", reason=f"--precision_mode_v2={new} is for Ascend 950, which is not simulated"
        )
    if old == "allow_fp32_to_bf16":
        raise AtcError("SIM001", reason="--precision_mode=allow_fp32_to_bf16 is not simulated")
    if options["modify_mixlist"] and "mix" not in (old or new):
        reason = "it changes lists of mixed precision, and the precision mode is another"
        raise AtcError("E10001", parameter="--modify_mixlist", value=options["modify_mixlist"], reason=reason)


def _precision(options: Options) -> Precision:
    """Return the precision that the options and their files ask for."""

    def read(name: str, reader: Callable[[Path], Read], default: Read) -> Read:
        return reader(Path(options[name])) if options[name] else default

    return Precision(
        mode=options["precision_mode"] or options["precision_mode_v2"] or "force_fp16",
        keep_dtype=read("keep_dtype", configs.keep_dtype, frozenset()),
        customize_dtypes=read("customize_dtypes", configs.customize_dtypes, {}),
        mixlist=read("modify_mixlist", configs.mixlist, {}),
        op_precision_mode=read("op_precision_mode", configs.op_precision_mode, {}),
        output_type=configs.output_type(options["output_type"]),
        fusion_off=read("fusion_switch_file", configs.fusion_switches, frozenset()),
    )
