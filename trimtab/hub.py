"""The Hugging Face hub: reading and writing by the name of a repository, and what to do where it fails."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from trimtab.errors import Incompatible


def hub_advice(name: str, revision: str | None, cause: BaseException) -> str | None:
    """Return the sentence for a failure to get `name` from the hub, or None if the failure is of another kind."""
    from huggingface_hub import is_offline_mode
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    def among(*kinds: type[BaseException]) -> bool:
        return any(isinstance(one, kinds) for one in _chain(cause))

    if among(GatedRepoError):
        return (
            f"the hub's {name} is gated: accept its licence on its page, then log in with `hf auth login` or set "
            "HF_TOKEN"
        )
    if among(RepositoryNotFoundError):
        return (
            f"the hub has no model {name} that you may see, and there is no such folder here: check the name, or log "
            "in with `hf auth login` if it is private"
        )
    if among(RevisionNotFoundError):
        return f"the hub's {name} has no branch, tag or commit {revision!r}: check it, or leave the revision out"
    if not among(LocalEntryNotFoundError, OfflineModeIsEnabled):
        return None
    if is_offline_mode():
        return (
            f"there is no folder {name} here, and the hub's {name} was not downloaded before while HF_HUB_OFFLINE "
            "forbids the network: unset it, or give a model's folder"
        )
    return (
        f"there is no folder {name} here, and the hub cannot be reached to download {name}: check the name and the "
        "connection, or give the folder of a model that was copied here"
    )


def is_hub_id(name: str | Path) -> bool:
    """Return whether a name is `org/name`, and nothing stands where a folder of the first part would."""
    parts = name.split("/") if isinstance(name, str) else []
    return len(parts) == 2 and all(parts) and not Path(parts[0]).expanduser().exists()


def folder_of(name: str | Path, revision: str | None = None) -> Path:
    """Return the folder of this name, or one with what the hub has under it if that is a hub id; raises `Incompatible`.

    Nothing but a hub id reaches the network.
    """
    from huggingface_hub import snapshot_download

    if not is_hub_id(name):
        return Path(name).expanduser()
    try:
        return Path(snapshot_download(str(name), revision=revision))
    except Exception as cause:
        advice = hub_advice(str(name), revision, cause) or f"{name} cannot be had from the hub: {cause}"
        raise Incompatible(advice) from cause


def push_folder(folder: Path, repo_id: str, *, private: bool | None, message: str) -> str:
    """Write a folder's files to a repository, made if it is not there; return its address. Raises `Incompatible`."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        address = HfApi().create_repo(repo_id, private=private, exist_ok=True)
        HfApi().upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message)
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, OSError) as cause:
        first = str(cause).strip().splitlines()[0].rstrip(".")
        raise Incompatible(
            f"{repo_id} cannot be written on the hub: {first}; give org/name, and log in with `hf auth login`"
        ) from cause
    return str(address)


def _chain(cause: BaseException | None) -> Iterator[BaseException]:
    seen = set()
    while cause is not None and id(cause) not in seen:
        yield cause
        seen.add(id(cause))
        cause = cause.__cause__ or cause.__context__
