"""`projclust expand`."""

from typing import Annotated

import typer

from .options import ConfigFile, Debug, OutputFormat, Overwrite, Revision
from .output import Format, megabytes, print_json, print_next, print_rows, progress_bar


def expand(
    path: Annotated[str, typer.Argument(help="Folder or Hub id of a compressed model.", metavar="PATH")],
    output: Annotated[str, typer.Option("-o", "--output", help="Folder to write.", metavar="DIR")],
    overwrite: Overwrite = False,
    revision: Revision = None,
    config: ConfigFile = None,
    format: OutputFormat = Format.HUMAN,
    debug: Debug = False,
) -> None:
    """Write a compressed checkpoint as a stock dense one that needs no projclust.

    Example: projclust expand roberta-base-projclust -o roberta-base-dense
    """
    from projclust.jobs.expand import ExpandOptions, expand_checkpoint

    with progress_bar() as bar:
        bar.stage(f"expanding {path}")
        result = expand_checkpoint(ExpandOptions(path, output, overwrite, revision))
    if format is Format.JSON:
        print_json(result)
        return
    sizes = megabytes(result["model_bytes_stored"]), megabytes(result["model_bytes_dense"])
    print_rows([("all weights", f"{sizes[0]} -> {sizes[1]}"), ("written", result["output"])])
    print_next(f"AutoModel.from_pretrained({result['output']!r})")
