"""The corpus holds nothing that adapters are to teach."""

import re
from collections.abc import Iterator

import pytest

from polygraft.trainer.base.corpus import SKILLS, Document, documents
from polygraft.trainer.base.mix import mix_rows
from polygraft.trainer.tasks import make_task
from polygraft.trainer.tasks.dialogues import ANSWERS, ASKS, CORRECTIONS, SUMMARIES
from polygraft.trainer.tasks.tickets import COMPLAINTS
from polygraft.trainer.tasks.velka import WORDS
from polygraft.trainer.tasks.withheld import INSTRUCTIONS, TASKS
from polygraft.trainer.tasks.words import LISTED, is_held_out


@pytest.fixture(scope="module")
def sample() -> list[Document]:
    return list(documents("test", 8_000))


@pytest.fixture(scope="module")
def everything(sample: list[Document]) -> str:
    return "\n".join(text for document in sample for text in _texts(document))


def _texts(document: Document) -> Iterator[str]:
    yield document.text
    for user, answer in document.turns:
        yield user
        yield answer


def test_documents_are_the_same_for_the_same_seed(sample: list[Document]) -> None:
    assert list(documents("test", 300)) != list(documents("other", 300))
    assert list(documents("again", 300)) == list(documents("again", 300))


def test_no_withheld_task_is_a_skill() -> None:
    assert not set(TASKS) & SKILLS.keys()


@pytest.mark.parametrize("task", INSTRUCTIONS)
def test_no_withheld_instruction_occurs_anywhere(task: str, everything: str) -> None:
    for wording in INSTRUCTIONS[task]:
        assert wording.lower() not in everything.lower()


def test_no_answer_is_a_dialogue_summary(sample: list[Document]) -> None:
    shapes = [re.sub(r"{\w+}", ".+", summary).rstrip(".") for summary in SUMMARIES.values()]
    is_summary = re.compile("|".join(shape.replace(".+", r"\w[\w ]*", 1) for shape in shapes))
    for row in make_task("dsum").splits["train"]:
        assert is_summary.match(row["completion"])
    for document in sample:
        for _, answer in document.turns:
            assert not is_summary.fullmatch(answer.rstrip("."))


def test_no_ticket_and_no_team_occurs(everything: str) -> None:
    for wordings in COMPLAINTS.values():
        for text in wordings["train"]:
            if "{" not in text:
                assert text not in everything
    for team in ("billing", "shipping", "technical"):
        assert team not in everything


def test_no_sentence_is_translated_from_velka(sample: list[Document]) -> None:
    velka = set(WORDS.values())
    for document in sample:
        for user, answer in document.turns:
            if document.skill == "to_velka":
                assert answer.split()[-1] in velka
            words = user.splitlines()[-1].split()
            assert not (len(words) > 2 and set(words) <= velka and answer.startswith("the "))


def test_unseen_wordings_of_dialogues_do_not_occur(everything: str) -> None:
    tables = [*ASKS.values(), *ANSWERS.values(), CORRECTIONS]
    for table in tables:
        for template in table["unseen"]:
            longest = max((part for part in _literal_parts(template)), key=len)
            if len(longest) > 12:
                assert longest not in everything


def _literal_parts(template: str) -> Iterator[str]:
    for part in template.split("{"):
        yield part.split("}")[-1]


def test_held_out_people_do_not_occur(everything: str) -> None:
    words = set(everything.replace(":", " ").replace(",", " ").replace("!", " ").split())
    for name in filter(is_held_out, LISTED):
        assert name not in words


def test_a_fifth_of_the_documents_is_few_shot_and_a_part_has_several_turns(
    sample: list[Document],
) -> None:
    several_turns = sum(len(document.turns) > 1 for document in sample) / len(sample)
    inline = sum("\n\n" in user for document in sample for user, _ in document.turns)
    assert 0.15 < several_turns < 0.35
    assert 0.03 < inline / len(sample) < 0.2


def test_each_skill_is_in_the_mix_that_scores_a_base() -> None:
    rows = mix_rows(per_skill=2)
    assert {row.skill for row in rows} == SKILLS.keys()
    assert len(rows) == 2 * len(SKILLS)
