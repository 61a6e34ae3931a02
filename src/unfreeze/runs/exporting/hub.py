"""Uploads an export to the Hugging Face Hub in one commit, and reads back what was written."""

import contextlib
import hashlib
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unfreeze.config.commands import ExportSettings
from unfreeze.errors import ResourceError, UnfreezeError, UsageError, WeightsError

# as the Hub restricts names; USER is a user or an organisation
_REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_GIT_FILES = {".gitattributes"}  # written when a repository is created
NO_SUCH_REPO, FORBIDDEN = (401, 404), 403


@dataclass(frozen=True)
class HubUpload:
    """What was written: `url` of the repository, `commit`, `files` and whether it is private."""

    repo: str
    url: str
    commit: str
    private: bool
    files: list[str]


@dataclass(frozen=True)
class HubRepository:
    """A repository to upload to; `exists`: already, with or without files."""

    repo: str
    private: bool
    exists: bool
    api: Any

    def upload(self, folder: Path, message: str) -> HubUpload:
        """Upload all files of `folder` in one commit, then compare their digests on the Hub.

        A failure leaves no partial commit. WeightsError if a digest differs.
        """
        from huggingface_hub import CommitOperationAdd

        paths = sorted(path for path in folder.iterdir() if path.is_file())
        with _bars_on_terminals(), hub_errors(self.repo, "Nothing was committed there."):
            if not self.exists:
                self.api.create_repo(self.repo, private=True if self.private else None)
            # not upload_folder(): it may split an upload into several commits
            commit = self.api.create_commit(
                self.repo,
                [CommitOperationAdd(path.name, str(path)) for path in paths],
                commit_message=message,
            )
        with hub_errors(self.repo, f"The commit {commit.oid[:8]} is there, but was not verified."):
            written = self.api.model_info(self.repo, revision=commit.oid, files_metadata=True)
        digests = {entry.rfilename: _hub_digest(entry) for entry in written.siblings}
        differing = [path.name for path in paths if digests.get(path.name) not in _digests(path)]
        if differing:
            raise WeightsError(
                f"{differing[0]} in {self.repo} is not the file that was uploaded: its digest "
                f"differs (commit {commit.oid[:8]}).",
                "Export again with --overwrite.",
            )
        return HubUpload(
            repo=self.repo,
            url=f"{self.api.endpoint}/{self.repo}",
            commit=commit.oid,
            private=bool(written.private),
            files=[path.name for path in paths],
        )


def open_repository(s: ExportSettings) -> HubRepository:
    """The repository of `--repo`, before any work; nothing is created.

    UsageError for an invalid name, no or a wrong token, a repository with files (unless
    `--overwrite`), or a public one with `--private`; ResourceError without a connection.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    if not s.repo or not _REPO.fullmatch(s.repo):
        given = f"not {s.repo!r}" if s.repo else "which is missing"
        raise UsageError(
            f"--to hub needs the repository to upload to, {given}.", "Add --repo USER/NAME."
        )
    # read here, too: the library reads its variable once, when it is imported
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, library_name="unfreeze")
    with hub_errors(s.repo, "Nothing was uploaded."):
        api.whoami()
        try:
            info = api.model_info(s.repo)
        except RepositoryNotFoundError:
            return HubRepository(s.repo, s.private, exists=False, api=api)
    if s.private and not info.private:
        raise UsageError(
            f"{s.repo} is public, and --private was given; nothing was uploaded.",
            "Make it private in its settings on the Hub, or name a new repository.",
        )
    foreign = {entry.rfilename for entry in info.siblings or ()} - _GIT_FILES
    if foreign and not s.overwrite:
        raise UsageError(
            f"{s.repo} already has files, such as {min(foreign)}; nothing was uploaded.",
            "Name a new repository, or add --overwrite: files of the same names are replaced in a "
            "new commit, and their history is kept.",
        )
    return HubRepository(s.repo, s.private, exists=True, api=api)


@contextlib.contextmanager
def hub_errors(repo: str, state: str) -> Iterator[None]:
    """Errors of the Hub in words; `state`: what is there after a failure within the block."""
    try:
        yield
    except UnfreezeError:
        raise
    except Exception as error:
        # a failed upload of a file is a RuntimeError around the actual one
        inner = error.__cause__ if isinstance(error, RuntimeError) else error
        raised = _in_words(inner or error, repo, state)
        if raised is None:
            raise
        raise raised from error


def _in_words(error: BaseException, repo: str, state: str) -> UnfreezeError | None:
    """The error of the client for the user; None if it is none of the Hub or the network."""
    from huggingface_hub import errors

    if isinstance(error, errors.LocalTokenNotFoundError):
        return UsageError(
            f"Uploading needs a token of the Hugging Face Hub, and there is none. {state}",
            "Run `hf auth login`, or set HF_TOKEN to a token that may write.",
        )
    if isinstance(error, errors.OfflineModeIsEnabled):
        return UsageError(
            f"HF_HUB_OFFLINE is set, so nothing can be sent to the Hub. {state}", "Unset it."
        )
    if isinstance(error, errors.HfHubHTTPError):
        return _refused(error, repo, state)
    network = (errors.HTTPError, ConnectionError)  # type: ignore[attr-defined]
    if isinstance(error, (*network, RuntimeError)):
        return ResourceError(
            f"The Hugging Face Hub could not be reached ({_first_line(error)}). {state}",
            "Check the connection and run the command again.",
        )
    return None


@contextlib.contextmanager
def _bars_on_terminals() -> Iterator[None]:
    """The client's progress bars are drawn on a terminal only."""
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    if sys.stderr.isatty() or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _refused(error: Any, repo: str, state: str) -> UnfreezeError:
    code = error.response.status_code
    message = f"({code}: {error.server_message or _first_line(error)})"
    if code in NO_SUCH_REPO:
        return UsageError(
            f"The Hub does not accept the token, or has no such user or organisation as in {repo} "
            f"{message}. {state}",
            "Check `hf auth whoami` and --repo; a new token comes from your settings on the Hub.",
        )
    if code == FORBIDDEN:
        return UsageError(
            f"The token may not write to {repo} {message}. {state}",
            "Use a token with write access to it.",
        )
    return ResourceError(f"The Hub failed {message}. {state}", "Try again later.")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _hub_digest(entry: Any) -> str:
    """The SHA-256 of a file in LFS, else the git blob's SHA-1."""
    return str(entry.lfs.sha256 if entry.lfs else entry.blob_id)


def _digests(path: Path) -> set[str]:
    """Both digests of a local file."""
    from huggingface_hub.utils.sha import git_hash

    with path.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    return {sha256, git_hash(path.read_bytes())}
