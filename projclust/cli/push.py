"""`projclust push`."""

from typing import Annotated, Any

import typer

from .options import ConfigFile, Debug, OutputFormat
from .output import Format, megabytes, print_json, print_next, print_rows, progress_bar, warn


def push(
    path: Annotated[str, typer.Argument(help="Folder that projclust wrote.", metavar="PATH")],
    repo: Annotated[str, typer.Argument(help="Repository on the Hub, user/name.", metavar="REPO")],
    private: Annotated[bool, typer.Option("--private", help="Create the repository as a private one.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the files; push nothing.")] = False,
    config: ConfigFile = None,
    format: OutputFormat = Format.HUMAN,
    debug: Debug = False,
) -> None:
    """Push a checkpoint to a model repository on the Hub, with its card; a second push updates it.

    The token is the one of `hf auth login` or HF_TOKEN.

    Example: projclust push roberta-base-projclust user/roberta-base-projclust
    """
    from projclust.jobs.push import PushOptions, push_checkpoint

    with progress_bar():  # never begun: an upload has bars of the Hub client's own
        result = push_checkpoint(PushOptions(path, repo, private, dry_run), warn)
    if format is Format.JSON:
        print_json(result)
        return
    print_rows(_rows(result))
    print_next("drop --dry-run to push it" if dry_run else f"projclust inspect {repo}")


def _rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [(file["path"], f"{file['bytes']:,} bytes") for file in result["files"]]
    rows.append(("all files", megabytes(result["bytes"])))
    visibility = "private" if result["private"] else "public"
    if result["dry_run"]:
        return [*rows, ("would go to", f"{result['url']} ({visibility} if it is new)")]
    done = "pushed to" if result["changed"] else "unchanged at"
    return [*rows, (done, f"{result['url']} ({visibility})"), ("commit", result["commit"])]
