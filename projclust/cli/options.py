"""Options that several commands share."""

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from projclust.errors import ProjclustError

from .output import Format


# These repeat enumerations of modules that import torch, which --help should not wait for; a test compares them.
class CodesName(str, Enum):
    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    INT8 = "int8"
    INT4 = "int4"
    AUTO = "auto"


class MetricName(str, Enum):
    NONE = "none"
    MODEL = "model"


class DeviceName(str, Enum):
    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


def _read_config(ctx: typer.Context, path: Path | None) -> Path | None:
    if path is None:
        return None
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ProjclustError(f"cannot read the config file {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ProjclustError(f"the config file {path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ProjclustError(f"the config file {path} must hold options as `name: value`")
    known = {str(parameter.name) for parameter in ctx.command.params} - {"config", "debug"}
    values: dict[str, Any] = {str(name).replace("-", "_"): value for name, value in content.items()}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ProjclustError(f"the config file {path} sets {unknown[0]!r}, which is no option of this command")
    ctx.default_map = values
    return path


def on_command_line(ctx: typer.Context, name: str) -> bool:
    """Whether an option was given as a flag, not by a config file or a default."""
    return getattr(ctx.get_parameter_source(name), "name", "") == "COMMANDLINE"


def flags_win(ctx: typer.Context, **rivals: Any) -> dict[str, Any]:
    """Of options that exclude each other, drop those from a config file when the command line sets another."""
    given = {name: value for name, value in rivals.items() if value is not None}
    on_line = {name for name in given if on_command_line(ctx, name)}
    return {name: value if not on_line or name in on_line else None for name, value in rivals.items()}


ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", callback=_read_config, is_eager=True, help="YAML file that sets any option; flags win."),
]
OutputFormat = Annotated[Format, typer.Option("--format", help="How to print the result.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a model on the Hub.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an output folder that projclust wrote.")]

# Of every command that fits.
Affine = Annotated[bool, typer.Option("--affine", help="Subspaces with means.")]
Weights = Annotated[
    str | None,
    typer.Option(
        help="Row weights of the fit: uniform, wordfreq[:LANG,...], counts:FILE or text:FILE (uniform; wordfreq with "
        "codes auto)."
    ),
]
WeightsExponent = Annotated[
    float | None,
    typer.Option("--weights-exponent", help="Power to which frequencies are raised (0.4; 1 for counts)."),
]
Codes = Annotated[
    CodesName | None,
    typer.Option(
        help="How numbers are stored: a dtype (the model's), int8, int4, or auto, which --bits and --size mean."
    ),
]
Bits = Annotated[float | None, typer.Option(help="Stored bits for each weight of the table, everything counted.")]
MetricOption = Annotated[
    MetricName, typer.Option("--metric", help="With codes auto: weigh errors as the model's gradients do, or not.")
]
Restarts = Annotated[int, typer.Option(min=1, help="Starts to try.")]
MaxIter = Annotated[int, typer.Option(min=1, help="Most steps of a fit.")]
Tolerance = Annotated[float, typer.Option(min=0.0, help="Stop when moving rows gains no more of the cost.")]
