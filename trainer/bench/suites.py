"""Which tasks there are: the installed definition of each, its files, the fields it reads.

The definitions themselves (prompt, options, metric) are lm-eval's, read from where it is installed;
nothing but the data is replaced.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from polygraft.trainer.bench.fields import Fields
from polygraft.trainer.errors import RecipeError

MINI = "mini-"
SUITES: Mapping[str, str] = {
    "glue": "sst2 cola mrpc qnli qqp rte mnli mnli_mismatch wnli",
    "superglue": "boolq cb copa multirc record rte wic wsc",
    "mmlu": "every subject that has a folder in mmlu/",
    "bigbench": "every task that has a file in bigbench/",
    "mini-glue": "mini_sst2 mini_rte",
    "mini-superglue": "mini_boolq mini_copa",
    "mini-mmlu": "mini_velka mini_chats mini_stories",
    "mini-bigbench": "mini_lookup mini_topics mini_speakers mini_sums",
}
"""Name to what is in it. The mini suites are made here and are no benchmark that others report."""


@dataclass(frozen=True)
class Definition:
    """One task of lm-eval. `yaml` is relative to its tasks folder."""

    name: str
    yaml: str
    fields: Fields
    test_file: str
    """Below the data folder, without its ending."""
    shots_file: str
    test_split: str
    """As the definition calls it: `validation`, `test` or `default`."""
    questions: tuple[str, ...] = ()
    """Fields that may be perturbed; empty where others count positions in them."""


_PAIR = {"sentence1": "text", "sentence2": "text"}
_NLI = {"premise": "text", "hypothesis": "text"}

GLUE_FIELDS: Mapping[str, Fields] = {
    "sst2": {"sentence": "text", "label": "label 2"},
    "cola": {"sentence": "text", "label": "label 2"},
    "mrpc": {**_PAIR, "label": "label 2"},
    "qnli": {"question": "text", "sentence": "text", "label": "label 2"},
    "qqp": {"question1": "text", "question2": "text", "label": "label 2"},
    "rte": {**_PAIR, "label": "label 2"},
    "mnli": {**_NLI, "label": "label 3"},
    "mnli_mismatch": {**_NLI, "label": "label 3"},
    "wnli": {**_PAIR, "label": "label 2"},
}
SUPERGLUE_FIELDS: Mapping[str, Fields] = {
    "boolq": {"passage": "text", "question": "text", "label": "label 2"},
    "cb": {**_NLI, "label": "label 3"},
    "copa": {
        "premise": "text",
        "choice1": "filled",
        "choice2": "filled",
        "question": "word cause|effect",
        "label": "label 2",
    },
    "multirc": {"paragraph": "text", "question": "text", "answer": "text", "label": "label 2"},
    "record": {"passage": "text", "query": "text", "entities": "texts", "answers": "texts"},
    "rte": {**_NLI, "label": "label 2"},
    "wic": {**_PAIR, "start1": "index", "end1": "index", "label": "label 2"},
    "wsc": {
        "text": "text",
        "span1_text": "text",
        "span2_text": "text",
        "span2_index": "index",
        "label": "label 2",
    },
}
MMLU_FIELDS: Fields = {"question": "text", "choices": "texts 4", "answer": "label 4"}
BIGBENCH_CHOICE_FIELDS: Fields = {
    "inputs": "text",
    "targets": "texts",
    "multiple_choice_targets": "list",
    "multiple_choice_scores": "numbers",
}
BIGBENCH_TEXT_FIELDS: Fields = {"inputs": "text", "targets": "texts"}


def check_suite(name: str) -> str:
    """The name. Raises RecipeError with the nearest one."""
    if name in SUITES:
        return name
    near = difflib.get_close_matches(name, SUITES, 1, 0.5)
    known = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(SUITES)}."
    raise RecipeError(f"there is no suite {name!r}; {known}", item="SUITE")


def glue(task: str) -> Definition:
    """A task of GLUE (Wang et al. 2018, arXiv:1804.07461)."""
    folder = task.removesuffix("_mismatch")
    kind = {"mnli": "_matched", "mnli_mismatch": "_mismatched"}.get(task, "")
    yaml = "mismatch" if task == "mnli_mismatch" else "default"
    fields = GLUE_FIELDS[task]
    return Definition(
        task,
        f"glue/{folder}/{yaml}.yaml",
        fields,
        f"glue/{folder}/validation{kind}",
        f"glue/{folder}/train",
        "validation",
        tuple(name for name, field in fields.items() if field == "text"),
    )


def superglue(task: str) -> Definition:
    """A task of SuperGLUE (Wang et al. 2019, arXiv:1905.00537)."""
    fields = SUPERGLUE_FIELDS[task]
    texts = {
        "boolq": ("passage", "question"),
        "multirc": ("paragraph", "question"),
        "copa": ("premise",),
        "cb": ("premise", "hypothesis"),
        "rte": ("premise", "hypothesis"),
    }
    return Definition(
        f"sglue_{task}" if task == "rte" else task,
        f"super_glue/{task}/default.yaml",
        fields,
        f"superglue/{task}/validation",
        f"superglue/{task}/train",
        "validation",
        texts.get(task, ()),
    )


def mmlu(subject: str) -> Definition:
    """A subject of MMLU (Hendrycks et al. 2020, arXiv:2009.03300)."""
    return Definition(
        f"mmlu_{subject}",
        f"mmlu/default/mmlu_{subject}.yaml",
        MMLU_FIELDS,
        f"mmlu/{subject}/test",
        f"mmlu/{subject}/dev",
        "test",
        ("question",),
    )


def bigbench(task: str, *, choices: bool) -> Definition:
    """A task of BIG-bench (Srivastava et al. 2022, arXiv:2206.04615), by choice or by text."""
    kind = "multiple_choice" if choices else "generate_until"
    return Definition(
        f"bigbench_{task}_{kind}",
        f"bigbench/{kind}/{task}.yaml",
        BIGBENCH_CHOICE_FIELDS if choices else BIGBENCH_TEXT_FIELDS,
        f"bigbench/{task}",
        f"bigbench/{task}-shots",
        "default",
        ("inputs",) if choices else (),
    )


@cache
def task_folder() -> Path:
    """Where lm-eval's definitions are. Raises RecipeError without lm-eval."""
    from importlib.util import find_spec

    spec = find_spec("lm_eval")
    if spec is None or spec.origin is None:
        raise RecipeError(
            "benchmarks need lm-eval, which is not installed.",
            hint="pip install 'polygraft[bench]'",
        )
    return Path(spec.origin).parent / "tasks"


def mmlu_subjects() -> list[str]:
    """All that have a definition."""
    found = (task_folder() / "mmlu/default").glob("mmlu_*.yaml")
    return sorted(path.stem.removeprefix("mmlu_") for path in found)


def bigbench_tasks(*, choices: bool) -> list[str]:
    """All that have a definition of the kind."""
    kind = "multiple_choice" if choices else "generate_until"
    return sorted(path.stem for path in (task_folder() / "bigbench" / kind).glob("*.yaml"))


def nearest(name: str, known: Iterable[str]) -> str:
    """` Did you mean x?`, or nothing."""
    near = difflib.get_close_matches(name, list(known), 1, 0.6)
    return f"did you mean {near[0]}?" if near else ""
