"""Several processes that train one adapter together, as `accelerate launch` starts them.

All compute the same; only the first writes. The others work in a folder of their own that is
removed at the end. Knows nothing of training.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from polygraft.trainer.config import RunConfig
from polygraft.trainer.run_directory import RunDirectory


def num_processes() -> int:
    """How many train together; 1 unless a launcher says otherwise."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this process is the one that writes and prints."""
    return int(os.environ.get("RANK", "0")) == 0


def join(device: str) -> None:
    """Find the other processes, and take this one's own device. Nothing where it is alone.

    Before anything is put on a device.
    """
    if num_processes() > 1:
        from accelerate import PartialState

        PartialState(cpu=device == "cpu")


def wait_for_all() -> None:
    """Until every process has come here."""
    if num_processes() > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()


def any_says(flag: bool) -> bool:
    """Whether it is true in one of the processes; all get the same answer."""
    if num_processes() == 1:
        return flag
    import torch
    from accelerate import PartialState

    said = torch.tensor(int(flag), device=PartialState().device)
    torch.distributed.all_reduce(said, op=torch.distributed.ReduceOp.MAX)
    return bool(said)


@contextmanager
def run_directory(config: RunConfig, resume: Path | None) -> Iterator[RunDirectory]:
    """The run's directory in the first process, a copy to read and write in the others."""
    if is_first():
        wait_for_all()  # until the others have copied
        yield RunDirectory.reopen(resume) if resume else RunDirectory.create(config)
        return
    scratch = Path(tempfile.mkdtemp(prefix="polygraft-"))
    try:
        directory = RunDirectory(scratch / "run", scratch / "done")
        directory.work.mkdir()
        if resume is not None:
            shutil.copytree(resume / "checkpoints", directory.checkpoints)
        wait_for_all()
        yield directory
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
