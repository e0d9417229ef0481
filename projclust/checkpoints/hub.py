"""Model repositories on the Hub: whether one may push there, which files of a folder go, and the push itself."""

import contextlib
import json
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import logging

import projclust
from projclust.checkpoints.publish import published
from projclust.checkpoints.source import CONFIG, leads_out, one_line
from projclust.errors import ProjclustError, ServiceError
from projclust.onnx_export.needs import GRAPHS

# What a loader would take in place of, or beside, the weights just pushed.
_WEIGHT_FILES = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")
# Weights of a kind that is not written here, which a config of ours may not fit.
_THEIR_WEIGHTS = re.compile(r"(pytorch_model|tf_model|flax_model)\b.*\.(bin|h5|msgpack)(\.index\.json)?")

_PICKLES = (".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth")

# httpx's, which from huggingface_hub 2 on is another package.
_HTTP_ERROR: type[Exception] = HfHubHTTPError.__mro__[1]

# The statuses 4xx that are not the user's fault: timeouts, a commit that came in between, rate limits.
_WORTH_ANOTHER_TRY = (408, 409, 412, 423, 425, 429)


@dataclass(frozen=True)
class Pushed:
    """What a push left on the Hub; `changed` is False when every file was there already, and no commit was made.

    `files` are those of the folder that went there.
    """

    url: str
    files: list[str]
    private: bool
    commit: str
    changed: bool


def is_model_id(name: str) -> bool:
    """Whether a model on the Hub can have that name, which is user/name or, for a few old ones, a name alone."""
    try:
        huggingface_hub.hf_hub_url(name, CONFIG)  # for its check of the id
    except HFValidationError:
        return False
    return True


def repo_url(repo: str) -> str:
    """The address of a repository, which is user/name."""
    if repo.count("/") != 1 or not is_model_id(repo):
        raise ProjclustError(f"{repo!r} names no repository: give user/name, of letters, digits, '-', '_' and '.'")
    return f"{HfApi().endpoint}/{repo}"


def check_can_push(repo: str) -> None:
    """Ask the Hub whether the user's token is valid and may write; whether to `repo`, only the push itself shows."""
    repo_url(repo)
    try:
        with _in_one_sentence(repo):
            identity = _identity(_client(repo))
    except ServiceError as error:
        raise ServiceError(f"{error}; nothing was done yet: run the same command again later") from error
    access = (identity.get("auth") or {}).get("accessToken") or {}
    if access.get("role") == "read":
        raise ProjclustError(f"the token may only read: pushing to {repo} needs one with write access")


def _identity(api: HfApi) -> dict[str, Any]:
    """The account that the token belongs to."""
    try:
        return api.whoami()
    except HfHubHTTPError as error:
        if error.response.status_code not in (401, 403):
            raise
        raise ProjclustError(
            "the Hub does not know the token: set HF_TOKEN to a valid one, or run `hf auth login` again"
        ) from error


def files_to_push(folder: Path) -> tuple[list[str], list[str]]:
    """The files of a folder that go to the Hub, and the pickles that do not, by their paths inside it.

    Hidden files and folders are in neither. Links out of the folder, broken ones and what is no file are refused.
    """
    files: list[str] = []
    pickles: list[str] = []
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        name = "/".join(parts)
        if any(part.startswith(".") for part in parts):
            continue
        if path.is_symlink() and leads_out(path, folder):
            raise ProjclustError(f"{folder} holds the link {name}, which leads out of it: put the file itself there")
        if path.is_dir() and not path.is_symlink():
            continue
        if not path.is_file():
            raise ProjclustError(f"{folder} holds {name}, which is neither a file nor a link to one: remove it")
        (pickles if path.suffix.lower() in _PICKLES else files).append(name)
    return files, pickles


