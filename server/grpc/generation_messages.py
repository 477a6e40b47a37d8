"""Between the messages of generation.proto and the plain data of `server.requests`."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration

from polygraft import __version__
from polygraft.adapters.errors import InvalidRequest
from polygraft.adapters.limits import AdapterLimits
from polygraft.adapters.registry import VersionRecord
from polygraft.protos import generation_pb2 as pb
from polygraft.server.engine_port import EnginePort
from polygraft.server.requests import (
    ContinuationScore,
    Ending,
    GenerateRequest,
    Input,
    Messages,
    Prompt,
    SamplingOptions,
    ScoreItem,
    ScoreRequest,
    StoppingOptions,
    TokenIds,
    Usage,
    Variables,
)

_FINISH_REASONS = {
    Ending.STOP: pb.FINISH_REASON_STOP,
    Ending.LENGTH: pb.FINISH_REASON_LENGTH,
    Ending.TIME_LIMIT: pb.FINISH_REASON_TIME_LIMIT,
}


def read_generate(message: pb.GenerateRequest) -> GenerateRequest:
    """Raises InvalidRequest when there is no input."""
    return GenerateRequest(
        input=read_input(message),
        adapter=message.adapter,
        sampling=_read_sampling(message.sampling),
        stopping=_read_stopping(message.stopping),
        logprobs=message.output.logprobs,
    )


def read_score(message: pb.ScoreRequest) -> ScoreRequest:
    """Raises InvalidRequest when an item lacks its input or its target."""
    items = (_read_item(index, item) for index, item in enumerate(message.items))
    return ScoreRequest(items=tuple(items), adapter=message.adapter)


def read_input(
    message: pb.GenerateRequest | pb.TokenizeRequest | pb.ScoreItem, place: str = ""
) -> Input:
    """The input of a request; `place` is the path in front of it. Raises InvalidRequest."""
    match message.WhichOneof("input"):
        case "prompt":
            return Prompt(message.prompt)
        case "messages":
            return Messages(
                tuple({"role": m.role, "content": m.content} for m in message.messages.values)
            )
        case "variables":
            return Variables(dict(message.variables.values))
        case "token_ids" if not isinstance(message, pb.TokenizeRequest):
            return TokenIds(tuple(message.token_ids.values))
    raise InvalidRequest(
        "there is no input.",
        reason="MISSING_INPUT",
        item=f"{place}input",
        hint="Set one of prompt, token_ids, messages and variables.",
    )


def write_version(version: VersionRecord | None) -> pb.ServedVersion | None:
    """The version that answers; None for the base alone."""
    if version is None:
        return None
    return pb.ServedVersion(
        adapter_name=version.adapter_name, version_number=version.number, digest=version.digest
    )


def write_usage(usage: Usage | None) -> pb.Usage | None:
    """None while an answer goes on."""
    if usage is None:
        return None
    return pb.Usage(
        prompt_token_count=usage.prompt_tokens,
        virtual_token_count=usage.virtual_tokens,
        output_token_count=usage.output_tokens,
        cached_token_count=usage.cached_tokens,
    )


def write_finish_reason(ending: Ending | None) -> pb.FinishReason:
    """Unspecified while an answer goes on."""
    return pb.FINISH_REASON_UNSPECIFIED if ending is None else _FINISH_REASONS[ending]


def write_score(score: ContinuationScore) -> pb.ContinuationScore:
    """One item's score."""
    return pb.ContinuationScore(
        logprob=sum(token.logprob for token in score.tokens),
        is_greedy=all(token.is_greedy for token in score.tokens),
        tokens=[
            pb.ScoredToken(token_id=t.token_id, logprob=t.logprob, is_greedy=t.is_greedy)
            for t in score.tokens
        ],
        usage=write_usage(score.usage),
    )


def write_model(engine: EnginePort, limits: AdapterLimits, max_message_bytes: int) -> pb.Model:
    """The base's facts."""
    geometry = engine.geometry
    return pb.Model(
        name=geometry.name,
        architecture=geometry.architecture,
        fingerprint=pb.Fingerprint(
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
        limits=pb.Limits(
            max_message_size_bytes=max_message_bytes,
            max_adapter_size_bytes=limits.max_bytes,
            max_rank=limits.max_rank,
            max_virtual_token_count=limits.max_virtual_tokens,
        ),
        server_version=__version__,
    )


def _read_sampling(message: pb.Sampling) -> SamplingOptions:
    return SamplingOptions(
        temperature=message.temperature if message.HasField("temperature") else None,
        top_p=message.top_p if message.HasField("top_p") else None,
        top_k=message.top_k if message.HasField("top_k") else None,
        seed=message.seed if message.HasField("seed") else None,
    )


def _read_stopping(message: pb.Stopping) -> StoppingOptions:
    has_max = message.HasField("max_output_tokens")
    return StoppingOptions(
        max_output_tokens=message.max_output_tokens if has_max else None,
        stop_sequences=tuple(message.stop_sequences),
        stop_token_ids=tuple(message.stop_token_ids),
        ignore_eos=message.ignore_eos,
        time_limit=_seconds(message.time_limit) if message.HasField("time_limit") else None,
    )


def _seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos / 1e9


def _read_item(index: int, message: pb.ScoreItem) -> ScoreItem:
    place = f"items[{index}]."
    match message.WhichOneof("target"):
        case "continuation":
            continuation: str | tuple[int, ...] = message.continuation
        case "continuation_token_ids":
            continuation = tuple(message.continuation_token_ids.values)
        case _:
            raise InvalidRequest(
                "there is nothing to score.", reason="MISSING_INPUT", item=f"{place}target"
            )
    return ScoreItem(context=read_input(message, place), continuation=continuation)
