"""Promotes a version if it is better on held-out rows than what is served now, as it is served.

Candidate, current version and base answer the same rows through the server, in turn, so that all
meet the same load. The server keeps the scores, judges them and moves the alias, or says why not.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from polygraft.adapters.errors import AliasConflict
from polygraft.adapters.manifest import parse_manifest
from polygraft.client import Alias, AsyncClient, Client, GatePolicy, RecordedScore
from polygraft.trainer.data import Example
from polygraft.trainer.errors import DataError, RecipeError
from polygraft.trainer.remote import CONCURRENCY, make_request
from polygraft.trainer.rouge import KINDS, rouge_scores
from polygraft.trainer.score import Score, mean_score
from polygraft.trainer.scoring import Prompt, prompt_of
from polygraft.trainer.source import Source, max_output_tokens, scored_rows
from polygraft.trainer.template import template_variables

ATTEMPTS = 3
"""Times that everybody is scored, should the alias move meanwhile."""


@dataclass(frozen=True)
class GateRun:
    """What is to be promoted, and on which rows it has to prove itself."""

    address: str
    name: str
    version: str
    """What may stand behind the @ of a reference: "7", "canary"."""
    data: Path | Source
    """A file, or the test split of what was read already."""
    alias: str = "live"
    metric: str | None = None
    """None: ROUGE-L, or exact match where the answers are too short for it."""
    template: str = "{prompt}"
    """The prompt, where the versions carry none."""
    completion: str = "completion"
    reason: str = ""
    expected_generation: int | None = None
    policy: GatePolicy | None = None
    force: bool = False
    note: Callable[[str], None] = field(default=lambda text: None)
    """Told what goes on while the rows are answered."""

    @property
    def data_name(self) -> str:
        """What the server's record calls the rows."""
        return self.data.name if isinstance(self.data, Path) else "test split"


@dataclass(frozen=True)
class Contestant:
    """Who answers: a version by its digest, or the base by ""."""

    digest: str
    prompt: Prompt
    by_variables: bool


@dataclass(frozen=True)
class TimedAnswer:
    """One answer of the server."""

    text: str
    stopped: bool
    tokens: int
    seconds: float


