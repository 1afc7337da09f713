"""The errors and warnings of ATC: CANN's codes and titles, in our own words.

The codes, their titles and what each reports are public (CANN's error code reference); every sentence here is ours.
SIM001 alone is no code of CANN: what the real tool takes and the simulation does not have. A
block has the layout of the real tool, so that a script that looks for `E10016:` at the start of a line finds it.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

GEARS = "--dynamic_batch_size, --dynamic_image_size and --dynamic_dims"


@dataclass(frozen=True)
class Entry:
    """What a code reports: its title, the sentence with fields, and if there is more to say, cause and solution."""

    title: str
    text: str
    solution: str
    cause: str = ""


ENTRIES = {
    "E10001": Entry("Invalid_Argument", "{parameter} cannot be {value}: {reason}.", "Give a value that is allowed."),
    "E10002": Entry(
        "Invalid_Argument_Tensor_Input_Shape",
        "--input_shape cannot be read at {shape}: {reason}. Expected, for example, {sample}.",
        "Write name:n,c,h,w for each input with integers, separated by semicolons, in quotation marks.",
    ),
    "E10003": Entry("Invalid_Argument", "--{parameter} cannot be {value}: {reason}.", "Correct the value."),
    "E10004": Entry("Invalid_Argument", "--{parameter} has no value.", "Give a value."),
    "E10005": Entry(
        "Invalid_Argument", "--{parameter} is {value}; it must be true or false.", "Use true or false."
    ),
    "E10006": Entry("Invalid_Argument", "--{parameter} is {value}; it must be {expected}.", "Use {expected}."),
    "E10007": Entry("Invalid_Argument", "--{parameter} must be given as {support}.", "Use --{parameter}=5 for ONNX."),
    "E10008": Entry(
        "Invalid_Argument", "--framework=0 (Caffe) needs --weight.", "Give --weight, or --framework=5 for ONNX."
    ),
    "E10009": Entry(
        "Invalid_Argument_Tensor_Dynamic_Shape",
        f"Only one of {GEARS} and --input_shape_range can be used at a time; found {{found}}.",
        "Keep one of them; for a static model none.",
    ),
    "E10010": Entry("Invalid_Argument", "--log cannot be {value}.", "Use debug, info, warning, error or null."),
    "E10011": Entry(
        "Invalid_Argument_Tensor_Input_Shape",
        "--input_shape has the size {result} in {shape}; sizes of a static model are positive.",
        "Give positive sizes, or add the gears of the dimensions that vary.",
    ),
    "E10012": Entry(
        "Invalid_Argument_Tensor_Input_Shape",
        "--dynamic_batch_size is given, but --input_shape has an input without any dimension.",
        "Give the input's shape with -1 as its first size, or remove --dynamic_batch_size.",
    ),
    "E10013": Entry("Invalid_Argument", "{value} is out of range for --{parameter}.", "Give a smaller number."),
    "E10014": Entry("Invalid_Argument", "--{parameter} cannot be {value}.", "See atc --help for what it takes."),
    "E10016": Entry(
        "Invalid_Argument_Operator_Name",
        "--{parameter} names {opname}, which the model does not have; it has {found}.",
        "Use a name of the model, and separate names with semicolons.",
    ),
    "E10017": Entry(
        "Invalid_Argument",
        "--{parameter} names {opname}, which is a node and not an input of the model.",
        "Name an input.",
    ),
    "E10018": Entry(
        "Invalid_Argument_Tensor_Dynamic_Shape",
        "With --dynamic_batch_size only the first size can be -1; dimension {index} of {shape} is.",
        "Give every other size a number, or use --dynamic_dims.",
    ),
    "E10019": Entry(
        "Invalid_Argument_Tensor_Input_Shape",
        "With --dynamic_image_size height and width of a picture, and only these, are -1; found {shape}.",
        "Put -1 for height and width of an input with four dimensions, or use --dynamic_dims.",
    ),
    "E10020": Entry(
        "Invalid_Argument",
        "--dynamic_image_size has the gear {value}, which is no height and width.",
        "Write height,width for each gear, separated by semicolons.",
    ),
    "E10021": Entry(
        "Invalid_Argument", "The path of --{parameter} has {found} bytes; at most {size} are allowed.", "Shorten it."
    ),
    "E10022": Entry(
        "Invalid_Argument", "--{parameter} is {filename}, a folder and no file name.", "Add a name to the path."
    ),
    "E10031": Entry(
        "Invalid_Argument_Tensor_Input_Shape",
        "--dynamic_batch_size is given, but no input of --input_shape has -1 as its first size.",
        "Put -1 there, or remove --dynamic_batch_size.",
    ),
    "E10032": Entry("File_Operation_Error_Parse", "{file} is not JSON: {reason}.", "Correct the file."),
    "E10034": Entry(
        "Invalid_Argument",
        "{opname} is an input of AIPP and in --input_fp16_nodes; AIPP's input is uint8.",
        "Remove it from one of --input_fp16_nodes and --insert_op_conf.",
    ),
    "E10035": Entry(
        "Invalid_Argument_Tensor_Dynamic_Shape",
        "--{parameter} has {found} gear; at least {least} are needed.",
        "Add gears, or convert a static model.",
    ),
    "E10036": Entry(
        "Invalid_Argument_Tensor_Dynamic_Shape",
        "--{parameter} has {found} gears; at most {most} are allowed.",
        "Remove gears: each is compiled and loaded; three or four are advised.",
    ),
    "E10037": Entry(
        "Invalid_Argument_Tensor_Dynamic_Shape",
        "--{parameter} has gears of {first} and of {second} sizes.",
        "Give every gear the same number of sizes.",
    ),
    "E10038": Entry(
        "Invalid_Argument_Tensor_Dynamic_Shape",
        "--{parameter} has the size {dim}; sizes are positive.",
        "Give positive sizes.",
    ),
    "E10039": Entry(
        "Invalid_Argument_Tensor_Dynamic_Shape",
        "--{parameter} has the gear {gear} more than once.",
        "Remove the repetition.",
    ),
    "E10040": Entry(
        "Invalid_Argument_Tensor_Input_Shape",
        "--{parameter} is given, but --input_shape has a range (~).",
        "Put -1 where sizes vary, or remove the gears.",
    ),
    "E10041": Entry(
        "Invalid_Argument_Model",
        "The model {parameter} cannot be loaded: {reason}.",
        "Check that the file is complete, that it is ONNX, and that its external data lies beside it.",
    ),
    "E10049": Entry(
        "Invalid_Argument_Tensor_Input_Shape",
        "--input_shape gives {name} {found} dimensions; in the model it has {expected}.",
        "Give as many sizes as the input has dimensions.",
    ),
    "E10050": Entry(
        "Invalid_Argument_Tensor_Input_Shape_Range",
        "{name} has the fixed size {size} in the model, outside of {least}~{most} in --input_shape.",
        "Give a range with that size.",
    ),
    "E10052": Entry("Invalid_Argument", "The AIPP file cannot be used: {reason}.", "Correct --insert_op_conf's file."),
    "E10054": Entry(
        "Invalid_Argument",
        "{parameter} is required and has no value.",
        "Give it. If it is given, a value before it may lack its quotation marks: the shell ends a command at ';'.",
    ),
    "E10055": Entry("Not_Supported", "This is not supported: {reason}.", "Change the option."),
    "E10056": Entry("Invalid_Argument", "{first} and {second} cannot be given together.", "Remove one of them."),
    "E10057": Entry(
        "Invalid_Argument", "--{first} and --{second} belong together.", "With --mode=6 give nothing but --om."
    ),
    "E10058": Entry("Invalid_Argument", "{parameter} is not given or empty.", "Give a value."),
    "E11016": Entry(
        "Invalid_Argument",
        "--out_nodes asks for output {index} of {opname}, which has {count}.",
        "Count outputs from 0.",
    ),
    "E11017": Entry(
        "Invalid_Argument", "--out_nodes names {opname}, which the model does not have.", "Use a node's name."
    ),
    "E13000": Entry(
        "File_Operation_Error_Invalid_Path", "{path} cannot be found: {reason}.", "Correct the path."
    ),
    "E13001": Entry("File_Operation_Error_Open", "{file} cannot be opened: {reason}.", "Check its permissions."),
    "E13003": Entry("File_Operation_Error_Read", "{file} cannot be read: {reason}.", "Check the file."),
    "E13004": Entry(
        "File_Operation_Error_Write", "{file} cannot be written: {reason}.", "Check the folder and the disk."
    ),
    "E13009": Entry(
        "Invalid_Argument_Operator_Name",
        "Two nodes have the name {opname}.",
        "Give each node a name of its own; initializers and inputs count.",
    ),
    "E13010": Entry(
        "Not_Supported_Operator",
        "The node {opname} has the operator {optype}, for which no plug-in is registered{known}.",
        "Export with another opset, or replace the operator.",
        cause="Operators are registered by domain, opset version and name; a version that is not listed is unknown.",
    ),
    "E13014": Entry(
        "Invalid_Argument",
        "{parameter} of the node {opname} is {value}: {reason}.",
        "Change the node, or export it in another way.",
    ),
    "E13015": Entry(
        "File_Operation_Error_Invalid_File_Size",
        "{file} has {size} bytes; a file can have up to {most}.",
        "Keep the weights as external data beside the model.",
    ),
    "E13025": Entry("Invalid_Argument", "An input tensor is not valid: {reason}.", "Give its shape in --input_shape."),
    "E14001": Entry(
        "Invalid_Argument_Operator_Compilation_Parameter",
        "The node {opname} ({optype}) cannot have {value}: {reason}.",
        "Check the node's inputs and attributes.",
    ),
    "E16001": Entry(
        "Invalid_Argument_ONNX_Model_Data", "The model has no {value}.", "Export it with inputs and outputs."
    ),
    "E16004": Entry("Invalid_Argument_ONNX_Model_Data", "The ONNX file has no graph.", "Export the model again."),
    "E16005": Entry(
        "Invalid_Argument_ONNX_Model_Data",
        "The model imports {count} operator sets ({found}) and has nodes without a domain; exactly one is allowed.",
        "Remove the other entries of opset_import: exporters add those of their own functions.",
    ),
    "E19999": Entry(
        "Inner_Error",
        "{reason}",
        "Look at the log (--log=debug), and report what it says.",
        cause="The tool ended without an error of its own.",
    ),
    "EZ3002": Entry(
        "Not_Supported_Operator",
        "No kernel of {soc} takes the node {opname} ({optype}): {reason}.",
        "Change the node's data types or shapes, or keep it on the host.",
    ),
    "EZ3003": Entry(
        "Not_Supported_Operator",
        "No kernel or engine of {soc} is found: {reason}.",
        "{solution}.",
    ),
    # No code of CANN: the real tool takes this, so that it is no fault of the user's.
    "SIM001": Entry(
        "Not_Simulated",
        "cann_sim does not have this, CANN's ATC does: {reason}.",
        "Convert it by CANN's ATC, or without it here.",
    ),
    "W11001": Entry(
        "Performance_Not_Optimal_Operator",
        "The node {opname} is not in the operator library of high priority: {reason}.",
        "Expect it to be slow; replace it if it is large.",
    ),
}  # fmt: skip


class AtcError(Exception):
    """An error with a code of CANN and the fields of its sentence."""

    def __init__(self, code: str, **fields: object) -> None:
        self.code = code
        self.fields = fields
        super().__init__(f"{code}: {self.sentence}")

    @property
    def sentence(self) -> str:
        """Return what happened, in one sentence."""
        return ENTRIES[self.code].text.format(**self.fields)


class AtcErrors(Exception):
    """Several errors that are reported together, as the pre-check does; `errors` is not empty."""

    def __init__(self, errors: list[AtcError]) -> None:
        self.errors = errors
        super().__init__("; ".join(map(str, errors)))


class UsageError(Exception):
    """A command line that cannot be split into options; it has no code."""


def block(error: AtcError) -> str:
    """Return the lines that ATC prints for an error or a warning, with the code in front."""
    entry = ENTRIES[error.code]
    now = time.time()
    stamp = time.strftime("%Y-%m-%d-%H:%M:%S", time.localtime(now))
    micros = f"{int(now * 1e6) % 1_000_000:06d}"
    lines = [
        f"{error.code}: [PID: {os.getpid()}] {stamp}.{micros[:3]}.{micros[3:]} {entry.title} {error.sentence}"
    ]
    if entry.cause:
        lines.append(f"        Possible Cause: {entry.cause}")
    lines.append(f"        Solution: {entry.solution.format(**error.fields)}")
    return "\n".join(lines)
