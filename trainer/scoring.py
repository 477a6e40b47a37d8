"""Answers of several subjects (base, adapter) to the same rows, scored side by side.

Knows neither torch nor the server: whoever can answer rows is passed in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from polygraft.trainer.classification import Classification, classify
from polygraft.trainer.data import Example
from polygraft.trainer.errors import DataError
from polygraft.trainer.forms import Form
from polygraft.trainer.metrics import exact_match, rouge_l, score_answers
from polygraft.trainer.score import Score, difference
from polygraft.trainer.source import Source

if TYPE_CHECKING:
    from rich.table import Table

    from polygraft.adapters.manifest import Manifest
    from polygraft.trainer.frozen_base import FrozenBase
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
    base: FrozenBase | None = None
    """Where the adapter is in this process."""
    virtual_tokens: int = 0
    """That it puts in front of every prompt."""


@dataclass(frozen=True)
class Subject:
    """Who answered, and how well."""

    name: str
    prompt: Prompt
    answers: list[Answer]
    """Empty where only likelihoods were measured."""
    scores: list[Score]
    rows: int
    classification: Classification | None = None

    def score(self, metric: str) -> Score:
        """One metric. KeyError unless it was measured."""
        found = [score for score in self.scores if score.metric == metric]
        if not found:
            raise KeyError(metric)
        return found[0]

    def value(self, metric: str) -> float | None:
        """The value of one metric."""
        return next(score.value for score in self.scores if score.metric == metric)

    def as_json(self) -> dict[str, Any]:
        """For report.json and `--json`."""
        record = {
            "subject": self.name,
            "instruction": literal_text(self.prompt),
            "rows": self.rows,
            "scores": {score.metric: _score_json(score) for score in self.scores},
        }
        if self.classification is not None:
            record["classification"] = self.classification.as_json()
        return record


def score_subject(name: str, prompt: Prompt, rows: Sequence[Example], ask: Ask) -> Subject:
    """Ask for every row and score the answers."""
    answers, references = ask(prompt, rows), [row.completion for row in rows]
    classification = classify([answer.text for answer in answers], references)
    groups = [row.group for row in rows]
    scores = score_answers(answers, references, groups=groups, classification=classification)
    return Subject(name, prompt, answers, scores, len(rows), classification)


def one_word_repeated(rows: Sequence[Example]) -> Subject:
    """What a text earns that says the commonest word of the references over and over.

    It shows what clipping prevents: its unclipped precision is high, its ROUGE is not.
    """
    from collections import Counter

    from polygraft.trainer.generate import Answer

    words = Counter(word for row in rows for word in row.completion.split())
    word, length = words.most_common(1)[0][0], max(1, sum(words.values()) // len(rows))
    answer = Answer([], " ".join([word] * length), True)
    return score_subject("one word", {"segments": []}, rows, lambda prompt, _: [answer] * len(rows))


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


def compare(subjects: Sequence[Subject], groups: Sequence[str]) -> dict[str, Score]:
    """By metric, how far the last subject is above the first, paired row by row."""
    first, last = subjects[0], subjects[-1]
    found = {
        score.metric: difference(last.score(score.metric), score, groups)
        for score in first.scores
        if not score.is_detail
    }
    return {metric: score for metric, score in found.items() if score is not None}


def score_table(subjects: Sequence[Subject], title: str, *, details: bool = False) -> Table:
    """Metrics down, subjects across, each with its 95 % interval."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("metric")
    for subject in subjects:
        table.add_column(subject.name, justify="right")
    for score in subjects[0].scores:
        if details or not score.is_detail:
            table.add_row(score.metric, *(_shown(s.score(score.metric)) for s in subjects))
    return table


def confusion_table(subject: Subject) -> Table:
    """Rows: what was wanted. Columns: what was said."""
    from rich.table import Table

    assert subject.classification is not None
    labels = subject.classification.labels
    table = Table(title=f"{subject.name}: wanted down, said across", title_justify="left")
    for heading in ("", *labels, "invalid", "precision", "recall", "F1"):
        table.add_column(heading, justify="right" if heading else "left")
    rows = zip(subject.classification.by_class(), subject.classification.confusion, strict=True)
    for one, counts in rows:
        rates = (f"{rate:.1f}" for rate in (one.precision, one.recall, one.f1))
        table.add_row(one.label, *map(str, counts), *rates)
    return table


def score_candidate(candidate: Candidate, source: Source, split: str) -> list[Subject]:
    """Base, under its best wording, and adapter on one split of the source."""
    if candidate.prompt is not None:
        source = source.with_prompt(candidate.prompt)
    rows = source.splits.named()[split]
    if source.form is Form.TEXT:
        raise DataError(
            "rows of plain text ask nothing, so there are no answers to score.",
            file=rows[0].source if rows else None,
            hint="`polygraft train` scores them by perplexity; give rows with prompts here.",
        )
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


def _shown(score: Score) -> str:
    if score.value is None:
        return "n/a"
    if score.interval is None:
        return f"{score.value:.1f}"
    return f"{score.value:.1f} [{score.interval[0]:.1f}, {score.interval[1]:.1f}]"


def _score_json(score: Score) -> dict[str, Any]:
    record: dict[str, Any] = {"value": _rounded(score.value), "signature": score.signature}
    if score.interval is not None:
        record["ci95"] = [_rounded(bound) for bound in score.interval]
    return record


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)
