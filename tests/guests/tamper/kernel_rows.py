"""A kernel that calls, runs or hides what is not its own: rows for the codepacks that watch it.

The guest stands still meanwhile: it would trip at once over most of this.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Final

from qvmi.codepacks.detectors.hidden_modules import HiddenModules
from qvmi.codepacks.detectors.interrupt_table import InterruptTable
from qvmi.codepacks.detectors.kernel_hooks import KernelHooks
from qvmi.codepacks.detectors.system_calls import SystemCalls
from tests.guests.kernel_packs.call_table import CallTable
from tests.guests.kernel_packs.gates import (
    GATE,
    OVERFLOW,
    PAGE_FAULT,
    TIMER,
    gate_to,
    handler_of,
)
from tests.guests.kernel_packs.hooked_in import HOOKS, Hook, hooked, packets
from tests.guests.kernel_packs.module_places import ModulePlaces
from tests.guests.kernel_packs.tampered_kernel import HIDDEN_MODULE, NOBODYS, Tampered
from tests.guests.tamper.mutation import Mutation
from tests.guests.tamper.scenario import Scenario, Shown, Sign, Way
from tests.guests.tamper.scene import Scene

__all__ = ["KERNEL_ROWS"]

Signs = tuple[Sign, ...]
Tamper = Callable[[Scene], AbstractContextManager[Signs]]

_KNOWN, _RIGHT = "the kernel's known code", "the kernel's symbols"


def _little(address: int) -> str:
    """These are the bytes of an address in memory."""
    return address.to_bytes(8, "little").hex()


# ------------------------------------------------------------------------------------------- system calls


def _entry(place: int, entry: str, target: int, claim: str, *more: Shown, owned: bool) -> Sign:
    """This is that an entry leads somewhere that it should not."""
    evidence = (
        Shown("sys_call_table", address=place, facts={"entry": entry}, data=_little(target)),
        Shown(_KNOWN, present=owned, address=target),
        *more,
    )
    return Sign(claim, evidence, "critical")


@contextmanager
def _call_of_nobody(scene: Scene) -> Iterator[Signs]:
    with scene.still() as kernel:
        table = CallTable.of(kernel)
        number = table.numbers.execve
        place = table.entry(number)
        right = Shown(_RIGHT, present=False, address=place, data=_little(table.handler("execve")))
        with kernel.pointing((place, NOBODYS)):
            claim = f"leads to {NOBODYS:#x}: it leads out of the kernel's text"
            yield (_entry(place, f"{number} execve", NOBODYS, claim, right, owned=False),)


@contextmanager
def _calls_swapped(scene: Scene) -> Iterator[Signs]:
    with scene.still() as kernel:
        table = CallTable.of(kernel)
        names = {"read": "write", "write": "read"}
        numbers = {"read": table.numbers.read, "write": table.numbers.write}
        pairs = {name: (table.entry(numbers[name]), table.handler(names[name])) for name in names}
        with kernel.pointing(*pairs.values()):
            yield tuple(
                _entry(
                    place,
                    f"{numbers[name]} {name}",
                    target,
                    f"{names[name]}: it is not {table.numbers.prefix}{name}",
                    owned=True,
                )
                for name, (place, target) in pairs.items()
            )


@contextmanager
def _unused_call(scene: Scene) -> Iterator[Signs]:
    with scene.still() as kernel:
        table = CallTable.of(kernel)
        number, target = table.numbers.unused, table.handler("read")
        place = table.entry(number)
        with kernel.pointing((place, target)):
            claim = f"it is not {table.numbers.prefix}ni_syscall"
            yield (_entry(place, f"{number}", target, claim, owned=True),)


@contextmanager
def _midst_of_a_call(scene: Scene) -> Iterator[Signs]:
    with scene.still() as kernel:
        table = CallTable.of(kernel)
        number, target = table.numbers.read, table.handler("read") + 4
        place = table.entry(number)
        with kernel.pointing((place, target)):
            claim = f"leads to {table.numbers.prefix}read+0x4"
            yield (_entry(place, f"{number} read", target, claim, owned=True),)


# --------------------------------------------------------------------------------------------- interrupts


def _gate(place: int, entry: str, claim: str, *more: Shown) -> Sign:
    shown = Shown("idt_table", address=place, facts={"entry": entry})
    return Sign(claim, (shown, *more), "critical")


@contextmanager
def _gate_to_nobody(scene: Scene) -> Iterator[Signs]:
    with scene.still() as kernel:
        place = kernel.symbols["idt_table"] + OVERFLOW * GATE
        was, gate = kernel.read(place, GATE), gate_to(kernel, place, NOBODYS)
        with kernel.altered(place, gate):
            code = Shown(_KNOWN, present=False, address=NOBODYS)
            right = Shown(_RIGHT, present=False, address=place, data=was.hex())
            claim = f"idt_table[{OVERFLOW} overflow] leads to {NOBODYS:#x}"
            yield (_gate(place, f"{OVERFLOW} overflow", claim, code, right),)


@contextmanager
def _gates_to_functions(scene: Scene) -> Iterator[Signs]:
    with scene.still() as kernel, ExitStack() as undo:
        target = kernel.symbols["vfs_read"]
        gates = {f"{PAGE_FAULT} page_fault": PAGE_FAULT, f"{TIMER}": TIMER}
        places = {entry: kernel.symbols["idt_table"] + at * GATE for entry, at in gates.items()}
        for place in places.values():
            undo.enter_context(kernel.altered(place, gate_to(kernel, place, target)))
        code = Shown(_KNOWN, address=target, facts={"symbol": "vfs_read", "owner": "kernel"})
        yield tuple(
            _gate(place, entry, f"[{entry}] leads to vfs_read", code)
            for entry, place in places.items()
        )


@contextmanager
def _exception_of_another(scene: Scene) -> Iterator[Signs]:
    with scene.still() as kernel:
        table = kernel.symbols["idt_table"]
        place, other = table + PAGE_FAULT * GATE, table + OVERFLOW * GATE
        target = handler_of(kernel, other)
        with kernel.altered(place, gate_to(kernel, place, target)):
            claim = "asm_exc_overflow: it is not asm_exc_page_fault"
            yield (_gate(place, f"{PAGE_FAULT} page_fault", claim, Shown(_KNOWN, address=target)),)


@contextmanager
def _gate_for_programs(scene: Scene) -> Iterator[Signs]:
    with scene.still() as kernel:
        place = kernel.symbols["idt_table"] + PAGE_FAULT * GATE
        gate = gate_to(kernel, place, handler_of(kernel, place), dpl=3)
        with kernel.altered(place, gate):
            yield (_gate(place, f"{PAGE_FAULT} page_fault", "programs may raise it"),)


# ------------------------------------------------------------------------------------------------ modules

_STRUCTURES: Final = ("mod_tree", "module_kset", "module_bug_list", "memory")


def _module(places: ModulePlaces, *present: str, absent: str, severity: str = "critical") -> Sign:
    facts = {"name": HIDDEN_MODULE}
    evidence = (
        *(Shown(one, address=places.address, facts=facts) for one in present),
        Shown(absent, present=False),
    )
    claim = f"module {HIDDEN_MODULE} is in {present[0]}"
    return Sign(claim, evidence, severity, only=True, prompt=True)


@contextmanager
def _off_the_list(scene: Scene) -> Iterator[Signs]:
    with scene.still() as kernel:
        places = ModulePlaces(kernel)
        with kernel.unlinked(places.list):
            assert HIDDEN_MODULE not in {row.name for row in kernel.linux.modules()}
            yield (_module(places, *_STRUCTURES, absent="modules"),)


@contextmanager
def _off_every_list(scene: Scene) -> Iterator[Signs]:
    with scene.still() as kernel:
        places = ModulePlaces(kernel)
        elsewhere = [(place, places.other) for place in places.owned_by()]
        with (
            kernel.unlinked(places.list, places.bugs, places.sysfs),
            kernel.pointing(*elsewhere),
        ):
            yield (_module(places, "memory", absent="modules"),)


@contextmanager
def _without_itself(scene: Scene) -> Iterator[Signs]:
    with scene.still() as kernel:
        places = ModulePlaces(kernel)
        own = [*places.owned_by(), places.itself]
        with (
            kernel.unlinked(places.list, places.bugs, places.sysfs),
            kernel.pointing(*((place, places.other) for place in own)),
        ):
            yield (_module(places, "memory", absent="modules"),)


@contextmanager
def _off_sysfs(scene: Scene) -> Iterator[Signs]:
    with scene.still() as kernel:
        places = ModulePlaces(kernel)
        with kernel.unlinked(places.sysfs):
            present = ("modules", *(one for one in _STRUCTURES if one != "module_kset"))
            yield (_module(places, *present, absent="module_kset", severity="medium"),)


# -------------------------------------------------------------------------------------------------- hooks


def _nobodys(hook: Hook) -> Tamper:
    """This hooks a function in that is nobody's."""

    @contextmanager
    def tamper(scene: Scene) -> Iterator[Signs]:
        with scene.still() as kernel, hooked(kernel, hook, NOBODYS) as (table, place):
            evidence = (
                Shown(table, address=place, data=""),
                Shown(_KNOWN, present=False, address=NOBODYS),
            )
            yield (Sign("nobody's code is there", evidence),)

    return tamper


