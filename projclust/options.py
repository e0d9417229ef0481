"""Options, declared once; imports no torch.

A dataclass that derives from `Options` declares its fields with `option`: default, help, range. The command line, YAML
files, texts such as ``projective:k=3`` and the Python API are all derived from that declaration, and refuse the same.
"""

import operator
from collections.abc import Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from enum import Enum
from math import inf
from types import UnionType
from typing import Any, get_args, get_origin

from projclust.errors import OptionError


class Choice(str, Enum):
    """Base of closed choices: a member is the string it stands for, also when printed."""

    def __str__(self) -> str:
        return str(self.value)

    def __format__(self, spec: str) -> str:
        return format(str(self.value), spec)

    @classmethod
    def of(cls, value: Any, name: str) -> Any:
        """The member that `value` names.

        Raises:
            OptionError: there is none; `name` is the option it was given for.
        """
        try:
            return cls(value)
        except ValueError:
            raise OptionError(f"`{name}` must be one of {', '.join(cls)}, not {value!r}") from None


class Method(Choice):
    """What is fitted to the table: projective clustering, or a baseline behind the same interface."""

    PROJECTIVE = "projective"
    SVD = "svd"  # one subspace: truncated singular value decomposition
    RANDOM = "random"  # k random equal groups, one subspace each: what clustering itself brings is the difference


class Ranks(Choice):
    """Whether all subspaces have the same rank."""

    EQUAL = "equal"
    ADAPTIVE = "adaptive"  # as many parameters, spent where they save most


class Loss(Choice):
    """What is summed over the rows, of the distance r of each to its subspace."""

    L2 = "l2"  # r^2
    L1 = "l1"  # r
    HUBER = "huber"  # r^2 up to the median distance m of the l2 fit, 2mr - m^2 beyond


class Init(Choice):
    """Where the first labels of a clustering come from."""

    SPHERICAL = "spherical"  # k-means of rows scaled to unit length
    RESIDUAL = "residual"  # rows far from the subspaces found so far seed the next one
    RANDOM = "random"  # equal groups


class Codes(Choice):
    """How the numbers of a compressed table are stored."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    INT8 = "int8"
    INT4 = "int4"
    AUTO = "auto"  # as many bits as each coordinate of each row deserves

    @property
    def is_float(self) -> bool:
        """Whether factors are stored as floats of this dtype."""
        return self.value in FLOAT_BYTES

    @property
    def bits(self) -> int | None:
        """Bits of an integer code; None for other codes."""
        return int(self.value[3:]) if self.value.startswith("int") else None


class Body(Choice):
    """How the weights beside the table are stored: as integers of so many bits, with a scale for each row or group."""

    INT8 = "int8"
    INT4 = "int4"


class SizeOf(Choice):
    """What a size in bytes is that of."""

    EMBEDDING = "embedding"
    MODEL = "model"  # all weights, as a checkpoint stores them


# The bytes of a number, for every dtype that factors or a dense table can have.
FLOAT_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "float64": 8}


class Sensitivity(Choice):
    """In which coordinates the errors of coded rows count: as they are, or by what the model makes of them."""

    NONE = "none"
    MODEL = "model"


class Device(Choice):
    """Where to compute; auto is CUDA where there is any."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class HelpPanel(Choice):
    """The groups of options in the help of a command, in their order there."""

    SIZE = "Size"
    METHOD = "Method and codes"
    WEIGHTS = "Row weights"
    SOLVER = "Solver of subspaces"
    DATA = "Tasks and variants"
    TRAINING = "Training"
    OUTPUT = "Output"
    HUB = "Hub"
    RUNNING = "Running"


@dataclass(frozen=True)
class Declared:
    """What is declared of an option beside its name, type and default.

    Attributes:
        help: a sentence for people.
        flags: on the command line; default: ``--name``. An argument has none.
        metavar: what stands for the value in the help.
        choices: allowed values of a string.
        least, most: the range of a number, both included.
        above, below: the same, excluded.
        hint: in parentheses behind the range.
        aliases: names that it had earlier and still answers to.
        is_argument: whether it is given by its place.
        panel: the group of the help that it stands in.
    """

    help: str
    flags: tuple[str, ...] = ()
    metavar: str | None = None
    choices: tuple[str, ...] | None = None
    least: float = -inf
    most: float = inf
    above: float = -inf
    below: float = inf
    hint: str = ""
    aliases: tuple[str, ...] = ()
    is_argument: bool = False
    panel: HelpPanel = HelpPanel.RUNNING


