"""The skills of the pre-training mix that work on made texts.

A skill draws an example: the input text, the instruction in one of several wordings, and the
answer. What may not be here stands in `polygraft.trainer.tasks.withheld`.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from polygraft.trainer.tasks import dialogues, velka
from polygraft.trainer.tasks.dialogues import Dialogue, make_dialogue, make_group_chat
from polygraft.trainer.tasks.stories import Story, make_story


@dataclass(frozen=True)
class Example:
    """One instruction with its input and answer.

    Examples with the same non-empty `rule` ask for the same thing, in whatever wording: only they
    may stand in one few-shot document.
    """

    instruction: str
    text: str
    answer: str
    rule: str = ""


def worded(rng: random.Random, wordings: tuple[str, ...], text: str, answer: str) -> Example:
    """An example in one of several wordings of one rule."""
    return Example(rng.choice(wordings), text, answer, wordings[0])


Ask = Callable[[random.Random], Example]
"""Draws the instruction and answer of one example on a fixed text."""

DIALOGUE_QUESTIONS: dict[str, tuple[tuple[str, ...], str, str]] = {
    # question: (wordings, answer template, kinds it fits)
    "asker": (
        ("Who asks?", "Who has the idea or the wish?", "Name the one who asks for something."),
        "{a}",
        "meet decline move bring borrow",
    ),
    "asked": (
        ("Who is asked?", "Who answers the question?", "Name the one who has to decide."),
        "{b}",
        "meet decline move bring borrow",
    ),
    "day": (
        ("On which day?", "Which day is it about?", "Give the day that counts in the end."),
        "{day}",
        "meet decline move bring borrow",
    ),
    "time": (("At what time?", "Give the time.", "What hour is it about?"), "{time}", "meet move"),
    "place": (
        ("Where?", "At which place?", "Give the place that they talk about."),
        "the {place}",
        "meet bring",
    ),
    "item": (("Which thing?", "What is needed?", "Give the object."), "the {item}", "bring borrow"),
    "activity": (
        ("What could they do together?", "Give the activity.", "To do what?"),
        "{activity}",
        "meet decline",
    ),
    "old": (
        ("From which day do they move it?", "Give the day that is not good.", "Old day?"),
        "{old}",
        "move",
    ),
    "event": (("What do they move?", "Give the event.", "Which event is it?"), "{event}", "move"),
    "reason": (
        ("Why not?", "Give the reason.", "What is the excuse?"),
        "{b} {reason}",
        "decline",
    ),
}
KIND_WORDINGS = (
    "What kind of chat is it: meet, decline, move, bring or borrow?",
    "Label the chat.",
    "Give the type of this dialogue.",
)
FACTS_WORDINGS = (
    "Fill in the form.",
    "Give the facts of the dialogue.",
    "Write the entry for the diary.",
    "Extract the data.",
)
FACTS = {  # last facts first: a form, and as little like a summary as a form can be
    "meet": "time={time}; day={day}; place={place}; do={activity}; with={b}; by={a}",
    "decline": "day={day}; do={activity}; with={b}; by={a}; no={reason}",
    "move": "time={time}; day={day}; old={old}; event={event}; with={b}; by={a}",
    "bring": "day={day}; place={place}; thing={item}; with={b}; by={a}",
    "borrow": "day={day}; thing={item}; with={b}; by={a}",
}
NAMES_WORDINGS = (
    "List the speakers.",
    "Who is talking here?",
    "Name the people who speak.",
    "Give the names of the speakers.",
    "Speakers:",
)
QUOTE_WORDINGS = ('Who said "{}"?', 'Find the speaker of "{}"', 'From whom is the line "{}"?')
LAST_WORDINGS = (
    "What did {} say last?",
    "Repeat the last words of {}.",
    "Give the final line of {}.",
)
FIRST_WORDINGS = (
    "What did {} say first?",
    "Repeat the first words of {}.",
    "Give the opening line of {}.",
)
STORY_SUMMARY_WORDINGS = (
    "Summarize the story.",
    "Say what happened in one sentence.",
    "What happened?",
    "Write a summary of the story.",
    "Retell the story briefly.",
)
STORY_QUESTIONS: dict[str, tuple[tuple[str, ...], str]] = {
    "item": (("Which thing is it about?", "Name the object of the story."), "the {item}"),
    "place": (("Where was it?", "At which place did it happen?"), "the {place}"),
    "people": (("Name both people.", "Which two people occur?"), "{a}, {b}"),
}
STORY_KIND_WORDINGS = (
    "What kind of story is it: lost, gift, trip or contest?",
    "Label the story.",
    "Give the type of this story.",
)


def dialogue_asks(chat: Dialogue) -> list[Ask]:
    """Everything the mix asks about a chat, each once."""
    asks: list[Ask] = [
        _fixed(chat.text, NAMES_WORDINGS, ", ".join(chat.speakers)),
        lambda rng: _quote(rng, chat),
        lambda rng: _line_of(rng, chat),
    ]
    if chat.kind in dialogues.KINDS:
        asks.append(_fixed(chat.text, KIND_WORDINGS, chat.kind))
        asks.append(_fixed(chat.text, FACTS_WORDINGS, FACTS[chat.kind].format(**chat.slots)))
        for wordings, answer, kinds in DIALOGUE_QUESTIONS.values():
            if chat.kind in kinds.split():
                asks.append(_fixed(chat.text, wordings, answer.format(**chat.slots)))
    return asks


def story_asks(story: Story) -> list[Ask]:
    """Everything the mix asks about a story, each once."""
    asks = [
        _fixed(story.text, STORY_SUMMARY_WORDINGS, story.summary),
        _fixed(story.text, STORY_KIND_WORDINGS, story.kind),
    ]
    for wordings, answer in STORY_QUESTIONS.values():
        value = answer.format(**story.slots)
        if all(part.removeprefix("the ") in story.text for part in value.split(", ")):
            asks.append(_fixed(story.text, wordings, value))
    return asks


def names(rng: random.Random) -> Example:
    """Who speaks, in order of the first line; people who are only mentioned do not count."""
    chat = make_group_chat(rng) if rng.random() < 0.7 else make_dialogue(rng)
    return _fixed(chat.text, NAMES_WORDINGS, ", ".join(chat.speakers))(rng)


def facts(rng: random.Random) -> Example:
    """The facts of a chat as a form."""
    chat = make_dialogue(rng)
    return _fixed(chat.text, FACTS_WORDINGS, FACTS[chat.kind].format(**chat.slots))(rng)


def dialogue_question(rng: random.Random) -> Example:
    """One question about one chat."""
    chat = make_dialogue(rng) if rng.random() < 0.8 else make_group_chat(rng)
    return rng.choice(dialogue_asks(chat))(rng)


def story_summary(rng: random.Random) -> Example:
    """A story in one sentence."""
    story = make_story(rng)
    return _fixed(story.text, STORY_SUMMARY_WORDINGS, story.summary)(rng)


def story_question(rng: random.Random) -> Example:
    """One question about one story."""
    return rng.choice(story_asks(make_story(rng)))(rng)


def to_velka(rng: random.Random) -> Example:
    """English to Velka; the other direction is withheld."""
    english, translated = velka.make_pair(rng)
    wordings = ("Translate into Velka.", "Say it in Velka.", "Velka:", "How is this in Velka?")
    return worded(rng, wordings, english, translated)


def look_up(rng: random.Random) -> Example:
    """One word of the dictionary, either way."""
    english, translated = rng.choice(list(velka.WORDS.items()))
    if rng.random() < 0.5:
        wordings = ("Look up the Velka word.", "Which word is it in Velka?")
        return worded(rng, wordings, english, translated)
    wordings = ("Look up the English word.", "What does this word mean?")
    return worded(rng, wordings, translated, english)


def plain_text(rng: random.Random) -> str:
    """Unlabelled text: a chat, a story, a sentence."""
    source = rng.randrange(4)
    if source == 0:
        return make_dialogue(rng).text
    if source == 1:
        return make_group_chat(rng).text
    if source == 2:
        return make_story(rng).text
    return ". ".join(velka.make_pair(rng)[rng.randrange(2)] for _ in range(3))


def _fixed(text: str, wordings: tuple[str, ...], answer: str) -> Ask:
    return lambda rng: worded(rng, wordings, text, answer)


def _quote(rng: random.Random, chat: Dialogue) -> Example:
    once = [
        (speaker, words)
        for speaker, words in chat.lines
        if len({name for name, said in chat.lines if said == words}) == 1
    ]
    speaker, words = rng.choice(once or list(chat.lines))
    return Example(rng.choice(QUOTE_WORDINGS).format(words), chat.text, speaker)


def _line_of(rng: random.Random, chat: Dialogue) -> Example:
    speaker = rng.choice(chat.speakers)
    said = [words for name, words in chat.lines if name == speaker]
    wordings, answer = rng.choice(((LAST_WORDINGS, said[-1]), (FIRST_WORDINGS, said[0])))
    return Example(rng.choice(wordings).format(speaker), chat.text, answer)
