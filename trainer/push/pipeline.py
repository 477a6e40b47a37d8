"""The order of a push: everything local first, then what costs the server, the alias last.

Nothing that was done is done twice when the same push is run again: an upload goes on where it
broke off, content that is published keeps its number, an alias that points there is left alone.
"""

from __future__ import annotations

import getpass
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from polygraft.client import AdapterNotFound, AdapterVersion, Alias, Client
from polygraft.client.upload import Progress
from polygraft.trainer.config import Data
from polygraft.trainer.errors import DataError, Interrupted
from polygraft.trainer.gate import GateRun, run_gate
from polygraft.trainer.push import preflight
from polygraft.trainer.push.parity import Parity, check_parity
from polygraft.trainer.push.preflight import PushedRun, read_pushed
from polygraft.trainer.push.witness import Witness
from polygraft.trainer.run_directory import JOURNAL
from polygraft.trainer.source import Source, load_source, scored_rows


@dataclass(frozen=True)
class PushRun:
    """Which run goes where, and what it has to show there."""

    directory: Path
    address: str
    name: str
    promote: str = ""
    """The alias to move; empty: the version is published and no alias moves."""
    gate: Path | None = None
    """Held-out rows; None: the test split of the run."""
    metric: str | None = None
    """None: what the run was judged by, where it is one of single rows."""
    dry_run: bool = False
    force: bool = False
    """Past the gate, never past preflight and parity."""
    reason: str = ""
    progress: Progress | None = None
    done: Callable[[str, str], None] = field(default=lambda step, text: None)
    """Told of each step that is done: its name, and what was found."""


@dataclass
class PushResult:
    """How far it came."""

    dry_run: bool
    version: AdapterVersion | None = None
    parity: Parity | None = None
    alias: Alias | None = None
    steps: dict[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "dry_run": self.dry_run,
            "number": self.version.number if self.version else None,
            "digest": self.version.digest if self.version else None,
            "parity": asdict(self.parity) if self.parity else None,
            "alias": asdict(self.alias) if self.alias else None,
            "steps": self.steps,
        }


def push(run: PushRun) -> PushResult:
    """Every step in order; the first that fails raises, and no alias has moved then.

    Raises RecipeError, DataError, AdapterInvalid, AdapterIncompatible, GateRefused, AliasConflict,
    Unavailable, and Interrupted on Ctrl-C with what there is of it.
    """
    result = PushResult(run.dry_run)

    def done(step: str, text: str) -> None:
        result.steps[step] = text
        run.done(step, text)

    try:
        _push(run, result, done)
    except KeyboardInterrupt:
        raise _interrupted(run, result) from None
    return result


def _push(run: PushRun, result: PushResult, done: Callable[[str, str], None]) -> None:
    pushed = read_pushed(run.directory)
    preflight.check_servable(pushed)
    done("files", preflight.check_files(pushed))
    prompt, witnesses = preflight.check_prompt(pushed)
    done("prompt", prompt)
    rows = _gate_rows(run, pushed) if run.promote else None
    with Client(run.address) as client:
        model = client.model()
        done("base", preflight.check_base(pushed, model))
        done("limits", preflight.check_limits(pushed, model))
        done("weights", preflight.check_weights(pushed, model.vocab_size))
        if run.dry_run:
            done("would", _intention(client, run, pushed, rows))
            return
        _publish(client, run, pushed, witnesses, result, done)
    if rows is not None:
        assert result.version is not None
        result.alias = _promote(run, pushed, result.version, rows, done)
    done("journal", _write_journal(run, pushed, result))


def _publish(
    client: Client,
    run: PushRun,
    pushed: PushedRun,
    witnesses: list[Witness],
    result: PushResult,
    done: Callable[[str, str], None],
) -> None:
    upload = client.upload_adapter(pushed.files, run.name, no_alias=True, progress=run.progress)
    result.version = version = upload.version
    proof = "proven by its probes" if version.proven else "UNPROVEN"
    done("upload", f"{run.name}@{version.number}, {proof}, {version.digest[:19]}")
    recipe = pushed.manifest.prompt
    result.parity = check_parity(client, version.digest, witnesses, recipe)
    done("parity", str(result.parity))


