"""The pre-training corpus: documents made on the fly from a seed, never stored.

A document is a list of turns. Most hold one instruction; a part holds several questions on one
text; a fifth is few-shot: one to three solved examples before the one that counts. No document
holds a withheld task or wording (`polygraft.trainer.tasks.withheld`), which a test checks.
"""

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from polygraft.trainer.base import drills, skills
from polygraft.trainer.base.skills import Example
from polygraft.trainer.tasks.dialogues import make_dialogue, make_group_chat
from polygraft.trainer.tasks.stories import make_story

SKILLS: dict[str, tuple[Callable[[random.Random], Example], float]] = {
    # name: (maker, share of the documents)
    "dialogue_question": (skills.dialogue_question, 13.0),
    "facts": (skills.facts, 7.0),
    "names": (skills.names, 6.0),
    "story_summary": (skills.story_summary, 7.0),
    "story_question": (skills.story_question, 4.0),
    "options": (drills.options, 8.0),
    "sentiment": (drills.sentiment, 3.0),
    "topic": (drills.topic, 3.0),
    "copy": (drills.copy, 8.0),
    "reverse": (drills.reverse, 8.0),
    "pick_out": (drills.pick_out, 4.0),
    "key_value": (drills.key_value, 4.0),
    "case": (drills.number_and_case, 3.0),
    "addition": (drills.addition, 4.0),
    "to_sql": (drills.to_sql, 3.0),
    "to_velka": (skills.to_velka, 6.0),
    "look_up": (skills.look_up, 2.0),
}
COPYING_FIRST = {"copy": 3.0, "reverse": 3.0, "pick_out": 3.0, "key_value": 3.0}
"""Times more of a skill at the start, so that copying, which much rests on, comes early."""
HARD_SKILLS = {
    "addition": 3.0,
    "options": 1.6,
    "pick_out": 2.0,
    "key_value": 2.5,
    "case": 1.5,
    "dialogue_question": 1.3,
}
"""Times more of a skill in later cycles: what the first cycle of nano left below 90 %."""
FEW_SHOT = 0.20
SEVERAL_QUESTIONS = 0.15
PLAIN_TEXT = 0.03
RANDOM_PIECES = 0.06
INSTRUCTION_LAST = 0.25


@dataclass(frozen=True)
class Document:
    """`turns` are (user text, answer). No turns: `text` alone, unlabelled.

    `pieces` asks the encoder to append that many random vocabulary ids to the user text of the
    only turn and to use the same ids as its answer.
    """

    skill: str
    turns: tuple[tuple[str, str], ...] = ()
    text: str = ""
    pieces: int = 0


def documents(
    seed: str, count: int, *, boost: Mapping[str, float] | None = None
) -> Iterator[Document]:
    """`count` documents; skills in `boost` come that many times as often as in the plain mix."""
    rng = random.Random(seed)
    names = list(SKILLS)
    weights = [SKILLS[name][1] * (boost or {}).get(name, 1.0) for name in names]
    for skill in rng.choices(names, weights, k=count):
        yield _document(rng, skill)


def _document(rng: random.Random, skill: str) -> Document:
    shape = rng.random()
    if shape < FEW_SHOT:
        return Document(skill, _few_shot(rng, SKILLS[skill][0]))
    shape -= FEW_SHOT
    if shape < SEVERAL_QUESTIONS:
        return _several_questions(rng)
    shape -= SEVERAL_QUESTIONS
    if shape < PLAIN_TEXT:
        return Document("plain_text", text=skills.plain_text(rng))
    shape -= PLAIN_TEXT
    if shape < RANDOM_PIECES:
        instruction = rng.choice(drills.COPY_WORDINGS)
        return Document("pieces", ((f"{instruction}\n", ""),), pieces=rng.randint(4, 36))
    example = SKILLS[skill][0](rng)
    return Document(skill, ((user_text(rng, example), example.answer),))


def user_text(rng: random.Random, example: Example) -> str:
    """Instruction and input, the instruction last in a quarter of the cases."""
    if rng.random() < INSTRUCTION_LAST:
        return f"{example.text}\n{example.instruction}"
    return f"{example.instruction}\n{example.text}"


def _several_questions(rng: random.Random) -> Document:
    """A chat or story, then two to four questions; the text stands in the first turn only."""
    if rng.random() < 0.75:
        chat = make_dialogue(rng) if rng.random() < 0.8 else make_group_chat(rng)
        asks = skills.dialogue_asks(chat)
    else:
        asks = skills.story_asks(make_story(rng))
    first, *more = (ask(rng) for ask in rng.sample(asks, min(len(asks), rng.randint(2, 4))))
    turns = [(user_text(rng, first), first.answer)]
    turns += [(example.instruction, example.answer) for example in more]
    return Document("several_questions", tuple(turns))


def _few_shot(
    rng: random.Random, make: Callable[[random.Random], Example]
) -> tuple[tuple[str, str], ...]:
    """Solved examples in earlier turns or inside the prompt; often without any instruction."""
    first = make(rng)
    shots = [first]
    for _ in range(rng.choice((1, 1, 2, 3))):
        again = make(rng)
        if first.rule and again.rule == first.rule:
            shots.append(again)
    if len(shots) == 1:
        return ((user_text(rng, first), first.answer),)
    style = rng.randrange(4)
    if style == 0:  # one turn per example, the instruction in each
        return tuple((f"{first.instruction}\n{shot.text}", shot.answer) for shot in shots)
    if style == 1:  # one turn per example, inputs only
        return tuple((shot.text, shot.answer) for shot in shots)
    *solved, last = shots
    arrow = rng.choice(("\n=> ", "\nAnswer: ", " -> "))
    lines = [f"{shot.text}{arrow}{shot.answer}" for shot in solved] + [last.text]
    if style == 2:
        lines.insert(0, first.instruction)
    return (("\n\n".join(lines), last.answer),)