def option(default: Any, help: str, *flags: str, **more: Any) -> Any:
    """A field of `Options`; see `Declared` for the keywords."""
    return field(default=default, metadata={"declared": Declared(help, flags, **more)})


def required(help: str, *flags: str, **more: Any) -> Any:
    """A field of `Options` without a default; see `Declared` for the keywords."""
    return field(metadata={"declared": Declared(help, flags, **more)})


def argument(help: str, metavar: str) -> Any:
    """A field of `Options` without a default that the command line takes by its place."""
    return required(help, metavar=metavar, is_argument=True)


def like(options: "type[Options]", name: str, **changes: Any) -> Any:
    """A field declared as another class declares it, with another default or help where they are given."""
    part = part_of(options, name)
    own = {**part.metadata["declared"].__dict__, **changes}
    default = own.pop("default", part.default)
    return field(default=default, metadata={"declared": Declared(**own)})


def nested(options: "Options", without: Sequence[str] = ()) -> Any:
    """A field that holds other options, which the command line and YAML files show among the rest, `without` some."""
    return field(default=options, metadata={"without": tuple(without)})


@dataclass(frozen=True)
class Options:
    """Base of dataclasses of options: values are brought to their types and checked when one is made."""

    def __post_init__(self) -> None:
        for part in fields(self):
            if "declared" in part.metadata:
                object.__setattr__(self, part.name, checked(part, getattr(self, part.name)))
        self.check()

    def check(self) -> None:
        """Refuse options that do not go together.

        Raises:
            OptionError: naming them.
        """

    def as_dict(self) -> dict[str, Any]:
        """Every option as JSON and YAML hold it, nested ones among the rest."""
        values: dict[str, Any] = {}
        for part in fields(self):
            value = getattr(self, part.name)
            if isinstance(value, Options):
                left_out = part.metadata["without"]
                values |= {name: own for name, own in value.as_dict().items() if name not in left_out}
            else:
                values[part.name] = str(value) if isinstance(value, Choice) else value
                if isinstance(value, tuple):
                    values[part.name] = list(value)
        return values

    @classmethod
    def flags_win(cls, values: dict[str, Any], on_line: set[str]) -> dict[str, Any]:
        """Values of a command line and a config file, less those of the file that a flag `on_line` rules out."""
        return values


@dataclass(frozen=True, kw_only=True)
class FitOptions(Options):
    """How subspaces are fitted: what a `Recipe` and the solver's `ClusteringOptions` share."""

    ranks: Ranks = option(
        Ranks.EQUAL,
        "adaptive gives each subspace a rank of its own, with no more parameters than --j for all.",
        panel=HelpPanel.SOLVER,
    )
    loss: Loss = option(
        Loss.L2,
        "What is summed of the rows' distances: l2 their squares; l1 and huber heed outliers less.",
        panel=HelpPanel.SOLVER,
    )
    affine: bool = option(False, "Let every subspace have a mean.", panel=HelpPanel.SOLVER)
    restarts: int = option(16, "The number of starts to try.", least=1, panel=HelpPanel.SOLVER)
    max_iter: int = option(100, "The most steps of a fit.", least=1, panel=HelpPanel.SOLVER)
    tol: float = option(
        1e-3, "Stop when moving rows lowers the cost by no more than this fraction.", least=0, panel=HelpPanel.SOLVER
    )
    seed: int = option(0, "The seed of all random choices.", least=0, most=2**63 - 1)


def fields_of(options: type[Options]) -> "list[Field[Any]]":
    """The fields of options as people read them: those that the class declares itself before those it inherits."""
    return sorted(fields(options), key=lambda part: part.name not in options.__annotations__)


def part_of(options: type[Options], name: str) -> "Field[Any]":
    """The field of an option."""
    return next(part for part in fields(options) if part.name == name)


