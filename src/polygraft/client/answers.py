"""What generating and scoring give a client: plain, frozen data. Reads the wire contract."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from polygraft.protos import generation_pb2 as pb
from polygraft.protos import inputs_pb2, scoring_pb2


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one request; the prompt counts once, the output of all choices."""

    prompt_tokens: int
    virtual_tokens: int
    output_tokens: int
    cached_tokens: int  # of the virtual and prompt positions

    @classmethod
    def read(cls, message: inputs_pb2.Usage) -> Usage:
        """From the wire."""
        return cls(
            message.prompt_token_count,
            message.virtual_token_count,
            message.output_token_count,
            message.cached_token_count,
        )


@dataclass(frozen=True, slots=True)
class ServedVersion:
    """An adapter version that answered; `digest` is its immutable identity."""

    adapter_name: str
    number: int
    digest: str
    weight: float = 1.0

    @classmethod
    def read_all(cls, messages: Iterable[inputs_pb2.ServedVersion]) -> tuple[ServedVersion, ...]:
        """From the wire."""
        return tuple(
            cls(message.adapter_name, message.version_number, message.digest, message.weight)
            for message in messages
        )


@dataclass(frozen=True, slots=True)
class TopToken:
    """One of the most likely tokens at a place."""

    token_id: int
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token's place in the model's own distribution, before temperature, penalties and the like.

    `logprob` is a natural logarithm, `rank` 1 for the most likely token; `top` has as many of the
    most likely tokens as were asked for.
    """

    token_id: int
    logprob: float
    rank: int
    top: tuple[TopToken, ...] = ()

    @classmethod
    def read_all(cls, messages: Iterable[pb.TokenLogprob]) -> tuple[TokenLogprob, ...]:
        """From the wire."""
        return tuple(
            cls(
                message.token_id,
                message.logprob,
                message.rank,
                tuple(TopToken(token.token_id, token.logprob) for token in message.top),
            )
            for message in messages
        )


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer to the input. `finish_reason` is "stop", "length" or "time_limit".

    With `echo` the text begins with the prompt's. `token_ids` and `logprobs` are those of the
    output, filled if asked for.
    """

    index: int
    text: str
    finish_reason: str
    output_tokens: int
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Generation:
    """A whole answer. `text` and the like are those of the first choice, as a rule the only one.

    `versions` are the adapter versions that answered, none for the base alone.
    """

    choices: tuple[Choice, ...]
    usage: Usage
    versions: tuple[ServedVersion, ...]
    seed: int  # of choice 0
    request_id: str
    prompt_logprobs: tuple[TokenLogprob, ...] = ()  # of all prompt tokens but the first

    @property
    def text(self) -> str:
        """The text of the first choice."""
        return self.choices[0].text

    @property
    def finish_reason(self) -> str:
        """Why the first choice ended."""
        return self.choices[0].finish_reason

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The output tokens of the first choice, if asked for."""
        return self.choices[0].token_ids

    @property
    def logprobs(self) -> tuple[TokenLogprob, ...]:
        """Parallel to the output tokens of the first choice, if asked for."""
        return self.choices[0].logprobs

    @property
    def version(self) -> ServedVersion | None:
        """The first version that answered; None for the base alone."""
        return self.versions[0] if self.versions else None

    @classmethod
    def read(cls, message: pb.GenerateResponse) -> Generation:
        """From the wire."""
        return cls(
            choices=tuple(
                _join([Piece.read(choice)], choice.output_token_count) for choice in message.choices
            ),
            usage=Usage.read(message.usage),
            versions=ServedVersion.read_all(message.adapter_versions),
            seed=message.seed,
            request_id=message.request_id,
            prompt_logprobs=TokenLogprob.read_all(message.prompt_logprobs),
        )


@dataclass(frozen=True, slots=True)
class Piece:
    """New text of choice `index`, with its tokens if asked for.

    `finish_reason` is "" but on the last piece of the choice.
    """

    text: str
    index: int = 0
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: str = ""

    @classmethod
    def read(cls, message: pb.Choice) -> Piece:
        """From the wire."""
        return cls(
            text=message.text,
            index=message.index,
            token_ids=tuple(message.token_ids),
            logprobs=TokenLogprob.read_all(message.logprobs),
            finish_reason=_finish_reason(message.finish_reason),
        )


class GenerationBuilder:
    """Joins the messages of a stream into the whole answer."""

    def __init__(self) -> None:
        self._pieces: dict[int, list[Piece]] = {}
        self._output_tokens: dict[int, int] = {}
        self._prompt_logprobs: tuple[TokenLogprob, ...] = ()
        self.generation: Generation | None = None  # set by the last message

    @property
    def has_begun(self) -> bool:
        """Whether a message has come."""
        return bool(self._pieces)

    def add(self, message: pb.StreamGenerateResponse) -> Piece:
        """The new piece."""
        piece = Piece.read(message.choice)
        self._pieces.setdefault(piece.index, []).append(piece)
        self._output_tokens[piece.index] = message.choice.output_token_count
        self._prompt_logprobs += TokenLogprob.read_all(message.prompt_logprobs)
        if message.HasField("usage"):
            self.generation = Generation(
                choices=tuple(
                    _join(pieces, self._output_tokens[index])
                    for index, pieces in sorted(self._pieces.items())
                ),
                usage=Usage.read(message.usage),
                versions=ServedVersion.read_all(message.adapter_versions),
                seed=message.seed,
                request_id=message.request_id,
                prompt_logprobs=self._prompt_logprobs,
            )
        return piece


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """One token of a continuation; `rank` is 1 for the most likely token at its place."""

    token_id: int
    logprob: float
    rank: int


@dataclass(frozen=True, slots=True)
class Score:
    """The likelihood of one continuation; `logprob` is the sum over its tokens."""

    logprob: float
    is_greedy: bool  # whether greedy decoding would have made it
    tokens: tuple[ScoredToken, ...]
    usage: Usage
    versions: tuple[ServedVersion, ...]

    @classmethod
    def read_all(cls, message: scoring_pb2.ScoreResponse) -> list[Score]:
        """From the wire: all continuations of the first item, then those of the next."""
        versions = ServedVersion.read_all(message.adapter_versions)
        return [
            cls(
                logprob=score.logprob,
                is_greedy=score.is_greedy,
                tokens=tuple(ScoredToken(t.token_id, t.logprob, t.rank) for t in score.tokens),
                usage=Usage.read(score.usage),
                versions=versions,
            )
            for item in message.items
            for score in item.scores
        ]


def _join(pieces: list[Piece], output_tokens: int) -> Choice:
    return Choice(
        index=pieces[0].index,
        text="".join(piece.text for piece in pieces),
        finish_reason=pieces[-1].finish_reason,
        output_tokens=output_tokens,
        token_ids=tuple(token for piece in pieces for token in piece.token_ids),
        logprobs=tuple(entry for piece in pieces for entry in piece.logprobs),
    )


def _finish_reason(value: pb.FinishReason) -> str:
    if not value:
        return ""
    return pb.FinishReason.Name(value).removeprefix("FINISH_REASON_").lower()
