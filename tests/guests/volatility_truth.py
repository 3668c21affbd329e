"""What single plugins of Volatility must have found, by the guest's own word.

Each check is given the plugin's rows and a `Scene`, and asserts. None shares code with qvmi or Volatility.
"""

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tests.guests.lab import Guest, Task, Truth

__all__ = ["CHECKS", "COMMANDS", "Scene"]

COMMANDS = {
    "addresses": "ip -o addr",
    "boot": "grep btime /proc/stat",
    "capabilities": "cat /proc/1/status",
    "dmesg": "dmesg",
    "files": "for p in /proc/[0-9]*; do ls $p/fd 2>/dev/null | sed s,^,$p/,; done",
    "links": "ls /sys/class/net",
    "maps": "cat /proc/1/maps",
    "stack": "cat /proc/2/stack",
    "suspicious": "grep ' rwxp 00000000 00:00 0 ' /proc/[0-9]*/maps",
    "traced": "grep TracerPid /proc/[0-9]*/status",
}
"""What the guest is asked besides its `Truth`."""

_OCTAL = re.compile(r"\\([0-7]{3})")
_ROOT_RESOURCES = {"PCI mem"}
_RENAMED = b"title"
"""Its title goes on where its environment was; the kernel follows it there, Volatility does not."""

Rows = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Scene:
    """This is what the guest said of itself, right before and right after the plugins looked.

    Attributes:
        before: the whole truth; between it and `after` the guest stood still.
        said: what it answered to `COMMANDS`.
    """

    before: Truth
    after: Truth
    said: Mapping[str, str]

    @classmethod
    def ask(cls, guest: Guest) -> dict[str, str]:
        """This asks the guest for what `said` holds."""
        return {name: guest.run(line).decode("latin-1") for name, line in COMMANDS.items()}

    @property
    def lasting(self) -> dict[int, Task]:
        """These are the processes that were there all the time."""
        tasks = self.before.unchanged_until(self.after).values()
        return {task.pid: task for task, _ in tasks if task.leads and task.state != "Z"}

    @property
    def threads(self) -> dict[int, Task]:
        """These are the threads that were there all the time, those of one thread among them."""
        tasks = self.before.unchanged_until(self.after).values()
        return {task.pid: task for task, _ in tasks if task.state != "Z"}

    @property
    def known(self) -> set[int]:
        """These are the ids of all that was there before or after."""
        return {task.pid for truth in (self.before, self.after) for task in truth.tasks}

    def namespace(self, kind: str) -> int:
        """This is the number of a namespace of process 1."""
        (init,) = (task for task in self.before.processes if task.pid == 1)
        names = [name.decode() for name in init.namespaces]
        (number,) = (int(name[len(kind) + 2 : -1]) for name in names if name.startswith(f"{kind}:"))
        return number


def _pslist(rows: Rows, scene: Scene) -> None:
    pids = [row["PID"] for row in rows]
    lasting = scene.lasting
    assert len(pids) == len(set(pids))
    assert lasting.keys() <= set(pids) <= scene.known
    for row in rows:
        task = lasting.get(row["PID"])
        if task is not None:
            assert (row["PPID"], row["UID"], row["GID"]) == (task.ppid, task.uid, task.gid)
            assert (row["EUID"], row["EGID"]) == (task.euid, task.egid)
            if task.name.isascii():
                assert row["COMM"] == task.name.decode()


def _pstree(rows: Rows, scene: Scene) -> None:
    pids = [row["PID"] for row in rows]
    assert scene.lasting.keys() <= set(pids) <= scene.known
    way: list[int] = []
    for row in rows:
        way[row["depth"] :] = [row["PID"]]
        task = scene.lasting.get(row["PID"])
        if task is not None:
            assert (way[-2] if row["depth"] else 0) == task.ppid


def _psscan(rows: Rows, scene: Scene) -> None:
    assert scene.threads.keys() <= {row["TID"] for row in rows}


def _pidhashtable(rows: Rows, scene: Scene) -> None:
    assert scene.threads.keys() <= {row["TID"] for row in rows} <= scene.known


def _psaux(rows: Rows, scene: Scene) -> None:
    shown = {row["PID"]: row["ARGS"] for row in rows}
    compared = 0
    for task in scene.lasting.values():
        if task.kernel_thread or task.name == _RENAMED:
            continue
        if task.command_line.isascii() and task.command_line:
            assert shown[task.pid].strip() == task.command_line.decode().replace("\0", " ").strip()
            compared += 1
    assert compared > 5


def _lsmod(rows: Rows, scene: Scene) -> None:
    assert [row["Module Name"] for row in rows] == [one.name for one in scene.before.modules]