def names_of(options: type[Options]) -> dict[str, str]:
    """The field of every name that an option answers to."""
    found: dict[str, str] = {}
    for part in fields(options):
        if "declared" in part.metadata:
            found |= dict.fromkeys((part.name, *part.metadata["declared"].aliases), part.name)
    return found


def is_required(part: "Field[Any]") -> bool:
    """Whether an option has no default."""
    return part.default is MISSING and part.default_factory is MISSING


def kind_of(part: "Field[Any]") -> Any:
    """The type of an option's values, None apart."""
    kinds = [kind for kind in get_args(part.type) if kind is not type(None)]
    return kinds[0] if isinstance(part.type, UnionType) else part.type


def checked(part: "Field[Any]", value: Any) -> Any:
    """The value as the option's type, inside its range.

    Raises:
        OptionError: it is neither.
    """
    name, kind, declared = part.name, kind_of(part), part.metadata["declared"]
    if value is None and (part.default is None or isinstance(part.type, UnionType)):
        return None
    if isinstance(kind, type) and issubclass(kind, Choice):
        return kind.of(value, name)
    if declared.choices is not None and value not in declared.choices:
        raise OptionError(f"`{name}` must be one of {', '.join(declared.choices)}, not {value!r}")
    if get_origin(kind) is tuple:
        return _checked_list(part, value)
    try:
        if isinstance(value, bool) != (kind is bool) or (kind is str and not isinstance(value, str)):
            raise TypeError
        number = operator.index(value) if kind is int else kind(value)
    except (TypeError, ValueError):
        words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
        raise OptionError(f"`{name}` must be {words[kind]}, not {value!r}") from None
    if kind in (int, float):
        _check_range(name, declared, number)
    return number


def _checked_list(part: "Field[Any]", value: Any) -> tuple[Any, ...]:
    """A list, or a text with commas between numbers, each item once and checked."""
    (item, _), name = get_args(kind_of(part)), part.name
    if item is str:
        return tuple(value)
    items = value if isinstance(value, (list, tuple)) else [value]
    if isinstance(value, str):
        items = [text for text in value.strip().strip("[]()").split(",") if text.strip()]
    try:
        numbers = tuple(item(number) for number in items)
    except (TypeError, ValueError):
        raise OptionError(f"`{name}` takes numbers as 2,1, with commas between them, not {value!r}") from None
    for number in numbers:
        _check_range(name, part.metadata["declared"], number)
    return tuple(dict.fromkeys(numbers))


def _check_range(name: str, declared: Declared, number: float) -> None:
    low, high = max(declared.least, declared.above), min(declared.most, declared.below)
    if declared.least <= number <= declared.most and declared.above < number < declared.below:
        return
    hint = f" ({declared.hint})" if declared.hint else ""
    if -inf < low and high < inf:
        raise OptionError(f"`{name}` must lie between {low:g} and {high:g}{hint}, not {number:g}")
    if -inf < declared.least:
        raise OptionError(f"`{name}` must be at least {low:g}{hint}, not {number:g}")
    raise OptionError(f"`{name}` must be a number greater than {low:g}{hint}, not {number:g}")


def read_value(part: "Field[Any]", text: str) -> Any:
    """The value that a text stands for; `checked` looks at it next.

    Raises:
        ValueError: it stands for none.
    """
    kind = kind_of(part)
    if kind is bool:
        return {"true": True, "false": False}[text.lower()] if text.lower() in ("true", "false") else text
    return kind(text) if kind in (int, float) else text


def check_combination(method: str, n_clusters: int | None, ranks: str, loss: str) -> None:
    """Refuse options of a fit of subspaces that exclude each other.

    Raises:
        OptionError: naming them.
    """
    if method == Method.RANDOM and loss != Loss.L2:
        raise OptionError("method random keeps its labels: its loss must be l2")
    if ranks == Ranks.ADAPTIVE and (method != Method.PROJECTIVE or n_clusters == 1):
        raise OptionError("adaptive ranks are of several subspaces: use method projective with k of 2 or more")
    if ranks == Ranks.ADAPTIVE and loss != Loss.L2:
        raise OptionError("adaptive ranks are allotted by squared errors: use loss l2")
