"""The AIPP file of --insert_op_conf: `aipp_op { name: value ... }` in protobuf's text format.

Simulated is static AIPP with RGB input: channel swap, mean, minimum and the reciprocal of the variance. Crop,
padding, colour conversion and YUV need hardware units that cann_sim does not have (SIM001).
"""

from __future__ import annotations

import re
from pathlib import Path

from cann_sim.atc.errors import AtcError
from cann_sim.atc.program import Aipp

# Names and types of the fields that a file may have (documented template); an empty tuple of values means numbers.
BOOLS = ("crop", "resize", "padding", "csc_switch", "rbuv_swap_switch", "ax_swap_switch", "single_line_mode",
         "support_rotation")  # fmt: skip
NUMBERS = (
    "related_input_rank", "max_src_image_size", "src_image_size_w", "src_image_size_h", "cpadding_value",
    "load_start_pos_w", "load_start_pos_h", "crop_size_w", "crop_size_h", "resize_output_w", "resize_output_h",
    "left_padding_size", "right_padding_size", "top_padding_size", "bottom_padding_size", "padding_value",
    "rotation_angle", "raw_rgbir_to_f16_n",
    *(f"matrix_r{row}c{column}" for row in range(3) for column in range(3)),
    *(f"{kind}_bias_{index}" for kind in ("input", "output") for index in range(3)),
    *(f"{kind}_chn_{index}" for kind in ("mean", "min", "var_reci") for index in range(4)),
)  # fmt: skip
CHOICES = {
    "aipp_mode": ("static", "dynamic"),
    "input_format": ("YUV420SP_U8", "XRGB8888_U8", "RGB888_U8", "YUV400_U8"),
}
LIMITS = {
    **{f"mean_chn_{index}": (0.0, 255.0) for index in range(4)},
    **{f"min_chn_{index}": (0.0, 255.0) for index in range(4)},
    **{f"var_reci_chn_{index}": (-65504.0, 65504.0) for index in range(4)},
    "src_image_size_w": (0.0, 4096.0),
    "src_image_size_h": (0.0, 4096.0),
}
TOKEN = re.compile(r"""\s*(?:\#[^\n]*|(?P<word>"[^"]*"|'[^']*'|[^\s{}:#"']+|[{}:]))""")
Fields = dict[str, str]


