"""Sharing keys and values: what may be shared is, nothing else ever, and tokens do not change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from engine_support.architectures import VOCAB
from engine_support.harness import Harness, random_prompts

from polygraft.server.engine.messages import AdapterShare, Sampling
from polygraft.server.engine.prefix_cache import BlockKeys

if TYPE_CHECKING:
    from conftest import TinyBase

PROMPT = random_prompts(1, vocab=VOCAB, seed=2)[0] * 4
BLOCK = 16


def ask(harness: Harness, name: str, prompt: list[int], **options: object) -> int:
    """Run one request alone; returns how many positions came from the cache."""
    before = harness.engine.stats().cached_tokens
    harness.submit(name, prompt, **options)  # type: ignore[arg-type]
    harness.run()
    harness.assert_clean()
    return harness.engine.stats().cached_tokens - before


@pytest.mark.parametrize("adapter", [None, "lora4", "patterns16", "soft"])
def test_a_second_request_shares_whole_blocks_and_gives_the_same_logits(
    tiny_base: TinyBase, adapter: str | None
) -> None:
    harness = tiny_base.harness()
    positions = len(PROMPT) + harness.adapters.virtual.get(adapter or "", 0)
    assert ask(harness, "first", PROMPT, adapter=adapter) == 0
    assert ask(harness, "again", PROMPT, adapter=adapter) == (positions - 1) // BLOCK * BLOCK
    first, again = harness.answers["first"], harness.answers["again"]
    assert first.token_ids == again.token_ids
    difference = torch.stack(first.logits) - torch.stack(again.logits)
    assert difference.abs().max() <= 1e-5


def test_other_adapters_and_other_tenants_share_nothing(tiny_base: TinyBase) -> None:
    harness = tiny_base.harness()
    ask(harness, "lora", PROMPT, adapter="lora4")
    assert ask(harness, "base", PROMPT) == 0
    assert ask(harness, "other lora", PROMPT, adapter="rslora8") == 0
    assert ask(harness, "other tenant", PROMPT, adapter="lora4", salt="b") == 0
    assert ask(harness, "same tenant", PROMPT, adapter="lora4", salt="b") > 0


@pytest.mark.parametrize("shared", [1, 15, 16, 17, 31, 32, 33, 48])
@pytest.mark.parametrize("adapter", [None, "lora4", "soft"])
def test_two_prompts_share_the_blocks_of_their_common_beginning(
    tiny_base: TinyBase, adapter: str | None, shared: int
) -> None:
    first, tail = (PROMPT[:48], [7]) if shared == 48 else (PROMPT[:48], [250, 7])
    assert first[shared : shared + 1] != tail[:1]
    second = first[:shared] + tail
    harness, plain = tiny_base.harness(), tiny_base.harness(prefix_cache=False)
    virtual = harness.adapters.virtual.get(adapter or "", 0)
    ask(harness, "first", first, adapter=adapter)
    assert ask(harness, "second", second, adapter=adapter) == (virtual + shared) // BLOCK * BLOCK
    assert_same(harness, plain, "second", second, adapter=adapter)


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 32, 33])
def test_one_token_at_least_is_computed(tiny_base: TinyBase, length: int) -> None:
    """Of a prompt that is cached as a whole, whether or not it ends with a block."""
    harness, plain = tiny_base.harness(), tiny_base.harness(prefix_cache=False)
    ask(harness, "first", PROMPT)
    assert ask(harness, "again", PROMPT[:length]) == (length - 1) // BLOCK * BLOCK
    assert_same(harness, plain, "again", PROMPT[:length])


def assert_same(harness: Harness, plain: Harness, name: str, *args: Any, **options: Any) -> None:
    """The answer is that of an engine without a cache."""
    ask(plain, name, *args, **options)
    cached, expected = harness.answers[name], plain.answers[name]
    assert cached.token_ids == expected.token_ids
    assert (torch.stack(cached.logits) - torch.stack(expected.logits)).abs().max() <= 1e-5


def test_a_version_keeps_its_blocks_while_it_is_off_the_device(tiny_base: TinyBase) -> None:
    """They are keyed by what the version is, not by where it stands."""
    harness = tiny_base.harness()
    ask(harness, "first", PROMPT, adapter="lora4")
    harness.engine.bank.free("lora4")
    harness.engine.bank.free("rslora8")
    harness.adapters.load("rslora8", tiny_base.adapters["rslora8"])  # its rows are others now
    harness.adapters.load("lora4", tiny_base.adapters["lora4"])
    assert ask(harness, "back", PROMPT, adapter="lora4") == (len(PROMPT) - 1) // BLOCK * BLOCK
    assert harness.answers["back"].token_ids == harness.answers["first"].token_ids


def test_a_new_version_of_the_same_weights_shares_nothing(tiny_base: TinyBase) -> None:
    harness = tiny_base.harness()
    harness.adapters.load("lora4 again", tiny_base.adapters["lora4"])
    ask(harness, "first", PROMPT, adapter="lora4")
    assert ask(harness, "second", PROMPT, adapter="lora4 again") == 0
    assert harness.answers["first"].token_ids == harness.answers["second"].token_ids


def test_siblings_compute_their_prompt_once_and_sample_as_alone(tiny_base: TinyBase) -> None:
    harness, plain = tiny_base.harness(), tiny_base.harness(prefix_cache=False)
    prompt = PROMPT[:50]
    for engine in (harness, plain):
        for i in range(4):
            sampling = Sampling(temperature=1.5, seed=i)
            after = "r.0" if i and engine is harness else None
            engine.submit(f"r.{i}", prompt, adapter="lora4", sampling=sampling, after=after)
        engine.run()
        engine.assert_clean()
    answers = [harness.answers[f"r.{i}"] for i in range(4)]
    assert [answer.num_cached for answer in answers] == [0, 48, 48, 48]
    assert [a.token_ids for a in answers] == [plain.answers[f"r.{i}"].token_ids for i in range(4)]
    assert len({tuple(answer.token_ids) for answer in answers}) > 1


def test_answers_stay_the_same_while_prefixes_push_each_other_out(tiny_base: TinyBase) -> None:
    """Twelve prompts on four beginnings, in too few blocks for all of them."""
    harness = tiny_base.harness(kv_bytes=14 * 6144, max_context=128, max_chunk=24)
    plain = tiny_base.harness(prefix_cache=False)
    beginnings = [(p * 30)[:40] for p in random_prompts(4, vocab=VOCAB, seed=6)]
    for round_ in range(3):
        for i, beginning in enumerate(beginnings):
            prompt, name = [*beginning, round_, i], f"{round_}.{i}"
            for engine in (harness, plain):
                adapter = ("lora4", None, "soft", "patterns16")[i]
                engine.submit(name, prompt, adapter=adapter, max_output_tokens=20)
                engine.run_step()
    harness.run()
    plain.run()
    harness.assert_clean()
    assert harness.engine.stats().cached_tokens > 0
    for name, expected in plain.answers.items():
        assert harness.answers[name].token_ids == expected.token_ids
        difference = torch.stack(harness.answers[name].logits) - torch.stack(expected.logits)
        assert difference.abs().max() <= 1e-5


def test_virtual_blocks_are_shared_between_tenants_and_prompts() -> None:
    def keys(salt: str, tokens: list[int], adapter: str = "sha256:a") -> list[bytes]:
        made = BlockKeys(adapters=[AdapterShare(adapter)], num_virtual=20, salt=salt, block_size=8)
        return made.up_to(20 + len(tokens), tokens)

    a, b = keys("a", [1] * 20), keys("b", [2] * 20)
    assert a[:2] == b[:2], "two blocks hold virtual tokens only"
    assert not set(a[2:]) & set(b[2:])
    assert not set(keys("a", [1] * 20)[2:]) & set(keys("b", [1] * 20)[2:])
    assert not set(a) & set(keys("a", [1] * 20, adapter="sha256:b"))


def test_a_composition_has_keys_of_its_own_whatever_its_order() -> None:
    def key(*shares: tuple[str, float]) -> bytes:
        adapters = [AdapterShare(digest, weight) for digest, weight in shares]
        return BlockKeys(adapters=adapters, num_virtual=0, salt="", block_size=2).up_to(2, [1, 2])[
            0
        ]

    assert key(("a", 0.5), ("b", 1.0)) == key(("b", 1.0), ("a", 0.5))
    assert key(("a", 0.5), ("b", 1.0)) != key(("a", 1.0), ("b", 0.5))
    assert key(("a", 0.5)) != key(("a", 1.0))
    assert key(("a", 1.0), ("b", 1.0)) != key(("a", 1.0))


def test_keys_do_not_depend_on_how_tokens_arrived() -> None:
    tokens = list(range(40))
    whole = BlockKeys(adapters=(), num_virtual=3, salt="", block_size=8)
    growing = BlockKeys(adapters=(), num_virtual=3, salt="", block_size=8)
    for count in range(41):
        growing.up_to(3 + count, tokens[:count])
    assert growing.up_to(43, tokens) == whole.up_to(43, tokens)


def test_generated_tokens_are_shared_in_the_next_turn(tiny_base: TinyBase) -> None:
    harness = tiny_base.harness()
    ask(harness, "turn", PROMPT[:20], max_output_tokens=30)
    longer = PROMPT[:20] + harness.answers["turn"].token_ids
    assert ask(harness, "next", [*longer, 5]) == 48  # 50 tokens, the last one was never computed


def test_scores_are_exact_with_a_cached_prefix(tiny_base: TinyBase) -> None:
    plain = tiny_base.harness(prefix_cache=False)
    cached = tiny_base.harness()
    ask(cached, "warm", PROMPT)
    for harness in (plain, cached):
        ask(harness, "s", PROMPT, max_output_tokens=0, score_from=40)
    assert cached.engine.stats().cached_tokens == 32
    expected, scored = plain.answers["s"].prompt_logprobs, cached.answers["s"].prompt_logprobs
    assert len(scored) == len(PROMPT) - 40
    assert [t.token_id for t in scored] == [t.token_id for t in expected]
    assert [t.logprob for t in scored] == pytest.approx([t.logprob for t in expected], abs=1e-5)


def test_memory_pressure_forgets_the_least_recently_used_prefix(tiny_base: TinyBase) -> None:
    prompts = random_prompts(5, vocab=VOCAB, seed=5)
    prompts = [(p * 30)[:64] for p in prompts]
    harness = tiny_base.harness(kv_bytes=16 * 6144, max_context=128)  # 16 blocks, 4 kept a request
    for i in (0, 1, 2):
        ask(harness, f"fill {i}", prompts[i])
    assert ask(harness, "touch 0", prompts[0]) > 0
    ask(harness, "new", prompts[3])
    ask(harness, "newer", prompts[4])
    assert ask(harness, "0 again", prompts[0]) > 0
    assert ask(harness, "1 again", prompts[1]) < 48


def test_a_cache_that_is_off_shares_nothing(tiny_base: TinyBase) -> None:
    harness = tiny_base.harness(prefix_cache=False)
    ask(harness, "first", PROMPT)
    assert ask(harness, "again", PROMPT) == 0