def _promote(
    run: PushRun,
    pushed: PushedRun,
    version: AdapterVersion,
    rows: Path | Source,
    done: Callable[[str, str], None],
) -> Alias:
    with Client(run.address) as client:
        aliases = client.get_adapter(f"{run.name}@{version.number}").aliases
    current = next((alias for alias in aliases if alias.alias == run.promote), None)
    if current is not None and [t.number for t in current.targets] == [version.number]:
        done("promote", f"{run.name}@{run.promote} points to {version.number} already")
        return current
    moved = run_gate(
        GateRun(
            address=run.address,
            name=run.name,
            version=str(version.number),
            data=rows,
            alias=run.promote,
            metric=run.metric,
            template=_template(pushed.config.data),
            completion=pushed.config.data.completion,
            reason=run.reason or f"push of {run.directory.resolve().name}",
            force=run.force,
            note=lambda text: done("gate", text),
        )
    )
    if moved.verdict is not None:
        done("gate", _verdict_line(moved))
    forced = ", FORCED" if moved.forced else ""
    where = f"{run.name}@{run.promote} -> {moved.number}"
    done("promote", f"{where} (generation {moved.generation}{forced})")
    return moved


def _gate_rows(run: PushRun, pushed: PushedRun) -> Path | Source:
    """Read before anything is sent, so that missing rows stop nothing half-way."""
    if run.gate is not None:
        prompt = pushed.manifest.prompt
        as_json = prompt.model_dump(mode="json") if prompt else None
        data = pushed.config.data
        scored_rows(run.gate, as_json, _template(data), data.completion)
        return run.gate
    source = load_source(pushed.config.data)
    wanted = {record.split: record.sha256 for record in pushed.manifest.data}
    if source.splits.hashes()["test"] != wanted.get("test"):
        raise DataError(
            "the test rows are not those that the run was scored on: the data has changed since, "
            "or rows that did not fit were dropped.",
            file=str(run.directory),
            item="data.test",
            hint="Give held-out rows: --gate rows.jsonl.",
        )
    return source


def _template(data: Data) -> str:
    return data.template if isinstance(data.template, str) else "{prompt}"


def _intention(client: Client, run: PushRun, pushed: PushedRun, rows: Path | Source | None) -> str:
    """What would happen without --dry-run."""
    digest = pushed.manifest.digest
    aliases: tuple[Alias, ...] = ()
    number = None
    with suppress(AdapterNotFound):
        versions = client.list_versions(run.name)
        number = next((v.number for v in versions if v.digest == digest), None)
        if versions:
            aliases = client.get_adapter(f"{run.name}@{versions[-1].number}").aliases
    first = (
        f"publish {pushed.manifest.size_bytes:,} bytes as a new version of {run.name}"
        if number is None
        else f"find {run.name}@{number} published already"
    )
    if rows is None:
        return f"{first}, compare its answers, and move no alias; nothing was changed"
    current = next((a.number for a in aliases if a.alias == run.promote), None)
    against = f"version {current}" if current else "the base, for nothing is served yet"
    name = rows.name if isinstance(rows, Path) else f"{len(rows.splits.test)} test rows"
    return (
        f"{first}, compare its answers, gate it on {name} against {against}, and move "
        f"{run.name}@{run.promote}; nothing was changed"
    )


def _verdict_line(moved: Alias) -> str:
    verdict = moved.verdict
    assert verdict is not None
    other = verdict.current if verdict.against == "current" else verdict.base
    low, high = verdict.interval
    scores = f"{verdict.candidate:.1f} against {other or 0.0:.1f} of {verdict.against}"
    interval = f"{verdict.delta:+.1f} [{low:+.1f}, {high:+.1f}]"
    return f"{verdict.metric} {scores}: {interval} on {verdict.rows} rows"


def _write_journal(run: PushRun, pushed: PushedRun, result: PushResult) -> str:
    """Who, when, where and why, beside the run; the server's own history has the moves."""
    record = {
        "at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "by": _user(),
        "server": run.address,
        "name": run.name,
        "reason": run.reason,
        "forced": run.force,
        **result.as_json(),
    }
    line = json.dumps(record, ensure_ascii=False, default=str) + "\n"
    history = f"polygraft adapters history {run.name}"
    try:
        with (run.directory / JOURNAL).open("a", encoding="utf-8") as file:
            file.write(line)
    except OSError as error:
        return f"not written beside the run ({error.strerror}); moves: {history}"
    return f"{pushed.directory / JOURNAL}; moves: {history}"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""


def _interrupted(run: PushRun, result: PushResult) -> Interrupted:
    if result.version is None:
        return Interrupted(
            "stopped before anything was published; the server keeps what it got of an upload for "
            "an hour.",
            hint="The same command goes on from there.",
        )
    moved = ", and the alias has moved" if result.alias else "; no alias was moved"
    return Interrupted(
        f"stopped; {run.name}@{result.version.number} is published{moved}.",
        hint="The same command goes on from there.",
    )
