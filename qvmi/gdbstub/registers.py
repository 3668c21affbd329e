"""Which registers the vCPUs behind a gdbstub have, and what is in them.

References: GDB manual, "General Query Packets" (``qXfer:features:read``, ``qfThreadInfo``), "Packets"
(``g``, ``p``, ``P``, ``Hg``); QEMU ``gdbstub.c``.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Final

from qvmi.arch import aarch64, x86_64
from qvmi.errors import GdbstubProtocolError, UsageError
from qvmi.gdbstub.channel import Channel
from qvmi.gdbstub.packets import (
    FIRST_THREADS,
    MAX_VCPUS,
    NEXT_THREADS,
    READ_REGISTERS,
    VIRTUAL,
    ThreadId,
    check_ok,
    hex_data,
    parse_threads,
    read_document,
    read_register,
    refusal,
    select_thread,
    strange,
    write_register,
)
from qvmi.gdbstub.rsp import MAX_PACKET
from qvmi.gdbstub.target_description import (
    MAX_DOCUMENT_SIZE,
    MAX_DOCUMENTS,
    ROOT_DOCUMENT,
    Register,
    TargetDescription,
    included,
    parse_description,
)

__all__ = ["StubRegisters"]

# QEMU 7.2 lists one vCPU a packet.
_THREADS_AT_ONCE: Final = 32
# QEMU 7.2 sends at most 2045 bytes of a document a packet; 16 KB hold most documents whole.
_PART: Final = 1024
_PARTS_AT_ONCE: Final = 16
# Of the registers of all vCPUs, so many vCPUs' in one write: 1 KB a vCPU.
_VCPUS_AT_ONCE: Final = 64
_OK_REPLIES: Final = 2  # those to VIRTUAL and to the choice of a vCPU
_LAST: Final = b"l"
_MORE: Final = b"m"

_X86_64: Final = "i386:x86-64"
_AARCH64: Final = "aarch64"


class StubRegisters:
    """This reads and writes registers over one conversation.

    Args:
        description: what an earlier conversation with the same machine has read, to save the time.
    """

    def __init__(self, channel: Channel, description: TargetDescription | None = None) -> None:
        self._channel = channel
        self._description = description

    async def threads(self) -> tuple[ThreadId, ...]:
        """These are the vCPUs, in QEMU's order.

        Raises:
            GdbstubProtocolError: the list is no list, or longer than any machine's.
        """
        request, found = FIRST_THREADS, list[ThreadId]()
        while True:
            requests = [request, *[NEXT_THREADS] * _THREADS_AT_ONCE]
            for reply in await self._channel.ask("list the vCPUs", requests):
                part = parse_threads(request, reply)
                if not part:
                    return tuple(found)
                found += part
                if len(found) > MAX_VCPUS:
                    raise GdbstubProtocolError("qfThreadInfo", f"more than {MAX_VCPUS} vCPUs")
            request = NEXT_THREADS

    async def description(self) -> TargetDescription:
        """This is what registers there are; read once in a conversation.

        Raises:
            GdbstubProtocolError: it has not the documented form.
        """
        if self._description is None:
            documents: dict[str, bytes] = {}
            wanted = [ROOT_DOCUMENT]
            while wanted and len(documents) < MAX_DOCUMENTS:
                name = wanted.pop(0)
                documents[name] = await self._document(name)
                new = included(name, documents[name])
                wanted += [one for one in new if one not in documents and one not in wanted]
            self._description = parse_description(documents)
        return self._description

    async def read(self, thread: ThreadId) -> dict[str, int]:
        """These are the core registers of a vCPU, by name."""
        (values,) = await self.read_all([thread])
        return values

    async def read_all(self, threads: Sequence[ThreadId]) -> list[dict[str, int]]:
        """These are the core registers of several vCPUs, each by name."""
        description = await self.description()
        found: list[dict[str, int]] = []
        for at in range(0, len(threads), _VCPUS_AT_ONCE):
            part = threads[at : at + _VCPUS_AT_ONCE]
            requests = [one for t in part for one in (VIRTUAL, select_thread(t), READ_REGISTERS)]
            replies = await self._channel.ask("read registers", requests)
            for number in range(len(part)):
                first = number * (_OK_REPLIES + 1)
                for place in range(first, first + _OK_REPLIES):
                    check_ok(requests[place], replies[place])
                raw = replies[first + _OK_REPLIES]
                values = description.split(hex_data(READ_REGISTERS, raw, len(raw) // 2))
                found.append(values)
        return found

    async def read_named(self, thread: ThreadId, names: Collection[str]) -> dict[str, int]:
        """These are any registers of a vCPU, such as system registers.

        Returns:
            The values by name; without those that the vCPU will not tell.

        Raises:
            UsageError: it has no register of that name.
        """
        wanted = [await self._register(name) for name in names]
        requests = [*_begin(thread), *(read_register(register.number) for register in wanted)]
        replies = await self._channel.ask("read registers", requests)
        _check_begun(requests, replies)
        pairs = zip(
            wanted, requests[len(_begin(thread)) :], replies[len(_begin(thread)) :], strict=True
        )
        return {
            register.name: int.from_bytes(hex_data(request, reply, register.size), "little")
            for register, request, reply in pairs
            if refusal(request, reply) is None
        }

    async def write(self, thread: ThreadId, name: str, value: int) -> None:
        """This writes a register; whether that is allowed is decided by whoever calls.

        Raises:
            UsageError: the vCPU has no register of that name, or the value does not fit it.
            GdbstubRequestFailed: the stub refused.
        """
        register = await self._register(name)
        if not 0 <= value < 1 << register.bits:
            raise UsageError(f"{value:#x} does not fit the {register.bits} bits of {name}")
        request = write_register(register.number, value.to_bytes(register.size, "little"))
        requests = [*_begin(thread), request]
        replies = await self._channel.ask(f"write {name}", requests)
        _check_begun(requests, replies)
        check_ok(request, replies[-1])

    async def vcpus(self) -> tuple[x86_64.Registers, ...] | tuple[aarch64.Registers, ...]:
        """These are the registers of all vCPUs, with their meaning.

        Raises:
            UsageError: the machine is neither x86-64 nor aarch64.
        """
        architecture = (await self.description()).architecture
        if architecture not in {_X86_64, _AARCH64}:
            raise UsageError(
                f"vCPUs of architecture {architecture!r}; known: {_X86_64}, {_AARCH64}"
            )
        threads = await self.threads()
        cores = await self.read_all(threads)
        pairs = list(zip(threads, cores, strict=True))
        if architecture == _X86_64:
            return tuple(x86_64.registers_of_stub(thread.vcpu, core) for thread, core in pairs)
        known = aarch64.SYSTEM_REGISTERS & (await self.description()).by_name.keys()
        return tuple([
            aarch64.registers_of_stub(thread.vcpu, core | await self.read_named(thread, known))
            for thread, core in pairs
        ])  # fmt: skip

    async def _register(self, name: str) -> Register:
        by_name: Mapping[str, Register] = (await self.description()).by_name
        if name not in by_name:
            raise UsageError(f"this vCPU has no register {name!r}")
        return by_name[name]

    async def _document(self, name: str) -> bytes:
        text = bytearray()
        while len(text) <= MAX_DOCUMENT_SIZE:
            places = range(len(text), len(text) + _PARTS_AT_ONCE * _PART, _PART)
            requests = [read_document(name, place, _PART) for place in places]
            replies = await self._channel.ask(f"read {name}", requests)
            for request, reply in zip(requests, replies, strict=True):
                if reply[:1] not in {_LAST, _MORE} or len(reply) > MAX_PACKET:
                    raise refusal(request, reply) or strange(request, reply)
                text += reply[1:]
                if reply[:1] == _LAST:
                    return bytes(text)
                if len(reply) != 1 + _PART:
                    raise strange(request, reply)
        raise GdbstubProtocolError(f"document {name!r}", f"longer than {MAX_DOCUMENT_SIZE} bytes")


def _begin(thread: ThreadId) -> tuple[bytes, ...]:
    """These make registers readable: QEMU knows ``p`` and ``P`` once target.xml was asked for."""
    return (read_document(ROOT_DOCUMENT, 0, 1), select_thread(thread))


def _check_begun(requests: Sequence[bytes], replies: Sequence[bytes]) -> None:
    check_ok(requests[1], replies[1])