def _modxview(rows: Rows, scene: Scene) -> None:
    names = {row["Name"] for row in rows if row["In procfs"] and row["In sysfs"]}
    assert names == {one.name for one in scene.before.modules}


def _sockets(lines: tuple[str, ...]) -> set[tuple[str, int, str, int]]:
    """These are (address, port, remote address, remote port) of a file of /proc/net."""
    found = set()
    for line in lines[1:]:
        ends = [end.split(":") for end in line.split()[1:3]]
        (local, port), (remote, remote_port) = ends
        found.add((_address(local), int(port, 16), _address(remote), int(remote_port, 16)))
    return found


def _address(digits: str) -> str:
    words = [bytes.fromhex(digits[at : at + 8])[::-1] for at in range(0, len(digits), 8)]
    return str(ipaddress.ip_address(b"".join(words)))


def _sockstat(rows: Rows, scene: Scene) -> None:
    here = [row for row in rows if row["NetNS"] == scene.namespace("net")]
    lines = scene.before.lines
    for family, six in (("AF_INET", ""), ("AF_INET6", "6")):
        for protocol in ("TCP", "UDP"):
            seen = {
                (
                    str(ipaddress.ip_address(row["Source Addr"])),
                    int(row["Source Port"]),
                    str(ipaddress.ip_address(row["Destination Addr"])),
                    int(row["Destination Port"]),
                )
                for row in here
                if (row["Family"], row["Proto"]) == (family, protocol)
            }
            assert seen == _sockets(lines.get(f"/proc/net/{protocol.lower()}{six}", ("",)))


def _mountinfo(rows: Rows, scene: Scene) -> None:
    here = [
        row
        for row in rows
        if row["MNT_NS_ID"] == scene.namespace("mnt")
        and row["FSTYPE"] != "nullfs"  # below the root (7.x), where no process can see it
    ]
    wanted = set()
    for line in scene.before.lines["/proc/self/mountinfo"]:
        words = line.split(" ")
        kind = words[words.index("-") + 1]
        wanted.add((int(words[0]), int(words[1]), words[2], _unquoted(words[4]), words[5], kind))
    assert {
        (
            row["MOUNT ID"],
            row["PARENT_ID"],
            row["MAJOR:MINOR"],
            row["MOUNT_POINT"],
            row["MOUNT_OPTIONS"],
            row["FSTYPE"],
        )
        for row in here
    } == wanted


def _unquoted(text: str) -> str:
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)


def _iomem(rows: Rows, scene: Scene) -> None:
    wanted = []
    for line in scene.before.lines["/proc/iomem"]:
        place, _, name = line.strip().partition(" : ")
        start, end = (int(part, 16) for part in place.split("-"))
        wanted.append((start, end, name))
    seen = [(row["Start"], row["End"], row["Name"]) for row in rows]
    assert [one for one in seen if one[2] not in _ROOT_RESOURCES] == wanted


def _boottime(rows: Rows, scene: Scene) -> None:
    (row, *_) = rows
    booted: float = row["Boot Time"].timestamp()
    assert abs(booted - int(scene.said["boot"].split()[1])) <= 1.0


def _ptrace(rows: Rows, scene: Scene) -> None:
    found = re.findall(r"/proc/(\d+)/status:TracerPid:\t(\d+)", scene.said["traced"])
    wanted = {(int(traced), int(tracer)) for traced, tracer in found if int(tracer)}
    assert wanted
    seen = {(row["PID"], int(row["Tracer TID"])) for row in rows if row["Tracer TID"] is not None}
    assert seen == wanted


def _vmcoreinfo(rows: Rows, scene: Scene) -> None:
    assert scene.before.release in {row["Value"] for row in rows if row["Key"] == "OSRELEASE"}


def _addresses(rows: Rows, scene: Scene) -> None:
    here = {
        (row["Interface"], row["IP"], row["Prefix"])
        for row in rows
        if row["NetNS"] == scene.namespace("net")
    }
    wanted = re.findall(r"^\d+: (\S+) +inet6? (\S+)/(\d+) ", scene.said["addresses"], re.MULTILINE)
    assert here == {(name, address, int(prefix)) for name, address, prefix in wanted}


def _links(rows: Rows, scene: Scene) -> None:
    here = {row["Interface"] for row in rows if row["NS"] == scene.namespace("net")}
    assert here == set(scene.said["links"].split())


def _maps(rows: Rows, scene: Scene) -> None:
    wanted = set()
    for line in scene.said["maps"].splitlines():
        place, flags = line.split()[:2]
        start, end = (int(part, 16) for part in place.split("-"))
        wanted.add((start, end, flags[:3]))
    assert {(r["Start"], r["End"], r["Flags"]) for r in rows if r["PID"] == 1} == wanted


