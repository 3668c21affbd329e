"""Rights that nobody can have given: the rows that the codepack of credentials must tell."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from qvmi.codepacks.detectors.credentials import CredentialWatch
from qvmi.semantics.guest_os import Process
from tests.guests.tamper.mutation import Mutation
from tests.guests.tamper.scenario import Scenario, Shown, Sign, Way
from tests.guests.tamper.scene import Scene
from tests.guests.watched import POINTER, Watched

__all__ = ["RIGHT_ROWS", "as_user", "cred_of"]

_USER: Final = 1000


def cred_of(its: Watched, process: Process) -> int:
    """This is where a process's credentials lie."""
    return its.pointer(process.address + its.member("task_struct", "real_cred"))


@contextmanager
def _given(its: Watched, process: Process, cred: int) -> Iterator[None]:
    """This gives a process other credentials for the length of the block."""
    real, used = (its.member("task_struct", name) for name in ("real_cred", "cred"))
    data = POINTER.pack(cred)
    with its.written(process.address + real, data), its.written(process.address + used, data):
        yield


@contextmanager
def as_user(its: Watched, command: str, name: str) -> Iterator[Process]:
    """This is what a user runs that goes on, once it bears a name; its children end with it."""
    pid = its.start(f"su user -c '{command}'")
    try:
        yield its.process(name, pid=pid)
    finally:
        children = [one.pid for one in its.machine.guest.processes() if one.ppid == pid]
        its.guest.run(f"kill -9 {' '.join(map(str, (pid, *children)))}")


def _ids(scene: Scene, pid: int) -> list[str]:
    """These are the real and the effective user, as the guest itself says."""
    return scene.run(f"grep Uid /proc/{pid}/status").split()[1:3]


@contextmanager
def _overwritten(scene: Scene) -> Iterator[tuple[Sign, ...]]:
    its = scene.its
    process = scene.victim
    cred = cred_of(its, process)
    with its.written(cred + its.member("cred", "euid"), bytes(4)):
        assert _ids(scene, process.pid) == [f"{_USER}", "0"]
        evidence = (
            Shown("cred before", facts={"euid": _USER, "struct_cred": cred}),
            Shown("cred now", facts={"euid": 0, "struct_cred": cred}),
        )
        words = "has got user 0, without exec: its credentials were overwritten"
        yield (Sign(f"process {process.pid} (sleep) {words}", evidence, "critical"),)


@contextmanager
def _replaced(scene: Scene) -> Iterator[tuple[Sign, ...]]:
    its = scene.its
    init_cred = its.machine.symbols.find("init_cred")
    assert init_cred is not None
    process = scene.victim
    cred = cred_of(its, process)
    with _given(its, process, init_cred):
        assert _ids(scene, process.pid) == ["0", "0"]
        evidence = (
            Shown("cred before", facts={"uid": _USER, "struct_cred": cred}),
            Shown("cred now", facts={"uid": 0, "struct_cred": init_cred}),
        )
        who = f"process {process.pid} (sleep)"
        shown = Shown("task_struct.real_cred", facts={"real_cred": init_cred})
        yield (
            Sign(f"{who} has got user 0; group 0; perm", evidence, "critical"),
            Sign("without exec: its credentials were replaced", evidence, "critical"),
            Sign(f"{who} has the credentials of process 0", (shown,), "critical"),
        )


@contextmanager
def _shared(scene: Scene) -> Iterator[tuple[Sign, ...]]:
    its = scene.its
    owner, sharer = its.process("user-1000"), its.process("nobody")
    cred = cred_of(its, owner)
    with _given(its, sharer, cred):
        assert _ids(scene, sharer.pid) == [f"{_USER}", f"{_USER}"]
        yield tuple(
            Sign(
                f"process {one.pid} ({one.name}) has the credentials of process {other.pid}",
                (Shown("task_struct.real_cred", facts={"pid": one.pid, "real_cred": cred}),),
                "critical",
            )
            for one, other in ((owner, sharer), (sharer, owner))
        )


@contextmanager
def _capable(scene: Scene) -> Iterator[tuple[Sign, ...]]:
    its = scene.its
    process = its.process("ambient-caps")
    place = cred_of(its, process) + its.member("cred", "cap_permitted")
    with its.written(place, b"\xff" * 4):
        said = scene.run(f"grep CapPrm /proc/{process.pid}/status").split()
        assert said[1] == "00000000ffffffff"
        shown = Shown("cred now", facts={"pid": process.pid, "permitted": "0xffffffff"})
        claim = f"process {process.pid} (ambient-caps) has got permitted capabilities"
        yield (Sign(claim, (shown,), "critical"),)


@contextmanager
def _effective(scene: Scene) -> Iterator[tuple[Sign, ...]]:
    its, process = scene.its, scene.victim
    place = cred_of(its, process) + its.member("cred", "cap_effective")
    with its.written(place, (1 << 21).to_bytes(8, "little")):  # CAP_SYS_ADMIN
        said = scene.run(f"grep CapEff /proc/{process.pid}/status").split()
        assert int(said[1], 16) == 1 << 21
        shown = Shown("cred now", facts={"pid": process.pid})
        yield (Sign("effective capabilities 0x200000", (shown,), "critical"),)


@contextmanager
def _in_group(scene: Scene) -> Iterator[tuple[Sign, ...]]:
    its, process = scene.its, scene.victim
    groups = its.pointer(cred_of(its, process) + its.member("cred", "group_info"))
    with its.written(groups + its.member("group_info", "gid"), (42).to_bytes(4, "little")):
        assert "42" in scene.run(f"grep Groups /proc/{process.pid}/status").split()
        shown = Shown("cred now", facts={"pid": process.pid})
        yield (Sign("group 42", (shown,), "critical"),)


