"""Listings are printed whole, and what is missing in them decides the exit code."""

import json

import pytest

from qvmi.addr import Va
from qvmi.cli.exit_code import ExitCode
from qvmi.cli.handlers.listings import modules, ps, threads, tree
from qvmi.errors import WalkFailed
from qvmi.semantics.guest_os import Gap, Module, Thread
from qvmi.testing import FakeGuest, FakeMachine, fake_process
from tests.asynchronous import asynchronous
from tests.unit.cli.corpus import ALIGNED
from tests.unit.cli.streams import Captured

INIT = fake_process(1, ppid=0, name="init", uid=0, gid=5, start_time_s=0.404)
SHELL = fake_process(70, ppid=1, name="sh", uid=1000, gid=1000, start_time_s=12.5)
KERNEL = fake_process(2, ppid=0, name="[kthreadd]", kernel_thread=True)
GAP = Gap("task_struct.tasks", Va(0xFFFF_8880_0000_1000), "leads to \x1b[2J")


def machine() -> FakeMachine:
    return FakeMachine(
        FakeGuest(
            processes=[INIT, KERNEL, SHELL],
            threads=[Thread(71, 70, "S", "worker", Va(0x1000), 13.0)],
            modules=[Module("ext4", Va(0xC000), 4096, "live", Va(0xD000))],
        )
    )


@asynchronous
async def test_processes_are_aligned_in_a_pipe() -> None:
    output = Captured()
    assert await ps(machine(), output, exact=False) is ExitCode.FINE
    assert output.result.splitlines() == [
        "PID  PPID   UID   GID  S  KIND    START  ADDRESS             NAME",
        "  1     0     0     5  S  user     0.40  0xffff888000004000  init",
        "  2     0     0     0  S  kernel   2.00  0xffff888000008000  [kthreadd]",
        " 70     1  1000  1000  S  user    12.50  0xffff888000118000  sh",
    ]
    assert output.messages == ""


@asynchronous
async def test_processes_have_the_documented_fields_as_json() -> None:
    output = Captured(json=True)
    assert await ps(machine(), output, exact=False) is ExitCode.FINE
    document = json.loads(output.result)
    assert list(document) == ["items", "gaps", "provenance"]
    assert document["items"][2] == {
        "pid": 70,
        "tgid": 70,
        "ppid": 1,
        "uid": 1000,
        "gid": 1000,
        "state": "S",
        "name": "sh",
        "address": 0xFFFF_8880_0011_8000,
        "kernel_thread": False,
        "start_time_s": 12.5,
    }
    assert document["provenance"]["taken"] == "live"


@asynchronous
async def test_threads_name_their_process() -> None:
    output = Captured()
    assert await threads(machine(), output, exact=False) is ExitCode.FINE
    assert output.result.splitlines() == [
        "TID  PID  S  START  ADDRESS  NAME",
        " 71   70  S  13.00  0x1000   worker",
    ]


@asynchronous
async def test_modules_say_where_they_are() -> None:
    output = Captured()
    assert await modules(machine(), output, exact=False) is ExitCode.FINE
    assert output.result.splitlines() == [
        "ADDRESS  SIZE  STATE  NAME",
        "0xc000   4096  live   ext4",
    ]


@asynchronous
async def test_modules_have_the_documented_fields_as_json() -> None:
    output = Captured(json=True)
    await modules(machine(), output, exact=False)
    (module,) = json.loads(output.result)["items"]
    assert module.items() >= {"name": "ext4", "address": 0xC000, "size": 4096}.items()


@asynchronous
async def test_a_tree_is_drawn_with_the_lines_that_the_encoding_has() -> None:
    names = {}
    for encoding in ("utf-8", "ascii"):
        output = Captured(encoding=encoding)
        await tree(machine(), output, exact=False)
        names[encoding] = output.result.splitlines()[2]
    assert names == {"utf-8": " 70  1000  S  └─ sh", "ascii": " 70  1000  S  `- sh"}


@asynchronous
async def test_a_tree_as_json_is_the_processes_with_their_depth() -> None:
    output = Captured(json=True)
    await tree(machine(), output, exact=False)
    items = json.loads(output.result)["items"]
    assert [(item["pid"], item["depth"]) for item in items] == [(1, 0), (70, 1), (2, 0)]


@pytest.mark.parametrize("as_json", [False, True])
@asynchronous
async def test_gaps_are_told_and_lead_to_4(*, as_json: bool) -> None:
    holder = machine()
    holder.guest.show_processes([INIT], gaps=[GAP])
    output = Captured(json=as_json)
    assert await ps(holder, output, exact=False) is ExitCode.NOT_SEEN
    assert "init" in output.result
    assert output.messages == (
        "qvmi: not all could be looked at: 1 gap\n"
        "  task_struct.tasks at 0xffff888000001000: leads to \\x1b[2J\n"
    )


@pytest.mark.parametrize("command", [ps, tree, threads, modules])
@asynchronous
async def test_an_exact_list_is_captured_and_says_what_it_cost(command: object) -> None:
    holder, live, exact = machine(), Captured(), Captured()
    assert callable(command)
    assert await command(holder, live, exact=False) is ExitCode.FINE
    assert "capture" not in holder.calls
    assert await command(holder, exact, exact=True) is ExitCode.FINE
    assert "capture" in holder.calls
    assert exact.result == live.result
    assert (live.messages, exact.messages) == ("", "qvmi: the guest stood still for 0.0 ms\n")


@asynchronous
async def test_gaps_without_number_are_told_in_few_lines() -> None:
    holder = machine()
    holder.guest.show_processes([INIT], gaps=[GAP] * 5000)
    output = Captured()
    await ps(holder, output, exact=False)
    assert len(output.messages.splitlines()) < 30
    assert "5000 gaps" in output.messages


@asynchronous
async def test_all_gaps_are_in_the_document() -> None:
    holder = machine()
    holder.guest.show_processes([INIT], gaps=[GAP] * 50)
    output = Captured(json=True)
    await ps(holder, output, exact=False)
    assert len(json.loads(output.result)["gaps"]) == 50


@asynchronous
async def test_a_walk_that_failed_prints_nothing() -> None:
    holder = machine()
    holder.guest.fail_next("processes", WalkFailed("init_task.tasks", "a loop"))
    output = Captured()
    with pytest.raises(WalkFailed):
        await ps(holder, output, exact=False)
    assert output.result == ""


@pytest.mark.parametrize("command", [ps, tree, threads, modules])
@pytest.mark.parametrize("as_json", [False, True])
@asynchronous
async def test_whatever_things_are_called_a_pipe_gets_printable_lines(
    command: object, *, as_json: bool
) -> None:
    assert callable(command)
    names = list(enumerate(ALIGNED, 1))
    hostile = FakeGuest(
        processes=[fake_process(pid, ppid=1, name=name) for pid, name in names],
        threads=[Thread(pid, pid, "S", name, Va(pid), 1.0) for pid, name in names],
        modules=[Module(name, Va(pid), 1, name, Va(pid)) for pid, name in names],
    )
    output = Captured(json=as_json)
    assert await command(FakeMachine(hostile), output, exact=False) is ExitCode.FINE
    lines = output.result.removesuffix("\n").split("\n")
    assert len(lines) == (1 if as_json else len(ALIGNED) + 1)
    assert all(line.isprintable() for line in lines)