def _malfind(rows: Rows, scene: Scene) -> None:
    """Memory of no file that may be both written and run; each guest has some."""
    found = re.findall(r"^/proc/(\d+)/maps:(\w+)-", scene.said["suspicious"], re.MULTILINE)
    assert found
    assert {(row["PID"], row["Start"]) for row in rows} == {
        (int(pid), int(start, 16)) for pid, start in found
    }


def _envars(rows: Rows, scene: Scene) -> None:
    assert {row["PID"] for row in rows} <= scene.known
    assert ("HOME", "/") in {(row["KEY"], row["VALUE"]) for row in rows}


def _capabilities(rows: Rows, scene: Scene) -> None:
    (init,) = (row for row in rows if row["Pid"] == 1)
    found = re.search(r"CapEff:\t([0-9a-f]+)", scene.said["capabilities"])
    assert found is not None
    everything = int(found[1], 16) + 1
    assert everything & (everything - 1) == 0  # the kernel says that init has all there are
    assert init["cap_effective"] == "all"


def _kmsg(rows: Rows, scene: Scene) -> None:
    seen = {row["line"] for row in rows}
    said = [line.partition("] ")[2] for line in scene.said["dmesg"].splitlines()]
    assert len(said) > 100
    # Volatility leaves out a last line that the kernel may still add to.
    missing = [line for line in said[:-1] if line and line.isascii() and line not in seen]
    assert not missing


def _lsof(rows: Rows, scene: Scene) -> None:
    seen: dict[int, set[int]] = {}
    for row in rows:
        seen.setdefault(row["PID"], set()).add(row["FD"])
    wanted: dict[int, set[int]] = {}
    for pid, number in re.findall(r"/proc/(\d+)/(\d+)", scene.said["files"]):
        wanted.setdefault(int(pid), set()).add(int(number))
    users = [task.pid for task in scene.lasting.values() if not task.kernel_thread and task.pid > 1]
    assert len(users) > 5
    assert {pid: seen.get(pid) for pid in users} == {pid: wanted.get(pid) for pid in users}


def _files(rows: Rows, _: Scene) -> None:
    assert {"/init", "/bin/busybox"} <= {row["FilePath"] for row in rows}


def _kthreads(rows: Rows, scene: Scene) -> None:
    threads = {task.pid: task for task in scene.threads.values() if task.kernel_thread}
    seen = {row["TID"] for row in rows}
    assert len(seen) > 20
    assert seen & scene.threads.keys() <= threads.keys()


def _elfs(rows: Rows, scene: Scene) -> None:
    first = int(scene.said["maps"].partition("-")[0], 16)
    assert (1, first, "/init") in {(row["PID"], row["Start"], row["File Path"]) for row in rows}


def _callstack(rows: Rows, scene: Scene) -> None:
    """What the second process, which starts all kernel threads, waits in."""
    wanted = set(re.findall(r"\] (\w+)\+0x", scene.said["stack"]))
    assert "kthreadd" in wanted
    assert wanted <= {row["Name"] for row in rows if row["TID"] == 2}


CHECKS: Mapping[str, Callable[[Rows, Scene], None]] = {
    "linux.boottime.Boottime": _boottime,
    "linux.capabilities.Capabilities": _capabilities,
    "linux.elfs.Elfs": _elfs,
    "linux.envars.Envars": _envars,
    "linux.iomem.IOMem": _iomem,
    "linux.ip.Addr": _addresses,
    "linux.ip.Link": _links,
    "linux.kmsg.Kmsg": _kmsg,
    "linux.kthreads.Kthreads": _kthreads,
    "linux.lsmod.Lsmod": _lsmod,
    "linux.lsof.Lsof": _lsof,
    "linux.malware.malfind.Malfind": _malfind,
    "linux.malware.modxview.Modxview": _modxview,
    "linux.mountinfo.MountInfo": _mountinfo,
    "linux.pagecache.Files": _files,
    "linux.pidhashtable.PIDHashTable": _pidhashtable,
    "linux.proc.Maps": _maps,
    "linux.psaux.PsAux": _psaux,
    "linux.pscallstack.PsCallStack": _callstack,
    "linux.pslist.PsList": _pslist,
    "linux.psscan.PsScan": _psscan,
    "linux.pstree.PsTree": _pstree,
    "linux.ptrace.Ptrace": _ptrace,
    "linux.sockstat.Sockstat": _sockstat,
    "linux.vmcoreinfo.VMCoreInfo": _vmcoreinfo,
}
"""The plugins whose rows are compared with the guest's own word; the others are seen to run."""
