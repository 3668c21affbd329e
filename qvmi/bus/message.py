"""The message that travels on the bus, as one line of JSON that any MQTT client can read."""

import math
import uuid
from typing import Final, Self, TypeVar

import msgspec

from qvmi.bus.topic import REPLY, REQUEST, Topic, is_name
from qvmi.errors import BadMessage, UsageError
from qvmi.view import Provenance

__all__ = ["MAX_MESSAGE_BYTES", "MESSAGE_VERSION", "Message"]

MESSAGE_VERSION: Final = 1
"""The form of the envelope; it rises when a reader of the older form would be misled."""

MAX_MESSAGE_BYTES: Final = 64 * 1024
"""Longest message. An alert takes a few KiB; what is larger (a dump) is passed as a file's name."""

Body = TypeVar("Body")


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """This is an envelope and what it carries.

    Args:
        version: of the envelope's form.
        id: differs for every message; the same message sent twice keeps it.
        vm: the watched machine's name.
        codepack: who speaks.
            In a reply it is who had asked, below whose name the reply lies.
        kind: what the body is: ``alert``, ``cleared``, ``status``, ``request``, ``reply``.
        peer: the service that a request is for, or whose reply this is; None for other kinds.
        time: when it was made, seconds since the Unix epoch on the host's clock.
        epoch: of the machine, see :class:`~qvmi.view.Provenance`.
        provenance: how what the body tells was taken from the guest; None where it was not.
        deadline: until when an answer is wanted, seconds since the Unix epoch; None for no request.
        answers: the id of the request that this replies to; None for no reply.
        body: what the kind says; fields that this version does not know are kept.
        further: fields of the envelope that this version does not know; they are kept as well.

    Raises:
        BadMessage: a field is out of bounds.
    """

    version: int = MESSAGE_VERSION
    id: str = msgspec.field(default_factory=lambda: uuid.uuid4().hex)
    vm: str
    codepack: str
    kind: str
    peer: str | None = None
    time: float
    epoch: int = 0
    provenance: Provenance | None = None
    deadline: float | None = None
    answers: str | None = None
    body: dict[str, object]
    further: dict[str, object] = {}

    def __post_init__(self) -> None:
        names = {"id": self.id, "vm": self.vm, "codepack": self.codepack, "kind": self.kind}
        names |= {} if self.peer is None else {"peer": self.peer}
        names |= {} if self.answers is None else {"answers": self.answers}
        for field, name in names.items():
            if not is_name(name):
                raise BadMessage(f"{field} {name!r} is no name")
        if self.version != MESSAGE_VERSION:
            raise BadMessage(f"version {self.version}, this is version {MESSAGE_VERSION}")
        for field, time in (("time", self.time), ("deadline", self.deadline)):
            if time is not None and not math.isfinite(time):
                raise BadMessage(f"{field} {time} is no time")
        if self.epoch < 0:
            raise BadMessage(f"epoch {self.epoch} is negative")
        if self.further and not _KNOWN.isdisjoint(self.further):
            raise BadMessage(f"{sorted(self.further)} are not all unknown fields")
        self._require_kinds_fields()

    def _require_kinds_fields(self) -> None:
        """A request and a reply have fields that no other kind has."""
        having = {
            "peer": (self.peer is not None, self.kind in (REQUEST, REPLY)),
            "deadline": (self.deadline is not None, self.kind == REQUEST),
            "answers": (self.answers is not None, self.kind == REPLY),
        }
        for field, (has, must) in having.items():
            if has != must:
                raise BadMessage(f"kind {self.kind!r} {'without' if must else 'with'} {field}")

    @property
    def topic(self) -> Topic:
        """This is where the message lies on the bus."""
        return Topic(self.vm, self.codepack, self.kind, self.peer)

    def to_json(self) -> bytes:
        """This is the message as one line of JSON.

        Raises:
            BadMessage: the body is no JSON, or the message is longer than MAX_MESSAGE_BYTES.
        """
        try:
            data = msgspec.json.encode(self._fields())
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise BadMessage(f"body of {self.topic.text}: {error}") from error
        _require_size(len(data))
        return data

    def _fields(self) -> dict[str, object]:
        """These are the fields as they travel."""
        fields = {
            name: value
            for name in self.__struct_fields__
            if (value := getattr(self, name)) is not None or name not in _OMITTED
        }
        del fields["further"]
        return fields | self.further if self.further else fields

    @classmethod
    def from_json(cls, data: bytes, *, topic: Topic | None = None) -> Self:
        """This reads a message.

        Args:
            data: the bytes.
            topic: where they were found; a message that names another speaker than its topic does
                is refused, since the topic is what a broker guards.

        Raises:
            BadMessage: the bytes are no message of this version, or not from where they say.
        """
        _require_size(len(data))
        version = _decode(data, _Version).version
        if version != MESSAGE_VERSION:
            raise BadMessage(f"version {version} is unknown, this is version {MESSAGE_VERSION}")
        fields = _decode(data, dict[str, object])
        fields["further"] = {name: fields.pop(name) for name in fields.keys() - _KNOWN}
        try:
            message = msgspec.convert(fields, cls, strict=True)
        except msgspec.ValidationError as error:
            raise BadMessage(f"no message: {error}") from error
        if topic is not None and message.topic != topic:
            raise BadMessage(f"{message.topic.text} is what it says, {topic.text} is where it was")
        return message

    def read_body(self, body_type: type[Body]) -> Body:
        """This gives the body as the type that belongs to the message's kind.

        Raises:
            BadMessage: it is no such body, or a field of it is out of bounds.
        """
        try:
            return msgspec.convert(self.body, body_type, strict=True)
        except (msgspec.ValidationError, UsageError) as error:
            raise BadMessage(f"body of {self.topic.text}: {error}") from error


_OMITTED: Final = frozenset({"peer", "deadline", "answers"})
"""Fields that are left out where they say nothing: most messages are neither request nor reply."""

_KNOWN: Final = frozenset(Message.__struct_fields__) - {"further"}
"""The fields of the envelope that this version knows."""


class _Version(msgspec.Struct):
    """The one field that every version of the envelope has."""

    version: int


def _decode(data: bytes, message_type: type[Body]) -> Body:
    try:
        return msgspec.json.decode(data, type=message_type)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadMessage(f"no message: {error}") from error


def _require_size(size: int) -> None:
    if size > MAX_MESSAGE_BYTES:
        raise BadMessage(f"{size} bytes; a message has at most {MAX_MESSAGE_BYTES}")
