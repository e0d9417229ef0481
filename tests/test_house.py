"""The shape of the code itself: short functions, few parameters, and rooms that import only from below."""

import ast
from collections.abc import Iterator
from pathlib import Path

import projclust

ROOT = Path(projclust.__file__).parent
MOST_LINES, MOST_PARAMETERS = 80, 8

# From below to above. What stands in one line does not import from each other.
FLOORS = (
    ("errors",),
    ("options",),
    ("shapes",),
    ("clustering", "glue.tasks"),
    ("coding",),
    ("tables",),
    ("weights.names", "glue.settings", "results.identity", "results.reports", "onnx_export.needs"),
    ("recipes",),
    ("weights",),
    ("checkpoints", "onnx_export"),
    ("hf",),
    ("results",),
    ("report", "glue"),
    ("jobs",),
    ("cli",),
)


def modules() -> dict[str, ast.Module]:
    found = {}
    for path in ROOT.rglob("*.py"):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def functions() -> Iterator[tuple[str, ast.FunctionDef]]:
    for name, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                yield f"{name}:{node.lineno} {node.name}", node


def test_no_function_is_long() -> None:
    long = {where: node.end_lineno - node.lineno + 1 for where, node in functions() if node.end_lineno is not None}
    assert not {where: lines for where, lines in long.items() if lines > MOST_LINES}


def test_no_function_has_many_parameters() -> None:
    many = {}
    for where, node in functions():
        own = node.args
        count = len([*own.posonlyargs, *own.args, *own.kwonlyargs]) + (own.vararg is not None) + (own.kwarg is not None)
        if any(ast.unparse(decorator) == "triton.jit" for decorator in node.decorator_list):
            continue  # a kernel takes pointers and numbers one by one, and nothing that could hold them
        # scikit-learn's estimators take every option in __init__.
        if count > MOST_PARAMETERS and not (where.startswith("clustering.estimator") and node.name == "__init__"):
            many[where] = count
    assert not many


def floor_of(module: str) -> int | None:
    parts = module.split(".")
    for length in (2, 1):
        name = ".".join(parts[:length])
        for number, rooms in enumerate(FLOORS):
            if name in rooms:
                return number
    return None


def imported(tree: ast.Module) -> Iterator[str]:
    for block in [
        node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]:
        block.body = []  # what only type checkers follow
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("projclust."):
            yield node.module.removeprefix("projclust.")
        elif isinstance(node, ast.Import):
            yield from (name.name[10:] for name in node.names if name.name.startswith("projclust."))


def test_rooms_import_only_from_below() -> None:
    wrong = []
    for name, tree in modules().items():
        own = floor_of(name)
        for other in imported(tree):
            floor = floor_of(other)
            if own is not None and floor is not None and floor > own:
                wrong.append(f"{name} imports {other}")
    assert not wrong


def test_no_two_modules_import_each_other() -> None:
    graph = {name: set(imported(tree)) for name, tree in modules().items()}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            for other in graph.get(name, ()):
                visit(other, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())
