"""A push with nothing made up: trained runs, a real server, and everything that can go wrong."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import pytest
from tiny_models import save_base, tiny_llama
from typer.testing import CliRunner, Result

from polygraft.adapters.canonical import canonical_bytes
from polygraft.cli import app
from polygraft.client import AdapterNotFound, Client, Unavailable
from polygraft.server import encoding
from polygraft.trainer import gate
from polygraft.trainer.errors import Interrupted
from polygraft.trainer.library import builtin_library
from polygraft.trainer.push.pipeline import PushRun, push

Serve = Callable[[Path, Path], AbstractContextManager[str]]
NOBODY = "127.0.0.1:1"  # where no server listens


def command(run: Path, *arguments: str | Path, server: str = NOBODY) -> Result:
    return CliRunner().invoke(app, ["push", str(run), "--server", server, *map(str, arguments)])


def gated(run: Path, server: str, name: str, rows: Path, *more: str) -> Result:
    return command(run, "--name", name, "--promote", "live", "--gate", rows, *more, server=server)


def live_of(client: Client, name: str) -> int:
    aliases = client.get_adapter(f"{name}@1").aliases
    return next((alias.number for alias in aliases if alias.alias == "live"), 0)


@pytest.fixture
def changed(runs: Any, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the better run with other words in its files."""

    def change(file: str, edit: Callable[[str], str]) -> Path:
        copy = shutil.copytree(runs.better, tmp_path / "changed")
        path = copy / file
        path.write_text(edit(path.read_text()))
        return copy

    return change


def edit_manifest(edit: Callable[[dict[str, Any]], None]) -> Callable[[str], str]:
    def edited(text: str) -> str:
        manifest = json.loads(text)
        edit(manifest)
        return canonical_bytes(manifest).decode()

    return edited


def test_a_better_run_is_promoted_a_worse_one_is_not_and_force_is_recorded(
    runs: Any, server: str, client: Client, held_out: Path
) -> None:
    result = gated(runs.better, server, "toy", held_out, "--reason", "more data")
    assert result.exit_code == 0, result.output
    steps = [line.split()[1] for line in result.stdout.splitlines() if line.startswith("✓")]
    assert [s for i, s in enumerate(steps) if s not in steps[:i]] == [
        *("files", "prompt", "base", "limits", "weights"),
        *("upload", "parity", "gate", "promote", "journal"),
    ]
    (move,) = client.alias_history("toy")
    assert (move.number, move.reason, move.forced) == (1, "more data", False)
    assert move.verdict is not None
    assert move.verdict.against == "base"

    again = gated(runs.better, server, "toy", held_out)
    assert (again.exit_code, "points to 1 already" in again.stdout) == (0, True)
    assert len(client.list_versions("toy")) == len(client.alias_history("toy")) == 1

    refused = gated(runs.worse, server, "toy", held_out)
    assert refused.exit_code == 5
    assert "difference" in refused.stdout  # the table
    assert live_of(client, "toy") == 1

    forced = gated(runs.worse, server, "toy", held_out, "--force", "--reason", "a drill")
    assert (forced.exit_code, "FORCED" in forced.stdout) == (0, True)
    newest = client.alias_history("toy")[0]
    assert (newest.number, newest.forced, newest.reason) == (2, True, "a drill")
    (line,) = (runs.worse / "pushes.jsonl").read_text().splitlines()
    entry = json.loads(line)
    assert (entry["reason"], entry["alias"]["forced"]) == ("a drill", True)
    assert entry["alias"]["verdict"]["candidate"] == newest.verdict.candidate  # type: ignore[union-attr]


def test_without_promote_nobody_is_served_it(runs: Any, server: str, client: Client) -> None:
    result = command(runs.better, "--name", "quiet", "--json", server=server)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["parity"]["greedy_tokens"] > 20
    assert client.get_adapter("quiet@1").aliases == ()
    with pytest.raises(AdapterNotFound):
        client.generate("x", adapter="quiet")


