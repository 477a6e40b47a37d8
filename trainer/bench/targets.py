"""What `--target` names: `local:RUN`, `local:BASE` or `grpc://host:port`."""

from __future__ import annotations

from polygraft.trainer.bench.scored_model import ScoredModel
from polygraft.trainer.errors import RecipeError

LOCAL, SERVER = "local:", "grpc://"


def open_target(target: str, adapter: str | None, base: str | None) -> ScoredModel:
    """Raises RecipeError for a target of another form, and what opening it raises.

    `adapter` is a reference on the server; `base` where a local adapter names its own by a folder.
    """
    if target.startswith(SERVER) and target != SERVER:
        if base is not None:
            raise RecipeError("a server has one base, so none can be named.", item="--base")
        from polygraft.trainer.bench.served_model import open_served

        return open_served(target.removeprefix(SERVER), adapter or "")
    if target.startswith(LOCAL) and target != LOCAL:
        if adapter is not None:
            raise RecipeError(
                "a local target is its own adapter.",
                item="--adapter",
                hint="Name the run: --target local:runs/NAME.",
            )
        from polygraft.trainer.bench.local_model import open_local

        return open_local(target.removeprefix(LOCAL), base)
    raise RecipeError(
        f"{target!r} is no target.",
        item="--target",
        hint="Write local:RUN, local:builtin:nano or grpc://host:port.",
    )
