"""What /proc and /dev/kmsg say of descriptors, mappings, mounts and the log, taken apart.

References: proc(5), Linux Documentation/filesystems/proc.rst, Documentation/ABI/testing/dev-kmsg.
Text is the guest's bytes, one character a byte (latin-1).
"""

import re
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Self

from tests.guests.lab.control import Row

__all__ = ["Descriptor", "KmsgRecord", "MapsLine", "MountInfo", "NetSocket"]

DELETED = " (deleted)"
O_PATH = 0o10000000
MAPS_LINE = re.compile(r"(\w+)-(\w+) (\S{4}) (\w+) (\w+):(\w+) (\d+) *(.*)")
OCTAL = re.compile(r"\\([0-7]{3})")
HEXADECIMAL = re.compile(r"\\x([0-9a-f]{2})")


def _octal(text: str) -> str:
    """This undoes what ``mangle_path`` does."""
    return OCTAL.sub(lambda match: chr(int(match[1], 8)), text)


@dataclass(frozen=True, slots=True)
class Descriptor:
    """This is one link of /proc/PID/fd, and its file in /proc/PID/fdinfo.

    Attributes:
        target: the whole link; inode: None on kernels that do not tell it.
        access: ``r``, ``w``, ``rw``, or empty for O_PATH.
    """

    pid: int
    fd: int
    target: str
    position: int
    access: str
    inode: int | None

    @classmethod
    def of_row(cls, row: Row) -> Self:
        """This takes one line of the answer to ``files`` apart."""
        pairs = (line.partition(":") for line in row["info"].splitlines())
        info = {name: value.strip() for name, _, value in pairs}
        flags = int(info["flags"], 8)
        return cls(
            pid=row["pid"],
            fd=row["fd"],
            target=row["target"],
            position=int(info["pos"]),
            access="" if flags & O_PATH else ("r", "w", "rw", "")[flags & 3],
            inode=int(info["ino"]) if "ino" in info else None,
        )


@dataclass(frozen=True, slots=True)
class MapsLine:
    """This is one line of /proc/PID/maps; `device` is decimal."""

    start: int
    end: int
    permissions: str
    offset: int
    device: str
    inode: int
    name: str

    @classmethod
    def of_line(cls, line: str) -> Self:
        """This takes a line apart; of all characters only the end of a line is escaped in a name."""
        match = MAPS_LINE.fullmatch(line)
        assert match, line
        start, end, offset, major, minor = (int(match[n], 16) for n in (1, 2, 4, 5, 6))
        name = match[8].replace("\\012", "\n")
        return cls(start, end, match[3], offset, f"{major}:{minor}", int(match[7]), name)


@dataclass(frozen=True, slots=True)
class MountInfo:
    """This is one line of /proc/PID/mountinfo.

    Attributes:
        propagation: the optional fields but for ``propagate_from``.
        superblock_options: all of them, those of the file system itself among them.
    """

    id: int
    parent_id: int
    device: str
    root: str
    path: str
    options: str
    propagation: str
    filesystem: str
    source: str
    superblock_options: tuple[str, ...]

    @classmethod
    def of_line(cls, line: str) -> Self:
        """This takes a line apart; the source may be empty."""
        left, _, right = line.partition(" - ")
        number, parent, device, root, path, options, *optional = left.split(" ")
        filesystem, source, super_options = right.split(" ")
        return cls(
            id=int(number),
            parent_id=int(parent),
            device=device,
            root=_octal(root),
            path=_octal(path),
            options=options,
            propagation=" ".join(word for word in optional if not word.startswith("propagate_")),
            filesystem=filesystem,
            source=_octal(source),
            superblock_options=tuple(super_options.split(",")),
        )


