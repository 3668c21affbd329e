"""What a kernel has and its symbols or types do not tell of: nobody may take it for nothing."""

import pytest

from qvmi.addr import Pa, Va
from qvmi.arch.paging import X86_64_4_LEVEL
from qvmi.semantics.linux.hooks.extable import KnownCode
from qvmi.semantics.linux.hooks.ftrace_records import FtraceRecords
from qvmi.semantics.linux.hooks.hook_places import HookPlaces
from qvmi.semantics.linux.hooks.hooks import KernelHooks
from qvmi.semantics.linux.hooks.idt import InterruptTable
from qvmi.semantics.linux.hooks.syscall import SystemCallTables
from qvmi.semantics.linux.hooks.umh import UserModeHelpers
from qvmi.semantics.linux.image.kernel_image import KernelImage
from qvmi.semantics.linux.modules.module import Modules
from qvmi.semantics.linux.structures.record import compile_reader
from tests.synthetic.kernel_memory import DIRECT_MAP, KernelMemory

KINDS = (
    *("ftrace_ops_list", "kprobe_table", "__start___tracepoints_ptrs", "prog_idr", "inet_protos"),
    *("nf_register_net_hook", "security_add_hooks", "panic_notifier_list"),
)


def gaps(*names: str) -> set[tuple[str, int | None]]:
    """These are the gaps of a kernel that has these symbols, and no types that belong to them."""
    memory = KernelMemory()
    symbols = memory.symbols
    for name in ("_stext", "_etext", "__start_rodata", "__end_rodata", "ftrace_list_end", *names):
        symbols.addresses[name] = memory.allocate_bytes(64)
    image = KernelImage(
        *(Va(DIRECT_MAP), Va(DIRECT_MAP + (1 << 20)), Pa(0), Pa(0), X86_64_4_LEVEL),
        page_table_isolation=False,
        extents=(),
        evidence=(),
    )
    modules = Modules(memory.space, symbols)
    code = KnownCode(memory.space, symbols, modules)
    found = KernelHooks(memory.space, symbols, modules, image=image).all(code)
    return {(gap.structure, gap.address) for gap in found.gaps}


def test_a_kernel_without_a_kind_of_hooks_has_no_gap() -> None:
    assert gaps() == set()


@pytest.mark.parametrize("kind", KINDS)
def test_hooks_whose_types_are_not_told_are_a_gap(kind: str) -> None:
    assert {structure for structure, _ in gaps(kind)} == {kind}


LISTS = ("bpf_kallsyms", "ftrace_ops_trampoline_list", "kprobe_insn_slots", "ftrace_ops_list")


@pytest.mark.parametrize("name", LISTS)
def test_code_in_lists_whose_types_are_not_told_is_a_gap(name: str) -> None:
    memory = KernelMemory()
    for one in ("_stext", "_etext", "ftrace_list_end", name):
        memory.symbols.addresses[one] = memory.allocate_bytes(64)
    code = KnownCode(memory.space, memory.symbols, Modules(memory.space, memory.symbols))
    assert code.owner(1) == ""
    assert [gap.structure for gap in code.gaps] == [name]


def test_tables_and_settings_that_are_not_told_are_gaps() -> None:
    memory = KernelMemory()
    symbols = memory.symbols
    for name in ("_stext", "_etext", "__x64_sys_ni_syscall", "asm_exc_page_fault"):
        symbols.addresses[name] = memory.allocate_bytes(64)
    code = KnownCode(memory.space, symbols, Modules(memory.space, symbols))
    calls = SystemCallTables(memory.space, symbols).entries(code)
    gates = InterruptTable(memory.space, symbols).gates((), code)
    settings = UserModeHelpers(memory.space, symbols).settings()
    gaps = [gap.structure for walk in (calls, gates, settings) for gap in walk.gaps]
    assert gaps == ["sys_call_table", "idt_table", "core_pattern"]


def test_a_kernel_for_another_architecture_has_no_interrupt_table_and_no_gap() -> None:
    memory = KernelMemory()
    for name in ("_stext", "_etext"):
        memory.symbols.addresses[name] = memory.allocate_bytes(64)
    code = KnownCode(memory.space, memory.symbols, Modules(memory.space, memory.symbols))
    assert InterruptTable(memory.space, memory.symbols).gates((), code).gaps == []


def test_places_of_ftrace_whose_type_is_not_told_are_a_gap() -> None:
    memory = KernelMemory()
    for name in ("ftrace_pages_start", "direct_functions"):
        memory.symbols.addresses[name] = memory.allocate_bytes(64)
    records = FtraceRecords(memory.space, memory.symbols)
    assert (len(records.places()), records.direct_calls()) == (0, {})
    assert [gap.structure for gap in records.gaps] == ["ftrace_pages_start", "direct_functions"]


def test_chains_in_which_nothing_is_called_come_to_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qvmi.semantics.linux.hooks.hook_places._MAX_LOOKS", 5)
    memory = KernelMemory()
    nodes = [memory.allocate_bytes(64) for _ in range(10)]
    for node, following in zip(nodes, [*nodes[1:], 0], strict=True):
        memory.u64(node, following)
    places = HookPlaces()
    read = compile_reader(memory.space, (0, "Q"), (8, "Q"))
    for _ in range(3):
        places.follow("table", "", nodes[0], read, 8)
    assert (places.looks, [gap.reason for gap in places.gaps]) == (
        6,
        ["more than 5 places for hooks"],
    )


def test_gaps_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qvmi.semantics.linux.hooks.hook_places._MAX_GAPS", 3)
    places = HookPlaces()
    for number in range(10):
        places.gap("table", number, "wrong")
    assert len(places.gaps) == 3
