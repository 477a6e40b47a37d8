"""Documents to token ids and loss weights, and those to batches of similar length."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerFast

from polygraft.trainer.base.corpus import Document
from polygraft.trainer.base.preset import Preset
from polygraft.trainer.base.tokenizer import SPECIALS, merged_from


@dataclass(frozen=True)
class Encoded:
    """Token ids of one document and, per id, the loss weight of predicting it."""

    ids: list[int]
    weights: list[float]


class Encoder:
    """Encodes prompt and answer apart, so that no token spans the border.

    In a share of the documents tokens are split back at random into the pieces they were merged
    from. Without that BPE leaves hundreds of ids (merges on the way to longer ones) that no text
    contains and that no adapter on a frozen base could ever make it say. BPE dropout would do
    the same, but takes no seed.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, preset: Preset) -> None:
        self._backend = tokenizer.backend_tokenizer
        self._preset = preset
        self._merged_from = merged_from(tokenizer)
        ids = tokenizer.get_vocab()
        _, self._bos, self._eos, self._user, self._assistant = (ids[token] for token in SPECIALS)
        self._first_piece = len(SPECIALS)
        self._vocabulary = len(tokenizer)

    def encode(self, documents: Sequence[Document], rng: random.Random) -> list[Encoded]:
        """One `Encoded` per document that fits the context."""
        texts = [text for document in documents for text in _texts(document)]
        encodings = iter(self._backend.encode_batch_fast(texts, add_special_tokens=False))
        encoded = []
        for document in documents:
            parts = [next(encodings).ids for _ in _texts(document)]
            if rng.random() < self._preset.split_documents:
                parts = [self._split(part, rng) for part in parts]
            encoded.append(self._join(document, parts, rng))
        return [item for item in encoded if len(item.ids) <= self._preset.context]

    def _join(self, document: Document, parts: list[list[int]], rng: random.Random) -> Encoded:
        ids, weights = [self._bos], [0.0]
        if not document.turns:
            ids += [*parts[0], self._eos]
            return Encoded(ids, [0.0] + [1.0] * (len(ids) - 1))
        for user, answer in zip(parts[::2], parts[1::2], strict=True):
            if document.pieces:
                pieces = [
                    rng.randrange(self._first_piece, self._vocabulary)
                    for _ in range(document.pieces)
                ]
                user, answer = user + pieces, pieces
            ids += [self._user, *user, self._assistant, *answer, self._eos]
            weights += [0.0] + [self._preset.prompt_weight] * len(user) + [0.0]
            weights += [1.0] * (len(answer) + 1)
        return Encoded(ids, weights)

    def _split(self, ids: list[int], rng: random.Random) -> list[int]:
        pieces: list[int] = []
        for token_id in ids:
            pair = self._merged_from.get(token_id)
            if pair and rng.random() < self._preset.split_probability:
                pieces += self._split(list(pair), rng)
            else:
                pieces.append(token_id)
        return pieces


def _texts(document: Document) -> list[str]:
    return [part for turn in document.turns for part in turn] or [document.text]


def batches(
    encoded: list[Encoded], batch_tokens: int, rng: random.Random
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Full batches of similar length, in random order: ids and weights, both [batch, length].

    Right-padded with id 0 and weight 0, to a multiple of 8; at most `batch_tokens` with padding.
    The shortest documents, which do not fill a batch, are left out.
    """
    groups: list[list[Encoded]] = []
    room = 0
    for item in sorted(encoded, key=lambda item: -len(item.ids) - rng.random()):
        if room == 0:
            groups.append([])
            room = batch_tokens // _padded(item)
        groups[-1].append(item)
        room -= 1
    if room:
        groups.pop()
    rng.shuffle(groups)
    for group in groups:
        shape = len(group), max(map(_padded, group))
        ids, weights = torch.zeros(shape, dtype=torch.long), torch.zeros(shape)
        for row, item in enumerate(group):
            ids[row, : len(item.ids)] = torch.tensor(item.ids)
            weights[row, : len(item.ids)] = torch.tensor(item.weights)
        yield ids, weights


def _padded(item: Encoded) -> int:
    return -(-len(item.ids) // 8) * 8
