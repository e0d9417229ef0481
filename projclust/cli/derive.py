"""Commands from declared options: their flags, their help, and the YAML files that set them."""

import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import Field, fields
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import typer
import yaml
from typer.core import TyperCommand, TyperGroup

from projclust.cli.output import Format
from projclust.errors import OptionError, ProjclustError
from projclust.options import Declared, HelpPanel, Options, fields_of, is_required, kind_of


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Make a command of a function that takes options, and how to print: its flags are those of the options.

    The function is called with the options made, which are checked by then, and with the `Format`.
    """
    options: type[Options] = function.__annotations__["options"]

    def run(ctx: typer.Context, config: Any, format: Format, debug: bool, **values: Any) -> None:
        made = _made(options, ctx, values)
        _heed_neighbours()
        function(made, format)

    parameters = [
        inspect.Parameter("ctx", _KEYWORD, annotation=typer.Context),
        *(_parameter(part) for part in sorted(flat(options).values(), key=_place_in_help)),
        _config_of(options),
        *_COMMON,
    ]
    # Lines are broken by the terminal's width alone.
    paragraphs = inspect.cleandoc(function.__doc__ or "").split("\n\n")
    run.__name__, run.__doc__ = function.__name__, "\n\n".join(" ".join(text.split()) for text in paragraphs)
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


class Command(TyperCommand):
    """A command whose option --help stands among its others."""

    def get_help_option(self, ctx: Any) -> Any:
        found: Any = super().get_help_option(ctx)
        if found is not None:
            found.metavar, found.rich_help_panel = "", _RUNNING
        return found


class Group(TyperGroup):
    """The program, whose help names no values of flags."""

    def get_params(self, ctx: Any) -> Any:
        found = super().get_params(ctx)
        for part in found:
            if getattr(part, "is_flag", False):
                part.metavar = ""
        return found


def _heed_neighbours() -> None:
    """Tell torch, before it is imported, to use the cores that this process may use, and to wait for them asleep.

    It counts all cores of the machine, whatever a container's quota. And its threads spin while they wait for each
    other, which beside other busy processes takes several times as long as to sleep (benchmarks/bench_trellis.py).
    """
    from joblib import cpu_count  # of what the quota leaves

    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if cpu_count() < (os.cpu_count() or 1):
        os.environ.setdefault("OMP_NUM_THREADS", str(cpu_count()))


def flat(options: type[Options]) -> "dict[str, Field[Any]]":
    """Every declared field of options by its name, nested ones among the rest."""
    found: dict[str, Field[Any]] = {}
    for part in fields_of(options):
        if "declared" in part.metadata:
            found[part.name] = part
        else:
            left_out = part.metadata["without"]
            found |= {name: own for name, own in flat(part.type).items() if name not in left_out}  # type: ignore[arg-type]
    return found


_KEYWORD = inspect.Parameter.KEYWORD_ONLY


def _place_in_help(part: "Field[Any]") -> int:
    """Arguments first, then the panels in their order."""
    declared: Declared = part.metadata["declared"]
    return -1 if declared.is_argument else list(HelpPanel).index(declared.panel)


def _parameter(part: "Field[Any]") -> inspect.Parameter:
    """A parameter as typer reads it."""
    declared: Declared = part.metadata["declared"]
    kind: Any = _kind_on_command_line(part)
    default: Any = part.default
    settings: dict[str, Any] = {"help": declared.help, "metavar": declared.metavar}
    if declared.is_argument:
        info = typer.Argument(**settings, show_default=False)
        return inspect.Parameter(part.name, _KEYWORD, annotation=Annotated[kind, info])
    flags = declared.flags or ("--" + part.name.replace("_", "-"),)
    if get_origin(kind_of(part)) is tuple:
        default = ",".join(f"{item:g}" for item in default) if kind is str else None
    if is_required(part):
        default = inspect.Parameter.empty
    if kind is bool:
        settings["metavar"] = ""  # a flag has no value to name
    kind = kind | None if default is None else kind
    annotation = Annotated[kind, typer.Option(*flags, rich_help_panel=str(declared.panel), **settings)]
    return inspect.Parameter(part.name, _KEYWORD, default=default, annotation=annotation)


def _kind_on_command_line(part: "Field[Any]") -> Any:
    kind, choices = kind_of(part), part.metadata["declared"].choices
    if get_origin(kind) is tuple:
        return list[str] if get_args(kind)[0] is str else str
    return kind if choices is None else str


def _config_of(options: type[Options]) -> inspect.Parameter:
    """The option that names a YAML file of the other options."""

    def read(ctx: typer.Context, path: Path | None) -> Path | None:
        if path is not None and not ctx.resilient_parsing:  # as a shell completes a line
            ctx.default_map = _file_values(path, flat(options))
        return path

    help_text = "A YAML file that sets any option; flags win."
    annotation = Annotated[
        Path | None, typer.Option("--config", callback=read, is_eager=True, help=help_text, rich_help_panel=_RUNNING)
    ]
    return inspect.Parameter("config", _KEYWORD, default=None, annotation=annotation)


def _file_values(path: Path, parts: "Mapping[str, Field[Any]]") -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ProjclustError(f"cannot read the config file {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ProjclustError(f"the config file {path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ProjclustError(f"the config file {path} must hold options as `name: value`")
    known = {alias: name for name, part in parts.items() for alias in (name, *part.metadata["declared"].aliases)}
    values: dict[str, Any] = {}
    for name, value in content.items():
        own = str(name).replace("-", "_")
        if own not in known and own != "format":
            raise ProjclustError(f"the config file {path} sets {own!r}, which is no option of this command")
        values[known.get(own, own)] = _of_file(path, parts.get(known.get(own, own)), value)
    return values


def _of_file(path: Path, part: "Field[Any] | None", value: Any) -> Any:
    """A value of a YAML file as the command line would have it."""
    if part is None or value is None:
        return value
    is_list = get_origin(kind_of(part)) is tuple
    if isinstance(value, bool) != (kind_of(part) is bool) or (isinstance(value, (list, dict)) and not is_list):
        raise OptionError(f"the config file {path} sets `{part.name}` to {value!r}, which it cannot be")
    return ",".join(map(str, value)) if isinstance(value, list) and _kind_on_command_line(part) is str else value


def _made(options: type[Options], ctx: typer.Context, values: Mapping[str, Any]) -> Options:
    """The options from what the command line and a config file give."""
    # Given as a flag, not by the file or a default.
    on_line = {name for name in values if getattr(ctx.get_parameter_source(name), "name", "") == "COMMANDLINE"}
    nested = [part.type for part in fields(options) if "declared" not in part.metadata]
    for kind in (options, *nested):
        values = kind.flags_win(dict(values), on_line)  # type: ignore[union-attr]
    return _built(options, values)


def _built(options: type[Options], values: Mapping[str, Any]) -> Options:
    made: dict[str, Any] = {}
    for part in fields(options):
        if "declared" not in part.metadata:
            left_out = part.metadata["without"]
            own = {name: value for name, value in values.items() if name not in left_out}
            made[part.name] = _built(part.type, own)  # type: ignore[arg-type]
        elif part.name in values:
            value = values[part.name]
            made[part.name] = () if value is None and get_origin(kind_of(part)) is tuple else value
    return options(**made)


_RUNNING = str(HelpPanel.RUNNING)
_FORMAT = Annotated[Format, typer.Option("--format", help="How to print the result.", rich_help_panel=_RUNNING)]
_DEBUG = Annotated[
    bool, typer.Option("--debug", help="Show the traceback of an error.", metavar="", rich_help_panel=_RUNNING)
]
_COMMON = [
    inspect.Parameter("format", _KEYWORD, default=Format.HUMAN, annotation=_FORMAT),
    inspect.Parameter("debug", _KEYWORD, default=False, annotation=_DEBUG),
]
