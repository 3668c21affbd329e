"""Which registers a vCPU has, in the stub's own XML.

References: GDB manual, "Target Descriptions" (the format; a register without a number has that of the
one before plus 1); QEMU ``gdb-xml/*.xml`` and ``target/arm/gdbstub.c`` (``org.qemu.gdb.arm.sys.regs``);
Python manual, "XML vulnerabilities": a document type with declarations of its own is refused, so that no
entity can be expanded, and expat fetches nothing from outside.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final
from xml.parsers import expat

from qvmi.errors import GdbstubProtocolError

__all__ = [
    "MAX_DOCUMENTS",
    "MAX_DOCUMENT_SIZE",
    "ROOT_DOCUMENT",
    "Register",
    "TargetDescription",
    "included",
    "parse_description",
]

ROOT_DOCUMENT: Final = "target.xml"
"""The document that includes all others."""

MAX_DOCUMENTS: Final = 64
"""How many documents a description may have; QEMU's largest has 7 (aarch64 10.x)."""

MAX_DOCUMENT_SIZE: Final = 1 << 20
"""The largest document that is read, in bytes; QEMU's largest are 60 KB (PowerPC's, arm's)."""

_MAX_REGISTERS: Final = 1 << 14  # a vCPU of QEMU has at most some 1,500
_MAX_DEPTH: Final = 16  # elements within elements; the format has 4
_MAX_BITS: Final = 1 << 19  # of one register; SME's ZA array has 256 rows of 256 bytes
_MAX_NAME: Final = 128
_MAX_NUMBER: Final = (1 << 32) - 1
_DOCUMENT_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")


@dataclass(frozen=True, slots=True)
class Register:
    """This is one register that the stub can be asked for.

    Args:
        name: QEMU's, such as ``rax`` or ``TTBR1_EL1``.
        bits: its width.
        number: the stub's number of it.
        type: how gdb shows it, such as ``int64`` or ``code_ptr``.
        group: what it belongs to, such as ``float``; empty where that follows from the type.
        feature: the set it is part of, such as ``org.gnu.gdb.aarch64.core``.
    """

    name: str
    bits: int
    number: int
    type: str
    group: str
    feature: str

    @property
    def size(self) -> int:
        """This is how many bytes the stub sends for it."""
        return (self.bits + 7) // 8


@dataclass(frozen=True)  # no slots: the index by name is made when it is first asked for
class TargetDescription:
    """This is what one kind of vCPU has.

    Args:
        architecture: gdb's name of it, such as ``i386:x86-64``; empty where the stub does not tell.
        registers: in the order of their numbers, which is that of the reply to ``g``.
    """

    architecture: str
    registers: tuple[Register, ...]

    @cached_property
    def by_name(self) -> Mapping[str, Register]:
        """These are the registers by name; of two with one name the first."""
        return {register.name: register for register in reversed(self.registers)}

    def split(self, raw: bytes) -> dict[str, int]:
        """This reads what ``g`` returned: as many registers as it holds, little-endian.

        Raises:
            GdbstubProtocolError: it ends within a register.
        """
        values: dict[str, int] = {}
        at = 0
        for register in self.registers:
            if at == len(raw):
                break
            part = raw[at : at + register.size]
            if len(part) < register.size:
                raise _strange(f"{len(raw)} bytes of registers end within {register.name}")
            values.setdefault(register.name, int.from_bytes(part, "little"))
            at += register.size
        return values


def included(name: str, xml: bytes) -> tuple[str, ...]:
    """These are the names of the documents that a document includes, in order.

    Raises:
        GdbstubProtocolError: it is no XML, or has more in it than a description may.
    """
    return tuple(_Reader(name, xml).includes)


def parse_description(documents: Mapping[str, bytes]) -> TargetDescription:
    """This puts a description together.

    Args:
        documents: the XML by name; `ROOT_DOCUMENT`, and each one that another includes.

    Raises:
        GdbstubProtocolError: a document is missing, includes itself, or has not the documented form.
    """
    if len(documents) > MAX_DOCUMENTS:
        raise _strange(f"{len(documents)} documents, more than {MAX_DOCUMENTS}")
    assembly = _Assembly(documents)
    assembly.add(ROOT_DOCUMENT)
    registers = tuple(sorted(assembly.registers, key=lambda register: register.number))
    numbers = {register.number for register in registers}
    if not registers or len(numbers) != len(registers):
        raise _strange(f"{len(registers)} registers with {len(numbers)} numbers")
    return TargetDescription(assembly.architecture, registers)


