"""The engine as its callers see it: isolation, ends of sequences, cleanliness, refusals."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
import torch
from engine_support.architectures import VOCAB
from engine_support.harness import Harness, random_prompts
from engine_support.peft_adapters import generate_alone
from transformers import AutoModelForCausalLM

from polygraft.adapters.errors import (
    AdapterInvalid,
    InvalidRequest,
    NonFinite,
    PolygraftError,
    Unavailable,
)
from polygraft.server.engine.batch import ForwardBatch
from polygraft.server.engine.config import EngineConfig
from polygraft.server.engine.messages import (
    AdapterShare,
    EngineRequest,
    FinishReason,
    Sampling,
    SequenceOutput,
    Stopping,
)

if TYPE_CHECKING:
    from conftest import TinyBase

KINDS = (None, "lora4", "rslora8", "patterns16", "soft")


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.9, 0.95, 40, seed=11)], ids=str)
def test_a_rows_tokens_are_the_same_alone_and_with_31_neighbours(
    tiny_base: TinyBase, sampling: Sampling
) -> None:
    prompts = random_prompts(32, vocab=VOCAB, seed=8)
    alone = []
    for i, prompt in enumerate(prompts[:5]):
        harness = tiny_base.harness()
        harness.submit("r", prompt, adapter=KINDS[i], max_output_tokens=16, sampling=sampling)
        harness.run()
        alone.append(harness.answers["r"].token_ids)
    together = tiny_base.harness()
    for i, prompt in enumerate(prompts):
        kind = KINDS[i % len(KINDS)]
        together.submit(str(i), prompt, adapter=kind, max_output_tokens=16, sampling=sampling)
    together.run()
    together.assert_clean()
    assert [together.answers[str(i)].token_ids for i in range(5)] == alone


def test_preempted_requests_give_the_same_tokens(tiny_base: TinyBase) -> None:
    prompts = random_prompts(12, vocab=VOCAB, seed=4)
    roomy = tiny_base.harness()
    # 2 layers x 2 heads x 12 x 2 x 4 bytes x 16 tokens = 6 KiB a block: room for 16 blocks.
    tight = tiny_base.harness(kv_bytes=16 * 6144)
    for harness in (roomy, tight):
        for i, prompt in enumerate(prompts):
            kind = KINDS[i % len(KINDS)]
            harness.submit(str(i), prompt, adapter=kind, max_output_tokens=40)
        harness.run()
        harness.assert_clean()
    assert tight.engine.stats().preemptions > 0
    assert roomy.engine.stats().preemptions == 0
    for i in range(len(prompts)):
        assert tight.answers[str(i)].token_ids == roomy.answers[str(i)].token_ids


def test_a_request_waiting_for_its_adapter_holds_nobody_else(tiny_base: TinyBase) -> None:
    harness = tiny_base.harness()
    harness.adapters.hidden.add("lora4")
    harness.submit("cold", [5, 6, 7], adapter="lora4")
    harness.submit("warm", [5, 6, 7], adapter="rslora8")
    while not harness.answers["warm"].is_done:
        assert harness.run_step()
    assert not harness.answers["cold"].token_ids
    assert harness.engine.stats().loading == 1
    harness.adapters.reveal()
    harness.run()
    assert harness.answers["cold"].finish_reason is FinishReason.LENGTH
    harness.assert_clean()


def test_a_failed_load_ends_only_its_own_requests(tiny_base: TinyBase) -> None:
    harness = tiny_base.harness()
    harness.adapters.hidden.add("lora4")
    harness.adapters.failures["lora4"] = AdapterInvalid("the blob is gone.")
    harness.submit("bad", [5], adapter="lora4")
    harness.submit("good", [5], adapter="rslora8")
    harness.run()
    assert isinstance(harness.answers["bad"].error, AdapterInvalid)
    assert harness.answers["good"].finish_reason is FinishReason.LENGTH
    harness.assert_clean()


def test_stop_ids_end_a_sequence_and_are_part_of_its_tokens(tiny_base: TinyBase) -> None:
    harness = tiny_base.harness()
    harness.submit("free", [9, 8, 7], max_output_tokens=12)
    harness.run()
    tokens = harness.answers["free"].token_ids
    stop = tokens[5]
    harness.submit("stopped", [9, 8, 7], max_output_tokens=12, stop=frozenset([stop]))
    harness.run()
    answer = harness.answers["stopped"]
    assert answer.finish_reason is FinishReason.STOP
    assert answer.token_ids == tokens[: tokens.index(stop) + 1]


def test_time_limit_gives_the_partial_answer(tiny_base: TinyBase) -> None:
    harness = tiny_base.harness()
    harness.submit("r", [1, 2, 3], max_output_tokens=200, time_limit=0.2)
    for _ in range(3):
        harness.run_step()
    time.sleep(0.25)
    harness.run()
    answer = harness.answers["r"]
    assert answer.finish_reason is FinishReason.TIME_LIMIT
    assert 1 <= len(answer.token_ids) < 200
    harness.assert_clean()


def test_scores_equal_the_log_softmax_of_transformers(tiny_base: TinyBase) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_base.base)
    model.train(False)
    ids = random_prompts(1, vocab=VOCAB, seed=6)[0] + [3, 4, 5]
    with torch.inference_mode():
        logprobs = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    for score_from in (1, 2, len(ids) - 2, len(ids) - 1):
        for chunk in (4, 256):
            harness = tiny_base.harness(max_chunk=chunk)
            harness.submit("s", ids, max_output_tokens=0, score_from=score_from)
            harness.submit("other", [4, 4], adapter="lora4")
            harness.run()
            answer = harness.answers["s"]
            targets = range(score_from, len(ids))
            expected = [float(logprobs[t - 1, ids[t]]) for t in targets]
            scored = answer.prompt_logprobs
            assert [s.logprob for s in scored] == pytest.approx(expected, abs=1e-4)
            greedy = [int(logprobs[t - 1].argmax()) == ids[t] for t in targets]
            assert [s.rank == 1 for s in scored] == greedy
            harness.assert_clean()


def test_token_logprobs_equal_those_of_peft(tiny_base: TinyBase) -> None:
    harness = tiny_base.harness()
    harness.submit("r", [7, 7, 3], adapter="patterns16", top_logprobs=0)
    harness.run()
    tokens, logits = generate_alone(
        tiny_base.base, tiny_base.adapters["patterns16"], [[7, 7, 3]], 8
    )[0]
    expected = logits.double().log_softmax(-1)
    logprobs = [entry.logprob for entry in harness.answers["r"].logprobs]
    assert logprobs == pytest.approx(
        [float(expected[i, token]) for i, token in enumerate(tokens)], abs=1e-4
    )


def test_a_non_finite_row_ends_alone_and_leaves_clean_blocks(tiny_base: TinyBase) -> None:
    clean = tiny_base.harness()
    poisoned = tiny_base.harness(kv_bytes=64 * 6144)
    rows = poisoned.engine.bank.rows("lora4")
    assert rows is not None
    for harness in (clean, poisoned):
        harness.submit("good", [4, 5, 6], adapter="rslora8", max_output_tokens=20)
        harness.submit("base", [4, 5, 6], max_output_tokens=20)
        harness.run_step()
    for pool in poisoned.engine.bank.pools:  # past validation, straight into the device rows
        pool.bt[rows.row0 : rows.row0 + 4] = torch.nan
    poisoned.submit("bad", [4, 5, 6] * 10, adapter="lora4", max_output_tokens=20)
    poisoned.run()
    clean.run()
    assert isinstance(poisoned.answers["bad"].error, NonFinite)
    for name in ("good", "base"):
        assert poisoned.answers[name].token_ids == clean.answers[name].token_ids
    cache = poisoned.engine._runner.cache
    assert all(bool(torch.isfinite(t).all()) for t in (*cache.keys, *cache.values))
    poisoned.assert_clean()


def test_cancelled_timed_out_and_finished_requests_leave_nothing_behind(
    tiny_base: TinyBase,
) -> None:
    harness = tiny_base.harness(max_running=12)
    generator = torch.Generator().manual_seed(0)
    prompts = random_prompts(450, vocab=VOCAB, seed=9, longest=40)
    for i, prompt in enumerate(prompts):
        limit = 0.0 if i % 9 == 8 else None  # 50 expire
        harness.submit(str(i), prompt, adapter=KINDS[i % 5], max_output_tokens=6, time_limit=limit)
        if i % 9 < 4:  # 200 cancelled, in every state
            for _ in range(int(torch.randint(0, 4, (1,), generator=generator))):
                harness.run_step()
            harness.engine.abort(str(i))
    harness.engine.abort("never heard of")
    harness.run()
    harness.engine.abort("0")  # already over
    harness.run_step()
    harness.assert_clean()
    reasons = [harness.answers[str(i)].finish_reason for i in range(450)]
    assert reasons.count(FinishReason.TIME_LIMIT) == 50
    assert reasons.count(FinishReason.CANCELLED) + reasons.count(FinishReason.LENGTH) == 400
    assert reasons.count(FinishReason.CANCELLED) >= 150


@pytest.mark.parametrize(
    ("prompt", "output", "reason"),
    [
        ([], 4, "EMPTY_PROMPT"),
        ([1] * 250, 10, "PROMPT_TOO_LONG"),
        ([1, VOCAB], 4, "INVALID_TOKEN"),
        ([1, -1], 4, "INVALID_TOKEN"),
    ],
)
def test_what_can_never_run_is_refused_at_once(
    tiny_base: TinyBase, prompt: list[int], output: int, reason: str
) -> None:
    harness = tiny_base.harness()
    with pytest.raises(InvalidRequest) as refused:
        harness.submit("r", prompt, max_output_tokens=output)
    assert refused.value.code == reason
    harness.assert_clean()


def test_virtual_tokens_count_against_the_context(tiny_base: TinyBase) -> None:
    harness = tiny_base.harness()
    harness.submit("fits", [1] * 246, max_output_tokens=10)
    with pytest.raises(PolygraftError, match="7 virtual, 246 prompt and 10 output"):
        harness.submit("does not", [1] * 246, adapter="soft", max_output_tokens=10)


def test_a_dying_engine_answers_everybody(tiny_base: TinyBase) -> None:
    harness = tiny_base.harness()
    outputs: list[SequenceOutput] = []
    engine = harness.engine

    def broken(batch: object) -> torch.Tensor:
        raise RuntimeError("device lost")

    engine._runner.run = broken  # type: ignore[method-assign,assignment]
    harness.adapters.references["lora4"] += 1
    engine.start(harness.adapters, outputs.extend)
    engine.submit(EngineRequest("r", (1, 2), Stopping(4), adapters=(AdapterShare("lora4"),)))
    deadline = time.monotonic() + 10
    while not outputs and time.monotonic() < deadline:
        time.sleep(0.01)
    assert isinstance(outputs[-1].error, Unavailable)
    assert not engine.stats().alive
    with pytest.raises(Unavailable):
        engine.submit(EngineRequest("r2", (1, 2), Stopping(4)))
    assert harness.adapters.references["lora4"] == 0
    engine.stop()


def test_stop_answers_live_requests(tiny_base: TinyBase) -> None:
    harness = tiny_base.harness()
    outputs: list[SequenceOutput] = []
    harness.engine.start(harness.adapters, outputs.extend)
    harness.engine.submit(EngineRequest("r", (1, 2), Stopping(200)))
    while not outputs:
        time.sleep(0.005)
    harness.engine.stop()
    assert outputs[-1].is_final
    assert harness.engine.ledger() == harness.start_ledger


def test_packed_and_plain_weights_agree(tiny_base: TinyBase) -> None:
    answers = []
    for weight_format in ("packed", "plain"):
        harness: Harness = tiny_base.harness(weight_format=weight_format)
        harness.submit("r", [3, 1, 4, 1, 5], adapter="lora4", max_output_tokens=16)
        harness.run()
        answers.append(harness.answers["r"])
    assert answers[0].token_ids == answers[1].token_ids
    difference = torch.stack(answers[0].logits) - torch.stack(answers[1].logits)
    assert difference.abs().max() <= 1e-4


def test_the_age_of_a_step_is_that_of_the_step_in_progress(tiny_base: TinyBase) -> None:
    harness = tiny_base.harness()
    harness.submit("r", [1, 2, 3], max_output_tokens=3)
    harness.run()
    time.sleep(0.05)
    assert harness.engine.stats().step_age is None, "an idle engine is not stuck"
    seen: list[float | None] = []
    run = harness.engine._runner.run

    def slow(batch: ForwardBatch) -> torch.Tensor:
        time.sleep(0.05)
        seen.append(harness.engine.stats().step_age)
        return run(batch)

    harness.engine._runner.run = slow  # type: ignore[method-assign]
    harness.submit("r2", [1, 2, 3], max_output_tokens=1)
    harness.run()
    assert seen[0] is not None
    assert 0.05 <= seen[0] < 5


def test_an_audit_runs_between_steps_and_tells_what_is_lost(tiny_base: TinyBase) -> None:
    harness = tiny_base.harness()
    harness.submit("r", [1, 2, 3] * 9, max_output_tokens=3)
    audits = []
    while harness.engine.ledger()["live_sequences"]:
        audits.append(harness.engine.audit())
        harness.run_step()
    assert [audit.result(0) for audit in audits] == [None] * len(audits)
    harness.engine._blocks.allocate(1)  # held by nobody
    audit = harness.engine.audit()
    harness.engine.step()
    with pytest.raises(AssertionError, match="reference counts differ"):
        audit.result(0)


def test_a_time_limit_still_tells_what_came_from_the_cache(tiny_base: TinyBase) -> None:
    harness = tiny_base.harness()
    prompt = [5, 6, 7, 8] * 10
    harness.submit("warm", prompt, max_output_tokens=1)
    harness.run()
    harness.submit("late", prompt, max_output_tokens=150, time_limit=0.1)
    harness.run_step()
    time.sleep(0.12)
    harness.run()
    assert harness.answers["late"].finish_reason is FinishReason.TIME_LIMIT
    assert harness.answers["late"].num_cached == 32


@pytest.mark.parametrize(
    "settings", [{"pool_rows": 100}, {"max_running": 64, "max_batch_tokens": 32}], ids=str
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"pool_rows|max_batch_tokens"):
        EngineConfig.model_validate(settings)
