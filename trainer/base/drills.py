"""The skills of the pre-training mix that are not about people: copying, labels, sums, SQL.

Copying and reversing of random strings make the attention heads that later carry unseen names;
option lists with random label words teach to read the labels instead of knowing them.
"""

import random
import string

from polygraft.trainer.base.skills import Example, worded
from polygraft.trainer.tasks.dialogues import make_dialogue
from polygraft.trainer.tasks.stories import make_story
from polygraft.trainer.tasks.words import ACTIVITIES, ITEMS, PLACES, made_name, word_list

COPY_WORDINGS = ("Repeat this.", "Copy:", "Say it again.", "Write the same.", "Echo the input.")
REVERSE_WORDINGS = ("Reverse the order.", "Backwards:", "Say it from the end to the start.")
PRINTABLE = string.ascii_letters + string.digits + string.punctuation.replace("<", "") + " "

THINGS = word_list("soup film hotel book train song coffee room game phone jacket concert")
GOOD = word_list("great lovely wonderful excellent perfect brilliant")
BAD = word_list("awful terrible boring horrible bad poor")
SENTIMENT_TEMPLATES = (
    "The {thing} was {word}.",
    "I think the {thing} is {word}.",
    "What a {word} {thing}!",
    "Everyone said that the {thing} was {word}.",
    "I found the {thing} rather {word}, to be honest.",
)
SENTIMENT_WORDINGS = (
    "Is the mood positive or negative?",
    "Positive or negative?",
    "Judge the review.",
    "Give the sentiment.",
)
TOPICS = {
    "sport": ("The team scored a goal.", "She ran the race fast.", "They won the match."),
    "food": ("The pasta needs salt.", "He baked fresh bread.", "The soup is hot."),
    "travel": ("The train leaves soon.", "We packed for the flight.", "They crossed the border."),
    "music": ("The band played a tune.", "She tuned the violin.", "The choir sang well."),
    "money": ("The bank gave a loan.", "Prices went up.", "He saved a coin each day."),
}
TOPIC_WORDINGS = (
    "What is the topic?",
    "Topic: sport, food, travel, music or money?",
    "Name the subject of the text.",
    "What is the text about?",
)
LABEL_WORDS = word_list(
    "blue moon apple seven north iron fox plum alpha delta red west salt owl nine stone x y z one"
)
COLUMNS = word_list("name age city price size colour")
TABLES = word_list("users books orders cars shops songs")


def copy(rng: random.Random) -> Example:
    """Repeat a random string, random syllables or random words."""
    text = _string(rng)
    return worded(rng, COPY_WORDINGS, text, text)


def reverse(rng: random.Random) -> Example:
    """Reverse a list of words, or of letters set apart by spaces."""
    if rng.random() < 0.5:
        parts = [rng.choice((*ITEMS, *PLACES, made_name(rng))) for _ in range(rng.randint(2, 7))]
    else:
        alphabet = rng.choice((string.ascii_lowercase, string.digits, string.ascii_uppercase))
        parts = [rng.choice(alphabet) for _ in range(rng.randint(3, 9))]
    return worded(rng, REVERSE_WORDINGS, " ".join(parts), " ".join(reversed(parts)))


def pick_out(rng: random.Random) -> Example:
    """The first or last of a list, or what follows an entry: addressed copying."""
    parts = [made_name(rng) for _ in range(rng.randint(3, 8))]
    text = ", ".join(parts)
    index = rng.randrange(len(parts) - 1)
    return rng.choice(
        (
            worded(rng, ("Give the first entry.", "First entry?"), text, parts[0]),
            worded(rng, ("Give the last entry.", "Last entry?"), text, parts[-1]),
            Example(f"Which entry comes after {parts[index]}?", text, parts[index + 1]),
            Example(f"Which entry comes before {parts[index + 1]}?", text, parts[index]),
        )
    )


def key_value(rng: random.Random) -> Example:
    """Look a value up in a list of random pairs."""
    pairs = {made_name(rng): _string(rng, longest=8) for _ in range(rng.randint(2, 6))}
    key = rng.choice(list(pairs))
    wordings = ("What belongs to {}?", "Look up {}.", "Value of {}:")
    text = "\n".join(f"{name} = {value}" for name, value in pairs.items())
    return Example(rng.choice(wordings).format(key), text, pairs[key])


def sentiment(rng: random.Random) -> Example:
    """Positive or negative."""
    text, label = _review(rng)
    return worded(rng, SENTIMENT_WORDINGS, text, label)


