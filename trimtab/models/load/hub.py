"""hub_advice: what to do when a model cannot be had from the hub."""

from __future__ import annotations

from collections.abc import Iterator


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


def _chain(cause: BaseException | None) -> Iterator[BaseException]:
    seen = set()
    while cause is not None and id(cause) not in seen:
        yield cause
        seen.add(id(cause))
        cause = cause.__cause__ or cause.__context__