@contextmanager
def _hook_of_hidden_module(scene: Scene) -> Iterator[Signs]:
    with scene.still() as kernel:
        entry = kernel.symbols["veth:__this_module"] + kernel.offset("module", "list")
        function = kernel.symbols["veth_open"]
        with kernel.unlinked(entry), hooked(kernel, packets, function) as (table, place):
            evidence = (
                Shown(table, address=place),
                Shown(_KNOWN, present=False, address=function),
            )
            yield (Sign(f"leads to {function:#x}: nobody's code is there", evidence),)


@contextmanager
def _constant(scene: Scene) -> Iterator[Signs]:
    with scene.still() as kernel:
        place = _shown_by(kernel)
        function = kernel.symbols["veth_open"]
        with kernel.pointing((place, function)):
            evidence = (
                Shown("constants", address=place),
                Shown(_KNOWN, address=function, facts={"owner": "veth"}),
            )
            yield (Sign("constants[tcp4_seq_ops+0x18] leads to", evidence),)


def _shown_by(kernel: Tampered) -> int:
    """This is the place of the function by which /proc/net/tcp is shown."""
    return kernel.symbols["tcp4_seq_ops"] + kernel.offset("seq_operations", "show")


# --------------------------------------------------------------------------------------------- the table

_POINTERS: Final = Mutation(
    "codepacks.detectors.code_pointer_findings",
    "if row.problem\n",
    "if row.problem and row.owner\n",
)
_SYSCALL, _IDT = "semantics.linux.hooks.syscall", "semantics.linux.hooks.idt"
_HOOKS: Final = Mutation(
    "semantics.linux.hooks.hooks", 'problem = "" if owner else', 'problem = "" if not owner else'
)
_UNLISTED: Final = Mutation(
    "codepacks.detectors.hidden_modules", "if _LIST not in views or", "if _LIST in views and"
)
_PLACES: Final = {
    "notifier": "a notifier leads to nobody's code",
    "packets": "a netfilter hook is nobody's code",
    "tracepoint": "a probe of a tracepoint is nobody's code",
    "tracer": "a function tracer is nobody's code",
    "probe": "a kprobe's handler is nobody's code",
    "security": "a security module's function is nobody's code",
}


