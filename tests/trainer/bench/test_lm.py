"""Likelihoods and texts are those of lm-eval's own model class, here and through a server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance

from polygraft.trainer.bench.lm import PolygraftLM, move_border
from polygraft.trainer.bench.local_model import LocalModel, open_local
from polygraft.trainer.bench.scored_model import ScoredModel, TokenPair
from polygraft.trainer.bench.served_model import open_served
from polygraft.trainer.errors import DataError, RecipeError

STORY = "Ada lost a kite at the park. Ben found it on Monday. "
PAIRS = [
    ("The soup was great.\nQuestion: positive or negative?\nAnswer:", " positive"),
    ("The soup was great.\nQuestion: positive or negative?\nAnswer:", " negative"),
    ("The soup was great.\nAnswer: ", "positive"),  # blanks move to the continuation
    ("The soup was great.\nAnswer:\n\n  ", "no"),
    ("", "Ada lost a kite."),
    ("   ", "Ada lost a kite."),
    ("A", " B"),
    ("<s><u>Add the numbers.\n2 + 3<a>", "5"),
    (STORY * 40, "It was late."),  # longer than the window
    (STORY * 40, "It was a warm day at the lake."),
]


def instances(kind: str, arguments: list[tuple[Any, ...]]) -> list[Instance]:
    return [Instance(kind, {}, one, index) for index, one in enumerate(arguments)]


def likelihoods(lm: Any, pairs: list[tuple[str, str]] = PAIRS) -> list[tuple[float, bool]]:
    return list(lm.loglikelihood(instances("loglikelihood", pairs)))


def assert_same(one: list[tuple[float, bool]], other: list[tuple[float, bool]]) -> None:
    assert [logprob for logprob, _ in one] == pytest.approx([p for p, _ in other], abs=1e-4)
    assert [greedy for _, greedy in one] == [greedy for _, greedy in other]


def test_likelihoods_are_those_of_lm_evals_own_class(nano: LocalModel, hugging_face: Any) -> None:
    ours = PolygraftLM(nano)
    assert_same(likelihoods(ours), likelihoods(hugging_face))
    assert ours.cut == 2
    assert len({greedy for _, greedy in likelihoods(ours)}) == 2


def test_the_server_gives_the_same_likelihoods(nano: LocalModel, served: str) -> None:
    remote = open_served(served)
    assert (remote.window, remote.bos) == (nano.window, nano.bos)
    assert remote.facts.weights_sha256 == nano.facts.weights_sha256
    assert_same(likelihoods(PolygraftLM(remote)), likelihoods(PolygraftLM(nano)))


@pytest.mark.parametrize("length", [1, 300, 511, 512, 1300])
def test_rolling_likelihoods_are_those_of_lm_evals_own_class(
    nano: LocalModel,
    hugging_face: Any,
    served: str,
    length: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Else it would score the BOS that the tokenizer adds, after the one that stands for nothing.
    monkeypatch.setattr(hugging_face, "add_bos_token", False)
    text = nano._base.tokenizer.decode(nano.encode([STORY * 100], bare=True)[0][:length])
    asked = instances("loglikelihood_rolling", [(text,)])
    wanted = hugging_face.loglikelihood_rolling(asked)
    assert PolygraftLM(nano).loglikelihood_rolling(asked) == pytest.approx(wanted, abs=2e-3)
    if length in (300, 1300):
        found = PolygraftLM(open_served(served)).loglikelihood_rolling(asked)
        assert found == pytest.approx(wanted, abs=2e-3)


def test_generated_texts_are_those_of_lm_evals_own_class(
    nano: LocalModel, hugging_face: Any, served: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hugging_face, "_max_length", nano.window)  # nothing is scored here
    prompts = ["<s><u>List the speakers.\nAda: Hi!\nBen: Hello Ada!<a>", "<s>Ada lost", STORY * 60]
    options = {"until": ["\n\n", "."], "max_gen_toks": 24, "do_sample": False}
    asked = instances("generate_until", [(prompt, options) for prompt in prompts])
    wanted = hugging_face.generate_until(asked)
    assert wanted[0] == "Ada, Ben"
    assert PolygraftLM(nano).generate_until(asked) == wanted
    assert PolygraftLM(open_served(served)).generate_until(asked) == wanted


def test_a_token_over_the_border_is_scored_with_the_continuation(nano: LocalModel) -> None:
    front, back = "Mon", "day"
    (whole,), (apart,) = nano.encode([front + back]), nano.encode([front])
    assert apart[0] == whole[0] == nano.bos
    assert apart[1:] != whole[1 : len(apart)]  # the token does grow over the border
    (pair,) = PolygraftLM(nano)._encode_pairs([(front, back)])
    assert pair == TokenPair((nano.bos,), tuple(whole[1:]))


def test_white_space_before_the_border_moves_behind_it() -> None:
    assert move_border("a \n ", "b") == ("a", " \n b")
    assert move_border(" ", "b") == ("", " b")
    assert move_border("a", " b") == ("a", " b")


def by_hand(model: LocalModel, context: list[int], continuation: list[int]) -> float:
    """In front of one row: the virtual vectors; no padding, no PEFT forward."""
    adapted: Any = model._adapted
    base = adapted.get_base_model()
    ids = torch.tensor([context + continuation])
    soft = adapted.get_prompt(batch_size=1)
    rows = torch.cat([soft, base.get_input_embeddings()(ids)], dim=1)
    with torch.no_grad():
        logits = base(inputs_embeds=rows).logits[0].log_softmax(-1)
    first = soft.shape[1] + len(context) - 1
    return sum(float(logits[first + i, token]) for i, token in enumerate(continuation))


def test_virtual_tokens_stand_in_front_of_every_window(soft_prompt: Path, served: str) -> None:
    model = open_local(str(soft_prompt))
    (ids,) = model.encode([STORY * 45], bare=True)
    size = model.window - 1  # 504 of 512 positions: 7 are virtual, the last token is counted
    wanted = by_hand(model, [model.bos], ids[:size])
    last = ids[: 2 * size][size:]
    assert size == 504
    assert size < len(ids) < 2 * size
    context = ids[: len(ids) - len(last)][-(size + 1 - len(last)) :]
    wanted += by_hand(model, context, last)
    asked = instances("loglikelihood_rolling", [(STORY * 45,)])
    models: list[ScoredModel] = [model, open_served(served, "soft")]
    for one in models:
        assert PolygraftLM(one).loglikelihood_rolling(asked) == pytest.approx([wanted], abs=2e-3)


def test_a_served_soft_prompt_scores_as_here(soft_prompt: Path, served: str) -> None:
    local = likelihoods(PolygraftLM(open_local(str(soft_prompt))))
    assert_same(likelihoods(PolygraftLM(open_served(served, "soft"))), local)
    alone = likelihoods(PolygraftLM(open_served(served)))
    assert local[0][0] != pytest.approx(alone[0][0], abs=0.1)


def test_an_option_that_never_fits_and_a_task_that_samples_are_refused(nano: LocalModel) -> None:
    with pytest.raises(DataError, match="tokens; 1 to 511 can be scored"):
        likelihoods(PolygraftLM(nano), [("A", STORY * 60)])
    lm = PolygraftLM(nano)
    with pytest.raises(RecipeError, match="samples"):
        lm.generate_until(instances("generate_until", [("A", {"do_sample": True})]))
    with pytest.raises(RecipeError, match="512 fit in all"):
        lm.generate_until(instances("generate_until", [("A", {"max_gen_toks": 512})]))