@contextmanager
def _promise(scene: Scene) -> Iterator[tuple[Sign, ...]]:
    its = scene.its
    process = its.process("no-new-privs")
    with its.written(process.address + its.member("task_struct", "atomic_flags"), bytes(8)):
        said = scene.run(f"grep NoNewPrivs /proc/{process.pid}/status").split()
        assert said[1] == "0"
        evidence = tuple(
            Shown(view, facts={"pid": process.pid, "no_new_privs": is_on})
            for view, is_on in (("cred before", True), ("cred now", False))
        )
        claim = f"process {process.pid} (no-new-privs) has got no_new_privs is off again"
        yield (Sign(claim, evidence, "critical"),)


@contextmanager
def _set_uid_shell(scene: Scene) -> Iterator[tuple[Sign, ...]]:
    scene.run("mkdir -p /sbin; cp /bin/bash /sbin/bash; chmod 4755 /sbin/bash")
    command = 'exec /sbin/bash -p -c "sleep 3000; true"'
    with as_user(scene.its, command, "bash") as shell:
        assert _ids(scene, shell.pid) == [f"{_USER}", "0"]
        evidence = (
            Shown("mm_struct.exe_file", facts={"path": "/sbin/bash", "mode": 0o104755}),
            Shown("task_struct.real_cred", facts={"uid": _USER, "euid": 0}),
        )
        claim = f"process {shell.pid} (bash) is root by /sbin/bash, which no system has set-uid"
        yield (Sign(claim, evidence),)
    scene.run("rm /sbin/bash")


@contextmanager
def _by_nobody(scene: Scene) -> Iterator[tuple[Sign, ...]]:
    its = scene.its
    with as_user(its, "sleep 2999 & wait", "sh") as parent:
        child = its.process("sleep", ppid=parent.pid)
        place = cred_of(its, child) + its.member("cred", "uid")
        with its.written(place, bytes(4)):
            assert _ids(scene, child.pid) == ["0", f"{_USER}"]
            evidence = (
                Shown("task_struct.real_cred", facts={"pid": child.pid, "uid": 0}),
                Shown("mm_struct.exe_file", facts={"path": "/bin/busybox"}),
                Shown("cred of the parent", facts={"pid": parent.pid, "uid": _USER}),
            )
            words = f"is root, though process {parent.pid} that made it is not"
            yield (Sign(f"process {child.pid} (sleep) {words}", evidence),)


def _steady() -> CredentialWatch:
    return CredentialWatch(steady_s=0.0)


_PRIVILEGES, _CREDENTIALS = "codepacks.detectors.privileges", "codepacks.detectors.credentials"
_OUTSIDE: Final = ("credentials", "T1068", Way.OUTSIDE)

RIGHT_ROWS: Final = (
    Scenario(
        *("a process's user is overwritten", *_OUTSIDE, _overwritten, _steady),
        on_arm64=True,
        mutations=(
            Mutation(_PRIVILEGES, "users(now) - users(was)", "users(was) - users(now)"),
            Mutation(
                _CREDENTIALS,
                "before is None or before.exec_id !=",
                "before is None or before.exec_id ==",
            ),
        ),
        learns=True,
        stays=True,
    ),
    Scenario(
        *("a process gets the idle task's credentials", *_OUTSIDE, _replaced, _steady),
        mutations=(
            Mutation(_CREDENTIALS, "same = was.real_cred == its", "same = was.real_cred != its"),
            Mutation(_CREDENTIALS, "if not its.shared_with:", "if its.shared_with:"),
        ),
        learns=True,
        stays=True,
    ),
    Scenario(
        *("a process gets another's credentials", *_OUTSIDE, _shared, CredentialWatch),
        mutations=(Mutation(_CREDENTIALS, "if not its.shared_with:", "if its.shared_with:"),),
    ),
    Scenario(
        *("a process gets capabilities", *_OUTSIDE, _capable, _steady),
        mutations=(
            Mutation(
                _PRIVILEGES,
                "getattr(now, kind).number & ~getattr(was, kind)",
                "getattr(was, kind).number & ~getattr(now, kind)",
            ),
        ),
        learns=True,
        stays=True,
    ),
    Scenario(
        *("a process's effective capabilities are overwritten alone", *_OUTSIDE),
        *(_effective, _steady),
        learns=True,
        stays=True,
    ),
    Scenario(
        *("a process is put into a group", *_OUTSIDE, _in_group, _steady),
        learns=True,
        stays=True,
    ),
    Scenario(
        *("a process's no_new_privs is taken back", "credentials", "T1562.001", Way.OUTSIDE),
        *(_promise, _steady),
        mutations=(
            Mutation(
                _PRIVILEGES,
                "if was.no_new_privs and not now.no_new_privs",
                "if not was.no_new_privs and now.no_new_privs",
            ),
        ),
        learns=True,
        stays=True,
    ),
    Scenario(
        *("a user starts a set-uid shell", "credentials", "T1548.001", Way.INSIDE),
        *(_set_uid_shell, CredentialWatch),
        mutations=(Mutation(_PRIVILEGES, "program.owner == _ROOT", "program.owner != _ROOT"),),
    ),
    Scenario(
        *("a user's process is made root behind its parent's back", *_OUTSIDE),
        *(_by_nobody, CredentialWatch),
        mutations=(
            Mutation(
                _PRIVILEGES,
                "if may_become_anyone(parent) or",
                "if not may_become_anyone(parent) or",
            ),
        ),
    ),
)
