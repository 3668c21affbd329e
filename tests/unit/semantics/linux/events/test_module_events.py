"""Modules of a kernel made by hand, which come and go."""

import pytest

from qvmi.errors import MemoryFault
from qvmi.semantics.linux.events.event_sink import EventSink
from qvmi.semantics.linux.events.module_events import ModuleEvents
from qvmi.semantics.linux.modules.module import Modules
from qvmi.semantics.rows.events import EventKind, ModuleLoaded, ModuleUnloaded, NotSeen
from qvmi.view import Provenance, Taken, View
from tests.synthetic.kernel_memory import KernelMemory

BASE = 0xFFFF_FFFF_C000_0000


class Watched:
    """These are the modules of a kernel, watched."""

    def __init__(self, *kinds: EventKind) -> None:
        self.kernel = KernelMemory()
        self.old = self.kernel.add_module(b"old", base=BASE, sizes=[0x1000])
        modules = Modules(self.kernel.space, self.kernel.symbols)
        wanted = kinds or tuple(EventKind)
        self.part = ModuleEvents(
            self.kernel.space, self.kernel.symbols, modules, wanted.__contains__
        )
        self.sink = EventSink(View((), self.kernel.ram, Provenance(Taken.LIVE, 0.0)))
        self.part.begin(self.sink)

    def add(self, name: bytes, **changes: int) -> int:
        return self.kernel.add_module(name, base=BASE + 0x10_0000, sizes=[0x1000], **changes)

    def remove(self, module: int) -> None:
        self.kernel.delete(module + self.kernel.member("module", "list"))

    def glance(self) -> list[tuple[type, str]]:
        self.part.glance(self.sink)
        return self._taken()

    def rescan(self) -> list[tuple[type, str]]:
        self.part.rescan(self.sink)
        return self._taken()

    def _taken(self) -> list[tuple[type, str]]:
        told: list[tuple[type, str]] = []
        for event in self.sink.taken():
            if isinstance(event, ModuleLoaded | ModuleUnloaded):
                told.append((type(event), event.module.name))
            else:
                assert isinstance(event, NotSeen)
                told.append((NotSeen, event.structure))
        return told


def test_a_module_in_front_is_seen_by_the_next_quick_look() -> None:
    watched = Watched()
    assert watched.glance() == []
    watched.add(b"new")
    assert watched.glance() == [(ModuleLoaded, "new")]
    assert (watched.glance(), watched.rescan()) == ([], [])


def test_one_that_is_taken_from_behind_is_seen_by_the_next_walk() -> None:
    watched = Watched()
    watched.add(b"new")
    watched.rescan()
    watched.kernel.u64(watched.kernel.modules + 8, watched.kernel.get(watched.kernel.modules + 8))
    watched.remove(watched.old)
    assert watched.rescan() == [(ModuleUnloaded, "old")]


def test_a_module_is_told_of_once_it_is_formed() -> None:
    watched = Watched()
    module = watched.add(b"new", state=3)  # MODULE_STATE_UNFORMED
    assert (watched.glance(), watched.rescan()) == ([], [])
    watched.kernel.u32(module, 1)
    assert watched.rescan() == [(ModuleLoaded, "new")]


def test_one_whose_memory_is_used_for_another_is_both() -> None:
    watched = Watched()
    at = watched.old + watched.kernel.member("module", "name")
    watched.kernel.write(at, b"new".ljust(56, b"\0"))
    assert sorted(watched.rescan(), key=lambda one: one[1]) == [
        (ModuleLoaded, "new"),
        (ModuleUnloaded, "old"),
    ]


def test_what_lies_behind_a_broken_link_is_not_said_to_be_gone() -> None:
    watched = Watched()
    new = watched.add(b"new")
    watched.rescan()
    watched.kernel.u64(new + watched.kernel.member("module", "list"), 0x1234)
    assert watched.rescan() == [(NotSeen, "module.list")]
    assert watched.rescan() == []


def test_only_wanted_kinds_are_told() -> None:
    watched = Watched(EventKind.UNLOADED)
    watched.add(b"new")
    assert watched.rescan() == []
    watched.remove(watched.old)
    assert watched.rescan() == [(ModuleUnloaded, "old")]


def test_memory_that_is_gone_is_an_error_of_ours() -> None:
    watched = Watched()
    watched.kernel.ram.close()
    with pytest.raises(MemoryFault):
        watched.part.glance(watched.sink)
