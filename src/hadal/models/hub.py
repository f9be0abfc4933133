"""Models by their Hugging Face id: resolved to a folder, downloaded once, refused in one clear line.

The cache is the one that other tools share (HF_HOME), HF_ENDPOINT names another hub, HF_TOKEN opens gated models.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from hadal.errors import UserError

_WANTED = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "tokenizer.model", "merges.txt"]
_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def resolve(model: str | Path, revision: str | None = None, cache: Path | None = None, offline: bool = False) -> Path:
    """The folder of a model: a local folder as it is, an id such as `owner/name` from the hub's cache or the hub.

    offline: use the cache only (HF_HUB_OFFLINE=1 does the same). UserError where there is no such folder or id,
    where access has to be asked for, where the hub cannot be reached, and where a model has no safetensors.
    """
    if Path(model).is_dir():
        return Path(model)
    name = str(model)
    if isinstance(model, Path) or not _ID.fullmatch(name):
        raise UserError(f"{model} is no folder.", "Give a run, a checkpoint folder, or a Hugging Face id (owner/name).")
    offline = offline or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    return _download(name, revision, cache, offline)


def _download(name: str, revision: str | None, cache: Path | None, offline: bool) -> Path:
    try:
        from huggingface_hub import HfApi, errors
    except ImportError:
        raise UserError(f"{name} is a Hugging Face id.", "Install huggingface_hub to use those.") from None
    endpoint = os.environ.get("HF_ENDPOINT") or None
    token = os.environ.get("HF_TOKEN") or None
    at = f"{name} at revision {revision}" if revision else name
    api = HfApi(endpoint, token=token)
    try:
        if not offline:
            found = api.model_info(name, revision=revision)
            revision = found.sha or revision  # all files of one state, also if the branch moves meanwhile
            _check_files(name, [file.rfilename for file in found.siblings or []])
        folder = api.snapshot_download(
            name, revision=revision, cache_dir=cache, local_files_only=offline, allow_patterns=_WANTED
        )
    except errors.GatedRepoError:
        raise UserError(
            f"{name} is gated.", f"Ask for access at its page ({api.endpoint}/{name}), then set HF_TOKEN to your token."
        ) from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"{name} is neither a folder nor a model on {api.endpoint}.",
            "Check the spelling; a private model needs HF_TOKEN.",
        ) from None
    except errors.RevisionNotFoundError:
        raise UserError(f"{name} has no revision {revision}.", "Give a branch, a tag or a commit of it.") from None
    except errors.LocalEntryNotFoundError:
        where = "is not in the cache, and offline mode is on" if offline else "cannot be downloaded"
        raise UserError(f"{at} {where}.", "Connect once to download it, or give a folder.") from None
    except (errors.HTTPError, OSError, errors.HFValidationError) as error:
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{at} cannot be downloaded ({line}).", "Try again later, or give a folder.") from None
    return Path(folder)


def _check_files(name: str, files: list[str]) -> None:
    if any(file.endswith(".safetensors") for file in files):
        return
    pickles = sorted(file for file in files if file.endswith((".bin", ".pt", ".pth")))
    if pickles:
        raise UserError(
            f"{name} has {pickles[0]}, a pickle, which can run anything when it is opened.",
            "hadal reads safetensors only: many models have them at another revision.",
        )
    raise UserError(f"{name} has no safetensors.", "Give a model whose files hold weights.")