def run_gate(run: GateRun) -> Alias:
    """The alias as it was moved, with the verdict. Raises GateRefused with every check.

    An alias that moves while the rows are answered is judged again against what it points to then,
    unless `expected_generation` is given.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _run_once(run)
        except AliasConflict as conflict:
            if run.expected_generation is not None or attempt == ATTEMPTS:
                raise
            generation = conflict.metadata.get("generation", "another")
            run.note(
                f"{run.name}@{run.alias} was moved meanwhile (generation {generation}); all "
                "answer again, against what it points to now"
            )
    raise AssertionError("unreachable")


def _run_once(run: GateRun) -> Alias:
    with Client(run.address) as client:
        candidate = client.get_adapter(f"{run.name}@{run.version}")
        assert candidate.version is not None  # a reference names one
        current = next((a for a in candidate.aliases if a.alias == run.alias), None)
        digests = [candidate.version.digest] + ([current.digest] if current else [])
        if digests[0] in digests[1:] and current is not None and current.canary is None:
            raise RecipeError(
                f"{run.name}@{run.alias} points to version {current.number} already.",
                item="version",
            )
        contestants, source = _contestants(client, run, digests)
        rows = source.splits.test
        run.note(f"{len(contestants)} answer {len(rows)} rows in turn")
        for digest in digests:
            client.load_adapter(digest)  # else the first answers would be slower than the others
        answers = ask_in_turn(run.address, contestants, rows)
        metric = run.metric or source.metric
        recorded = [
            _record(client, run, contestant, rows, source, metric, given)
            for contestant, given in zip(contestants, answers, strict=True)
        ]
        generation = current.generation if current else 0
        return client.move_alias(
            run.name,
            run.alias,
            candidate.version.number,
            expected_generation=run.expected_generation
            if run.expected_generation is not None
            else generation,
            reason=run.reason,
            candidate_score=recorded[0].score_id,
            current_score=recorded[1].score_id if current else "",
            base_score=recorded[-1].score_id,
            policy=run.policy,
            force=run.force,
        )


def _contestants(
    client: Client, run: GateRun, digests: Sequence[str]
) -> tuple[list[Contestant], Source]:
    """Versions and, last, the base, all with one length limit; and the rows for their prompts."""
    prompts: list[Prompt | None] = []
    for digest in digests:
        version = client.get_adapter(digest).version
        assert version is not None
        prompts.append(prompt_of(parse_manifest(version.manifest_json.encode())))
    _check_variables(prompts)
    source = _rows(run, prompts[0])
    filled = [prompt or source.prompt for prompt in prompts]
    longest = max(max_output_tokens(prompt) for prompt in filled)
    contestants = [
        Contestant(digest, prompt, by_variables=carried is not None)
        for digest, prompt, carried in zip(digests, filled, prompts, strict=True)
    ]
    contestants.append(Contestant("", source.prompt, by_variables=False))
    return [replace(c, prompt=_limited(c.prompt, longest)) for c in contestants], source


def _rows(run: GateRun, prompt: Prompt | None) -> Source:
    if isinstance(run.data, Path):
        return scored_rows(run.data, prompt, run.template, run.completion)
    return run.data.with_prompt(prompt) if prompt else run.data


def _check_variables(prompts: Sequence[Prompt | None]) -> None:
    """Why: the rows of a set are identified by the fields that the prompt takes."""
    wanted = {
        tuple(sorted(template_variables(list(prompt["segments"])))) for prompt in prompts if prompt
    }
    if len(wanted) > 1:
        fields = " and ".join(", ".join(names) for names in sorted(wanted))
        raise DataError(
            f"the versions take different variables ({fields}), so no rows are the same to both.",
            item="data",
            hint="Promote it without a gate (`promote --force --reason ...`), or retrain.",
        )


def _limited(prompt: Prompt, longest: int) -> Prompt:
    defaults: Mapping[str, Any] = {**prompt["defaults"], "max_output_tokens": longest}
    return {**prompt, "defaults": defaults}


def ask_in_turn(
    address: str, contestants: Sequence[Contestant], rows: Sequence[Example]
) -> list[list[TimedAnswer]]:
    """The answers of each contestant to each row; greedy."""

    async def ask_all() -> list[list[TimedAnswer]]:
        free = asyncio.Semaphore(CONCURRENCY)
        async with AsyncClient(address) as client:

            async def one(contestant: Contestant, row: Example) -> TimedAnswer:
                request = make_request(
                    contestant.prompt, row, contestant.digest, by_variables=contestant.by_variables
                )
                limit = max_output_tokens(contestant.prompt)
                async with free:
                    started = time.monotonic()
                    answer = await client.generate(**{**request, "max_output_tokens": limit})
                    seconds = time.monotonic() - started
                tokens = answer.usage.output_tokens
                return TimedAnswer(answer.text, answer.finish_reason == "stop", tokens, seconds)

            jobs = [one(contestant, row) for row in rows for contestant in contestants]
            answers = await asyncio.gather(*jobs)
        return [answers[index :: len(contestants)] for index in range(len(contestants))]

    return asyncio.run(ask_all())


def _record(
    client: Client,
    run: GateRun,
    contestant: Contestant,
    rows: Sequence[Example],
    source: Source,
    metric: str,
    answers: Sequence[TimedAnswer],
) -> RecordedScore:
    references = [row.completion for row in rows]
    score = row_score(metric, [answer.text for answer in answers], references)
    return client.record_score(
        contestant.digest,
        score.rows,
        metric=metric,
        signature=score.signature,
        data_sha256=source.splits.hashes()["test"],
        data_name=run.data_name,
        decoding=f"greedy|max:{max_output_tokens(contestant.prompt)}",
        stopped=[answer.stopped for answer in answers],
        output_tokens=[answer.tokens for answer in answers],
        seconds=[answer.seconds for answer in answers],
        groups=_groups(rows),
    )


def row_score(metric: str, texts: Sequence[str], references: Sequence[str]) -> Score:
    """The metric with its value for each row. RecipeError for one that is no mean over rows, as
    BLEU is not.
    """
    if metric == "exact_match":
        pairs = zip(texts, references, strict=True)
        matches = [float(text.strip() == reference.strip()) for text, reference in pairs]
        return mean_score(metric, matches, "exact_match|strip|mean")
    if metric not in KINDS:
        raise RecipeError(
            f"{metric!r} is no metric of single rows.",
            item="metric",
            hint=f"Use one of {', '.join((*KINDS, 'exact_match'))}.",
        )
    return next(score for score in rouge_scores(texts, references) if score.metric == metric)


def _groups(rows: Sequence[Example]) -> list[int]:
    """The group of each row from 0; none where each row is one."""
    numbers: dict[str, int] = {}
    groups = [numbers.setdefault(row.group, len(numbers)) for row in rows]
    return groups if len(numbers) < len(rows) else []
