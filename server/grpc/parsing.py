"""From bytes to messages: nothing that the sender meant is dropped on the way.

Protobuf itself keeps unknown fields aside, and of several members of one choice it keeps the last;
both would make a wrong answer without a word, so both are refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message

from polygraft.adapters.errors import InvalidRequest

Parse = Callable[[bytes], Any]

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types
_FIXED_SIZES = {_FIXED64: 8, _FIXED32: 4}
_MAX_SCANNED_FIELDS = 10_000


def parse_bytes(data: bytes, parse: Parse) -> Any:
    """`parse(data)`. Raises InvalidRequest for bytes that are no such message."""
    try:
        return parse(data)
    except (DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(
            "the message is not valid protobuf for this method (text must be UTF-8).",
            reason="UNDECODABLE_MESSAGE",
            hint="Build the request from protos/ of the version that the server runs.",
        ) from error


def strictly(parse: Parse) -> Parse:
    """The same, but an InvalidRequest for unknown fields and for two members of one choice."""

    def parse_strictly(data: bytes) -> Any:
        message: Message = parse(data)
        size = message.ByteSize()
        message.DiscardUnknownFields()
        if message.ByteSize() != size:
            raise InvalidRequest(
                "the message has a field that this server does not know.",
                reason="UNKNOWN_FIELD",
                hint="Leave it out, or update the server.",
            )
        # What protobuf dropped is missing; some encoders merely spell things longer.
        if len(data) > size:
            _OneofScan().check(data, message.DESCRIPTOR, "")
        return message

    return parse_strictly


class _OneofScan:
    """Looks through the encoded bytes of one valid message for choices that are set twice."""

    def __init__(self) -> None:
        self._num_fields = 0
        self._members: dict[str, FieldDescriptor] = {}  # by the path of the choice

    def check(self, data: bytes, descriptor: Any, place: str) -> None:
        """Raises InvalidRequest naming the choice; `place` is the path of this message.

        A part that is given twice is one message to protobuf, so it is one here.
        """
        repeats: Counter[str] = Counter()
        for number, content in _fields(data):
            self._count()
            field: FieldDescriptor = descriptor.fields_by_number[number]
            if field.containing_oneof is not None:
                self._note(field, f"{place}{field.containing_oneof.name}")
            name = f"{place}{field.name}"
            part = f"{name}[{repeats[name]}]" if field.is_repeated else name
            repeats[name] += 1
            if content is not None and _has_choice(field.message_type):
                self.check(content, field.message_type, f"{part}.")

    def _note(self, field: FieldDescriptor, place: str) -> None:
        other = self._members.setdefault(place, field)
        if other.name != field.name:
            assert field.containing_oneof is not None
            raise InvalidRequest(
                f"{other.name} and {field.name} are both set; one of them may be.",
                reason="CONFLICTING_FIELDS",
                item=place,
                found=f"{other.name}, {field.name}",
                allowed=", ".join(member.name for member in field.containing_oneof.fields),
            )

    def _count(self) -> None:
        self._num_fields += 1
        if self._num_fields > _MAX_SCANNED_FIELDS:
            raise InvalidRequest(
                f"the message spells more than {_MAX_SCANNED_FIELDS} fields in an unusual way.",
                reason="UNDECODABLE_MESSAGE",
                hint="Send it as protobuf libraries encode it.",
            )


def _has_choice(descriptor: Descriptor | None) -> bool:
    """Whether a message has a choice of several members, itself or in a part of it."""
    if descriptor is None:
        return False
    if any(len(choice.fields) > 1 for choice in descriptor.oneofs):
        return True
    return any(_has_choice(field.message_type) for field in descriptor.fields)


def _fields(data: bytes) -> Iterator[tuple[int, bytes | None]]:
    """Number and, of strings, bytes and messages, content of each field. `data` is valid."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == _VARINT:
            _, position = _varint(data, position)
            yield number, None
        elif wire_type == _BYTES:
            size, position = _varint(data, position)
            yield number, data[position : position + size]
            position += size
        else:
            yield number, None
            position += _FIXED_SIZES[wire_type]


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """The number at a position, and the position after it."""
    value, shift = 0, 0
    while True:
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position
