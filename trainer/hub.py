"""Data files on the Hugging Face hub: `hf:owner/name`, brought into the local cache.

Only files are read (JSONL, CSV, Parquet); the code of a dataset is never run.
"""

from __future__ import annotations

import re
from pathlib import Path

from polygraft.trainer.errors import DataError
from polygraft.trainer.rows import HUB_PREFIX, SUFFIXES

_ADDRESS = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[^:]+))?(:(?P<file>.+))?")


def fetch(address: str) -> Path:
    """The local copy of `hf:owner/name[@revision][:file]`; without a file, the only one there is.

    Raises DataError when the address is malformed, or nothing is cached and no network answers.
    """
    match = _ADDRESS.fullmatch(address.removeprefix(HUB_PREFIX))
    if match is None:
        raise DataError(
            "is no hub address.", file=address, hint="Write hf:owner/name[@revision]:file."
        )
    # Why here: it costs a second that local files should not pay.
    from huggingface_hub import hf_hub_download

    repo, revision = match["repo"], match["revision"]
    try:
        file = match["file"] or _only_file(address, repo, revision)
        local = hf_hub_download(repo, file, repo_type="dataset", revision=revision)
    except DataError:
        raise
    except Exception as error:  # of the hub's client or of the HTTP library it happens to use
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise DataError(
            f"cannot be fetched: {reason}.",
            file=address,
            hint="Check the name and the network, or download the file and name its path.",
        ) from None
    return Path(local)


def _only_file(address: str, repo: str, revision: str | None) -> str:
    from huggingface_hub import HfApi

    names = HfApi().list_repo_files(repo, repo_type="dataset", revision=revision)
    files = sorted(name for name in names if name.endswith(SUFFIXES))
    if len(files) == 1:
        return files[0]
    listed = ", ".join(files[:20]) or f"no {', '.join(SUFFIXES)} file"
    raise DataError(
        f"holds {listed}.", file=address, hint=f"Name one: {address}:{files[0]}." if files else None
    )
