"""MODEL_CARD.md: what an adapter is, how to ask it, how it scored and what it is not good for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from polygraft.trainer.report.verdict import verdict
from polygraft.trainer.run_listing import RunRecord

CARD_FILE = "MODEL_CARD.md"


def card_text(run: RunRecord) -> str:
    """The card of a complete run, from its files alone."""
    manifest = json.loads((run.directory / "manifest.json").read_text(encoding="utf-8"))
    sections = [
        f"# {run.config['name']}",
        f"{_what(run, manifest)}\n\n**{verdict(run).text}**",
        "## Use",
        _use(run, manifest),
        "## Scores",
        _scores(run),
        "## Data",
        _data(run, manifest),
        "## Limits",
        "\n".join(f"- {line}" for line in _limits(run, manifest)),
        "## Made by",
        _made_by(run, manifest),
    ]
    return "\n\n".join(sections) + "\n"


def _what(run: RunRecord, manifest: dict[str, Any]) -> str:
    method = run.config["method"]
    settings = ", ".join(f"{k} {v}" for k, v in method.items() if k != "kind" and v)
    count = run.report["cost"].get("trained_parameters")
    trained = f", {count:,} trained parameters" if count else ""
    return (
        f"A `{method['kind']}` adapter ({settings}) of the base `{manifest['base']['name']}`"
        f"{trained}. Version `{run.report['digest']}`."
    )


def _use(run: RunRecord, manifest: dict[str, Any]) -> str:
    name = run.config["name"]
    if manifest.get("servable") is False:
        reason = manifest["provenance"].get("not_servable", "its manifest says so")
        return f"It cannot be served: {reason}. `polygraft score` asks it here."
    prompt = manifest.get("prompt")
    if prompt is None:
        given = 'messages=[{"role": "user", "content": "..."}]'
    else:
        names = dict.fromkeys(s["var"] for s in prompt["segments"] if "var" in s)
        given = "variables={" + ", ".join(f'"{n}": "..."' for n in names) + "}"
    # The run's folder cannot be named by a path: it may be moved.
    return f"""```sh
polygraft push RUN --name {name} --promote live
```
```python
client.generate({given}, adapter="{name}")
```"""


def _scores(run: RunRecord) -> str:
    subjects = run.report["test"]
    if not subjects:
        return "The test split was not scored."
    heads = [str(subject["subject"]) for subject in subjects]
    lines = [f"| metric | {' | '.join(heads)} |", f"|---|{'---|' * len(heads)}"]
    for metric in subjects[0]["scores"]:
        cells = [_cell(subject["scores"].get(metric)) for subject in subjects]
        lines.append(f"| {metric} | {' | '.join(cells)} |")
    signature = subjects[0]["scores"].get(run.metric, {}).get("signature", "")
    rows = subjects[0]["rows"]
    return "\n".join(lines) + f"\n\n{rows} test rows, 95 % bootstrap intervals. `{signature}`"


def _cell(score: dict[str, Any] | None) -> str:
    if score is None or score["value"] is None:
        return "n/a"
    bounds = score.get("ci95")
    return f"{score['value']:.1f}" + (f" [{bounds[0]:.1f}, {bounds[1]:.1f}]" if bounds else "")


def _data(run: RunRecord, manifest: dict[str, Any]) -> str:
    data = run.config["data"]
    source = data.get("task") or "rows of your own"
    lines = [f"{source}."]
    lines += [
        f"- {record['split']}: {record['rows']} rows, sha256 `{record['sha256'][:16]}...`"
        for record in manifest.get("data", [])
    ]
    lines += [f"- warning: {warning}" for warning in run.report.get("warnings", [])]
    return "\n".join(lines)


def _limits(run: RunRecord, manifest: dict[str, Any]) -> Iterator[str]:
    yield "It was scored on rows of its own data set only; other texts may go otherwise."
    forgetting = run.report.get("forgetting")
    if forgetting:
        total = forgetting["all"]
        yield (
            f"While it is attached, old skills of the base score {total['attached']:.1f} instead "
            f"of {total['before']:.1f}; fallen: {', '.join(forgetting['fallen']) or 'none'}."
        )
    else:
        yield (
            "What it does to other skills of the base while it is attached was not measured; "
            "detached, it does nothing to them."
        )
    yield "Bias, toxicity and safety were not measured."
    if manifest.get("servable") is not False:
        yield "It works on its own base only; a server of another one refuses it."


def _made_by(run: RunRecord, manifest: dict[str, Any]) -> str:
    provenance = manifest["provenance"]
    versions = ", ".join(f"{n} {provenance[n]}" for n in ("torch", "transformers", "peft"))
    return (
        f"{provenance['trainer']} ({versions}) on {provenance['device']}, {provenance['created']}, "
        f"in {run.report['cost']['training_seconds']:.0f} s. `config.resolved.yaml` in the run "
        "trains it again."
    )
