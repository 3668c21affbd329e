"""The command that tells what was found, how, and the evidence: ``info``."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Final

from qvmi.cli.dumped import AskedDump
from qvmi.cli.exit_code import ExitCode, exit_code_of
from qvmi.cli.printing.output import Output
from qvmi.cli.printing.table import Column, table_of
from qvmi.errors import QvmiError, UnknownGuest
from qvmi.machine.facts import MachineFacts
from qvmi.machine.machine import Machine
from qvmi.machine.memory_dump import DumpFacts
from qvmi.machine.ways.memory_ladder import MemoryAttempt
from qvmi.semantics.guest_os import Evidence, GuestFacts

__all__ = ["info"]

_MIB: Final = 1 << 20

Fact = tuple[str, str]
_FACT: Final[Sequence[Column[Fact]]] = (
    Column("", lambda fact: fact[0]),
    Column("", lambda fact: fact[1]),
)
_MEMORY: Final[Sequence[Column[MemoryAttempt]]] = (
    Column("MEMORY", lambda attempt: attempt.source),
    Column("USED", lambda attempt: "yes" if attempt.used else "no"),
    Column("BECAUSE", lambda attempt: attempt.reason),
)
_EVIDENCE: Final[Sequence[Column[Evidence]]] = (
    Column("WHO SAYS", lambda evidence: evidence.source),
    Column("WHAT", lambda evidence: evidence.claim),
)


async def info(machine: Machine | AskedDump, output: Output) -> ExitCode:
    """This tells of the machine or dump, and of the guest if one is recognised."""
    guest: GuestFacts | None = None
    problem: QvmiError | None = None
    try:
        guest = await machine.query(lambda linux: linux.facts())
    except QvmiError as error:
        problem = error
    facts = await machine.facts()
    if output.json:
        output.document(_document(facts, guest, problem))
    else:
        _print(output, facts, guest)
    if problem is None:
        return ExitCode.FINE
    output.flush()
    output.message(str(problem))
    return exit_code_of(problem)


def _document(
    facts: MachineFacts | DumpFacts, guest: GuestFacts | None, problem: QvmiError | None
) -> dict[str, object]:
    kind = "dump" if isinstance(facts, DumpFacts) else "machine"
    document: dict[str, object] = {kind: facts, "guest": guest}
    if isinstance(problem, UnknownGuest):
        return document | {"problem": problem.reason, "evidence": problem.evidence}
    return document | ({} if problem is None else {"problem": str(problem)})


def _print(output: Output, facts: MachineFacts | DumpFacts, guest: GuestFacts | None) -> None:
    known = _guest_facts(guest) if guest else [("guest", "not recognised")]
    if isinstance(facts, DumpFacts):
        output.table(table_of(_FACT, [*known, *_dump_facts(facts)], prose=True))
    else:
        output.table(table_of(_FACT, [*known, *_machine_facts(facts)], prose=True))
        output.line()
        output.table(table_of(_MEMORY, facts.memory, prose=True))
    if guest:
        output.line()
        output.table(table_of(_EVIDENCE, guest.evidence, prose=True))


def _guest_facts(guest: GuestFacts) -> Iterable[Fact]:
    uptime = "unknown" if guest.uptime_s is None else f"{guest.uptime_s:.2f} s"
    isolation = "on" if guest.page_table_isolation else "off"
    return (
        ("guest", f"{guest.os} {guest.release} ({guest.architecture})"),
        ("banner", guest.banner),
        ("build id", guest.build_id or "none"),
        ("kernel base", f"{guest.kernel_base:#x}"),
        ("KASLR slide", f"{guest.kernel_slide:#x}"),
        ("paging", f"{guest.paging}, page-table isolation {isolation}"),
        ("page-table root", f"{guest.page_table_root:#x}"),
        ("uptime", uptime),
    )


def _machine_facts(machine: MachineFacts) -> Iterable[Fact]:
    return (
        ("machine", machine.address),
        ("name", machine.name or "none"),
        ("QEMU", machine.qemu_version),
        ("run state", machine.run_state),
        ("vCPUs", str(machine.vcpus)),
        ("RAM", f"{machine.ram_size / _MIB:g} MiB"),
        ("epoch", str(machine.epoch)),
        ("stood still", f"{machine.stood_still_s * 1000:.1f} ms"),
    )


def _dump_facts(dump: DumpFacts) -> Iterable[Fact]:
    return (
        ("dump", dump.path),
        ("form", dump.form),
        ("written", datetime.fromtimestamp(dump.at, UTC).isoformat(sep=" ", timespec="seconds")),
        ("RAM", f"{dump.ram_size / _MIB:g} MiB"),
        *(("RAM at", f"{ram.start:#x} to {ram.end - 1:#x}") for ram in dump.ranges),
    )
