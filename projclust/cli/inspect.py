"""`projclust inspect`."""

from typing import Annotated, Any

import typer

from .options import ConfigFile, Debug, OutputFormat, Revision
from .output import Format, megabytes, method_text, print_json, print_next, print_rows, quoted


def inspect(
    path: Annotated[str, typer.Argument(help="Folder or Hub id of a dense or compressed model.", metavar="PATH")],
    revision: Revision = None,
    config: ConfigFile = None,
    format: OutputFormat = Format.HUMAN,
    debug: Debug = False,
) -> None:
    """Show what a checkpoint holds: shapes, subspaces, bytes by part, error, provenance.

    Example: projclust inspect roberta-base-projclust
    """
    from projclust.jobs.inspect import inspect_checkpoint

    result = inspect_checkpoint(path, revision)
    if format is Format.JSON:
        print_json(result)
        return
    print_rows(_rows(result))
    if result["compressed"]:
        print_next(f"projclust expand {quoted(path)} -o DIR")
    else:
        print_next(f"projclust compress {quoted(path)} --k 5 --ratio 0.4")


def _rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [
        ("model", f"{result['model_class']}, {megabytes(result['model_bytes_stored'])} of weights"),
        ("embedding", f"{result['embedding']}, {result['n']:,} x {result['d']}"),
        (
            "embedding in file",
            f"{megabytes(result['bytes_stored'])} ({result['bits_per_weight']:.2f} bits per weight)",
        ),
        *(
            (
                f"  {name.rpartition('.')[2]}",
                f"{'x'.join(map(str, part['shape']))} {part['dtype']}, {part['bytes']:,} bytes",
            )
            for name, part in result["parts"].items()
        ),
    ]
    if not result["compressed"]:
        return [*rows, ("compressed", "no")]
    error = result["relative_error"]
    rows += [
        ("compressed", f"{method_text(result)}, row weights {result['weights']}"),
        ("relative error", "unknown (no report in the folder)" if error is None else f"{error:.4f}"),
    ]
    if result["model"] is not None:
        made_by = f"projclust {result['versions'].get('projclust', 'of unknown version')}"
        rows.append(("made from", f"{result['model']}, seed {result['seed']}, {made_by}"))
    return rows