def test_a_dry_run_changes_nothing(
    runs: Any, server: str, client: Client, held_out: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(runs.better, tmp_path / "copy")
    before = client.list_adapters(), sorted(copy.rglob("*"))
    result = gated(copy, server, "dry", held_out, "--dry-run")
    assert result.exit_code == 0, result.output
    assert "nothing was changed" in result.stdout
    assert "against the base" in result.stdout
    assert (client.list_adapters(), sorted(copy.rglob("*"))) == before


def test_the_test_split_of_the_run_is_the_gate_unless_rows_are_given(
    runs: Any, server: str, client: Client
) -> None:
    result = command(runs.better, "--name", "own", "--promote", "live", server=server)
    assert result.exit_code == 5  # 12 rows; a gate wants 100
    assert "rows" in result.stdout
    assert live_of(client, "own") == 0


def test_a_server_that_renders_otherwise_is_found_out(
    runs: Any, server: str, client: Client, held_out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = encoding.encode_variables

    def with_bos(*given: Any) -> list[int]:
        return [256, *original(*given)]

    monkeypatch.setattr(encoding, "encode_variables", with_bos)
    result = gated(runs.better, server, "drift", held_out)
    assert result.exit_code == 5
    assert "they part at token 1, 256" in result.stderr
    assert live_of(client, "drift") == 0


def test_a_prompt_changed_after_the_training_is_found_out(
    server: str, client: Client, changed: Callable[..., Path], held_out: Path
) -> None:
    def shout(manifest: dict[str, Any]) -> None:
        manifest["prompt"]["segments"][0]["text"] = "Tell "

    run = changed("manifest.json", edit_manifest(shout))
    result = gated(run, server, "edited", held_out)
    assert result.exit_code == 5
    assert "is encoded to" in result.stderr
    assert live_of(client, "edited") == 0


def test_an_answer_that_the_trainer_did_not_see_is_found_out(
    server: str, changed: Callable[..., Path]
) -> None:
    def other(text: str) -> str:
        witnesses = [json.loads(line) for line in text.splitlines()]
        lead = max(range(16), key=witnesses[1]["greedy_margin"].__getitem__)
        witnesses[1]["greedy_ids"][lead] ^= 1
        return "".join(json.dumps(witness) + "\n" for witness in witnesses)

    run = changed("parity.jsonl", other)
    refused = command(run, "--name", "other")  # the manifest names the file's hash
    assert (refused.exit_code, "not those of this run" in refused.stderr) == (5, True)
    from polygraft.trainer.push.witness import witness_sha256

    manifest = run / "manifest.json"
    renew = edit_manifest(lambda m: m["provenance"].update(parity_sha256=witness_sha256(run)))
    manifest.write_text(renew(manifest.read_text()))
    result = command(run, "--name", "other", server=server)
    assert (result.exit_code, "the trainer saw" in result.stderr) == (5, True)


def test_another_base_is_refused_before_anything_is_sent(
    runs: Any, start_server: Serve, tmp_path: Path
) -> None:
    other = save_base(tmp_path / "other", tiny_llama(seed=1))
    with start_server(other, tmp_path / "store") as address, Client(address) as client:
        result = command(runs.better, "--name", "toy", server=address)
        assert result.exit_code == 5
        assert "weights" in result.stderr
        assert client.list_adapters() == []


def test_an_alias_that_moves_meanwhile_is_judged_again(
    runs: Any, server: str, client: Client, held_out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.upload_adapter(runs.worse, "race", no_alias=True)
    asked, seen = gate.ask_in_turn, []

    def meanwhile(address: str, contestants: Any, rows: Any) -> Any:
        seen.append([contestant.digest for contestant in contestants])
        if len(seen) == 1:
            client.move_alias("race", "live", 1, reason="somebody else")
        return asked(address, contestants, rows)

    monkeypatch.setattr(gate, "ask_in_turn", meanwhile)
    result = gated(runs.better, server, "race", held_out)
    assert result.exit_code == 0, result.output
    assert len(seen) == 2
    assert "moved meanwhile" in result.stdout
    assert live_of(client, "race") == 2


def test_a_server_killed_half_way_is_gone_on_with(
    runs: Any, tiny_base: Path, start_server: Serve, held_out: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    with ExitStack() as running:
        address = running.enter_context(start_server(tiny_base, store))

        def done(step: str, text: str) -> None:
            if step == "upload":
                running.close()

        wanted = PushRun(runs.better, address, "toy", promote="live", gate=held_out, done=done)
        with pytest.raises(Unavailable):
            push(wanted)
    with start_server(tiny_base, store) as address, Client(address) as client:
        assert [v.number for v in client.list_versions("toy")] == [1]
        result = gated(runs.better, address, "toy", held_out)
        assert result.exit_code == 0, result.output
        assert live_of(client, "toy") == 1
        assert len(client.list_versions("toy")) == 1


@pytest.mark.parametrize(
    ("step", "says"), [("weights", "before anything was published"), ("parity", "is published")]
)
def test_ctrl_c_leaves_the_alias_and_says_what_there_is(
    step: str, says: str, runs: Any, server: str, client: Client, held_out: Path
) -> None:
    name = f"stopped-{step}"

    def stop(reached: str, text: str) -> None:
        if reached == step:
            raise KeyboardInterrupt

    wanted = PushRun(runs.better, server, name, promote="live", gate=held_out, done=stop)
    with pytest.raises(Interrupted, match=says) as interrupted:
        push(wanted)
    assert interrupted.value.exit_code == 130
    if step == "parity":
        assert live_of(client, name) == 0


def test_what_is_wrong_here_needs_no_server(changed: Callable[..., Path], tmp_path: Path) -> None:
    run = changed("config.resolved.yaml", lambda text: text)
    weights = run / "adapter" / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    result = command(run)
    assert (result.exit_code, "sha256 is not the manifest's" in result.stderr) == (5, True)
    assert command(tmp_path).exit_code == 2
    assert command(tmp_path / "none").exit_code == 2
    assert command(run, "--force").exit_code == 2
    assert command(run, "--gate", "x.jsonl").exit_code == 2


def test_a_prompt_that_cannot_be_carried_is_refused_with_the_way_out(
    changed: Callable[..., Path],
) -> None:
    one, other, *_ = (template.id for template in builtin_library().of_task("sentiment"))
    several = f"template: ['builtin:{one}', 'builtin:{other}']"
    run = changed("config.resolved.yaml", lambda t: t.replace("template: Say {prompt}", several))
    assert several in (run / "config.resolved.yaml").read_text()
    result = command(run)
    assert (result.exit_code, "several wordings" in result.stderr) == (5, True)


def test_an_unserved_method_and_missing_rows_are_refused(
    runs: Any, changed: Callable[..., Path], tmp_path: Path
) -> None:
    run = changed("manifest.json", edit_manifest(lambda m: m.update(servable=False)))
    assert command(run).exit_code == 5
    missing = command(runs.better, "--promote", "live", "--gate", tmp_path / "none.jsonl")
    assert missing.exit_code == 3
    assert command(runs.better).exit_code == 6


def test_broken_numbers_are_refused(server: str, changed: Callable[..., Path]) -> None:
    import hashlib

    import torch
    from safetensors.torch import load_file, save_file

    run = changed("parity.jsonl", lambda text: text)
    path = run / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    next(iter(tensors.values()))[0, 0] = torch.nan
    save_file(tensors, path)

    def renew(manifest: dict[str, Any]) -> None:
        (entry,) = (f for f in manifest["files"] if f["name"] == path.name)
        entry.update(
            size=os.path.getsize(path), sha256=hashlib.sha256(path.read_bytes()).hexdigest()
        )

    manifest = run / "manifest.json"
    manifest.write_text(edit_manifest(renew)(manifest.read_text()))
    result = command(run, "--name", "nan", server=server)
    assert (result.exit_code, "NaN" in result.stderr) == (5, True)
