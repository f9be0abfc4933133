"""Models and files of data sets from the Hugging Face hub: downloaded once, refused in one clear line.

The cache is the one that other tools share (HF_HOME), HF_ENDPOINT names another hub, HF_TOKEN opens gated models.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from hadal.errors import UserError

_WANTED = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "tokenizer.model", "merges.txt"]
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def download(name: str, revision: str | None, cache: Path | None, offline: bool, weights: bool) -> Path:
    """The folder of a model in the cache, with its weights or with config.json alone."""
    try:
        from huggingface_hub import HfApi, errors
    except ImportError:
        raise UserError(f"{name} is a Hugging Face id.", "Install huggingface_hub to use those.") from None
    api = HfApi(_endpoint(), token=_token())
    at = f"{name} at revision {revision}" if revision else name
    try:
        folder = api.snapshot_download(
            name,
            revision=revision,
            cache_dir=cache,
            local_files_only=offline,
            allow_patterns=_WANTED if weights else ["config.json"],
        )
        assert isinstance(folder, str)
        if weights and not any(Path(folder).glob("*.safetensors")):
            raise _no_weights(name, [] if offline else api.list_repo_files(name, revision=revision))
    except errors.GatedRepoError:
        raise _gated(name, f"{api.endpoint}/{name}") from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"{name} is neither a folder here nor a model on {api.endpoint}.",
            "Check the spelling; a private model needs HF_TOKEN.",
        ) from None
    except errors.RevisionNotFoundError:
        raise UserError(f"{name} has no revision {revision}.", "Give a branch, a tag or a commit of it.") from None
    except errors.LocalEntryNotFoundError as error:
        if offline:
            raise UserError(f"{at} is not in the cache, and offline mode is on.", "Download it once online.") from None
        raise _failed(f"{at} is not a folder here, and", error, "a local folder") from None
    except (errors.HTTPError, errors.HFValidationError, OSError) as error:
        raise _failed(f"{at} is not a folder here, and", error, "a local folder") from None
    return Path(folder)


def download_file(repository: str, path: str) -> Path:
    """A file of a data set in the cache. UserError where it is gated, not there, or cannot be reached."""
    try:
        from huggingface_hub import errors, hf_hub_download
    except ImportError:
        raise UserError(f"{repository} is on the hub.", "Install huggingface_hub, or give a local file.") from None
    page = f"{_endpoint() or 'https://huggingface.co'}/datasets/{repository}"
    try:
        return Path(
            hf_hub_download(repository, path, repo_type="dataset", endpoint=_endpoint(), token=_token())
        )
    except errors.GatedRepoError:
        raise _gated(repository, page) from None
    except (errors.RepositoryNotFoundError, errors.EntryNotFoundError, errors.HTTPError, OSError) as error:
        raise _failed(f"{page} ({path})", error, "a local file") from None


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None


def _token() -> str | None:
    return os.environ.get("HF_TOKEN") or None


def _gated(name: str, page: str) -> UserError:
    return UserError(f"{name} is gated.", f"Ask for access at {page}, then set HF_TOKEN to your token.")


def _failed(what: str, error: Exception, instead: str) -> UserError:
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return UserError(f"{what} cannot be downloaded ({line}).", f"Check the connection, or give {instead}.")


def _no_weights(name: str, files: list[str]) -> UserError:
    pickles = sorted(file for file in files if file.endswith((".bin", ".pt", ".pth")))
    if pickles:
        return UserError(
            f"{name} has {pickles[0]}, a pickle, which can run anything when it is opened.",
            "hadal reads safetensors only: another revision may have them.",
        )
    return UserError(f"{name} has no safetensors.", "Give a model whose files hold weights.")
