"""Rights, namespaces and cgroups are printed whole and in the documented form."""

import json
import re
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec
import pytest

from qvmi.addr import Va
from qvmi.cli.exit_code import ExitCode
from qvmi.cli.handlers.confinement_views import cgroups, creds, namespaces
from qvmi.semantics.guest_os import CapabilitySet, Cgroup, Credentials, Gap, Namespaces
from qvmi.testing import FakeGuest, FakeMachine, fake_process
from tests.asynchronous import asynchronous
from tests.unit.cli.corpus import ALIGNED
from tests.unit.cli.streams import Captured

Command = Callable[..., Awaitable[ExitCode]]

NONE: Final = CapabilitySet(0, ())
SOME: Final = CapabilitySet(0x2001, ("cap_chown", "cap_net_raw"))
ALL: Final = CapabilitySet(0x1FF_FFFF_FFFF, tuple(f"cap_{number}" for number in range(41)))
IN_DOCKER: Final = CapabilitySet(0xA80425FB, tuple(f"cap_{number}" for number in range(14)))
"""What docker grants unless it is told otherwise: of 14 capabilities."""
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
PID  NAME            UID  GID  GROUPS   SHARED  CAPABILITIES                  LIMITS                                        LABEL
 70  sh    1000/0/1000/0    7  4,24,+3  1       chown,net_raw; permitted all  no_new_privs, seccomp filter, securebits 0x3  -
""",  # noqa: E501 - as wide as the table
    "namespaces": """\
PID  NAME  INNER         MNT       PIDNS         NET         UTS         IPC        USER  CGROUP        TIME  HOSTNAME
 70  sh        1  4026531841  4026532118  4026531840  4026531838  4026531839  4026531837       -  4026531834  web
""",  # noqa: E501 - as wide as the table
    "cgroups": """\
PID  NAME  HIERARCHY  CONTROLLERS  RUNTIME  CONTAINER  PATH
 70  sh            0  -            lxc      web        /lxc.payload.web (deleted)
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


def lines(output: Captured) -> list[list[str]]:
    """These are the cells of the rows that were printed; none of them is in two words here."""
    return [re.split(r" {2,}", line.strip()) for line in output.result.splitlines()[1:]]


@pytest.mark.parametrize(
    ("held", "words"),
    [
        (ALL, "all"),
        (NONE, "-"),
        (SOME, "chown,net_raw"),
        (CapabilitySet(0x1FF_FFFE_FFFF, ("cap_chown",) * 40), "all but sys_module"),
        (CapabilitySet(0x1FF_FFFC_FFFF, ("cap_chown",) * 39), "all but sys_module,sys_rawio"),
        (IN_DOCKER, "14 of 41"),
    ],
)
@asynchronous
async def test_a_set_of_capabilities_takes_a_few_words(held: CapabilitySet, words: str) -> None:
    row = msgspec.structs.replace(RIGHTS, effective=held, permitted=held)
    fake, output = FakeMachine(FakeGuest(credentials=[row])), Captured()
    await creds(fake, output, pid=None, exact=False)
    assert lines(output)[0][6] == words


@asynchronous
async def test_what_processes_usually_are_fits_a_terminal_of_100_columns() -> None:
    root = msgspec.structs.replace(
        RIGHTS,
        uid=0,
        euid=0,
        suid=0,
        fsuid=0,
        groups=(),
        effective=ALL,
        securebits=0,
        no_new_privs=False,
        seccomp="disabled",
        shared_with=(),
        label="unconfined",
        name="fifteen letters",
    )
    contained = msgspec.structs.replace(
        root, permitted=IN_DOCKER, effective=IN_DOCKER, bounding=IN_DOCKER, seccomp="filter"
    )
    many = msgspec.structs.replace(root, groups=tuple(range(90)), pid=9999)
    fake = FakeMachine(FakeGuest(credentials=[root, contained, many]))
    output = Captured()
    await creds(fake, output, pid=None, exact=False)
    assert max(map(len, output.result.splitlines())) <= 100
    assert lines(output)[1][5:8] == ["-", "14 of 41; bounding too", "seccomp filter"]


@asynchronous
async def test_the_containers_of_some_make_the_rows_of_others_no_longer() -> None:
    pod = Cgroup(
        *(70, "in a pod", 0, "", "/kubepods.slice/" + "a" * 300, False, "containerd"),
        *("4711f00dcafe" * 5, "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9", Va(0x3000)),
    )
    named = msgspec.structs.replace(pod, pid=71, container="n" * 250, path="/n")
    outside = msgspec.structs.replace(pod, pid=1, runtime="", container="", pod="", path="/init")
    fake, output = FakeMachine(FakeGuest(cgroups=[pod, named, outside])), Captured()
    await cgroups(fake, output, pid=None, exact=False)
    inside, long, short = lines(output)
    assert inside[4:] == ["containerd", "4711f00dcafe", pod.path]
    assert long[4:] == ["containerd", "n" * 24 + "...", "/n"]
    assert len(output.result.splitlines()[3]) <= 100, short