def topic(rng: random.Random) -> Example:
    """One of five topics."""
    text, label = _statement(rng)
    return worded(rng, TOPIC_WORDINGS, text, label)


def options(rng: random.Random) -> Example:
    """Choose among two to four options, each named by a random label word."""
    text, label, labels = rng.choice((_sentiment_case, _topic_case, _chat_case, _story_case))(rng)
    others = [other for other in labels if other != label]
    shown = [label, *rng.sample(others, min(len(others), rng.choice((1, 2, 3))))]
    rng.shuffle(shown)
    words = dict(zip(shown, rng.sample(LABEL_WORDS, len(shown)), strict=True))
    style = rng.choice(("{word} = {label}", "{word} for {label}", "{word}: {label}"))
    listed = ", ".join(style.format(word=words[name], label=name) for name in shown)
    wordings = ("Choose: {}", "Answer with one word, {}", "Options: {}", "Say {}")
    return Example(rng.choice(wordings).format(listed), text, words[label])


def addition(rng: random.Random) -> Example:
    """Sums of two numbers below 100."""
    left, right = rng.randrange(100), rng.randrange(100)
    wordings = ("Add the numbers.", "Sum:", "What is the sum?", "Calculate.")
    return worded(rng, wordings, f"{left} + {right}", str(left + right))


def to_sql(rng: random.Random) -> Example:
    """A question about one table as a SELECT."""
    shown, tested = rng.sample(COLUMNS, 2)
    table, number = rng.choice(TABLES), rng.randrange(100)
    phrase, sign = rng.choice((("over", ">"), ("under", "<"), ("equal to", "=")))
    text = rng.choice(
        (
            f"the {shown} of all {table} with {tested} {phrase} {number}",
            f"all {table} whose {tested} is {phrase} {number}, show the {shown}",
            f"{shown} from {table} where the {tested} is {phrase} {number}",
        )
    )
    wordings = ("Write the SQL.", "Turn it into SQL.", "SQL query:", "Make a query.")
    answer = f"SELECT {shown} FROM {table} WHERE {tested} {sign} {number}"
    return worded(rng, wordings, text, answer)


def number_and_case(rng: random.Random) -> Example:
    """Upper case, lower case, count of words, in two wordings each."""
    words = [rng.choice((*ITEMS, *ACTIVITIES, made_name(rng))) for _ in range(rng.randint(1, 6))]
    text = " ".join(words)
    return rng.choice(
        (
            worded(rng, ("Write in capitals.", "Upper case:"), text, text.upper()),
            worded(rng, ("Write it small.", "Lower case:"), text.upper(), text.lower()),
            worded(rng, ("Count the words.", "How many words?"), text, str(len(text.split()))),
        )
    )


def _string(rng: random.Random, *, longest: int = 24) -> str:
    kind = rng.randrange(3)
    if kind == 0:
        text = "".join(rng.choice(PRINTABLE) for _ in range(rng.randint(1, longest))).strip()
        return text or "a"
    if kind == 1:
        return " ".join(made_name(rng) for _ in range(rng.randint(1, 2 + longest // 8)))
    return " ".join(
        rng.choice((*ITEMS, *PLACES, *ACTIVITIES, made_name(rng).lower()))
        for _ in range(rng.randint(1, 1 + longest // 5))
    )


def _review(rng: random.Random) -> tuple[str, str]:
    words, label = rng.choice(((GOOD, "positive"), (BAD, "negative")))
    template = rng.choice(SENTIMENT_TEMPLATES)
    return template.format(thing=rng.choice(THINGS), word=rng.choice(words)), label


def _statement(rng: random.Random) -> tuple[str, str]:
    label = rng.choice(list(TOPICS))
    return " ".join(rng.sample(TOPICS[label], rng.choice((1, 2)))), label


def _sentiment_case(rng: random.Random) -> tuple[str, str, tuple[str, ...]]:
    return *_review(rng), ("positive", "negative")


def _topic_case(rng: random.Random) -> tuple[str, str, tuple[str, ...]]:
    return *_statement(rng), tuple(TOPICS)


def _chat_case(rng: random.Random) -> tuple[str, str, tuple[str, ...]]:
    chat = make_dialogue(rng)
    return chat.text, chat.kind, ("meet", "decline", "move", "bring", "borrow")


def _story_case(rng: random.Random) -> tuple[str, str, tuple[str, ...]]:
    story = make_story(rng)
    return story.text, story.kind, ("lost", "gift", "trip", "contest")
