"""Answers of several subjects (base, adapter) to the same rows, scored side by side.

Knows neither torch nor the server: whoever can answer rows is passed in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from polygraft.trainer.data import Example
from polygraft.trainer.metrics import Score, exact_match, rouge_l, score_answers
from polygraft.trainer.source import Source

if TYPE_CHECKING:
    from rich.table import Table

    from polygraft.adapters.manifest import Manifest
    from polygraft.trainer.generate import Answer

Prompt = Mapping[str, Any]
"""A prompt recipe as JSON, as in `Source.prompt`."""
Ask = Callable[[Prompt, Sequence[Example]], "list[Answer]"]
"""Answers rows put into a prompt, in order."""

WORDING_ROWS = 32
"""Validation rows on which the base's best wording is picked."""


@dataclass(frozen=True)
class Candidate:
    """An adapter that can be asked, beside its base, here or on a server."""

    prompt: Prompt | None
    """The prompt recipe it carries; None for a bare PEFT directory."""
    ask_base: Ask
    ask_adapter: Ask
    digest: str | None
    """Its version, where it has one."""


@dataclass(frozen=True)
class Subject:
    """Who answered, and how well."""

    name: str
    prompt: Prompt
    answers: list[Answer]
    """Empty where only likelihoods were measured."""
    scores: list[Score]
    rows: int

    def value(self, metric: str) -> float | None:
        """The value of one metric."""
        return next(score.value for score in self.scores if score.metric == metric)

    def as_json(self) -> dict[str, Any]:
        """For report.json and `--json`."""
        return {
            "subject": self.name,
            "instruction": literal_text(self.prompt),
            "rows": self.rows,
            "scores": {
                score.metric: {"value": _rounded(score.value), "signature": score.signature}
                for score in self.scores
            },
        }


def score_subject(name: str, prompt: Prompt, rows: Sequence[Example], ask: Ask) -> Subject:
    """Ask for every row and score the answers."""
    answers = ask(prompt, rows)
    scores = score_answers(answers, [row.completion for row in rows])
    return Subject(name, prompt, answers, scores, len(rows))


def best_base_prompt(source: Source, metric: str, ask_base: Ask) -> Prompt:
    """The prompt under which the base does best on validation rows.

    Where the adapter's prompt carries no instruction, the base would be asked for nothing; it gets
    every wording of the task in turn, and the comparison is with its best.
    """
    prompts = source.base_prompts()
    if len(prompts) == 1:
        return prompts[0]
    rows = source.splits.validation[:WORDING_ROWS]
    references = [row.completion for row in rows]
    measure = exact_match if metric == "exact_match" else rouge_l

    def quality(prompt: Prompt) -> tuple[float, float]:
        texts = [answer.text for answer in ask_base(prompt, rows)]
        return measure(texts, references), rouge_l(texts, references)

    return max(prompts, key=quality)


def predictions(rows: Sequence[Example], subjects: Sequence[Subject]) -> list[dict[str, Any]]:
    """One record per row: what went in, what was wanted, what each subject said."""
    return [
        {
            "id": row.id,
            **_asked(row),
            "reference": row.completion,
            **{
                subject.name: subject.answers[index].text for subject in subjects if subject.answers
            },
        }
        for index, row in enumerate(rows)
    ]


def _asked(row: Example) -> dict[str, Any]:
    if row.messages:
        return {"messages": list(row.messages)}
    return {"variables": dict(row.variables)}


def score_table(subjects: Sequence[Subject], title: str) -> Table:
    """Metrics down, subjects across."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("metric")
    for subject in subjects:
        table.add_column(subject.name, justify="right")
    for index, score in enumerate(subjects[0].scores):
        values = [subject.scores[index].value for subject in subjects]
        table.add_row(score.metric, *("n/a" if v is None else f"{v:.1f}" for v in values))
    return table


def score_candidate(candidate: Candidate, source: Source, split: str) -> list[Subject]:
    """Base, under its best wording, and adapter on one split of the source."""
    if candidate.prompt is not None:
        source = source.with_prompt(candidate.prompt)
    rows = source.splits.named()[split]
    prompt = best_base_prompt(source, source.metric, candidate.ask_base)
    return [
        score_subject("base", prompt, rows, candidate.ask_base),
        score_subject("adapter", source.prompt, rows, candidate.ask_adapter),
    ]


def prompt_of(manifest: Manifest) -> Prompt | None:
    """The prompt recipe that an adapter carries, as JSON."""
    return manifest.prompt.model_dump(mode="json") if manifest.prompt else None


def literal_text(prompt: Prompt) -> str:
    """The literal text of a prompt, without its variables."""
    return "".join(segment.get("text", "") for segment in prompt["segments"]).strip()


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)
