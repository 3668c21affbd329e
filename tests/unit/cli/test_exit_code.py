"""Exit codes are a promise to scripts."""

import pytest

from qvmi import errors
from qvmi.addr import Va
from qvmi.cli.exit_code import ExitCode, exit_code_of
from qvmi.errors import (
    BrokerUnavailable,
    CorruptTable,
    GdbstubBusy,
    GdbstubProtocolError,
    GdbstubRequestFailed,
    GdbstubTimeout,
    GuestRunning,
    MachineGone,
    MemoryFault,
    MemoryUnreachable,
    NotGdbstub,
    NotQmp,
    QmpBusy,
    QmpCommandFailed,
    QmpProtocolError,
    QmpTimeout,
    QvmiError,
    SocketUnreachable,
    StaleView,
    SymbolNotFound,
    TranslationFault,
    UnknownGuest,
    UsageError,
    WalkFailed,
)

EXPECTED = {
    UsageError("no such option"): 2,
    SocketUnreachable("/qmp", "nothing there"): 3,
    NotQmp("/qmp", "no greeting"): 3,
    QmpBusy("/qmp", "another client"): 3,
    MemoryUnreachable("/qmp", ["tried"]): 3,
    MachineGone("reading"): 3,
    QmpTimeout("query-status", 3.0): 3,
    QmpProtocolError("query-status", "no answer"): 3,
    QmpCommandFailed("query-status", "GenericError", "no"): 3,
    NotGdbstub("/gdb", "something else"): 3,
    GdbstubBusy("/gdb", "another debugger"): 3,
    GdbstubTimeout("g", 3.0): 3,
    GdbstubProtocolError("g", "no answer"): 3,
    GdbstubRequestFailed("g", "E22"): 3,
    GuestRunning("read", "interrupt it first"): 4,
    UnknownGuest("firmware only"): 4,
    WalkFailed("init_task.tasks", "loop"): 4,
    SymbolNotFound("x"): 4,
    CorruptTable("BTF", "short"): 4,
    MemoryFault(0, 1): 4,
    TranslationFault(Va(0), why="not present"): 4,
    StaleView("reset"): 4,
    BrokerUnavailable("no mosquitto"): 4,
    QvmiError("something"): 4,
}


def test_the_documented_codes_have_their_numbers() -> None:
    documented = {"FINE": 0, "FOUND": 1, "USAGE": 2, "NOT_ATTACHED": 3, "NOT_SEEN": 4}
    assert {name: ExitCode[name] for name in documented} == documented


@pytest.mark.parametrize("error", EXPECTED, ids=lambda error: type(error).__name__)
def test_an_error_leads_to_its_code(error: QvmiError) -> None:
    assert exit_code_of(error) == EXPECTED[error]


@pytest.mark.parametrize("name", errors.__all__)
def test_every_kind_of_error_leads_to_2_3_or_4(name: str) -> None:
    kind: type[QvmiError] = getattr(errors, name)
    assert exit_code_of(kind.__new__(kind)) in {2, 3, 4}