@dataclass(frozen=True, slots=True)
class KmsgRecord:
    """This is one record that /dev/kmsg gave."""

    sequence: int
    microseconds: int
    level: int
    facility: int
    text: str
    subsystem: str
    device: str

    @classmethod
    def of_text(cls, text: str) -> Self:
        """This takes ``priority,sequence,time,flags;text`` and the lines of its device apart."""
        head, _, rest = text.partition(";")
        priority, sequence, microseconds = (int(number) for number in head.split(",")[:3])
        line, *more = rest.rstrip("\n").split("\n")
        named = dict(one.strip().partition("=")[::2] for one in more)
        return cls(
            sequence=sequence,
            microseconds=microseconds,
            level=priority & 7,
            facility=priority >> 3,
            text=HEXADECIMAL.sub(lambda match: chr(int(match[1], 16)), line),
            subsystem=named.get("SUBSYSTEM", ""),
            device=named.get("DEVICE", ""),
        )


SOCKET_STATES = {1: "ESTABLISHED", 3: "SYN_RECV", 6: "TIME_WAIT", 7: "CLOSE", 10: "LISTEN"}
UNIX_LINE = re.compile(r"\S+ \w+ \w+ (\w+) \w+ (\w+) +(\d+)(?: (.*))?", re.DOTALL)
"""Address, users, protocol, flags, type, state, inode and perhaps a path."""
UNIX_LISTENS = 0x10000
UNIX_CONNECTING = 2
"""Shown for what is connected and not accepted yet, which has no inode."""
UNIX_CONNECTED = 3


@dataclass(frozen=True, slots=True)
class NetSocket:
    """This is one line of a file of /proc/net."""

    protocol: str
    local: str
    remote: str
    state: str
    inode: int

    @classmethod
    def of_lines(cls, protocol: str, lines: tuple[str, ...]) -> "tuple[NetSocket, ...]":
        """This takes the lines of a file apart, but those of sockets without an inode."""
        return tuple(socket for socket in cls.of_all_lines(protocol, lines) if socket.inode)

    @classmethod
    def of_all_lines(cls, protocol: str, lines: tuple[str, ...]) -> "tuple[NetSocket, ...]":
        """This takes all lines of a file apart; the first one names the columns."""
        special = {"unix": cls._of_unix, "packet": cls._of_packet, "netlink": cls._of_netlink}
        take = special.get(protocol, cls._of_inet)
        return tuple(take(protocol, line) for line in lines[1:])

    @classmethod
    def _of_inet(cls, protocol: str, line: str) -> Self:
        fields = line.split()
        state = SOCKET_STATES[int(fields[3], 16)]
        return cls(protocol, _end(fields[1]), _end(fields[2]), state, int(fields[9]))

    @classmethod
    def _of_unix(cls, protocol: str, line: str) -> Self:
        """The path comes last, and may hold spaces; whose peer it is is not told."""
        match = UNIX_LINE.match(line)
        assert match, line
        flags, status = int(match[1], 16), int(match[2], 16)
        connected = UNIX_CONNECTED if int(match[3]) else UNIX_CONNECTING
        state = "ESTABLISHED" if status == connected else "CLOSE"
        shown = "LISTEN" if flags & UNIX_LISTENS else state
        return cls(protocol, match[4] or "", "", shown, int(match[3]))

    @classmethod
    def _of_packet(cls, protocol: str, line: str) -> Self:
        """Of these there are protocol and interface, but neither an address nor a state."""
        return cls(protocol, "", "", "CLOSE", int(line.split()[8]))

    @classmethod
    def _of_netlink(cls, protocol: str, line: str) -> Self:
        fields = line.split()
        return cls(protocol, fields[2], "", "CLOSE", int(fields[9]))


def _end(text: str) -> str:
    """This reads an address, whose words are in the guest's order of bytes, and a port."""
    words, _, port = text.partition(":")
    data = b"".join(bytes.fromhex(words[at : at + 8])[::-1] for at in range(0, len(words), 8))
    address = ip_address(data)
    shown = f"[{address}]" if address.version == 6 else str(address)
    return f"{shown}:{int(port, 16)}"
