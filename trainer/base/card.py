"""The card of a built base: what it is, how it was made, what it can do, how to check it."""

from pathlib import Path
from typing import Any

from polygraft.trainer.base.files import PINNED, digest
from polygraft.trainer.tasks.withheld import INSTRUCTIONS, TASKS

CARD_FILE = "BASE_CARD.md"


_NOTES = {
    "nano": (
        "## Known weak spots",
        "",
        "- Option lists (`options`) are answered little better than by chance.",
        "- Capital letters, sums and lists are not always right; the numbers above are from 12 "
        "examples each, so one example is 8 points.",
        "- The second cycle gives more room to the skills that the first had left below 90 % "
        "(`HARD_SKILLS` in `corpus.py`): they were chosen after looking at this table.",
        "",
    )
}


def write_card(folder: Path, report: dict[str, Any]) -> None:
    """Writes `BASE_CARD.md` from a build report (`BuildReport` as a dict)."""
    (folder / CARD_FILE).write_text(card(report, {name: digest(folder / name) for name in PINNED}))


def card(report: dict[str, Any], hashes: dict[str, str]) -> str:
    """The text of the card."""
    preset, mix = report["preset"], report["mix"]
    skills = [f"| {name} | {value:g} |" for name, value in mix.items() if name != "mean"]
    wordings = [
        f"- `{name}`: " + " ".join(f'"{text}"' for text in texts)
        for name, texts in INSTRUCTIONS.items()
    ]
    return "\n".join(
        [
            f"# {report['preset_name']}: the bundled base model",
            "",
            f"A Llama of {report['parameters']:,} parameters (hidden {preset['hidden']}, "
            f"{preset['layers']} layers, {preset['heads']} heads, MLP {preset['mlp']}, tied "
            f"embeddings, context {preset['context']}, byte-level BPE of {preset['vocabulary']} "
            "ids), in bf16. It was trained from random weights on made text only (chats, stories, "
            "drills), so it carries no third-party data or licence. It is small enough to ship and "
            "to train adapters on in seconds; it is not a general assistant and knows no facts.",
            "",
            "Prompt form: `<s><u>{user text}<a>`, answers end with `</s>`; the tokenizer's chat "
            "template renders it. `<pad>` is not `</s>`. A system message is put before the first "
            "user text; the corpus has none.",
            "",
            "## Made by",
            "",
            "```",
            f"polygraft base build --preset {report['preset_name']} --seed {report['seed']}",
            "```",
            "",
            f"{sum(preset['cycles']):,} steps of {preset['batch_tokens']:,} padded tokens, "
            f"{report['tokens'] / 1e6:.1f} M tokens in all, {report['cpu_minutes']:g} CPU-minutes "
            f"on {report['threads']} threads, {'compiled' if report['compiled'] else 'eager'}, "
            "bf16 autocast. "
            f"Muon at {preset['hidden_lr']:g} for the matrices inside the layers, AdamW at "
            f"{preset['other_lr']:g} for the rest, weight decay {preset['weight_decay']:g}, "
            f"schedule in cycles of {' and '.join(f'{n:,}' for n in preset['cycles'])} steps: "
            f"{preset['warmup']} of warm-up, flat, then linear to zero over the last "
            f"{100 * preset['decay_share']:g} %. "
            f"Loss weight 1 on answers, {preset['prompt_weight']:g} on prompts. In "
            f"{100 * preset['split_documents']:g} % of the documents tokens are split back into "
            f"their merge's halves with probability {preset['split_probability']:g}. Versions: "
            + ", ".join(f"{name} {version}" for name, version in report["versions"].items())
            + ".",
            "",
            "The same seed gives the same corpus, tokenizer and order everywhere. The weights "
            "repeat to the bit at best on the same processor type, versions, thread count and "
            "`--compile` setting; elsewhere a build gives an equally good but different base.",
            "",
            "## Skills",
            "",
            "Greedy exact match in percent on 12 fresh examples per skill, weights as shipped:",
            "",
            "| skill | exact match |",
            "|---|---|",
            *skills,
            f"| **mean** | **{mix['mean']:g}** |",
            "",
            "## Not in the corpus",
            "",
            f"The tasks {', '.join(f'`{name}`' for name in TASKS)}, the people and wordings of "
            "held-out splits, and these instructions, few-shot documents included:",
            "",
            *wordings,
            "",
            *_NOTES.get(report["preset_name"], ()),
            "## SHA-256",
            "",
            "`polygraft base verify` checks these files against `SHA256SUMS`.",
            "",
            *[f"- `{name}` {value}" for name, value in hashes.items()],
            "",
        ]
    )
