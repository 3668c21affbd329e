"""The code of the kernel and of its modules, compared with what it was at first sight.

References: Linux include/asm-generic/sections.h (``_stext``, ``__start_rodata``), kernel/module/main.c.
What may change is in :mod:`qvmi.semantics.linux.hooks.patch_sites`.
"""

from collections.abc import Iterator
from functools import cached_property
from typing import Final, NamedTuple

from qvmi.addr import PAGE_SIZE, Va
from qvmi.errors import MemoryFault
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.code_baseline import CodeBaseline, CodeMemory
from qvmi.semantics.guest_os import Gap, Module
from qvmi.semantics.linux.hooks.extable import KERNEL, KnownCode
from qvmi.semantics.linux.hooks.patch_sites import CODE_AHEAD, PatchSites
from qvmi.semantics.linux.hooks.rodata import CONSTANTS
from qvmi.semantics.linux.hooks.syscall import symbol_text
from qvmi.semantics.linux.modules.module import Modules
from qvmi.semantics.linux.modules.module_text import ModuleText
from qvmi.semantics.linux.structures.list import ListWalk
from qvmi.semantics.rows.code import CodeChange
from qvmi.symbols.layout import Symbols, address

__all__ = ["KernelText"]

_CHUNK: Final = 16 * PAGE_SIZE
_MAX_REGION: Final = 64 << 20
"""Bytes of one region; a kernel's text has some 20 MiB, its constants 13."""
_MAX_MODULES: Final = 64 << 20
"""Bytes of the code of all modules; a full distribution's have some 10 MiB."""
_LOOKS: Final = 10
"""After so many looks that which was right is judged anew: where a call leads to may be gone."""
_MAX_CHANGES: Final = 300
"""Of one region: the kernel itself sets traps at 256 places at once (``TP_VEC_MAX``); who overwrites more is
told by those."""
_MAX_SHOWN: Final = 64
"""Bytes that are shown of one change."""
_NEAR: Final = 8
"""Bytes between two changes of one; an instruction may keep some of its bytes."""
_LIVE: Final = "live"


class _Region(NamedTuple):
    """This is a run of addresses whose bytes are watched."""

    name: str
    start: Va
    end: Va

    @property
    def key(self) -> tuple[str, int, int]:
        """This is it in a baseline."""
        return self.name, self.start, self.end


class KernelText:
    """This compares the code of one kernel.

    Args:
        space: the kernel's address space.
        symbols: of the kernel.
        modules: lists the modules.
        architecture: of the kernel.
    """

    def __init__(
        self, space: AddressSpace, symbols: Symbols, modules: Modules, *, architecture: str
    ) -> None:
        self._space = space
        self._symbols = symbols
        self._modules = modules
        self._architecture = architecture

    def changes(self, baseline: CodeBaseline, code: KnownCode) -> ListWalk[CodeChange]:
        """This lists what is not as it was, and at first sight what is not as it may be.

        Args:
            baseline: what was seen before, of this kernel; it is brought up to date.
            code: what code there is now.

        Raises:
            SymbolsError: the profile lacks what this needs.
            WalkFailed: the list of modules cannot be walked at all.
        """
        look = _Look(self._space, self._symbols, self._modules, code, self._architecture)
        regions = {one.key: one for one in look.regions()}
        for gone in baseline.regions.keys() - regions.keys():
            del baseline.regions[gone]
        for region in regions.values():
            look.compare(region, baseline)
        code.add_to(look.result)
        return look.result


