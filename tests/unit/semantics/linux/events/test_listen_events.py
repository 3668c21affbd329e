"""Sockets of a kernel made by hand that begin to listen, in a table that cannot always be read."""

from qvmi.addr import Va
from qvmi.errors import MemoryFault
from qvmi.semantics.guest_os import Gap, Socket
from qvmi.semantics.linux.events.event_sink import EventSink
from qvmi.semantics.linux.events.listen_events import ListenEvents
from qvmi.semantics.linux.net.socket_tables import SocketTables
from qvmi.semantics.linux.structures.hash_table import HashTable
from qvmi.semantics.rows.events import GuestEvent, NotSeen, SocketListening
from qvmi.view import Provenance, Taken, View
from tests.synthetic.kernel_files import KernelFiles

LISTEN = 10
NODE = 0x50


class OneTable(SocketTables):
    """These are tables of which there is one, of a single chain."""

    def __init__(self, head: int) -> None:
        self.head = head

    def listening(self) -> tuple[tuple[HashTable[Socket], ...], list[Gap]]:
        return (HashTable("a table", Va(self.head), 1, 8, NODE, _row, points_back=False),), []


def _row(sock: int) -> Socket:
    return Socket(None, None, "tcp", "0.0.0.0:1", "", "LISTEN", 1, 0, Va(sock))


class Listening:
    """This is a kernel whose sockets are watched."""

    def __init__(self) -> None:
        self.memory = memory = KernelFiles(mapped=False)
        self.head = memory.allocate_bytes(4096) + 64
        self.listen()
        self.part = ListenEvents(memory.space, memory.symbols, OneTable(self.head))
        self.sink = EventSink(View((), memory.ram, Provenance(Taken.LIVE, 0.0)))
        self.part.begin(self.sink)
        assert self.sink.taken() == []

    def listen(self) -> int:
        """This puts a socket that listens in front of the others."""
        memory = self.memory
        sock = memory.allocate("sock")
        memory.u64(sock + NODE, memory.get(self.head))
        memory.u64(self.head, sock + NODE)
        memory.u32(memory.at(sock, "sock_common", "skc_state"), LISTEN)
        return sock

    def look(self) -> list[GuestEvent]:
        self.part.rescan(self.sink)
        return self.sink.taken()


def test_a_socket_that_listens_is_told_once() -> None:
    listening = Listening()
    sock = listening.listen()
    (event,) = listening.look()
    assert isinstance(event, SocketListening)
    assert event.socket.address == sock
    assert listening.look() == []


def test_what_a_table_held_is_not_told_again_once_that_can_be_read_again() -> None:
    listening = Listening()
    head = listening.head + listening.memory.to_pa

    def fail(pa: int) -> None:
        if pa == head:
            raise MemoryFault(pa, 8, why="not now")

    listening.memory.ram.before_read = fail
    assert [type(event) for event in listening.look()] == [NotSeen]
    listening.memory.ram.before_read = None
    assert listening.look() == []