def push_folder(folder: Path, repo: str, private: bool, warn: Callable[[str], None]) -> Pushed:
    """Make `repo` hold the files of a folder, in one commit; the repository is created when there is none.

    Weight files that `repo` has and the folder has not are removed, for a loader could prefer them. Every other file
    that only `repo` has stays. A folder without weights removes none: of it, where `repo` holds weights, only the
    graphs are pushed, for the config, the tokenizer and the card there belong to these weights. `private` is about a
    repository that is created; False leaves that to the owner's settings. After an error the repository is as it was,
    and what is uploaded already need not be again.
    """
    url = repo_url(repo)
    names, _ = files_to_push(folder)
    with _in_one_sentence(repo), _client_warnings(warn):
        api = _client(repo)
        api.create_repo(repo, private=private or None, exist_ok=True)
        before = api.model_info(repo)
        if private and not before.private:
            raise ProjclustError(f"{repo} exists and is public: make it private in its settings, or drop --private")
        if before.private and not private:
            warn(f"{repo} is private: its settings on the Hub can make it public")
        stored = {sibling.rfilename for sibling in before.siblings or []}
        weights = {name for name in stored if _WEIGHT_FILES.fullmatch(name)}
        if not any(map(_WEIGHT_FILES.fullmatch, names)):
            if weights or any(map(_THEIR_WEIGHTS.fullmatch, stored)):
                warn(f"{repo} holds weights, with a config, tokenizer and card of their own: only {GRAPHS}/ is pushed")
                names = [name for name in names if name.startswith(f"{GRAPHS}/")]
            weights = set()
        elif kept := sorted(name for name in stored.difference(names) if re.fullmatch(rf"{GRAPHS}/[^/]+\.onnx", name)):
            warn(
                f"{repo} keeps {', '.join(kept)}, which may be of other weights: push the folder with graphs of its own"
            )
        stale = sorted(weights.difference(names))
        deleted = [CommitOperationDelete(name, is_folder=False) for name in stale]
        added = [CommitOperationAdd(name, published(folder, name) or folder / name) for name in names]
        message = f"Push with projclust {projclust.__version__}"
        # Not upload_folder: on a slow line it makes several commits, and between them the shards fit no index.
        commit = api.create_commit(repo, [*deleted, *added], commit_message=message)
    return Pushed(url, names, bool(before.private), commit.oid, commit.oid != before.sha)


def _client(repo: str) -> HfApi:
    """A client with the user's token."""
    token = huggingface_hub.get_token()
    if token is None:
        raise ProjclustError(f"pushing to {repo} needs a token with write access: set HF_TOKEN or run `hf auth login`")
    if not re.fullmatch("[!-~]+", token):  # the client would show it in its complaint
        raise ProjclustError("the token has characters that no token has: set HF_TOKEN or run `hf auth login` again")
    return HfApi(token=token, library_name="projclust", library_version=projclust.__version__)


@contextlib.contextmanager
def _client_warnings(warn: Callable[[str], None]) -> Iterator[None]:
    """Pass on what the client warns about, such as a card without metadata, a line each."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        yield
    for text in dict.fromkeys(" ".join(str(warning.message).split()) for warning in caught):
        warn(text)


@contextlib.contextmanager
def _in_one_sentence(repo: str) -> Iterator[None]:
    """Turn what the Hub client raises into an error of ours: a ServiceError for what another try may mend."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()  # it would log each of its tries
    try:
        yield
    except ProjclustError:
        raise
    except (OSError, RuntimeError, ValueError, _HTTP_ERROR) as error:
        raise _our_error(error, repo) from error
    finally:
        logging.set_verbosity(level)


def _our_error(error: Exception, repo: str) -> ProjclustError:
    cause = error
    while isinstance(cause.__cause__, Exception) and not isinstance(cause, HfHubHTTPError):
        cause = cause.__cause__
    if isinstance(cause, OfflineModeIsEnabled):
        return ProjclustError(f"HF_HUB_OFFLINE is set: unset it to push to {repo}")
    if isinstance(cause, OSError) and cause.filename is not None:
        return ProjclustError(f"cannot read {cause.filename}: {cause.strerror}")
    if isinstance(error, ValueError) and not isinstance(error, json.JSONDecodeError):
        return ProjclustError(f"the Hub does not take the push to {repo}: {one_line(error)}")
    forbidden = f"the token may not write to {repo}: use one with write access to {repo.partition('/')[0]}"
    # hf_xet has a class for some refusals, and for others only a text.
    if isinstance(cause, PermissionError) or re.search(r"\((401 Unauthorized|403 Forbidden)\)", str(cause)):
        return ProjclustError(forbidden)
    if not isinstance(cause, HfHubHTTPError):
        return ServiceError(f"the Hub or the network failed: {one_line(cause)}")
    status = cause.response.status_code
    reason = " ".join((cause.server_message or "").split())[:300] or f"HTTP status {status}"
    # While files are uploaded, which the client reports so, 403 is the storage's answer to a link that has expired.
    uploading = isinstance(error, RuntimeError)
    if status >= 500 or status in _WORTH_ANOTHER_TRY or uploading:
        return ServiceError(f"the Hub failed: {reason}")
    if status in (401, 403, 404):
        return ProjclustError(f"{forbidden} ({reason})")
    return ProjclustError(f"the Hub does not take the push to {repo}: {reason}")