class _Look:
    """This is one comparison in progress."""

    def __init__(
        self,
        space: AddressSpace,
        symbols: Symbols,
        modules: Modules,
        code: KnownCode,
        architecture: str,
    ) -> None:
        self._space = space
        self._symbols = symbols
        self._code = code
        self._architecture = architecture
        self._modules = modules
        walk = modules.modules()
        self._live = [row for row in walk.rows.values() if row.state == _LIVE]
        self.result: ListWalk[CodeChange] = ListWalk(gaps=list(walk.gaps), retries=walk.retries)

    def regions(self) -> Iterator[_Region]:
        """This iterates what is watched now."""
        symbols = self._symbols
        yield _Region(KERNEL, address(symbols, "_stext"), address(symbols, "_etext"))
        start, end = symbols.find("__start_rodata"), symbols.find("__end_rodata")
        if start is not None and end is not None:
            yield _Region(CONSTANTS, start, end)
        else:
            why = "the kernel does not tell where they are"
            self.result.gaps.append(Gap(CONSTANTS, None, why))
        text, room = ModuleText(self._space, symbols), _MAX_MODULES
        for module in self._live:
            run = self._text_of(module, text)
            if run is None:
                continue
            room -= run.end - run.start
            if room < 0:
                self._gap("module text", module.struct_address, f"more than {_MAX_MODULES} bytes")
                return
            yield run

    def _text_of(self, module: Module, text: ModuleText) -> _Region | None:
        try:
            runs = [*text.of(module)]
        except MemoryFault:
            return None  # it was unloaded in the meantime
        return _Region(module.name, *runs[0]) if runs else None

    def compare(self, region: _Region, baseline: CodeBaseline) -> None:
        """This compares one region, or remembers it."""
        size = region.end - region.start
        if not 0 < size <= _MAX_REGION:
            self._gap(region.name, region.start, f"{size} bytes of code")
            return
        try:
            known = baseline.regions.get(region.key)
            if known is None:
                known = CodeMemory(self._first_sight(region))
                if not self._is_still(region):
                    return  # what was read may be of memory that was freed meanwhile
                self._judge(region, known, known.kept)
                baseline.regions[region.key] = known
            else:
                self._compare_known(region, known)
        except MemoryFault as fault:
            if region.name in {KERNEL, CONSTANTS}:
                self._gap(region.name, region.start, str(fault))
            return
        self.result.rows |= {row.address: row for row in known.problems}

    def _is_still(self, region: _Region) -> bool:
        """This tells whether what was read is the kernel's, or of a module that is loaded yet."""
        if region.name in {KERNEL, CONSTANTS}:
            return True
        text = ModuleText(self._space, self._symbols)
        rows = self._modules.modules().rows.values()
        now = [row for row in rows if row.state == _LIVE and row.name == region.name]
        return any(self._text_of(row, text) == region for row in now)

    def _first_sight(self, region: _Region) -> bytearray:
        """This reads a region piece by piece: of the largest, twice its size at once is a lot of memory."""
        code = bytearray(region.end - region.start)
        for at in range(0, len(code), _CHUNK):
            size = min(_CHUNK, len(code) - at)
            code[at : at + size] = self._space.read(Va(region.start + at), size)
        return code

    def _compare_known(self, region: _Region, known: CodeMemory) -> None:
        known.looks += 1
        pages = dict(self._otherwise(region, known))
        if pages == known.judged and known.looks < _LOOKS and not known.problems:
            return  # what is wrong may be so no more: where a call leads to is known a moment later
        now = bytearray(known.kept) if pages else known.kept
        for at, page in pages.items():
            now[at : at + len(page)] = page
        self._judge(region, known, now)

    def _otherwise(self, region: _Region, known: CodeMemory) -> Iterator[tuple[int, bytes]]:
        """This iterates the pages that are not as they were, by their offsets."""
        kept = memoryview(known.kept)
        for at in range(0, len(kept), _CHUNK):
            was = kept[at : at + _CHUNK]
            now = self._space.read(Va(region.start + at), len(was))
            if now == was:
                continue
            for page in range(0, len(was), PAGE_SIZE):
                if now[page : page + PAGE_SIZE] != was[page : page + PAGE_SIZE]:
                    yield at + page, now[page : page + PAGE_SIZE]

    def _judge(self, region: _Region, known: CodeMemory, now: bytearray) -> None:
        """This accepts what the kernel may have changed, and tells of all else."""
        found = _Changes(region)
        if region.name != CONSTANTS:
            self._judge_sites(region, known, now, found)
        known.judged = {
            at: bytes(now[at : at + PAGE_SIZE])
            for at in range(0, len(now), PAGE_SIZE)
            if now[at : at + PAGE_SIZE] != known.kept[at : at + PAGE_SIZE]
        }
        for at in known.judged:
            self._judge_page(region, known.kept, now, at, found)
        known.looks, known.problems = 0, tuple(found.rows.values())
        if found.left_out:
            self._gap(region.name, region.start, f"{found.left_out} changes more")

    def _judge_sites(
        self, region: _Region, known: CodeMemory, now: bytearray, found: "_Changes"
    ) -> None:
        sites, kept, start = self._sites, known.kept, region.start
        nothing = sites.nothing
        for site in sites.within(start, region.end):
            at = site - start
            if now.startswith(nothing, at) and kept.startswith(nothing, at):
                continue  # most of them
            verdict = sites.judge(site, _ahead(now, at), _ahead(kept, at))
            size = verdict.size
            if not verdict.problem:
                kept[at : at + size] = now[at : at + size]
                continue
            was = b"" if kept is now else bytes(kept[at : at + size])
            is_new = was != now[at : at + size]
            found.add(
                self._row(region, site, was if is_new else b"", bytes(now[at : at + size])),
                verdict.site,
                verdict.problem,
                is_passing=verdict.is_passing,
            )
            found.covered.update(range(at, at + size))
        for literal in sites.literals(start, region.end):
            at = literal - start
            if now[at : at + 8] != kept[at : at + 8]:
                value = int.from_bytes(now[at : at + 8], "little")
                if not sites.judge_literal(value):
                    kept[at : at + 8] = now[at : at + 8]

    def _judge_page(
        self, region: _Region, kept: bytearray, now: bytearray, at: int, found: "_Changes"
    ) -> None:
        end = min(at + PAGE_SIZE, len(now))
        place = at
        while place < end:
            if kept[place] == now[place] or place in found.covered:
                place += 1
                continue
            run = place + _run(kept, now, place, end)
            place = self._judge_run(region, kept, now, (place, run), found)

    def _judge_run(
        self,
        region: _Region,
        kept: bytearray,
        now: bytearray,
        run: tuple[int, int],
        found: "_Changes",
    ) -> int:
        """This judges a run of bytes that differ, and says where to go on."""
        at, end = run
        old, new = bytes(kept[at:end]), bytes(now[at:end])
        row = self._row(region, region.start + at, old, new)
        verdict = None
        if region.name != CONSTANTS:
            verdict = self._sites.judge_change(row.address, old, new, row.symbol)
        if verdict is None:
            found.add(row, "", "nothing of the kernel's changes it")
        elif not verdict.problem:
            return at + max(verdict.size, 1)
        else:
            found.add(row, verdict.site, verdict.problem, is_passing=verdict.is_passing)
        return end

    def _row(self, region: _Region, va: int, old: bytes, new: bytes) -> CodeChange:
        is_own = region.name in {KERNEL, CONSTANTS}
        symbol = (
            symbol_text(self._symbols, va) if is_own else f"{region.name}+{va - region.start:#x}"
        )
        shown = _MAX_SHOWN
        return CodeChange(region.name, Va(va), symbol, old[:shown], new[:shown], "", "")

    @cached_property
    def _sites(self) -> PatchSites:
        sites = PatchSites(
            self._space,
            self._symbols,
            code=self._code,
            architecture=self._architecture,
            modules=self._live,
        )
        self.result.gaps += sites.gaps
        return sites

    def _gap(self, structure: str, at: Va, why: str) -> None:
        self.result.gaps.append(Gap(structure, at, why))


class _Changes:
    """These are the changes of one region, up to a bound.

    Attributes:
        rows: by address.
        covered: offsets that a site's row is about.
        left_out: how many there are more.
    """

    def __init__(self, region: _Region) -> None:
        self._region = region
        self.rows: dict[int, CodeChange] = {}
        self.covered: set[int] = set()
        self.left_out = 0

    def add(self, row: CodeChange, site: str, problem: str, *, is_passing: bool = False) -> None:
        """This adds one."""
        if len(self.rows) >= _MAX_CHANGES:
            self.left_out += 1
            return
        self.rows[row.address] = CodeChange(
            row.region, row.address, row.symbol, row.expected, row.found, site, problem, is_passing
        )


def _ahead(code: bytearray, at: int) -> bytes:
    return bytes(code[at : at + CODE_AHEAD]).ljust(CODE_AHEAD, b"\0")


def _run(kept: bytearray, now: bytearray, start: int, end: int) -> int:
    """This is how many bytes a change has, those between parts of it included."""
    last = start
    for place in range(start, min(end, start + _MAX_SHOWN)):
        if kept[place] != now[place]:
            last = place
        elif place - last > _NEAR:
            break
    return last + 1 - start