def read(path: Path) -> list[Fields]:
    """Return the fields of each `aipp_op` of a file.

    Raises `AtcError`: E10052 for a file that is not of this form, an unknown field or a value that it cannot have.
    """
    try:
        words = _words(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise AtcError("E10052", reason=f"{path} is no text") from error
    operators = []
    while words:
        if words[:2] != ["aipp_op", "{"]:
            raise AtcError("E10052", reason=f"expected aipp_op {{, found {' '.join(words[:2])}")
        del words[:2]
        fields: Fields = {}
        while words and words[0] != "}":
            if len(words) < 3 or words[1] != ":":
                raise AtcError("E10052", reason=f"expected name: value, found {' '.join(words[:3])}")
            name, _, value = words[:3]
            del words[:3]
            fields[name] = _checked(name, value.strip("\"'"))
        if not words:
            raise AtcError("E10052", reason="aipp_op has no closing brace")
        del words[0]
        operators.append(fields)
    if not operators:
        raise AtcError("E10052", reason="it has no aipp_op")
    return operators


def configure(
    operators: list[Fields], inputs: dict[str, tuple[int, ...]], fp16_inputs: set[str], *, image_gears: bool
) -> tuple[Aipp, ...]:
    """Return AIPP for the inputs of a model.

    Parameters
    ----------
    operators
        The fields of each `aipp_op`.
    inputs
        Shapes of the model's inputs in NCHW, in their order; height and width are -1 with gears of image sizes.
    fp16_inputs
        Inputs named in --input_fp16_nodes, which cannot have AIPP.
    image_gears
        Whether the model has gears of image sizes; then the file must leave the picture's size open.

    Raises
    ------
    AtcError
        E10034, E10052, or SIM001 for what is not simulated.
    """
    result: list[Aipp] = []
    for fields in operators:
        mode = fields.get("aipp_mode")
        if mode is None:
            raise AtcError("E10052", reason="aipp_mode is missing")
        if mode == "dynamic":
            raise AtcError("SIM001", reason="dynamic AIPP (aipp_mode: dynamic) is not simulated")
        _check_simulated(fields)
        rank = int(fields.get("related_input_rank", "0"))
        if rank >= len(inputs):
            reason = f"related_input_rank is {rank}, and the model has {len(inputs)} inputs"
            raise AtcError("E10052", reason=reason)
        name, shape = list(inputs.items())[rank]
        if name in fp16_inputs:
            raise AtcError("E10034", opname=name)
        if any(done.input == name for done in result):
            raise AtcError("E10052", reason=f"the input {name} has two aipp_op")
        if len(shape) != 4 or shape[1] != 3:
            reason = f"RGB888_U8 gives 3 channels, and the input {name} is {','.join(map(str, shape))}"
            raise AtcError("E10052", reason=reason)
        width, height = (int(fields.get(f"src_image_size_{axis}", "0")) for axis in "wh")
        if image_gears and (width or height):
            reason = "with gears of image sizes src_image_size_w and src_image_size_h must be 0"
            raise AtcError("E10052", reason=reason)
        if not image_gears and (width or shape[3], height or shape[2]) != (shape[3], shape[2]):
            reason = (
                f"src_image_size is {height}x{width}, and the input is {shape[2]}x{shape[3]} without crop"
            )
            raise AtcError("E10052", reason=reason)

        def row(kind: str, default: str, fields: Fields = fields) -> tuple[float, ...]:
            return tuple(float(fields.get(f"{kind}_chn_{index}", default)) for index in range(3))

        result.append(
            Aipp(
                input=name,
                size=(max(shape[2], 0), max(shape[3], 0)),
                channels_swapped=fields.get("rbuv_swap_switch") == "true",
                mean=row("mean", "0"),
                minimum=row("min", "0"),
                reciprocal=row("var_reci", "1"),
            )
        )
    return tuple(result)


def _words(text: str) -> list[str]:
    """Split protobuf's text format into words, braces and colons."""
    return [found["word"] for found in TOKEN.finditer(text) if found["word"]]


def _checked(name: str, value: str) -> str:
    """Return a field's value, or refuse it."""
    if name == "related_input_name":
        raise AtcError("E10052", reason="related_input_name is for Caffe models; use related_input_rank")
    if name in CHOICES:
        if value not in CHOICES[name]:
            raise AtcError(
                "E10052", reason=f"{name} is {value}; it must be one of {', '.join(CHOICES[name])}"
            )
    elif name in BOOLS:
        if value not in ("true", "false"):
            raise AtcError("E10052", reason=f"{name} is {value}; it must be true or false")
    elif name in NUMBERS:
        try:
            number = float(value)
        except ValueError as error:
            raise AtcError("E10052", reason=f"{name} is {value}, which is no number") from error
        least, most = LIMITS.get(name, (float("-inf"), float("inf")))
        if not least <= number <= most:
            raise AtcError("E10052", reason=f"{name} is {value}; it must be from {least:g} to {most:g}")
        fractions = ("min_chn", "var_reci_chn", "cpadding_value", "padding_value")
        if not name.startswith(fractions) and not number.is_integer():
            raise AtcError("E10052", reason=f"{name} is {value}; it must be an integer (fractions: min_chn)")
    else:
        raise AtcError("E10052", reason=f"it has the field {name}, which AIPP does not have")
    return value


def _check_simulated(fields: Fields) -> None:
    """Refuse what the documents allow and cann_sim does not compute."""
    if "input_format" not in fields:
        raise AtcError("E10052", reason="static AIPP needs input_format")
    if fields["input_format"] != "RGB888_U8":
        raise AtcError(
            "SIM001", reason=f"input_format {fields['input_format']} is not simulated; RGB888_U8 is"
        )
    for name in ("crop", "padding", "csc_switch"):
        if fields.get(name) == "true":
            raise AtcError("SIM001", reason=f"{name} of AIPP is not simulated")
    for name in ("resize", "single_line_mode", "support_rotation", "ax_swap_switch"):
        if fields.get(name) == "true":
            raise AtcError("E10052", reason=f"{name} is not available for RGB888_U8")
