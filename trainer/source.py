"""From a recipe's data section to splits and prompts: built-in tasks and files alike.

Imports no torch; the tokenizer is only asked, never loaded here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polygraft.trainer.config import Data, Split
from polygraft.trainer.data import Example, load_examples, read_examples, task_examples
from polygraft.trainer.errors import RecipeError
from polygraft.trainer.forms import Form
from polygraft.trainer.metrics import MIN_BLEU_WORDS
from polygraft.trainer.reader import make_reader, plain_prompt
from polygraft.trainer.splits import Splits, split_by_group, without_leaks
from polygraft.trainer.template import template_variables

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from polygraft.adapters.prompt import PromptRecipe

DEFAULT_MAX_OUTPUT_TOKENS = 64
"""For prompts that set no limit, as those for bare PEFT directories."""
PLAIN_SEGMENTS = 1
"""Segments of a prompt that is nothing but its variable: the base gets no instruction."""


@dataclass(frozen=True)
class Source:
    """The rows of a run and how they become prompts."""

    splits: Splits
    prompt: Mapping[str, Any]
    """The prompt recipe as JSON; `build_recipe` completes it for a tokenizer."""
    metric: str
    instructions: tuple[str, ...]
    """Wordings of the task, for a base without an adapter and to start a soft prompt from."""
    group_key: str | None
    notes: tuple[str, ...] = ()
    form: Form = Form.FIELDS

    @property
    def is_instructed(self) -> bool:
        """The prompt says what to do, so a base without an adapter can be asked the same."""
        return len(self.prompt["segments"]) > PLAIN_SEGMENTS or not self.instructions

    @property
    def prompt_text(self) -> str:
        """The literal text of the prompt, else the first wording: where a soft prompt starts."""
        literal = "".join(segment.get("text", "") for segment in self.prompt["segments"])
        return literal.strip() or (self.instructions[0] if self.instructions else "")

    def with_rows(self, **splits: list[Example]) -> Source:
        """The same source with other rows in its splits."""
        return replace(self, splits=Splits(**splits))

    def with_prompt(self, prompt: Mapping[str, Any]) -> Source:
        """The same rows in another prompt."""
        return replace(self, prompt=prompt)

    def with_limit(self, max_output_tokens: int) -> Source:
        """The same source with that length limit in its prompt."""
        defaults = {**self.prompt["defaults"], "max_output_tokens": max_output_tokens}
        return replace(self, prompt={**self.prompt, "defaults": defaults})

    def base_prompts(self) -> list[Mapping[str, Any]]:
        """Prompts to ask the base with: as it stands, or once with each wording in front."""
        if self.is_instructed:
            return [self.prompt]
        return [
            {**self.prompt, "segments": [{"text": f"{wording}\n"}, *self.prompt["segments"]]}
            for wording in self.instructions
        ]


def load_source(data: Data) -> Source:
    """Read or make every row. Raises DataError and RecipeError."""
    source = _task_source(data) if data.task else _file_source(data)
    if data.rows is None or data.rows >= len(source.splits.train):
        return source
    return source.with_rows(**{**source.splits.named(), "train": source.splits.train[: data.rows]})


def scored_rows(
    path: Path, prompt: Mapping[str, Any] | None, template: str, completion: str
) -> Source:
    """All rows of a file as a test split, for the prompt that an adapter carries.

    `template` is the prompt where the adapter carries none.
    """
    if prompt:
        rows = read_examples(path, template_variables(list(prompt["segments"])), completion, None)
        return Source(Splits([], [], rows), prompt, _metric(rows), (), None)
    data = Data(train=str(path), split=Split(), template=template, completion=completion)
    reader = make_reader(data, str(path))
    rows = load_examples(path, reader.pairs_of, None)
    plain = {**plain_prompt(reader, data), "defaults": {}}
    metric = reader.metric or _metric(rows)
    return Source(Splits([], [], rows), plain, metric, (), None, form=reader.form)


def prompt_for(data: Data) -> Mapping[str, Any]:
    """The prompt of a data section, of whose rows only the first is read. Raises as
    `load_source`."""
    if data.task:
        return _task_source(data).prompt
    assert data.train is not None
    return plain_prompt(make_reader(data, data.train), data)


def build_recipe(
    prompt: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    eos_token_ids: Sequence[int] = (),
) -> PromptRecipe:
    """The prompt as the adapter will carry it, bound to this base's tokenizer.

    What the prompt says already, as one from a manifest does, stands.
    `eos_token_ids` are the ids that end a sequence on the server by themselves; the end token that
    training supervises is added to the stop tokens when it is not among them.
    """
    import json

    from polygraft.adapters.prompt import PromptRecipe, hash_chat_template

    completed = dict(prompt)
    completed["defaults"] = {
        "temperature": str(prompt["defaults"].get("temperature") or "0"),
        "max_output_tokens": str(max_output_tokens(prompt)),
    }
    if prompt["wrap"] == "chat":
        completed.setdefault("chat_template_sha256", hash_chat_template(tokenizer))
    else:
        completed.setdefault("add_bos", adds_bos(tokenizer))
    eos = tokenizer.eos_token_id
    if eos_token_ids and eos not in eos_token_ids:
        completed.setdefault("stop_token_ids", [eos])
    return PromptRecipe.model_validate_json(json.dumps(completed))


def max_output_tokens(prompt: Mapping[str, Any]) -> int:
    """The length limit of answers to a prompt."""
    return int(prompt["defaults"].get("max_output_tokens") or DEFAULT_MAX_OUTPUT_TOKENS)


def adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer itself puts BOS in front of a plain text."""
    ids = tokenizer.encode("a")
    return tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id


def _task_source(data: Data) -> Source:
    from polygraft.trainer.tasks import make_task

    assert data.task is not None
    name = data.task.removeprefix("builtin:")
    try:
        # Always the same rows, whatever the seed of a run: nobody trains on rows scored later.
        task = make_task(name, seed=0)
    except ValueError as error:
        raise RecipeError(str(error), item="data.task") from None
    parts = {split: task_examples(name, split, rows) for split, rows in task.splits.items()}
    return Source(
        splits=Splits(parts["train"], parts["validation"], parts["test"]),
        prompt=task.recipe,
        metric=task.metric,
        instructions=task.instructions,
        group_key="group",
    )


def _file_source(data: Data) -> Source:
    assert data.train is not None
    reader = make_reader(data, data.train)
    group = data.split.by if data.split else None

    def read(path: Any) -> list[Example]:
        return load_examples(path, reader.pairs_of, group)

    if data.split:
        splits = split_by_group(read(data.train), data.split)
    else:
        splits = Splits(read(data.train), read(data.validation), read(data.test))
    splits, leaked = without_leaks(splits)
    notes = [reader.note] if reader.note else []
    if leaked:
        notes.append(f"dropped {leaked} train rows that also stand in validation or test")
    return Source(
        splits,
        plain_prompt(reader, data),
        reader.metric or _metric(splits.train),
        (),
        group,
        notes=tuple(notes),
        form=reader.form,
    )


def _metric(examples: Sequence[Example]) -> str:
    """ROUGE-L for texts; exact match where the answers are too short for it."""
    words = sum(len(example.completion.split()) for example in examples) / max(1, len(examples))
    return "rougeL" if words >= MIN_BLEU_WORDS else "exact_match"
