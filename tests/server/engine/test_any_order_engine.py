"""Any order over the real engine: what is answered is what each request gets alone."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from engine_support.architectures import VOCAB
from engine_support.harness import Harness, random_prompts
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from polygraft.server.engine.messages import PRIORITIES, FairShare, FinishReason, Sampling

if TYPE_CHECKING:
    from conftest import TinyBase

KINDS = (None, "lora4", "rslora8", "soft")
PROMPTS = [prompt * 2 for prompt in random_prompts(3, vocab=VOCAB, seed=31, longest=20)]
MOST_TOKENS = 12


def machine(tiny_base: TinyBase) -> type[RuleBasedStateMachine]:
    @cache
    def alone(kind: str | None, prompt: int, seed: int) -> list[int]:
        harness = tiny_base.harness()
        _submit(harness, "r", kind, prompt, seed)
        harness.run()
        return harness.answers["r"].token_ids

    class Engines(RuleBasedStateMachine):
        @initialize(
            blocks=st.integers(24, 40), prefix_cache=st.booleans(), running=st.integers(1, 6)
        )
        def start(self, blocks: int, prefix_cache: bool, running: int) -> None:
            self.harness = tiny_base.harness(
                kv_bytes=blocks * 4 * 384,  # 2 layers x 2 heads x 12 x 2 x 4 bytes a token
                block_size=4,
                max_chunk=16,
                max_running=running,
                prefix_cache=prefix_cache,
            )
            self.asked: dict[str, tuple[str | None, int, int]] = {}

        @rule(
            kind=st.sampled_from(KINDS),
            prompt=st.integers(0, len(PROMPTS) - 1),
            seed=st.integers(0, 1),
            priority=st.sampled_from(PRIORITIES),
            ago=st.integers(1, 4),
            is_late=st.integers(0, 9).map(lambda n: n == 0),
        )
        def submit(
            self, kind: str | None, prompt: int, seed: int, priority: int, ago: int, is_late: bool
        ) -> None:
            name = str(len(self.asked))
            self.asked[name] = (kind, prompt, seed)
            _submit(
                self.harness,
                name,
                kind,
                prompt,
                seed,
                priority=priority,
                share=FairShare(adapter=kind or ""),
                after=str(len(self.asked) - 1 - ago),
                time_limit=0.0 if is_late else None,
            )

        @rule(ago=st.integers(1, 6))
        def cancel(self, ago: int) -> None:
            self.harness.engine.abort(str(len(self.asked) - ago))

        @rule(kind=st.sampled_from(KINDS[1:]))
        def evict(self, kind: str) -> None:
            self.harness.adapters.unload(kind)

        @rule(kind=st.sampled_from(KINDS[1:]))
        def load(self, kind: str) -> None:
            if not self.harness.adapters.is_ready(kind):
                self.harness.adapters.load(kind, tiny_base.adapters[kind])
                self.harness.engine.wake(kind)

        @rule(count=st.integers(1, 5))
        def step(self, count: int) -> None:
            for _ in range(count):
                self.harness.run_step()

        @invariant()
        def the_ledger_agrees(self) -> None:
            if hasattr(self, "harness"):
                live = [name for name in self.asked if not self.harness.answers[name].is_done]
                assert self.harness.engine.ledger()["live_sequences"] == len(live)

        def teardown(self) -> None:
            if not hasattr(self, "harness"):
                return
            for kind in KINDS[1:]:
                assert kind is not None
                self.load(kind)
            self.harness.run()
            self.harness.assert_clean()
            for name, asked in self.asked.items():
                answer = self.harness.answers[name]
                assert answer.error is None
                whole = alone(*asked)
                assert answer.token_ids == whole[: len(answer.token_ids)]
                if answer.finish_reason is FinishReason.LENGTH:
                    assert len(answer.token_ids) == len(whole) == MOST_TOKENS

    return Engines


def test_whatever_the_order_each_answer_is_the_one_it_gets_alone(tiny_base: TinyBase) -> None:
    run_state_machine_as_test(
        machine(tiny_base),
        settings=settings(max_examples=25, stateful_step_count=30, deadline=None),
    )


def _submit(
    harness: Harness, name: str, kind: str | None, prompt: int, seed: int, **fields: Any
) -> None:
    harness.submit(
        name,
        PROMPTS[prompt],
        adapter=kind,
        max_output_tokens=MOST_TOKENS,
        sampling=Sampling(0.8, seed=seed),
        **fields,
    )
