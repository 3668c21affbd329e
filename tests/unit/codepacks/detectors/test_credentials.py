"""Rights that a process cannot have got in any way that the kernel knows."""

from collections.abc import Iterable

import msgspec
import pytest

from qvmi.addr import Va
from qvmi.codepacks.codepack import Finding
from qvmi.codepacks.detectors.credentials import CredentialWatch
from qvmi.semantics.guest_os import CapabilitySet, Credentials, Gap, Program
from qvmi.testing import FakeGuest, FakeMemory, fake_credentials, fake_process, fake_program
from qvmi.view import Provenance, Taken

INIT = fake_process(1, name="init")
SHELL = fake_process(10, name="sh", ppid=1)
CHILD = fake_process(11, name="sleep", ppid=10)
USER, ROOT = fake_credentials(SHELL, 1000), fake_credentials(SHELL, 0)
EVERY, SETGID, SETUID, NET = (
    CapabilitySet((1 << 41) - 1, ()),
    CapabilitySet(1 << 6, ()),
    CapabilitySet(1 << 7, ()),
    CapabilitySet(4096, ()),
)


class Watch:
    """A codepack that looks at one shell again and again, a second apart."""

    def __init__(self, credentials: Credentials = USER) -> None:
        self.pack = CredentialWatch()
        self.at = 0.0
        self.look(credentials)
        self.look(credentials)

    def look(self, credentials: Credentials, **program: object) -> list[Finding]:
        self.at += 1.0
        rows = [fake_credentials(INIT), credentials]
        programs = [fake_program(INIT), fake_program(SHELL, **program)]
        guest = FakeGuest(processes=[INIT, SHELL], credentials=rows, programs=programs)
        guest.provenance = Provenance(Taken.LIVE, at=self.at)
        return list(self.pack.inspect(guest, FakeMemory({})))


def changed(its: Credentials = USER, **changes: object) -> Credentials:
    return msgspec.structs.replace(its, **changes)


@pytest.mark.parametrize(
    "now",
    [
        changed(euid=0),
        changed(suid=1001),
        changed(gid=0),
        changed(permitted=NET),
        changed(effective=NET),
        changed(groups=(1000, 42)),
        changed(no_new_privs=False, uid=0),
    ],
    ids=["user", "saved", "group", "capability", "effective", "supplementary", "root"],
)
def test_what_a_process_cannot_give_itself_is_found(now: Credentials) -> None:
    [finding] = Watch().look(now)
    assert (finding.severity, finding.technique) == ("critical", "T1068")
    assert "were overwritten" in finding.claim
    assert [one.view for one in finding.evidence] == ["cred before", "cred now"]


def test_other_credentials_in_their_place_are_told_to_be_others() -> None:
    other = Va(USER.real_cred + 4096)
    [finding] = Watch().look(changed(ROOT, real_cred=other, cred=other))
    assert finding.claim.endswith("its credentials were replaced")


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (changed(suid=0), changed(euid=0, suid=0)),
        (changed(permitted=SETUID), changed(euid=0, permitted=SETUID)),
        (ROOT, USER),
        (changed(permitted=NET), USER),
        (USER, changed(user_namespace=7, permitted=EVERY, uid=1000)),
        (USER, changed(no_new_privs=True, seccomp="filter")),
        (changed(permitted=SETGID), changed(permitted=SETGID, groups=(7,))),
        (changed(groups=(7, 8)), changed(groups=(8,))),
        (changed(permitted=NET), changed(permitted=NET, effective=NET)),
    ],
    ids=[
        *("saved", "cap_setuid", "drops", "drops-capability", "namespace", "promises"),
        *("cap_setgid", "drops-group", "permitted"),
    ],
)
def test_what_a_process_may_do_itself_is_none(before: Credentials, now: Credentials) -> None:
    assert Watch(before).look(now) == []


def test_capabilities_that_are_not_permitted_are_found_behind_an_exec_too() -> None:
    [finding] = Watch().look(changed(effective=NET), exec_id=2)
    assert "effective capabilities 0x1000 that it is not permitted" in finding.claim


def test_of_many_groups_some_are_told() -> None:
    [finding] = Watch().look(changed(groups=tuple(range(2000, 60_000))))
    assert "group 2000, 2001, 2002, 2003, 2004, 2005, 2006, 2007 and 57992 others," in finding.claim


def test_who_acts_by_others_credentials_is_found_when_that_lasts() -> None:
    [finding] = Watch().look(changed(cred=Va(USER.cred + 4096)))
    assert finding.settle_s == 30.0
    assert finding.claim == "process 10 (sh) acts by other credentials than its own"
    assert [one.view for one in finding.evidence] == ["task_struct.real_cred", "task_struct.cred"]


def test_exec_may_give_more() -> None:
    assert Watch().look(changed(euid=0), exec_id=2, path="/usr/bin/su", mode=0o104755) == []


