"""What is seen of a machine, of a broker and of this host, before anything is concluded from it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from qvmi.manager.isolation.disk import GivenDisk
from qvmi.manager.isolation.unseen import Unseen

__all__ = [
    "Broker",
    "BrokerConfig",
    "BusPath",
    "Chardev",
    "Descriptor",
    "Facts",
    "GivenDisk",
    "Host",
    "Link",
    "Machine",
    "Netdev",
    "Opening",
    "OptionOfNetdev",
    "Process",
    "SharedFile",
    "SharedFolder",
    "Sharer",
    "Socket",
    "TapHolder",
    "Unseen",
]


@dataclass(frozen=True, slots=True)
class Descriptor:
    """This is an open file of a process.

    Args:
        number: its file descriptor.
        target: what ``/proc/PID/fd`` says it is.
        mode: ``st_mode``; 0 where it cannot be asked.
        device: of the file.
        inode: of the file, or of the socket.
        interface: the network interface behind a ``/dev/net/tun``; empty for none.
        terminal: the number of the ``/dev/pts`` that a ``/dev/ptmx`` leads to; None for none.
        network: the network namespace that the interface is in; 0 where the kernel does not tell.
        special: the device that it is, of a device's file; 0 for none.
    """

    number: int
    target: str
    mode: int = 0
    device: int = 0
    inode: int = 0
    interface: str = ""
    terminal: int | None = None
    network: int = 0
    special: int = 0


@dataclass(frozen=True, slots=True)
class Opening:
    """This is who may open a path, besides its owner and root.

    Args:
        path: as it was looked at.
        owner: its uid.
        mode: its permission bits.
        others: who else may reach and open it, in words; empty for nobody.
    """

    path: str
    owner: int
    mode: int
    others: str


@dataclass(frozen=True, slots=True)
class SharedFile:
    """This is a file that a process has mapped shared.

    Args:
        path: as the kernel shows it.
        device: of the file.
        inode: of the file.
        size: bytes that are mapped.
        writable: whether the process may write there.
        opening: who may open it; None for a file that has no name (any more).
    """

    path: str
    device: int
    inode: int
    size: int
    writable: bool
    opening: Opening | None = None


@dataclass(frozen=True, slots=True)
class Process:
    """This is a process of this host.

    Args:
        pid: its number.
        uid: the user it runs as.
        program: the name of its program.
        arguments: its command line.
        network: the inode of its network namespace.
        descriptors: its open files.
        shared: the files it has mapped shared.
        is_qemu: whether its program is a QEMU, by the file that it runs.
    """

    pid: int
    uid: int
    program: str
    arguments: tuple[str, ...]
    network: int | Unseen
    descriptors: tuple[Descriptor, ...] | Unseen
    shared: tuple[SharedFile, ...] | Unseen
    is_qemu: bool | Unseen = True

    def __str__(self) -> str:
        return f"{self.program or 'process'} (pid {self.pid})"


@dataclass(frozen=True, slots=True)
class Socket:
    """This is a socket of this host.

    Args:
        inode: its own.
        protocol: the kernel's table it stands in, such as ``tcp6`` or ``unix``.
        network: the inode of its network namespace.
        local: ``ADDRESS:PORT``, or the path it was bound to.
        remote: the other end's ``ADDRESS:PORT``; empty without one.
        listening: whether it takes connections.
        peer: the inode of a Unix socket's other end; 0 while nobody has accepted, None for none.
    """

    inode: int
    protocol: str
    network: int
    local: str = ""
    remote: str = ""
    listening: bool = False
    peer: int | None = None


@dataclass(frozen=True, slots=True)
class Link:
    """This is a network interface.

    Args:
        index: its number in its namespace.
        name: its name there.
        kind: the kernel's word, such as ``tun``, ``bridge`` or ``veth``; empty for hardware.
        master: the number of the bridge it is a port of; 0 for none.
        loopback: whether it is ``lo``.
        up: whether it carries anything.
    """

    index: int
    name: str
    kind: str
    master: int
    loopback: bool
    up: bool = True


@dataclass(frozen=True, slots=True)
class Netdev:
    """This is a line of QEMU's ``info network``: a NIC, or what is behind one.

    Args:
        name: its id.
        kind: such as ``user``, ``tap`` or ``nic``.
        details: the rest of the line.
        port: the port of a hub that it is behind; empty for none.
    """

    name: str
    kind: str
    details: str
    port: str = ""


@dataclass(frozen=True, slots=True)
class OptionOfNetdev:
    """This is a network option of QEMU's command line.

    Args:
        name: its id; empty without one.
        kind: such as ``user``.
        restricted: whether ``restrict=on`` is among its options.
        guestfwd: where it sends what the guest sends to an address, each as it was written.
        folders: those that it lets the guest read, by TFTP or SMB: which of these, and the folder.
    """

    name: str
    kind: str = ""
    restricted: bool = False
    guestfwd: tuple[str, ...] = ()
    folders: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Chardev:
    """This is a character device, as QEMU tells of it.

    Args:
        name: its id.
        place: where it leads, such as ``unix:/run/vm/serial.sock,server=on``.
    """

    name: str
    place: str


@dataclass(frozen=True, slots=True)
class Machine:
    """This is what QEMU says of itself.

    Args:
        netdevs: its NICs and what is behind them.
        filters: the network filters, a line each.
        forwards: the lines of ``info usernet`` that forward a port of the host to the guest.
        chardevs: its character devices.
        devices: the models of all its devices.
        objects: the objects that a user has made: id to type.
        disks: the drivers of its disks, and of what those lie on, such as ``qcow2`` and ``file``.
        plugged: the netdevs behind cards that were plugged in since it began.
    """

    netdevs: tuple[Netdev, ...]
    filters: tuple[str, ...]
    forwards: tuple[str, ...]
    chardevs: tuple[Chardev, ...]
    devices: frozenset[str]
    objects: Mapping[str, str]
    disks: frozenset[str] = frozenset()
    plugged: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class BrokerConfig:
    """This is what mosquitto's configuration file says.

    Args:
        path: of the file.
        anonymous: whether somebody without a name may enter, as far as the file says.
        has_access_list: whether a file says who may publish and read what.
        beyond: settings whose effect cannot be read off it, such as plugins and bridges.
        files: the configuration, passwords and access list, with who may open them.
        sweeping: the lines of the access list by which somebody may speak in everybody's name; Unseen where
            it cannot be read.
    """

    path: str
    anonymous: bool
    has_access_list: bool
    beyond: tuple[str, ...]
    files: tuple[Opening, ...]
    sweeping: tuple[str, ...] | Unseen = ()


@dataclass(frozen=True, slots=True)
class BusPath:
    """This is a file or socket of the bus, with all the folders that it lies in.

    Args:
        path: its own.
        folders: device and inode of it, and of each folder on the way to it.
        own: device and inode of it alone.
    """

    path: str
    folders: frozenset[tuple[int, int]]
    own: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class Broker:
    """This is the broker that carries the bus, and who is on it.

    Args:
        process: its own.
        config: its configuration.
        listening: the sockets it takes connections on.
        sockets: the Unix sockets of those, with who may open them.
        anonymous: whether it let somebody in who gave no name; Unseen where it was not asked.
        members: the processes that are connected with it, the broker itself among them.
        links: the interfaces of its network namespace.
    """

    process: Process
    config: BrokerConfig | Unseen
    listening: tuple[Socket, ...]
    sockets: tuple[Opening, ...]
    anonymous: bool | Unseen
    members: frozenset[int]
    links: tuple[Link, ...] | Unseen


@dataclass(frozen=True, slots=True)
class SharedFolder:
    """This is a folder that is open for the guest to look into.

    Args:
        holder: who has it open, in words.
        path: as the kernel shows it.
        device: of the folder.
        inode: of the folder.
    """

    holder: str
    path: str
    device: int
    inode: int


@dataclass(frozen=True, slots=True)
class Sharer:
    """This is another process that may write to a file that the machine has mapped.

    Args:
        pid: its number.
        program: the name of its program.
        is_qemu: whether it is another virtual machine.
        path: of the file.
        how: what it has done to it: mapped, or only opened.
    """

    pid: int
    program: str
    is_qemu: bool
    path: str
    how: str = "mapped writable"


@dataclass(frozen=True, slots=True)
class TapHolder:
    """This is a process that has a tun or tap open.

    Args:
        pid: its number.
        program: the name of its program.
        is_qemu: whether that is a QEMU.
        interface: the tap's name.
        network: the network namespace that it is in; 0 where the kernel does not tell.
    """

    pid: int
    program: str
    is_qemu: bool
    interface: str
    network: int


@dataclass(frozen=True, slots=True)
class Host:
    """This is what the kernel says of all that the machine and the broker have to do with.

    Args:
        sockets: by inode, of all network namespaces that were found.
        far_ends: for a socket of the machine's or the broker's, those at its other end.
        owners: who has such an end open, by inode.
        names: the programs of those, by pid.
        sharers: who else may write to files that the machine has mapped.
        pipes: pipes and terminals of the machine's that others have open: what it is, and whose.
        hidden: why not all processes could be looked at; empty where they could.
        taps: who has tuns and taps open.
        unseen: what else could not be looked at, and why.
    """

    sockets: Mapping[int, Socket]
    far_ends: Mapping[int, tuple[int, ...]]
    owners: Mapping[int, tuple[int, ...]]
    names: Mapping[int, str]
    sharers: tuple[Sharer, ...]
    pipes: tuple[tuple[str, int], ...]
    hidden: str = ""
    unseen: tuple[str, ...] = ()
    taps: tuple[TapHolder, ...] = ()


@dataclass(frozen=True, slots=True)
class Facts:
    """This is all that is concluded from.

    Args:
        machine: what QEMU says; Unseen where it does not talk to us.
        options: the network options of its command line.
        qemu: its process.
        listener: the pid of who made its QMP socket; None where the kernel does not tell.
        links: the interfaces of its network namespace.
        controls: the local names of its monitors' and gdbstub's sockets, by its command line.
        control_sockets: those of them that are files, with who may open them.
        named: device and inode of each file that the command line names.
        ends: where character devices lead that are Unix sockets, likewise, by id.
        ours: inodes of this program's own connections to the machine.
        folders: the folders that are open for the guest.
        paths: the files and sockets of the bus, and the machine's control sockets.
        disks: the host's own disks, and files it has mounted, that are open in the machine.
        host: what the kernel says.
        broker: the bus; None where none was named.
        bridge: the bus's bridge in the broker's namespace, where it was named.
    """

    machine: Machine | Unseen
    options: tuple[OptionOfNetdev, ...]
    qemu: Process
    listener: int | None
    links: tuple[Link, ...] | Unseen
    controls: frozenset[str]
    control_sockets: tuple[Opening, ...]
    ours: frozenset[int]
    folders: tuple[SharedFolder, ...]
    paths: tuple[BusPath, ...]
    host: Host
    broker: Broker | None = None
    bridge: str | None = None
    disks: tuple[GivenDisk, ...] | Unseen = ()
    named: frozenset[tuple[int, int]] = frozenset()
    ends: Mapping[str, str] = field(default_factory=dict)

    def name_of(self, pid: int) -> str:
        """This names a process for people."""
        return f"{self.host.names.get(pid) or 'process'} (pid {pid})"

    def owners_behind(self, inode: int) -> frozenset[int]:
        """These are the processes at the other end of a socket, as far as they were found."""
        ends = self.host.far_ends.get(inode, ())
        return frozenset(pid for end in ends for pid in self.host.owners.get(end, ()))

    def sockets_of_qemu(self) -> tuple[tuple[Descriptor, Socket | None], ...]:
        """These are the machine's sockets; None for one that is in no table."""
        if isinstance(self.qemu.descriptors, Unseen):
            return ()
        return tuple(
            (descriptor, self.host.sockets.get(descriptor.inode))
            for descriptor in self.qemu.descriptors
            if descriptor.target.startswith("socket:")
        )
