"""Code that is overwritten, and programs that the kernel is to start: rows for the codepacks of both.

The guest stands still meanwhile, but where a program in it does it.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Final

from qvmi.codepacks.detectors.kernel_settings import KernelSettings
from qvmi.codepacks.detectors.kernel_text import KernelText
from tests.guests.kernel_packs.patched_code import call_to, label_place, returning, traced_at
from tests.guests.kernel_packs.tampered_kernel import NOBODYS, Tampered
from tests.guests.tamper.mutation import Mutation
from tests.guests.tamper.scenario import Scenario, Shown, Sign, Way
from tests.guests.tamper.scene import Scene

__all__ = ["TEXT_ROWS"]

Signs = tuple[Sign, ...]
Tamper = Callable[[Scene], AbstractContextManager[Signs]]

_BEHIND_THE_IMAGE: Final = 0x7000000
"""Bytes from the kernel's code to where nobody's is, as far as a call reaches."""


# ------------------------------------------------------------------------------------------------- code


@contextmanager
def _overwritten(kernel: Tampered, place: int, code: bytes, claim: str) -> Iterator[Signs]:
    """This writes over code, of which those bytes are told that differ."""
    was = kernel.read(place, len(code))
    differs = [at for at, byte in enumerate(code) if byte != was[at]]
    first, end = differs[0], differs[-1] + 1
    with kernel.altered(place, code):
        evidence = (
            Shown("memory", address=place + first, facts={"bytes": code[first:end].hex(" ")}),
            Shown(
                "first sight",
                present=False,
                address=place + first,
                facts={"bytes": was[first:end].hex(" ")},
            ),
        )
        yield (Sign(claim, evidence, "critical", prompt=True),)


@contextmanager
def _function(scene: Scene) -> Iterator[Signs]:
    with scene.still() as kernel:
        place = kernel.symbols["vfs_read"] + 64
        claim = " of kernel was overwritten, code that nothing changes"
        with _overwritten(kernel, place, returning(kernel), claim) as signs:
            yield signs


@contextmanager
def _module(scene: Scene) -> Iterator[Signs]:
    with scene.still() as kernel:
        place = kernel.symbols["veth_open"] + 32
        with _overwritten(kernel, place, returning(kernel), " of veth was overwritten") as signs:
            yield signs


@contextmanager
def _constants(scene: Scene) -> Iterator[Signs]:
    with scene.still() as kernel:
        place = kernel.symbols["tcp4_seq_ops"] + kernel.offset("seq_operations", "show")
        target = NOBODYS.to_bytes(8, "little")
        with _overwritten(kernel, place, target, " of constants was overwritten") as signs:
            yield signs


def _patched(place: int, site: str, claim: str) -> Sign:
    evidence = (
        Shown("memory", address=place, facts={"site": site}),
        Shown("what the kernel may put there", present=False, address=place),
    )
    return Sign(claim, evidence, "critical")


@contextmanager
def _call(scene: Scene) -> Iterator[Signs]:
    with scene.still() as kernel:
        place = traced_at(kernel, kernel.symbols["vfs_read"])
        target = place + _BEHIND_THE_IMAGE
        with kernel.altered(place, call_to(kernel, place, target)):
            yield (_patched(place, "ftrace", f"a call to nobody's code at {target:#x}"),)


@contextmanager
def _label(scene: Scene) -> Iterator[Signs]:
    with scene.still() as kernel:
        place = label_place(kernel)
        with kernel.altered(place, call_to(kernel, place, kernel.symbols["vfs_read"])):
            claim = f"a call to {kernel.symbols['vfs_read']:#x} where a jump to"
            yield (_patched(place, "jump label", claim),)


# --------------------------------------------------------------------------------------------- settings


def _setting(name: str, value: str) -> Tamper:
    """This sets a setting from outside."""

    @contextmanager
    def tamper(scene: Scene) -> Iterator[Signs]:
        with scene.still() as kernel:
            place = kernel.symbols[name]
            with kernel.altered(place, value.encode() + b"\0"):
                shown = Shown(name, address=place, facts={"value": value})
                yield (Sign(f"{name} is {value!r}: ", (shown,)),)

    return tamper


@contextmanager
def _by_a_program(scene: Scene) -> Iterator[Signs]:
    place, value = "/proc/sys/kernel/modprobe", "/home/u/x"
    before = scene.run(f"cat {place}; echo {value} >{place}").strip()
    try:
        shown = Shown("modprobe_path", address=scene.symbols["modprobe_path"])
        yield (Sign(f"modprobe_path is {value!r}: its program is where anybody", (shown,)),)
    finally:
        scene.run(f"echo {before} >{place}")


# -------------------------------------------------------------------------------------------- the table

_SAME: Final = Mutation("semantics.linux.hooks.kernel_text", "if now == was:", "if now != was:")
_SITES: Final = "semantics.linux.hooks.patch_sites"
_ANYBODYS: Final = Mutation(
    "codepacks.detectors.kernel_settings", ".startswith(_ANYBODYS)", ".endswith(_ANYBODYS)"
)


def _of_text(name: str, tamper: Tamper, *mutations: Mutation, learns: bool = True) -> Scenario:
    return Scenario(
        *(name, "kernel-text", "T1014", Way.OUTSIDE, tamper, KernelText),
        on_arm64=True,
        mutations=mutations,
        learns=learns,
        still=True,
    )


def _of_settings(name: str, tamper: Tamper, *mutations: Mutation) -> Scenario:
    words = (name, "kernel-settings", "T1546", Way.OUTSIDE, tamper, KernelSettings)
    return Scenario(*words, on_arm64=True, mutations=mutations, still=True)


TEXT_ROWS: Final = (
    _of_text("a function of the kernel is overwritten", _function, _SAME),
    _of_text("a function of a module is overwritten", _module),
    _of_text("a constant table of functions is overwritten", _constants),
    _of_text(
        "a function is led to nobody's code at its beginning",
        _call,
        Mutation(_SITES, "Kind.JUMP} and self._may_trace(at, found):", "Kind.JUMP} and found:"),
        learns=False,
    ),
    _of_text(
        "a jump label leads elsewhere",
        _label,
        Mutation(_SITES, "found.kind is Kind.JUMP and found.target == target", "found.target"),
        learns=False,
    ),
    _of_settings("modprobe is one in /tmp", _setting("modprobe_path", "/tmp/x"), _ANYBODYS),  # noqa: S108
    _of_settings(
        "core files are piped to a program in /proc",
        _setting("core_pattern", "|/proc/%P/fd/666"),
        _ANYBODYS,
    ),
    _of_settings(
        "core files are written to where cron tables are",
        _setting("core_pattern", "/etc/cron.d/core"),
        Mutation(
            "codepacks.detectors.kernel_settings",
            "if is_there and (path",
            "if not is_there and (path",
        ),
    ),
    _of_settings(
        "power failures start a program in /dev/shm",
        _setting("poweroff_cmd", "/dev/shm/.x -f"),  # noqa: S108
    ),
    Scenario(
        *("a program sets modprobe to one in /home", "kernel-settings", "T1546", Way.INSIDE),
        *(_by_a_program, KernelSettings),
        mutations=(_ANYBODYS,),
    ),
)
