"""A guest in good health, hard at work: nothing planted is left, kernel and processes change all the time."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from tests.guests.lab import Guest, GuestRefused, LabError

__all__ = [
    "BOXES",
    "FORKS",
    "FUNCTIONS",
    "MODULES",
    "PROGRAMS",
    "TRACING",
    "heal",
    "let_rest",
    "set_to_work",
    "steps",
]

_PLANTED: Final = frozenset(
    name.encode()
    for name in (
        *("deleted-exe", "memfd-exe", "mappings"),  # code in no file
        *("tracer", "traced"),
        *("[kthreadd]", "kworker/0:0", "[bold red]x[/]", "[/]"),  # dressed as kernel threads
        *("sockets",),  # raw and packet sockets
        *("in-docker", "in-pod", "in-odd-cgroup"),  # containers in the host's namespaces
    )
)
"""The lab's own evidence (tests/guests/lab/init/population.c), which detectors are right to tell of."""

_TRIES: Final = 50
"""Until those that were killed are gone; it takes one or two."""

FORKS, BOXES, MODULES, PROGRAMS = "forks", "boxes", "modules", "programs"
TRACING, FUNCTIONS = "tracing", "functions"
"""What a guest can be busy with; with functions it traces all of them, which leaves little time for else."""

_GO_ON: Final = "/run/work"
_TRACERS: Final = "/sys/kernel/tracing"
_TRACE: Final = (
    "echo p:begin do_nanosleep >>kprobe_events",
    "echo r:end vfs_open >>kprobe_events",
    "echo 1 >events/kprobes/enable",
    "echo 'vfs_*' >set_ftrace_filter",
    "echo function >current_tracer",
    "sleep 0.1",
    "echo nop >current_tracer",
    "echo >set_ftrace_filter",
    "echo 1 >events/sched/enable",
    "sleep 0.1",
    "echo 0 >events/sched/enable",
    "echo 0 >events/kprobes/enable",
    "echo >kprobe_events",
)
_BOX: Final = (
    "mount -t tmpfs box /run/box",
    "mkdir /run/box/bin /run/box/proc",
    "cp /bin/busybox /run/box/bin/",
    "mount -t proc proc /run/box/proc",
    "exec chroot /run/box /bin/busybox sleep 0.3",
)
_SCOPE: Final = "/sys/fs/cgroup/system.slice/box.scope"
_STEPS: Final = {
    BOXES: (
        f"mkdir -p {_SCOPE} /run/box",
        f"unshare -m -p -u -i -n -f sh -c '{'; '.join(_BOX)}' & echo $! >{_SCOPE}/cgroup.procs; wait $!",
        f"rmdir {_SCOPE}",
    ),
    MODULES: ("insmod /modules/ifb.ko", "rmmod ifb"),
    TRACING: _TRACE,
}
"""What the guest does again and again by itself."""
_PATCHING: Final = {MODULES, TRACING, FUNCTIONS}
_ONE_VCPU: Final = "echo 0 >/sys/devices/system/cpu/cpu1/online 2>/dev/null; true"
"""A kernel that changes its code while another vCPU runs it panics now and then under QEMU 7.2's TCG (7.x
did, in ``vfs_rmdir``, by a trap that was there no more): from then on the guest has one vCPU."""
_PREPARED: Final = f"mkdir -p {_TRACERS}; mount -t tracefs t {_TRACERS} 2>/dev/null; cd {_TRACERS}"


def heal(guest: Guest) -> None:
    """This ends what the lab has planted."""
    for _ in range(_TRIES):
        processes = guest.truth().processes
        sick = [one for one in processes if one.name in _PLANTED and not one.kernel_thread]
        if not sick:
            return
        guest.run(f"kill -9 {' '.join(str(one.pid) for one in sick)}")
    raise LabError(f"{sick[0].name!r} cannot be ended", fix="look at the guest's console")


def set_to_work(guest: Guest, loads: Sequence[str]) -> None:
    """This keeps a guest busy until it is let rest."""
    if PROGRAMS in loads:
        for kind in ("filter", "counter"):
            with suppress(GuestRefused):  # a kernel that has no such programs
                guest.ask(f"bpf {kind}")
    if _PATCHING & set(loads):
        guest.run(_ONE_VCPU)
    if FUNCTIONS in loads:
        guest.run(f"{_PREPARED} && echo function >current_tracer")
    guest.run(f"touch {_GO_ON}")
    for load in loads:
        if load in _STEPS:
            guest.run(f"{_PREPARED}; ({_repeated(load)}) </dev/null >/dev/null 2>&1 &")
    if FORKS in loads:
        guest.start_storm()


def let_rest(guest: Guest, loads: Sequence[str]) -> None:
    """This ends that; what it is in the midst of, it does to the end."""
    guest.run(f"rm {_GO_ON}")
    if FUNCTIONS in loads:
        guest.run(f"echo nop >{_TRACERS}/current_tracer")
    if FORKS in loads:
        guest.stop_storm()


def steps(guest: Guest, loads: Sequence[str]) -> list[int]:
    """This is how many steps of each load, but for forks and what is done once, it has done by itself."""
    return [
        len(guest.run(f"cat /run/steps-{load} 2>/dev/null; true").split())
        for load in loads
        if load in _STEPS
    ]


def _repeated(load: str) -> str:
    """This is a loop of the guest's shell, which counts its steps."""
    counted = "; ".join(f"{step} && echo 1 >>/run/steps-{load}" for step in _STEPS[load])
    return f"while [ -e {_GO_ON} ]; do {counted}; done"
