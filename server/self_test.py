"""The numerical self-test: an adapter is run by the engine that will serve it, before it is
published.

Its probes go through the queue, the scheduler and the kernels as requests do, one at a time, in the
lowest class, in small chunks and past the prefix cache. Until it is published its digest resolves
for nobody else: the files come from the upload's staging.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue

import torch
from torch import Tensor

from polygraft.adapters.errors import (
    AdapterIncompatible,
    AdapterInvalid,
    DeadlineExpired,
    NonFinite,
    Overloaded,
    PolygraftError,
    Unavailable,
)
from polygraft.adapters.manifest import Manifest
from polygraft.adapters.names import namespace_of
from polygraft.adapters.probes import MAX_PROBE_TOKENS, NUM_GREEDY, Probes, read_probes
from polygraft.adapters.residency import Residency
from polygraft.adapters.self_test import Observed, Proof, compare_with_probes
from polygraft.server.engine.messages import (
    PRIORITIES,
    AdapterShare,
    EngineRequest,
    FairShare,
    SequenceOutput,
    Stopping,
    TokenLogprob,
)
from polygraft.server.engine_port import EnginePort
from polygraft.server.formula_check import compare_with_formula

logger = logging.getLogger(__name__)

CHUNK = 16  # prompt tokens of a probe in one step: running requests must not feel a test
_NUM_SEQUENCES = 4  # that an adapter without probes is tried on
_SEQUENCE_TOKENS = 16
_NUM_TRIED = 4  # tokens that each of them is continued with


@dataclass(frozen=True, slots=True)
class _Subject:
    """The version under test, as requests name it."""

    digest: str
    num_virtual: int
    num_prefix: int
    share: FairShare


class SelfTest:
    """Proves uploads, one at a time. `timeout`: seconds that one may take. `is_exact`: weights are
    served as they are, not rounded to fewer bits.

    `deliver` is called by the engine's thread with the outputs of every step, `prove` by that of an
    upload, `files` by loader threads. `outcome(passed, proven)` is told how each test ended.
    """

    def __init__(
        self,
        engine: EnginePort,
        residency: Residency,
        *,
        timeout: float,
        is_exact: bool = True,
        outcome: Callable[[bool, bool], None] = lambda passed, proven: None,
    ) -> None:
        self._engine = engine
        self._residency = residency
        self._timeout = timeout
        self._is_exact = is_exact
        self._outcome = outcome
        self._one_at_a_time = threading.Lock()
        self._quarantine: dict[str, Mapping[str, Path]] = {}
        self._asked: dict[str, SimpleQueue[SequenceOutput]] = {}

    def files(self, digest: str) -> Mapping[str, Path] | None:
        """The staged files of a version under test; None for every other."""
        return self._quarantine.get(digest)

    def deliver(self, outputs: Sequence[SequenceOutput]) -> None:
        """Takes what belongs to a test; must be quick."""
        if self._asked:
            for output in outputs:
                asked = self._asked.get(output.request_id)
                if asked is not None:
                    asked.put(output)

    def prove(
        self,
        name: str,
        manifest: Manifest,
        files: Mapping[str, Path],
        *,
        allow_no_effect: bool = False,
    ) -> Proof:
        """Run an adapter whose files passed validation; `name` says whose account pays.

        Raises AdapterInvalid or AdapterIncompatible with the numbers when it computes something
        else than it should, DeadlineExpired or Overloaded when the server found no time for it.
        """
        with self._one_at_a_time:
            deadline = time.monotonic() + self._timeout
            with self._quarantined(manifest, files, deadline):
                subject = _subject(name, manifest)
                try:
                    if manifest.probes is not None:
                        proof = self._by_probes(
                            manifest, files, subject, deadline, allow_no_effect=allow_no_effect
                        )
                    else:
                        proof = self._by_formula(manifest, files, subject, deadline)
                except (AdapterInvalid, AdapterIncompatible):
                    self._outcome(False, False)
                    raise
            self._outcome(True, proof.proven)
            logger.info("self-test of %s passed: %s", name, "; ".join(map(str, proof.checks)))
            return proof

    @contextmanager
    def _quarantined(
        self, manifest: Manifest, files: Mapping[str, Path], deadline: float
    ) -> Iterator[None]:
        """The version on the device, from its staged files. One that fails leaves nothing."""
        digest = manifest.digest
        self._check_room(digest, manifest.format.max_rank)
        self._quarantine[digest] = files
        self._residency.acquire(digest)
        try:
            self._residency.load(digest, timeout=_left(deadline))
            yield
        except BaseException:
            self._residency.release(digest)
            with suppress(DeadlineExpired, Unavailable):
                self._residency.unload(digest, timeout=self._timeout)
            raise
        else:
            self._residency.release(digest)
        finally:
            del self._quarantine[digest]

    def _check_room(self, digest: str, rank: int) -> None:
        """Raises Overloaded, so that the upload can be gone on with when a pin is gone."""
        try:
            self._residency.check_room({digest: rank})
        except AdapterIncompatible as error:
            raise Overloaded(
                f"it cannot be tested now: {error.message}", reason=error.code, hint=error.hint
            ) from error

    # Two kinds of evidence

    def _by_probes(
        self,
        manifest: Manifest,
        files: Mapping[str, Path],
        subject: _Subject,
        deadline: float,
        *,
        allow_no_effect: bool,
    ) -> Proof:
        assert manifest.probes is not None
        geometry = self._engine.geometry
        probes = read_probes(
            files[manifest.probes.file],
            count=manifest.probes.count,
            vocab_size=geometry.vocab_size,
        )
        self._check_length(probes, subject)
        base, adapter, greedy = [], [], []
        for index, prompt in enumerate(probes.prompts()):
            wanted = probes.wanted(index)
            base.append(self._ask(prompt, None, subject.share, deadline, wanted=wanted).logprobs)
            answer = self._ask(
                prompt, subject, subject.share, deadline, wanted=wanted, num_output=NUM_GREEDY
            )
            adapter.append(answer.logprobs)
            greedy.append(answer.token_ids)
        return compare_with_probes(
            probes,
            Observed(torch.stack(base), torch.stack(adapter), greedy),
            is_exact=self._is_exact and {manifest.probes.dtype, geometry.dtype} == {"float32"},
            allow_no_effect=allow_no_effect,
        )

    def _check_length(self, probes: Probes, subject: _Subject) -> None:
        longest = int(probes.input_len.max()) + subject.num_virtual + NUM_GREEDY
        if longest > self._engine.context_length:
            raise AdapterIncompatible(
                f"its probes take {longest} positions, more than this server's context.",
                reason="SELF_TEST_FAILED",
                file="probes.safetensors",
                found=longest,
                allowed=self._engine.context_length,
                hint=f"Serve with a context of {MAX_PROBE_TOKENS + NUM_GREEDY} and the virtual "
                "tokens at least.",
            )

    def _by_formula(
        self, manifest: Manifest, files: Mapping[str, Path], subject: _Subject, deadline: float
    ) -> Proof:
        checks, warnings = compare_with_formula(
            files, manifest.kind, subject.digest, self._engine, timeout=_left(deadline)
        )
        generator = torch.Generator().manual_seed(0)
        room = self._engine.context_length - subject.num_virtual - _NUM_TRIED
        size = (_NUM_SEQUENCES, max(1, min(_SEQUENCE_TOKENS, room)))
        for row in torch.randint(self._engine.geometry.vocab_size, size, generator=generator):
            self._ask(tuple(row.tolist()), subject, subject.share, deadline, num_output=_NUM_TRIED)
        unproven = "UNPROVEN: it brings no probes; only PEFT's formula for one layer was compared"
        return Proof(proven=False, checks=checks, warnings=(unproven, *warnings))

    # One request

    def _ask(
        self,
        prompt: tuple[int, ...],
        subject: _Subject | None,
        share: FairShare,
        deadline: float,
        *,
        wanted: tuple[tuple[int, ...], ...] = (),
        num_output: int = 1,
    ) -> _Answer:
        """What the engine answers; `subject` None is the base alone."""
        request = EngineRequest(
            request_id=f"self-test-{uuid.uuid4().hex}",
            prompt_token_ids=prompt,
            stopping=Stopping(max_output_tokens=num_output),
            adapters=(AdapterShare(subject.digest),) if subject else (),
            num_virtual=subject.num_virtual if subject else 0,
            num_prefix=subject.num_prefix if subject else 0,
            wanted_logprobs=wanted,
            prefix_cache=False,
            max_chunk=CHUNK,
            speculation=False,
            share=share,
            priority=min(PRIORITIES),
        )
        outputs = self._asked[request.request_id] = SimpleQueue()
        try:
            self._submit(request, deadline)
            return _collect(outputs, deadline)
        finally:
            self._engine.abort(request.request_id)
            del self._asked[request.request_id]

    def _submit(self, request: EngineRequest, deadline: float) -> None:
        """Again and again while the queue is full, until the deadline."""
        while True:
            self._residency.acquire(*request.digests)
            try:
                self._engine.submit(request)
                return
            except Overloaded as error:
                self._residency.release(*request.digests)
                if time.monotonic() + error.retry_after > deadline:
                    raise
                time.sleep(error.retry_after)
            except BaseException:
                self._residency.release(*request.digests)
                raise


@dataclass(frozen=True, slots=True)
class _Answer:
    """logprobs: [num_positions, num_wanted] of the tokens that were wanted."""

    logprobs: Tensor
    token_ids: tuple[int, ...]


def _collect(outputs: SimpleQueue[SequenceOutput], deadline: float) -> _Answer:
    tokens: tuple[int, ...] = ()
    positions: list[TokenLogprob] = []
    while True:
        try:
            output = outputs.get(timeout=_left(deadline))
        except Empty:
            raise _too_slow() from None
        if isinstance(output.error, NonFinite):
            raise AdapterInvalid(
                "the self-test failed: the model with this adapter gives NaN or Inf.",
                reason="SELF_TEST_FAILED",
                hint="The training diverged; use an earlier checkpoint.",
            ) from output.error
        if output.error is not None:
            raise output.error
        positions += output.prompt_logprobs
        positions += output.logprobs
        tokens += output.token_ids
        if output.is_final:
            rows = [[logprob for _, logprob in position.top] for position in positions]
            return _Answer(torch.tensor(rows), tokens)


def _subject(name: str, manifest: Manifest) -> _Subject:
    num_virtual = manifest.format.virtual_token_count
    return _Subject(
        manifest.digest,
        num_virtual,
        num_virtual if manifest.kind == "prefix" else 0,
        FairShare(namespace_of(name), name),
    )


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise _too_slow()
    return left


def _too_slow() -> PolygraftError:
    return DeadlineExpired(
        "the server found no time to test the adapter; it was not published.",
        reason="SELF_TEST_TIMEOUT",
        hint="Upload it again when the server is less busy, or raise adapters.self_test_timeout.",
    )
