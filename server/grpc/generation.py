"""GenerationService: reads messages, asks `server.generation`, writes messages."""

from __future__ import annotations

import asyncio

from polygraft.adapters.limits import AdapterLimits
from polygraft.protos import generation_pb2 as pb
from polygraft.protos import generation_pb2_grpc
from polygraft.server.answer import Answer
from polygraft.server.engine_port import EnginePort
from polygraft.server.generation import TextGeneration
from polygraft.server.grpc import generation_messages as messages
from polygraft.server.grpc.boundary import Context, current_request_id, deadline_of
from polygraft.server.outputs import SlowReader
from polygraft.server.requests import Piece


class GenerationServicer(generation_pb2_grpc.GenerationServiceServicer):
    """Handlers of polygraft.v1.GenerationService.

    `stall_timeout`: seconds that one message may wait for the client to read before it.
    """

    def __init__(
        self,
        generation: TextGeneration,
        engine: EnginePort,
        limits: AdapterLimits,
        *,
        max_message_bytes: int,
        stall_timeout: float,
    ) -> None:
        self._generation = generation
        self._model = messages.write_model(engine, limits, max_message_bytes)
        self._stall_timeout = stall_timeout

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> pb.GenerateResponse:
        """The whole answer."""
        parsed = messages.read_generate(request)
        request_id, deadline = current_request_id(), deadline_of(context)
        async with self._generation.begin(parsed, request_id, deadline=deadline) as answer:
            whole = await answer.collect()
        return pb.GenerateResponse(
            text=whole.text,
            token_ids=whole.token_ids if request.output.token_ids else (),
            logprobs=whole.logprobs,
            finish_reason=messages.write_finish_reason(whole.ending),
            usage=messages.write_usage(whole.usage),
            adapter_version=messages.write_version(answer.version),
            seed=answer.seed,
            request_id=request_id,
        )

    async def StreamGenerate(self, request: pb.GenerateRequest, context: Context) -> None:
        """The answer in pieces; those with nothing to show are not sent."""
        parsed = messages.read_generate(request)
        shows_tokens = request.output.token_ids or request.output.logprobs
        request_id, deadline = current_request_id(), deadline_of(context)
        async with self._generation.begin(parsed, request_id, deadline=deadline) as answer:
            is_first = True
            async for piece in answer:
                if piece.text or shows_tokens or piece.ending is not None:
                    message = _write_piece(piece, request.output.token_ids)
                    if is_first or piece.ending is not None:
                        _add_facts(message, answer, request_id)
                    await self._write(message, context)
                    is_first = False

    async def Score(self, request: pb.ScoreRequest, context: Context) -> pb.ScoreResponse:
        """Log-probabilities of continuations."""
        parsed = messages.read_score(request)
        request_id, deadline = current_request_id(), deadline_of(context)
        version, scores = await self._generation.score(parsed, request_id, deadline=deadline)
        return pb.ScoreResponse(
            scores=[messages.write_score(score) for score in scores],
            adapter_version=messages.write_version(version),
            request_id=request_id,
        )

    async def Tokenize(self, request: pb.TokenizeRequest, context: Context) -> pb.TokenizeResponse:
        """Token ids of an input."""
        parsed = messages.read_input(request)
        return pb.TokenizeResponse(
            token_ids=await self._generation.tokenize(request.adapter, parsed)
        )

    async def Detokenize(
        self, request: pb.DetokenizeRequest, context: Context
    ) -> pb.DetokenizeResponse:
        """Text of token ids."""
        text = await self._generation.detokenize(
            request.token_ids, skip_special_tokens=request.skip_special_tokens
        )
        return pb.DetokenizeResponse(text=text)

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.Model:
        """The base's facts."""
        return self._model

    async def _write(self, message: pb.StreamGenerateResponse, context: Context) -> None:
        try:
            async with asyncio.timeout(self._stall_timeout):
                await context.write(message)
        except TimeoutError as error:
            raise SlowReader(
                f"the client did not read for {self._stall_timeout:g} s.",
                allowed=self._stall_timeout,
                hint="Read the stream faster, or call Generate.",
            ) from error


def _write_piece(piece: Piece, with_token_ids: bool) -> pb.StreamGenerateResponse:
    return pb.StreamGenerateResponse(
        text=piece.text,
        token_ids=piece.token_ids if with_token_ids else (),
        logprobs=piece.logprobs,
        finish_reason=messages.write_finish_reason(piece.ending),
        usage=messages.write_usage(piece.usage),
    )


def _add_facts(message: pb.StreamGenerateResponse, answer: Answer, request_id: str) -> None:
    version = messages.write_version(answer.version)
    if version is not None:
        message.adapter_version.CopyFrom(version)
    message.seed = answer.seed
    message.request_id = request_id
