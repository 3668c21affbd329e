"""Rights, namespaces and cgroups are printed whole and in the documented form."""

import json
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec
import pytest

from qvmi.addr import Va
from qvmi.cli.confinement_views import cgroups, creds, namespaces
from qvmi.cli.exit_code import ExitCode
from qvmi.semantics.guest_os import CapabilitySet, Cgroup, Credentials, Gap, Namespaces
from qvmi.testing import FakeGuest, FakeMachine, fake_process
from tests.asynchronous import asynchronous
from tests.unit.cli.corpus import ALIGNED
from tests.unit.cli.streams import Captured

Command = Callable[..., Awaitable[ExitCode]]

NONE: Final = CapabilitySet(0, ())
SOME: Final = CapabilitySet(0x2001, ("cap_chown", "cap_net_raw"))
ALL: Final = CapabilitySet(0x1FF_FFFF_FFFF, tuple(f"cap_{number}" for number in range(41)))
RIGHTS: Final = Credentials(
    pid=70,
    name="sh",
    uid=1000,
    euid=0,
    suid=1000,
    fsuid=0,
    gid=7,
    egid=7,
    sgid=7,
    fsgid=7,
    groups=(4, 24, 27, 100, 1000),
    inheritable=NONE,
    permitted=ALL,
    effective=SOME,
    bounding=ALL,
    ambient=NONE,
    securebits=3,
    no_new_privs=True,
    seccomp="filter",
    label="",
    user_namespace=4026531837,
    cred=Va(0x1000),
    real_cred=Va(0x1000),
    shared_with=(1,),
    address=Va(0x2000),
)
WORLD: Final = Namespaces(
    pid=70,
    name="sh",
    inner_pid=1,
    mnt=4026531841,
    pid_ns=4026532118,
    net=4026531840,
    uts=4026531838,
    ipc=4026531839,
    user=4026531837,
    cgroup=None,
    time=4026531834,
    hostname="web",
    address=Va(0x2000),
)
GROUP: Final = Cgroup(
    pid=70,
    name="sh",
    hierarchy=0,
    controllers="",
    path="/lxc.payload.web",
    deleted=True,
    runtime="lxc",
    container="web",
    pod="",
    address=Va(0x3000),
)
LISTINGS: Final[dict[str, tuple[Command, msgspec.Struct, str]]] = {
    "creds": (creds, RIGHTS, "credentials"),
    "namespaces": (namespaces, WORLD, "namespaces"),
    "cgroups": (cgroups, GROUP, "cgroups"),
}
"""Each command with a row that it lists, and the question that it asks."""
TABLES: Final = {
    "creds": """\
PID            UID  GID  GROUPS                   USERNS  NNP  SECCOMP  BITS  EFFECTIVE      PERMITTED     BOUNDING  AMBIENT  SHARED  LABEL  NAME
 70  1000/0/1000/0    7  4,24,27,100,... (5)  4026531837  yes  filter    0x3  chown,net_raw  all        1ffffffffff  -        1       -      sh
""",  # noqa: E501 - as wide as the table
    "namespaces": """\
PID  INNER         MNT       PIDNS         NET         UTS         IPC        USER  CGROUP        TIME  HOSTNAME  NAME
 70      1  4026531841  4026532118  4026531840  4026531838  4026531839  4026531837       -  4026531834  web       sh
""",  # noqa: E501 - as wide as the table
    "cgroups": """\
PID  HIERARCHY  CONTROLLERS  RUNTIME  POD  CONTAINER  PATH                        NAME
 70          0  -            lxc      -    web        /lxc.payload.web (deleted)  sh
""",
}
WORDS: Final = {"creds": "label", "namespaces": "hostname", "cgroups": "path"}
"""A field of each that is the guest's word."""


def machine() -> FakeMachine:
    return FakeMachine(
        FakeGuest(
            processes=[fake_process(1), fake_process(70, name="sh")],
            credentials=[RIGHTS, msgspec.structs.replace(RIGHTS, pid=1)],
            namespaces=[WORLD],
            cgroups=[GROUP],
        )
    )


@pytest.mark.parametrize("name", LISTINGS)
@asynchronous
async def test_rows_are_aligned_in_a_pipe(name: str) -> None:
    output = Captured()
    assert await LISTINGS[name][0](machine(), output, pid=70, exact=False) is ExitCode.FINE
    assert output.result == TABLES[name]
    assert output.messages == ""


@pytest.mark.parametrize("name", LISTINGS)
@asynchronous
async def test_rows_have_all_their_fields_as_json(name: str) -> None:
    output = Captured(json=True)
    command, row, _ = LISTINGS[name]
    await command(machine(), output, pid=70, exact=False)
    assert json.loads(output.result)["items"] == [json.loads(msgspec.json.encode(row))]


@pytest.mark.parametrize("name", LISTINGS)
@asynchronous
async def test_gaps_lead_to_4(name: str) -> None:
    holder, output = machine(), Captured()
    command, _, question = LISTINGS[name]
    holder.guest.show(question, [], gaps=[Gap("cred", Va(16), "torn")])
    assert await command(holder, output, pid=70, exact=False) is ExitCode.NOT_SEEN
    assert "cred at 0x10: torn" in output.messages


@pytest.mark.parametrize("name", LISTINGS)
@asynchronous
async def test_an_exact_look_looks_for_the_process_in_the_same_moment(name: str) -> None:
    holder = machine()
    command, _, question = LISTINGS[name]
    assert await command(holder, Captured(), pid=70, exact=True) is ExitCode.FINE
    assert holder.calls == ["capture"]
    assert holder.guest.calls == ["processes", question]


@asynchronous
async def test_without_a_pid_all_are_listed() -> None:
    output = Captured(json=True)
    await creds(machine(), output, pid=None, exact=False)
    assert [item["pid"] for item in json.loads(output.result)["items"]] == [70, 1]


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("name", LISTINGS)
@asynchronous
async def test_whatever_things_are_called_a_pipe_gets_printable_lines(
    name: str, *, as_json: bool
) -> None:
    holder, output = machine(), Captured(json=as_json)
    command, row, question = LISTINGS[name]
    rows = [msgspec.structs.replace(row, **{WORDS[name]: text}) for text in ALIGNED]
    holder.guest.show(question, rows)
    assert await command(holder, output, pid=70, exact=False) is ExitCode.FINE
    lines = output.result.removesuffix("\n").split("\n")
    assert len(lines) == (1 if as_json else len(ALIGNED) + 1)
    assert all(line.isprintable() for line in lines)
