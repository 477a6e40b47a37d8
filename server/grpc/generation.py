"""GenerationService: reads messages, asks `server.generation`, writes messages."""

from __future__ import annotations

import asyncio

from polygraft.adapters.limits import AdapterLimits
from polygraft.protos import generation_pb2 as pb
from polygraft.protos import generation_pb2_grpc, model_pb2, scoring_pb2
from polygraft.server.answer import Answer
from polygraft.server.engine_port import EnginePort
from polygraft.server.generation import TextGeneration
from polygraft.server.grpc import generation_messages as messages
from polygraft.server.grpc import generation_requests as requests
from polygraft.server.grpc.boundary import Context, current_request_id, deadline_of
from polygraft.server.outputs import SlowReader


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
        parsed = requests.read_generate(request)
        request_id, deadline = current_request_id(), deadline_of(context)
        with_ids = request.output.token_ids
        async with self._generation.begin(parsed, request_id, deadline=deadline) as answer:
            pieces = await answer.collect()
        return pb.GenerateResponse(
            choices=[messages.write_choice(piece, with_token_ids=with_ids) for piece in pieces],
            prompt_logprobs=messages.write_logprobs(pieces[0].prompt_logprobs),
            usage=messages.write_usage(answer.usage),
            adapter_versions=messages.write_versions(answer.adapters),
            seed=answer.seed,
            request_id=request_id,
        )

    async def StreamGenerate(self, request: pb.GenerateRequest, context: Context) -> None:
        """The answer in pieces; those with nothing to show are not sent."""
        parsed = requests.read_generate(request)
        with_ids = request.output.token_ids
        shows_tokens = with_ids or request.output.HasField("top_logprobs")
        request_id, deadline = current_request_id(), deadline_of(context)
        async with self._generation.begin(
            parsed, request_id, is_stream=True, deadline=deadline
        ) as answer:
            is_first = True
            async for piece in answer:
                if not (piece.text or shows_tokens or piece.ending or piece.prompt_logprobs):
                    continue
                message = pb.StreamGenerateResponse(
                    choice=messages.write_choice(piece, with_token_ids=with_ids),
                    prompt_logprobs=messages.write_logprobs(piece.prompt_logprobs),
                )
                if is_first or answer.is_complete:
                    _add_facts(message, answer, request_id)
                if answer.is_complete:
                    message.usage.CopyFrom(messages.write_usage(answer.usage))
                await self._write(message, context)
                is_first = False

    async def Score(
        self, request: scoring_pb2.ScoreRequest, context: Context
    ) -> scoring_pb2.ScoreResponse:
        """Log-probabilities of continuations."""
        parsed = requests.read_score(request)
        request_id, deadline = current_request_id(), deadline_of(context)
        adapters, scores = await self._generation.score(parsed, request_id, deadline=deadline)
        return scoring_pb2.ScoreResponse(
            items=messages.write_scores(scores),
            adapter_versions=messages.write_versions(adapters),
            request_id=request_id,
        )

    async def Tokenize(
        self, request: model_pb2.TokenizeRequest, context: Context
    ) -> model_pb2.TokenizeResponse:
        """Token ids of an input."""
        value, adapters = requests.read_input(request), requests.read_adapters(request)
        token_ids = await self._generation.tokenize(value, adapters)
        return model_pb2.TokenizeResponse(token_ids=token_ids)

    async def Detokenize(
        self, request: model_pb2.DetokenizeRequest, context: Context
    ) -> model_pb2.DetokenizeResponse:
        """Text of token ids."""
        text = await self._generation.detokenize(
            request.token_ids, skip_special_tokens=request.skip_special_tokens
        )
        return model_pb2.DetokenizeResponse(text=text)

    async def GetModel(
        self, request: model_pb2.GetModelRequest, context: Context
    ) -> model_pb2.Model:
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


def _add_facts(message: pb.StreamGenerateResponse, answer: Answer, request_id: str) -> None:
    message.adapter_versions.extend(messages.write_versions(answer.adapters))
    message.seed = answer.seed
    message.request_id = request_id
