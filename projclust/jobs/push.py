"""The job behind `projclust push`: a folder that projclust wrote in, a repository on the Hub out."""

from collections.abc import Callable
from dataclasses import replace

from projclust.checkpoints.folder import OPTIONS_FILE
from projclust.checkpoints.graphs import stored_graphs
from projclust.checkpoints.hub import check_can_push, files_to_push, push_folder, repo_url
from projclust.checkpoints.publish import published
from projclust.checkpoints.source import CONFIG, local_folder, quantization_method, read_json
from projclust.checkpoints.tensors import has_weights, read_headers, stored_tensors
from projclust.errors import ProjclustError, ServiceError
from projclust.jobs.options import PushOptions
from projclust.results.reports import PushedFile, PushReport


def push_checkpoint(options: PushOptions, warn: Callable[[str], None] = lambda text: None) -> PushReport:
    """Make a repository hold what a checkpoint's folder holds.

    Returns:
        what was pushed. With `dry_run` nothing is asked of the Hub, and what is about the commit is None.

    Raises:
        ProjclustError: a user's mistake, or an obstacle that a user can mend; the repository is as it was.
        ServiceError: the Hub or the network failed; the repository is as it was.
    """
    url = repo_url(options.repo)
    folder = local_folder(options.path)
    if folder is None:
        raise ProjclustError(f"there is no folder {options.path}: PATH is a local folder that projclust wrote")
    method = quantization_method(read_json(folder / CONFIG))
    if method != "projclust" and not (folder / OPTIONS_FILE).is_file():
        raise ProjclustError(f"{options.path} was not written by projclust, which pushes only what it wrote")
    files, pickles = files_to_push(folder)
    if not stored_graphs(folder) or has_weights(folder):
        stored_tensors(folder)
    read_headers([folder / name for name in files if name.endswith(".safetensors")])
    if pickles:
        warn(f"pickles are not pushed: {', '.join(pickles)}")
    if "README.md" not in files:
        warn(f"{options.path} has no README.md: the repository will have no model card")
    sized = []
    for name in files:
        content = published(folder, name)
        sized.append(PushedFile(name, (folder / name).stat().st_size if content is None else len(content)))
    report = PushReport(
        path=options.path,
        repo=options.repo,
        url=url,
        private=options.private,
        files=sized,
        bytes=sum(file.bytes for file in sized),
        dry_run=options.dry_run,
    )
    if options.dry_run:
        return report
    check_can_push(options.repo)
    try:
        pushed = push_folder(folder, options.repo, options.private, warn)
    except ServiceError as error:
        raise ServiceError(f"{error}; run the same command again to complete the push") from error
    went = [file for file in sized if file.path in pushed.files]
    report = replace(report, files=went, bytes=sum(file.bytes for file in went))
    return replace(report, private=pushed.private, commit=pushed.commit, changed=pushed.changed)
