"""What a codepack says should be in a table is written only where the table and the kernel's text agree."""

import struct

import pytest

from qvmi.addr import Va
from qvmi.codepacks.codepack import Finding, Observation, Severity
from qvmi.manager.response.restoring import Repair, disagreement, problem_of, repairs
from qvmi.semantics.guest_os import CodePointer

TABLE, IDT, TEXT, END = (
    0xFFFFFFFF82000000,
    0xFFFFFFFF83000000,
    0xFFFFFFFF81000000,
    0xFFFFFFFF81E00000,
)
SYMBOLS = {"sys_call_table": TABLE, "idt_table": IDT, "_stext": TEXT, "_etext": END}
EVIL_AT = 0xFFFFFFFFC0000000
GOOD, EVIL = struct.pack("<Q", TEXT + 0x100), struct.pack("<Q", EVIL_AT)


def find(name: str) -> Va | None:
    return Va(SYMBOLS[name]) if name in SYMBOLS else None


def gate(target: int, selector: int = 0x10, bits: int = 0x8E00, reserved: int = 0) -> bytes:
    """An interrupt gate, as the manual has it: offset 15..0, selector, type, offset 31..16, 63..32."""
    return struct.pack(
        "<HHHHII", target & 0xFFFF, selector, bits, target >> 16 & 0xFFFF, target >> 32, reserved
    )


def finding(*evidence: Observation) -> Finding:
    return Finding(claim="x", severity=Severity.HIGH, technique="T1014", key="k", evidence=evidence)


def seen(address: int, data: bytes, *, present: bool) -> Observation:
    return Observation(view="v", present=present, address=Va(address), data=data.hex())


def test_two_observations_of_one_place_tell_what_is_and_what_should_be() -> None:
    found = repairs(
        finding(
            seen(TABLE, EVIL, present=True),
            seen(TABLE, GOOD, present=False),
            seen(TABLE + 8, GOOD, present=True),
            seen(TABLE + 16, EVIL, present=False),
        )
    )
    assert found == (Repair(Va(TABLE), EVIL, GOOD),)


@pytest.mark.parametrize(
    "evidence",
    [
        (seen(TABLE, EVIL, present=True), seen(TABLE, GOOD, present=True)),
        (seen(TABLE, EVIL, present=True), seen(TABLE, GOOD[:4], present=False)),
        (seen(TABLE, EVIL, present=True), seen(TABLE + 8, GOOD, present=False)),
        (seen(TABLE, GOOD, present=True), seen(TABLE, GOOD, present=False)),
        (Observation(view="v", present=True, data=EVIL.hex()),),
    ],
    ids=["both present", "another size", "another place", "no change", "no place"],
)
def test_evidence_that_does_not_say_it_leads_to_nothing(evidence: tuple[Observation, ...]) -> None:
    assert repairs(finding(*evidence)) == ()


SOUND = {
    "a system call": Repair(Va(TABLE + 8), EVIL, GOOD),
    "an interrupt gate": Repair(Va(IDT + 64), gate(EVIL_AT), gate(TEXT + 0x10)),
    "one for programs": Repair(Va(IDT + 3 * 16), gate(EVIL_AT), gate(TEXT, bits=0xEE00)),
    "one with a stack": Repair(Va(IDT + 2 * 16), gate(EVIL_AT), gate(TEXT, bits=0x8E02)),
}


@pytest.mark.parametrize("repair", SOUND.values(), ids=SOUND)
def test_a_whole_entry_that_leads_into_the_kernel_may_be_written(repair: Repair) -> None:
    assert problem_of(repair, find) == ""


UNSOUND = {
    "no table": (Repair(Va(TABLE - 8), EVIL, GOOD), "in no table"),
    "behind the table": (Repair(Va(TABLE + 4096), EVIL, GOOD), "in no table"),
    "across two entries": (Repair(Va(TABLE + 4), EVIL, GOOD), "no whole entry"),
    "half an entry": (Repair(Va(TABLE), EVIL[:4], GOOD[:4]), "no whole entry"),
    "two entries": (Repair(Va(TABLE), EVIL * 2, GOOD * 2), "no whole entry"),
    "to a module": (Repair(Va(TABLE), GOOD, EVIL), "not the kernel's own code"),
    "to the end of text": (Repair(Va(TABLE), EVIL, struct.pack("<Q", END)), "not the kernel's"),
    "a gate to user code": (Repair(Va(IDT), gate(TEXT), gate(0x400000)), "not the kernel's"),
    "a gate for programs": (
        Repair(Va(IDT), gate(EVIL_AT), gate(TEXT, bits=0xEE00)),
        "may raise it",
    ),
    "a gate to a segment": (Repair(Va(IDT), gate(EVIL_AT), gate(TEXT, 0x33)), "segment is 0x33"),
    "a task gate": (Repair(Va(IDT), gate(EVIL_AT), gate(TEXT, bits=0x8500)), "of type 5"),
    "no gate": (Repair(Va(IDT), gate(EVIL_AT), gate(TEXT, bits=0x0E00)), "not present"),
    "more than a gate": (Repair(Va(IDT), gate(EVIL_AT), gate(TEXT, reserved=1)), "reserved in it"),
    "a gate in the middle": (Repair(Va(IDT + 8), gate(TEXT), gate(TEXT)), "no whole entry"),
}


@pytest.mark.parametrize(("repair", "problem"), UNSOUND.values(), ids=UNSOUND)
def test_anything_else_is_refused_with_the_reason(repair: Repair, problem: str) -> None:
    assert problem in problem_of(repair, find)


def test_a_kernel_whose_text_is_not_known_is_not_written() -> None:
    repair = SOUND["a system call"]
    assert problem_of(repair, lambda name: None if name == "_etext" else find(name))


def entry(number: int, problem: str = "it is not right", expected: bytes = GOOD) -> CodePointer:
    found = EVIL if expected else b""
    place = Va(TABLE + 8 * number)
    return CodePointer("t", f"{number}", place, Va(EVIL_AT), "x", "evil", problem, found, expected)


OTHER = struct.pack("<Q", TEXT + 0x200)
"""Leads into the kernel's text, too, but not to what handles this call."""


@pytest.mark.parametrize(
    ("row", "wanted", "words"),
    [
        (entry(1), GOOD, ""),
        (entry(1, expected=b""), OTHER, ""),
        (entry(1), OTHER, f"should hold {GOOD.hex()}, and not {OTHER.hex()}"),
        (entry(1, problem=""), OTHER, "is right as it is"),
        (entry(2), GOOD, "no entry of the kernel's tables is seen"),
    ],
    ids=["right", "nobody knows", "another function", "nothing is wrong", "another entry"],
)
def test_what_a_codepack_wants_there_is_compared_with_what_a_look_of_ones_own_expects(
    row: CodePointer, wanted: bytes, words: str
) -> None:
    problem = disagreement(Repair(Va(TABLE + 8), EVIL, wanted), [entry(0), row])
    assert (words in problem) if words else not problem