class _Assembly:
    """This follows the includes, in the order in which they stand."""

    def __init__(self, documents: Mapping[str, bytes]) -> None:
        self.architecture = ""
        self.registers: list[Register] = []
        self._documents = documents
        self._used: set[str] = set()
        self._next_number = 0

    def add(self, name: str) -> None:
        """This adds a document's registers, and those of the documents within it."""
        if name in self._used or name not in self._documents:
            raise _strange(f"{name!r} is included twice, or missing")
        self._used.add(name)
        reader = _Reader(name, self._documents[name])
        self.architecture = self.architecture or reader.architecture
        for part in reader.parts:
            if isinstance(part, str):
                self.add(part)
            else:
                self._number(part)

    def _number(self, found: "_Found") -> None:
        number = self._next_number if found.number is None else found.number
        self._next_number = number + 1
        if len(self.registers) == _MAX_REGISTERS or number > _MAX_NUMBER:
            raise _strange(f"more registers than {_MAX_REGISTERS}, or one numbered {number}")
        self.registers.append(
            Register(found.name, found.bits, number, found.type, found.group, found.feature)
        )


@dataclass(frozen=True, slots=True)
class _Found:
    name: str
    bits: int
    number: int | None
    type: str
    group: str
    feature: str


class _Reader:
    """This reads one document with expat."""

    def __init__(self, name: str, xml: bytes) -> None:
        self.architecture = ""
        self.parts: list[_Found | str] = []
        self._name = name
        self._feature = ""
        self._open: list[str] = []
        if len(xml) > MAX_DOCUMENT_SIZE:
            raise self._bad(f"{len(xml)} bytes, more than {MAX_DOCUMENT_SIZE}")
        parser = expat.ParserCreate()
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._text
        parser.StartDoctypeDeclHandler = self._document_type
        parser.EntityDeclHandler = self._declaration
        try:
            parser.Parse(xml, True)  # noqa: FBT003 - expat's own signature
        except (expat.ExpatError, ValueError, LookupError) as error:
            # The latter two: a codec that the document names, and Python does not have or cannot use.
            raise self._bad(str(error)) from error

    @property
    def includes(self) -> Iterable[str]:
        """These are the names of the documents included."""
        return (part for part in self.parts if isinstance(part, str))

    def _start(self, tag: str, attributes: Mapping[str, str]) -> None:
        if len(self._open) == _MAX_DEPTH or len(self.parts) > _MAX_REGISTERS:
            raise self._bad("elements without end")
        self._open.append(tag)
        if tag == "feature":
            self._feature = attributes.get("name", "")[:_MAX_NAME]
        elif tag == "xi:include":
            self.parts.append(self._document_name(attributes.get("href", "")))
        elif tag == "reg":
            self.parts.append(self._register(attributes))

    def _document_name(self, name: str) -> str:
        # It becomes part of a request.
        if not _DOCUMENT_NAME.fullmatch(name):
            raise self._bad(f"includes a document named {name[:_MAX_NAME]!r}")
        return name

    def _register(self, attributes: Mapping[str, str]) -> _Found:
        name = attributes.get("name", "")
        if not 0 < len(name) <= _MAX_NAME:
            raise self._bad(f"a register named {name[:_MAX_NAME]!r}")
        bits = self._number(attributes.get("bitsize", ""), _MAX_BITS)
        if not bits:
            raise self._bad(f"{name}: no bits")
        number = attributes.get("regnum")
        return _Found(
            name,
            bits,
            None if number is None else self._number(number, _MAX_NUMBER),
            attributes.get("type", "int")[:_MAX_NAME],
            attributes.get("group", "")[:_MAX_NAME],
            self._feature,
        )

    def _number(self, text: str, most: int) -> int:
        if not (text.isascii() and text.isdecimal() and len(text) <= len(str(most))):
            raise self._bad(f"{text[:_MAX_NAME]!r} is no number up to {most}")
        if int(text) > most:
            raise self._bad(f"{text} is more than {most}")
        return int(text)

    def _end(self, _tag: str) -> None:
        self._open.pop()

    def _text(self, text: str) -> None:
        if self._open[-1:] == ["architecture"]:
            self.architecture = (self.architecture + text.strip())[:_MAX_NAME]

    def _document_type(self, _name: str, _system: object, _public: object, own: object) -> None:
        if own:
            raise self._bad("a document type with declarations of its own")

    def _declaration(self, *_: object) -> None:
        raise self._bad("declares an entity")

    def _bad(self, problem: str) -> GdbstubProtocolError:
        return _strange(f"{self._name[:_MAX_NAME]!r}: {problem}")


def _strange(problem: str) -> GdbstubProtocolError:
    return GdbstubProtocolError("target description", problem)
