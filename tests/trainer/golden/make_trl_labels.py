"""Writes trl_labels.json: what TRL's SFTTrainer makes of 64 chats, for `test_trl_labels.py`.

TRL and what it brings are 300 MB that no test run should install, so its answer is kept. To make it
again: install trl 1.16.0 beside the project and run this file; versions stand in the answer.
"""

import json
from importlib.metadata import version
from pathlib import Path

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from polygraft.adapters.fingerprint import resolve_base
from polygraft.trainer.tasks import make_task

ROWS = 64


def main() -> None:
    """Tokenise the first training rows of the bundled summaries as TRL does."""
    base = resolve_base("builtin:nano")
    task = make_task("dsum", seed=0)
    instruction = task.recipe["segments"][0]["text"]
    rows = [
        {
            "prompt": [{"role": "user", "content": instruction + row["variables"]["dialogue"]}],
            "completion": [{"role": "assistant", "content": row["completion"]}],
        }
        for row in task.splits["train"][:ROWS]
    ]
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(base),
        processing_class=AutoTokenizer.from_pretrained(base),
        args=SFTConfig(
            output_dir="/tmp/trl", max_length=512, report_to=[], use_cpu=True, bf16=False
        ),
        train_dataset=Dataset.from_list(rows),
    )
    batch = [trainer.data_collator([row]) for row in trainer.train_dataset]
    answer = {
        "versions": {name: version(name) for name in ("trl", "transformers", "datasets")},
        "rows": [
            {"input_ids": row["input_ids"][0].tolist(), "labels": row["labels"][0].tolist()}
            for row in batch
        ],
    }
    text = json.dumps(answer, separators=(",", ":"))
    Path(__file__).with_name("trl_labels.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