def _of_calls(name: str, tamper: Tamper, *mutations: Mutation) -> Scenario:
    words = (name, "system-calls", "T1014", Way.OUTSIDE, tamper, SystemCalls)
    return Scenario(*words, on_arm64=True, mutations=mutations, still=True)


def _of_gates(name: str, tamper: Tamper, *mutations: Mutation) -> Scenario:
    words = (name, "interrupt-table", "T1014", Way.OUTSIDE, tamper, InterruptTable)
    return Scenario(*words, mutations=mutations, still=True)


def _of_modules(name: str, tamper: Tamper, *mutations: Mutation) -> Scenario:
    words = (name, "hidden-modules", "T1014", Way.OUTSIDE, tamper, HiddenModules)
    return Scenario(*words, on_arm64=True, mutations=mutations, still=True)


def _of_hooks(name: str, tamper: Tamper, *mutations: Mutation) -> Scenario:
    words = (name, "kernel-hooks", "T1014", Way.OUTSIDE, tamper, KernelHooks)
    return Scenario(*words, on_arm64=True, mutations=mutations, still=True)


KERNEL_ROWS: Final = (
    _of_calls("a system call leads out of the kernel", _call_of_nobody, _POINTERS),
    _of_calls(
        "two system calls are swapped",
        _calls_swapped,
        Mutation(
            _SYSCALL, "if symbol == shape.prefix + call:", "if symbol.startswith(shape.prefix):"
        ),
    ),
    _of_calls("a number that is no system call gets a handler", _unused_call),
    _of_calls(
        "a system call begins in the midst of its handler",
        _midst_of_a_call,
        Mutation(
            _SYSCALL,
            "if symbol == shape.prefix + call:",
            'if symbol.partition("+")[0] == shape.prefix + call:',
        ),
    ),
    _of_gates("an exception leads out of the kernel", _gate_to_nobody, _POINTERS),
    _of_gates(
        "gates lead to other functions of the kernel",
        _gates_to_functions,
        Mutation(_IDT, 'right = symbol == f"asm_exc_{expected}" if', "right = bool(symbol) if"),
    ),
    _of_gates("an exception is handled as another one", _exception_of_another),
    _of_gates(
        "programs may raise an exception",
        _gate_for_programs,
        Mutation(_IDT, "_USER and vector not in _CALLED", "_USER and vector in _CALLED"),
    ),
    _of_modules("a module leaves the list of modules", _off_the_list, _UNLISTED),
    _of_modules("a module leaves every structure", _off_every_list, _UNLISTED),
    _of_modules("a module that left them does not point to itself", _without_itself),
    _of_modules(
        "a module leaves sysfs alone",
        _off_sysfs,
        Mutation(
            "codepacks.detectors.hidden_modules",
            "any(one in structures and one not in views",
            "all(one in structures and one not in views",
        ),
    ),
    *(_of_hooks(_PLACES[hook.__name__], _nobodys(hook), _HOOKS) for hook in HOOKS),
    _of_hooks("a hidden module hooks a function in", _hook_of_hidden_module, _HOOKS),
    _of_hooks(
        "a constant table of functions leads out of the kernel",
        _constant,
        Mutation(
            "semantics.linux.hooks.hooks",
            'problem = "a constant of the kernel\'s leads out of it"',
            'problem = ""',
        ),
    ),
)
