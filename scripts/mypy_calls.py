"""A plugin of mypy that refuses calls with more than three positional arguments of one type: two could change places.

What mypy knows no type of is not counted, nor are arguments of ``*args``. Named in pyproject.toml.
"""

from collections import Counter
from collections.abc import Callable

from mypy.nodes import ARG_POS
from mypy.plugin import FunctionContext, MethodContext, Plugin
from mypy.types import AnyType, Type, get_proper_type

MOST = 3


def look_at(context: FunctionContext | MethodContext) -> Type:
    """Complain of a call as of any error."""
    given = zip(context.arg_types, context.arg_kinds, strict=True)
    positional = [get_proper_type(types[0]) for types, kinds in given if kinds == [ARG_POS]]
    counts = Counter(str(kind).partition("[")[0] for kind in positional if not isinstance(kind, AnyType))
    kind, count = counts.most_common(1)[0] if counts else ("", 0)
    if count > MOST and "/projclust/" in f"/{context.api.path}":
        context.api.fail(f"{count} positional arguments of type {kind}: use keywords", context.context)
    return context.default_return_type


class Calls(Plugin):
    """Looks at every call of a function, a class or a method of projclust."""

    def get_function_hook(self, fullname: str) -> Callable[[FunctionContext], Type] | None:
        """See `look_at`."""
        return look_at if fullname.startswith("projclust") else None

    def get_method_hook(self, fullname: str) -> Callable[[MethodContext], Type] | None:
        """See `look_at`."""
        return look_at if fullname.startswith("projclust") else None


def plugin(version: str) -> type[Calls]:
    """What mypy asks of a plugin."""
    return Calls
