"""From the plain data of `server.requests` to the messages of the wire contract."""

from __future__ import annotations

from collections.abc import Iterable

from polygraft import __version__
from polygraft.adapters.limits import AdapterLimits
from polygraft.protos import generation_pb2 as pb
from polygraft.protos import inputs_pb2, model_pb2, scoring_pb2
from polygraft.server.applied import AppliedAdapters
from polygraft.server.engine.messages import TokenLogprob
from polygraft.server.engine_port import EnginePort
from polygraft.server.requests import ContinuationScore, Ending, Piece, Usage

_FINISH_REASONS = {
    None: pb.FINISH_REASON_UNSPECIFIED,
    Ending.STOP: pb.FINISH_REASON_STOP,
    Ending.LENGTH: pb.FINISH_REASON_LENGTH,
    Ending.TIME_LIMIT: pb.FINISH_REASON_TIME_LIMIT,
}


def write_choice(piece: Piece, *, with_token_ids: bool) -> pb.Choice:
    """A choice or a piece of one."""
    return pb.Choice(
        index=piece.index,
        text=piece.text,
        token_ids=piece.token_ids if with_token_ids else (),
        logprobs=write_logprobs(piece.logprobs),
        finish_reason=_FINISH_REASONS[piece.ending],
        output_token_count=piece.output_tokens if piece.ending else 0,
    )


def write_logprobs(entries: Iterable[TokenLogprob]) -> list[pb.TokenLogprob]:
    """One message for each token."""
    return [
        pb.TokenLogprob(
            token_id=entry.token_id,
            logprob=entry.logprob,
            rank=entry.rank,
            top=[pb.TopToken(token_id=token, logprob=value) for token, value in entry.top],
        )
        for entry in entries
    ]


def write_versions(adapters: AppliedAdapters) -> list[inputs_pb2.ServedVersion]:
    """The versions that answer; none for the base alone."""
    return [
        inputs_pb2.ServedVersion(
            adapter_name=version.record.adapter_name,
            version_number=version.record.number,
            digest=version.record.digest,
            weight=version.weight,
        )
        for version in adapters.versions
    ]


def write_usage(usage: Usage) -> inputs_pb2.Usage:
    """Token counts."""
    return inputs_pb2.Usage(
        prompt_token_count=usage.prompt_tokens,
        virtual_token_count=usage.virtual_tokens,
        output_token_count=usage.output_tokens,
        cached_token_count=usage.cached_tokens,
    )


def write_scores(items: Iterable[Iterable[ContinuationScore]]) -> list[scoring_pb2.ItemScores]:
    """The scores of each item."""
    return [
        scoring_pb2.ItemScores(scores=[_write_score(score) for score in scores]) for scores in items
    ]


def write_model(
    engine: EnginePort, limits: AdapterLimits, max_message_bytes: int
) -> model_pb2.Model:
    """The base's facts."""
    geometry = engine.geometry
    return model_pb2.Model(
        name=geometry.name,
        architecture=geometry.architecture,
        fingerprint=model_pb2.Fingerprint(
            weights_sha256=geometry.fingerprint.weights_sha256,
            config_sha256=geometry.fingerprint.config_sha256,
            tokenizer_sha256=geometry.fingerprint.tokenizer_sha256,
        ),
        context_length=engine.context_length,
        vocab_size=geometry.vocab_size,
        hidden_size=geometry.hidden_size,
        layer_count=geometry.num_layers,
        dtype=geometry.dtype,
        eos_token_ids=sorted(engine.eos_token_ids),
        has_chat_template=engine.tokenizer.chat_template is not None,
        limits=model_pb2.Limits(
            max_message_size_bytes=max_message_bytes,
            max_adapter_size_bytes=limits.max_bytes,
            max_rank=limits.max_rank,
            max_virtual_token_count=limits.max_virtual_tokens,
        ),
        server_version=__version__,
        bos_token_id=engine.tokenizer.bos_token_id,
    )


def _write_score(score: ContinuationScore) -> scoring_pb2.ContinuationScore:
    return scoring_pb2.ContinuationScore(
        logprob=sum(token.logprob for token in score.tokens),
        is_greedy=all(token.rank == 1 for token in score.tokens),
        tokens=[
            scoring_pb2.ScoredToken(token_id=t.token_id, logprob=t.logprob, rank=t.rank)
            for t in score.tokens
        ],
        usage=write_usage(score.usage),
    )
