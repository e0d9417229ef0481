"""`projclust expand`."""

from typing import Annotated

import typer

from . import output
from .options import ConfigFile, Debug, OutputFormat, Overwrite, Revision


def expand(
    path: Annotated[str, typer.Argument(help="Folder or Hub id of a compressed model.", metavar="PATH")],
    target: Annotated[str, typer.Option("-o", "--output", help="Folder to write.", metavar="DIR")],
    overwrite: Overwrite = False,
    revision: Revision = None,
    config: ConfigFile = None,
    format: OutputFormat = output.Format.HUMAN,
    debug: Debug = False,
) -> None:
    """Write a compressed checkpoint as a stock dense one that needs no projclust.

    Example: projclust expand roberta-base-projclust -o roberta-base-dense
    """
    from projclust.jobs.expand import ExpandOptions, expand_checkpoint

    with output.progress_bar() as bar:
        bar.stage(f"expanding {path}")
        result = expand_checkpoint(ExpandOptions(path, target, overwrite, revision))
    if format is output.Format.JSON:
        output.print_json(result)
        return
    sizes = output.megabytes(result["model_bytes_stored"]), output.megabytes(result["model_bytes_dense"])
    output.print_rows([("all weights", f"{sizes[0]} -> {sizes[1]}"), ("written", result["output"])])
    output.print_next(f"AutoModel.from_pretrained({result['output']!r})")
