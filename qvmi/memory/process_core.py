"""An ELF core file of one process, as the kernel writes it when a process dies.

References: elf(5), core(5); Linux fs/binfmt_elf.c (``fill_note_info``, ``fill_files_note``),
include/linux/elfcore.h (``elf_prstatus``), include/uapi/linux/elfcore.h (``elf_prpsinfo``).
"""

from collections.abc import Iterable, Sequence
from struct import Struct
from typing import Final, NamedTuple

from qvmi.addr import PAGE_SIZE, Va
from qvmi.memory.elf_core import EM_AARCH64, EM_X86_64, PT_LOAD, PT_NOTE, Note, elf_header, program

__all__ = ["CoreThread", "FileMapping", "ProcessFacts", "Segment", "process_head", "process_notes"]

_NT_PRSTATUS, _NT_PRPSINFO, _NT_AUXV, _NT_FILE = 1, 3, 6, 0x4649_4C45
_OWNER: Final = b"CORE"
_EXECUTE, _WRITE, _READ = 1, 2, 4
# struct elf_prpsinfo: state, its letter, zombie, nice; flags, uid, gid, pid, ppid, pgrp, sid, name, words.
_PRPSINFO: Final = Struct("<bcbb4xQIIiiii16s80s")
_NAME_SIZE, _WORDS_SIZE = 15, 79
_STATES: Final = "RSDTZW"
_WORD: Final = Struct("<Q")
_TRIPLE: Final = Struct("<QQQ")
_HEADER_SIZE, _PROGRAM_SIZE = 64, 56


class Segment(NamedTuple):
    """This is a run of memory.

    Args:
        start: its first address.
        end: the first address behind it.
        permissions: such as ``r-xp``.
        has_content: whether its bytes are in the file; who asks for the others is told that there are none.
    """

    start: Va
    end: Va
    permissions: str
    has_content: bool


class FileMapping(NamedTuple):
    """This is a part of a file that is mapped; ``offset`` is in bytes."""

    start: Va
    end: Va
    offset: int
    name: bytes


class CoreThread(NamedTuple):
    """This is a thread, and its registers in the order of ``elf_gregset_t``; empty where not known."""

    pid: int
    registers: tuple[int, ...]


class ProcessFacts(NamedTuple):
    """This is what a core says of a process besides its memory."""

    pid: int
    ppid: int
    uid: int
    gid: int
    state: str
    name: bytes
    words: bytes


class ProcessHead(NamedTuple):
    """This is the beginning of the file, where each segment's bytes belong behind it, and its size."""

    data: bytes
    offsets: tuple[int, ...]
    size: int


def process_notes(
    facts: ProcessFacts,
    threads: Sequence[CoreThread],
    *,
    auxv: Sequence[int],
    files: Sequence[FileMapping],
    registers: int,
) -> tuple[Note, ...]:
    """These are the notes, in the order in which the kernel writes them.

    Args:
        facts: about the process.
        threads: its first one first.
        auxv: pairs of a type and a value.
        files: that are mapped.
        registers: how many ``elf_gregset_t`` has.
    """
    status = [_prstatus(thread, facts, registers) for thread in threads]
    known = Note(_OWNER, _NT_AUXV, b"".join(map(_WORD.pack, auxv)))
    return (
        *status[:1],
        _prpsinfo(facts),
        *([known] if auxv else []),
        *([_files(files)] if files else []),
        *status[1:],
    )


def process_head(machine: str, segments: Sequence[Segment], notes: Iterable[Note]) -> ProcessHead:
    """This lays a core file out.

    Args:
        machine: the architecture, as ``x86_64``.
        segments: in rising order.
        notes: about the process.
    """
    encoded = b"".join(note.encoded for note in notes)
    notes_at = _HEADER_SIZE + (len(segments) + 1) * _PROGRAM_SIZE
    here = _page_end(notes_at + len(encoded))
    programs = [program(PT_NOTE, notes_at, size=len(encoded))]
    offsets = []
    for one in segments:
        size = one.end - one.start
        held = size if one.has_content else 0
        offsets.append(here)
        flags = _flags(one.permissions)
        programs.append(program(PT_LOAD, here, va=one.start, size=held, room=size, flags=flags))
        here += held
    header = elf_header(EM_AARCH64 if machine == "aarch64" else EM_X86_64, len(programs))
    return ProcessHead(header + b"".join(programs) + encoded, tuple(offsets), here)


def _prstatus(thread: CoreThread, facts: ProcessFacts, registers: int) -> Note:
    layout = Struct(f"<32xIIII64x{registers}Q8x")
    values = thread.registers or (0,) * registers
    data = layout.pack(thread.pid, facts.ppid, 0, 0, *values)
    return Note(_OWNER, _NT_PRSTATUS, data)


def _prpsinfo(facts: ProcessFacts) -> Note:
    letter = facts.state if facts.state in _STATES else "S"
    data = _PRPSINFO.pack(
        *(_STATES.index(letter), letter.encode(), letter == "Z", 0, 0),
        *(facts.uid, facts.gid, facts.pid, facts.ppid, 0, 0),
        *(facts.name[:_NAME_SIZE], facts.words[:_WORDS_SIZE]),
    )
    return Note(_OWNER, _NT_PRPSINFO, data)


def _files(files: Sequence[FileMapping]) -> Note:
    places = (_TRIPLE.pack(one.start, one.end, one.offset // PAGE_SIZE) for one in files)
    names = (one.name.replace(b"\0", b"?") + b"\0" for one in files)
    head = _WORD.pack(len(files)) + _WORD.pack(PAGE_SIZE)
    return Note(_OWNER, _NT_FILE, head + b"".join(places) + b"".join(names))


def _flags(permissions: str) -> int:
    letters = (("r", _READ), ("w", _WRITE), ("x", _EXECUTE))
    return sum(flag for letter, flag in letters if letter in permissions)


def _page_end(offset: int) -> int:
    return offset + -offset % PAGE_SIZE
