"""What is wrong or remarkable about a data set, each finding with the lines it is about.

Reads every row before it judges, so that one look tells all; `train` itself stops at the first.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import quantiles
from typing import TYPE_CHECKING, Any, Literal

from polygraft.trainer.checks import MAX_BAD_SHARE
from polygraft.trainer.data import Example, examples_of
from polygraft.trainer.errors import DataError
from polygraft.trainer.forms import PairsOf
from polygraft.trainer.rows import scan_rows

if TYPE_CHECKING:
    from polygraft.trainer.encode import Encoded

Level = Literal["error", "warning"]
MAX_LABELS = 20
"""Distinct completions up to which a split counts as classification."""
MIN_ROWS_PER_LABEL = 5
MAX_MAJORITY = 0.9
"""Share of one label from which always saying it is a good score."""
ENDINGS = (".", "!", "?", "…", '"', "'", ")", "]", "}", "`", "。", "”")
MIN_ENDED_SHARE = 0.8
"""Where so many completions end with a mark, one that does not looks cut."""


@dataclass(frozen=True)
class Finding:
    """One thing to know. Errors make `train` fail, or the adapter bad without a word."""

    level: Level
    split: str
    kind: str
    text: str
    rows: list[str]
    """`file:line` of each row."""


@dataclass
class Gathered:
    """Every readable example by split, and the findings so far."""

    splits: dict[str, list[Example]] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def add(
        self, level: Level, split: str, kind: str, text: str, rows: Iterable[Example | str]
    ) -> None:
        """Add a finding about rows (examples or places), if there are any."""
        places = [row.source if isinstance(row, Example) else row for row in rows]
        if places:
            self.findings.append(Finding(level, split, kind, text, places))

    @property
    def has_errors(self) -> bool:
        """Whether `train` would fail or be misled."""
        return any(finding.level == "error" for finding in self.findings)


def gather(files: Mapping[str, str], pairs_of: PairsOf, group: str | None) -> Gathered:
    """Read files by split name; a broken row is a finding. Raises DataError for a broken file."""
    gathered = Gathered()
    for split, path in files.items():
        found: list[Example] = []
        for line, row in scan_rows(path):
            place = f"{path}:{line}"
            try:
                if isinstance(row, DataError):
                    raise row
                found += examples_of(row, place, line, pairs_of, group)
            except DataError as error:
                text = f"{error.item}: {error.message}" if error.item else error.message
                gathered.add("error", split, "schema", text, [place])
        gathered.splits[split] = found
        if not found and not gathered.findings:
            gathered.add("error", split, "schema", "holds no rows.", [path])
    return gathered


def check_content(gathered: Gathered) -> None:
    """Findings that need no tokenizer: empty, repeated, leaked, contradictory, cut, unbalanced."""
    for split, rows in gathered.splits.items():
        if rows:
            _check_empty(gathered, split, rows)
            _check_repeats(gathered, split, rows)
            _check_endings(gathered, split, rows)
            _check_labels(gathered, split, rows)
    _check_leaks(gathered)


def check_encoded(gathered: Gathered, split: str, rows: Sequence[Encoded], max_length: int) -> None:
    """Findings about token counts."""
    cut = [row.example for row in rows if len(row.input_ids) > max_length]
    longest = max((len(row.input_ids) for row in rows), default=0)
    gathered.add(
        "error",
        split,
        "too_long",
        f"{len(cut)} rows are longer than {max_length} tokens (longest {longest}); the completion "
        "would be cut.",
        cut,
    )


def token_lengths(rows: Sequence[Encoded]) -> dict[str, dict[str, int]]:
    """Tokens of prompts and completions: least, median, 95th percentile, most."""
    return {
        "prompt": _spread([len(row.prompt) for row in rows]),
        "completion": _spread([len(row.completion) for row in rows]),
    }


def label_counts(rows: Sequence[Example]) -> dict[str, int]:
    """Rows per completion, most frequent first; empty where completions are texts."""
    counts = Counter(row.completion.strip() for row in rows)
    is_labels = len(counts) <= min(MAX_LABELS, len(rows) // 2)
    return dict(counts.most_common()) if is_labels else {}


def as_json(gathered: Gathered, lengths: Mapping[str, Any]) -> dict[str, Any]:
    """The whole check for programs."""
    return {
        "ok": not gathered.has_errors,
        "splits": {
            split: {
                "rows": len(rows),
                "labels": label_counts(rows),
                "tokens": lengths.get(split),
            }
            for split, rows in gathered.splits.items()
        },
        "findings": [asdict(finding) for finding in gathered.findings],
    }


def _check_empty(gathered: Gathered, split: str, rows: Sequence[Example]) -> None:
    empty = [row for row in rows if not row.completion.strip()]
    many = len(empty) > MAX_BAD_SHARE * len(rows)
    gathered.add(
        "error" if many else "warning",
        split,
        "empty_completion",
        f"{len(empty)} rows have an empty completion" + ("." if many else " and are dropped."),
        empty,
    )


def _check_repeats(gathered: Gathered, split: str, rows: Sequence[Example]) -> None:
    seen: set[str] = set()
    repeated = [row for row in rows if row.content in seen or seen.add(row.content)]  # type: ignore[func-returns-value]
    text = f"{len(repeated)} rows repeat an earlier one word for word."
    gathered.add("warning", split, "repeated", text, repeated)
    answers: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        answers[row.asked].add(row.completion)
    # Plain text asks nothing, so all its rows are asked the same.
    asks = [row for row in rows if row.messages or any(row.variables.values())]
    torn = [row for row in asks if len(answers[row.asked]) > 1]
    text = f"{len(torn)} rows ask the same as another and want another answer."
    gathered.add("warning", split, "contradictory", text, torn)


def _check_endings(gathered: Gathered, split: str, rows: Sequence[Example]) -> None:
    texts = [row for row in rows if len(row.completion.split()) > 3]
    open_ended = [row for row in texts if not row.completion.rstrip().endswith(ENDINGS)]
    if len(open_ended) > (1 - MIN_ENDED_SHARE) * len(texts):
        return  # then it is the style of the data set
    text = f"{len(open_ended)} completions end without a mark where the others have one: cut?"
    gathered.add("warning", split, "looks_cut", text, [row for row in open_ended if row.completion])


def _check_labels(gathered: Gathered, split: str, rows: Sequence[Example]) -> None:
    counts = label_counts(rows)
    if not counts:
        return
    rare = {label for label, count in counts.items() if count < MIN_ROWS_PER_LABEL}
    rare_rows = [row for row in rows if row.completion.strip() in rare]
    named = ", ".join(repr(label) for label in sorted(rare))
    text = f"fewer than {MIN_ROWS_PER_LABEL} rows have the label {named}."
    gathered.add("warning", split, "rare_label", text, rare_rows)
    label, count = next(iter(counts.items()))
    if count > MAX_MAJORITY * len(rows):
        share = 100 * count / len(rows)
        text = f"{share:.0f} % of the rows have the label {label!r}."
        first = [row for row in rows if row.completion.strip() == label][:1]
        gathered.add("warning", split, "unbalanced", text, first)


def _check_leaks(gathered: Gathered) -> None:
    names = list(gathered.splits)
    for index, split in enumerate(names):
        contents = {row.content for row in gathered.splits[split]}
        asked = {row.asked for row in gathered.splits[split]} - {'{"prompt":""}'}
        groups = {row.group for row in gathered.splits[split]}
        for other in names[index + 1 :]:
            rows = gathered.splits[other]
            same = [row for row in rows if row.content in contents]
            text = f"{len(same)} rows stand word for word in {split} as well."
            gathered.add("error", other, "leaked", text, same)
            known = [row for row in rows if row.asked in asked and row.content not in contents]
            text = f"{len(known)} rows ask what {split} asks, with another answer."
            gathered.add("warning", other, "leaked_prompt", text, known)
            shared = [row for row in rows if row.group in groups and row.content not in contents]
            text = f"{len(shared)} rows belong to groups that also stand in {split}."
            gathered.add("error", other, "leaked_group", text, shared)


def _spread(lengths: list[int]) -> dict[str, int]:
    ordered = sorted(lengths)
    cuts = quantiles(ordered, n=20, method="inclusive") if len(ordered) > 1 else ordered * 19
    return {
        "least": ordered[0],
        "median": round(cuts[9]),
        "p95": round(cuts[18]),
        "most": ordered[-1],
    }