@pytest.mark.parametrize("exec_id", [1, 2])
def test_a_promise_cannot_be_taken_back_even_by_exec(exec_id: int) -> None:
    before = changed(no_new_privs=True, seccomp="filter")
    [finding] = Watch(before).look(USER, exec_id=exec_id)
    assert finding.technique == "T1562.001"
    assert "no_new_privs is off again; its system calls are filtered no more" in finding.claim


def test_who_gained_something_is_told_for_as_long_as_it_lives() -> None:
    watch = Watch()
    [first] = watch.look(changed(euid=0))
    for now in (USER, changed(euid=0)):
        [again] = watch.look(now, exec_id=9)
        assert again.key == first.key


def test_who_calls_exec_while_it_is_looked_at_is_left_for_the_next_look() -> None:
    watch = Watch()
    guest = FakeGuest(
        processes=[SHELL], credentials=[ROOT], programs=[fake_program(SHELL, exec_id=2)]
    )
    guest.show("programs", [fake_program(SHELL)], once=True)
    guest.provenance = Provenance(Taken.LIVE, at=9.0)
    assert list(watch.pack.inspect(guest, FakeMemory({}))) == []


def test_a_new_process_at_an_old_address_begins_anew() -> None:
    watch = Watch()
    later = msgspec.structs.replace(SHELL, start_time_s=99.0)
    guest = FakeGuest(processes=[later], credentials=[ROOT], programs=[fake_program(later)])
    guest.provenance = Provenance(Taken.LIVE, at=9.0)
    assert list(watch.pack.inspect(guest, FakeMemory({}))) == []


def test_a_guest_that_was_reset_begins_anew() -> None:
    watch = Watch()
    guest = FakeGuest(processes=[SHELL], credentials=[ROOT], programs=[fake_program(SHELL)])
    guest.provenance = Provenance(Taken.LIVE, at=9.0, epoch=1)
    assert list(watch.pack.inspect(guest, FakeMemory({}))) == []


def once(credentials: Iterable[Credentials], programs: Iterable[Program] = ()) -> list[Finding]:
    guest = FakeGuest(processes=[INIT, SHELL, CHILD], credentials=credentials, programs=programs)
    return list(CredentialWatch().inspect(guest, FakeMemory({})))


def test_credentials_that_two_processes_have_are_found_after_seconds() -> None:
    [finding] = once([changed(shared_with=(7, 8))])
    assert (finding.severity, finding.settle_s) == ("critical", 5.0)
    assert finding.claim == "process 10 (sh) has the credentials of process 7, 8"


@pytest.mark.parametrize(
    ("child", "program", "found"),
    [
        (0, {"execs": 0}, True),
        (0, {"execs": 1}, True),
        (0, {"execs": 1, "mode": 0o104755, "path": "/usr/bin/sudo"}, False),
        (0, {"execs": 1, "mode": 0o104755, "owner": 1000, "path": "/usr/bin/x"}, True),
        (0, {"execs": 2}, False),
        (0, {"execs": None}, False),
        (1000, {"execs": 0}, False),
    ],
)
def test_root_below_a_user_needs_a_reason(
    child: int, program: dict[str, object], *, found: bool
) -> None:
    rows = [USER, fake_credentials(CHILD, child)]
    findings = once(rows, [fake_program(SHELL), fake_program(CHILD, **program)])
    assert [finding.key.startswith("root by nobody") for finding in findings] == [True] * found


def test_root_below_root_needs_none() -> None:
    rows = [ROOT, fake_credentials(CHILD)]
    assert once(rows, [fake_program(SHELL), fake_program(CHILD, execs=0)]) == []


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/usr/bin/sudo", False),
        ("/run/wrappers/bin/sudo", False),
        ("/home/user/x", True),
        ("/usr/bin/bash", True),
    ],
)
def test_set_uid_programs_lie_in_system_folders_and_are_no_shells(
    path: str, *, found: bool
) -> None:
    raised = fake_credentials(CHILD, 1000, euid=0, suid=0, fsuid=0)
    program = fake_program(CHILD, path=path, mode=0o104755)
    findings = once([USER, raised], [fake_program(SHELL), program])
    assert [finding.technique for finding in findings] == ["T1548.001"] * found


def test_a_gap_for_ever_and_others_in_each_look_fill_no_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("qvmi.codepacks.detectors.credentials._MAX_REMEMBERED", 10)
    pack, most = CredentialWatch(), 0
    for number in range(100):
        process = fake_process(100 + number, name="sh")
        guest = FakeGuest(credentials=[fake_credentials(process)], programs=[fake_program(process)])
        guest.show_processes([process], gaps=[Gap("tasks", None, "torn")])
        assert list(pack.inspect(guest, FakeMemory({}))) == []
        most = max(most, len(pack._known))  # noqa: SLF001 - what nobody sees grows unseen
    assert most <= 11
