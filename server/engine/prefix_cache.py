"""Keys of KV blocks: equal keys mean equal keys and values, whoever computed them.

The key of a block is a hash chained over everything its content depends on: the digests and weights
of the adapter versions, the virtual tokens in front, the tenant's salt and all tokens up to its
end. The salt joins with the first block that holds a token of the user, so blocks of purely virtual
tokens are computed once per version, and nothing else is shared between tenants (CVE-2025-46570).
Every field is tagged and length-prefixed, so that no two different inputs give the same bytes.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

from polygraft.server.engine.messages import AdapterShare

_VIRTUAL = -1  # stands for a virtual token; its index follows from its position


class BlockKeys:
    """The keys of one sequence's full blocks, extended as tokens arrive."""

    def __init__(
        self,
        *,
        adapters: Sequence[AdapterShare],
        num_virtual: int,
        salt: str,
        block_size: int,
    ) -> None:
        self._num_virtual = num_virtual
        self._salt = salt
        self._block_size = block_size
        shares = [(share.digest.encode(), struct.pack("<d", share.weight)) for share in adapters]
        fields = [field for share in sorted(shares) for field in share]
        self._root = _digest(b"root", struct.pack("<q", num_virtual), *fields)
        self._keys: list[bytes] = []

    def up_to(self, num_positions: int, token_ids: Sequence[int]) -> list[bytes]:
        """Keys of the blocks that lie fully below `num_positions`.

        token_ids: prompt and output tokens so far; positions count virtual tokens first.
        """
        size, count = self._block_size, num_positions // self._block_size
        for index in range(len(self._keys), count):
            start, end = index * size - self._num_virtual, (index + 1) * size - self._num_virtual
            content = [_VIRTUAL] * max(0, min(size, -start))
            content += token_ids[max(start, 0) : max(end, 0)]
            parent = self._keys[-1] if self._keys else self._root
            salt = self._salt.encode() if end > 0 else b""
            self._keys.append(_digest(b"block", parent, salt, struct.pack(f"<{size}q", *content)))
        return self._keys[:count]


def _digest(tag: bytes, *fields: bytes) -> bytes:
    state = hashlib.blake2b(digest_size=16)
    for field in (tag, *fields):
        state.update(struct.pack("<q", len(field)))
        state.update(field)
    return state.digest()
