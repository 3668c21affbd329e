"""Sockets that processes have open, found through their files.

References: Linux include/linux/net.h (``struct socket``), net/socket.c (``sock_from_file``).
"""

from collections.abc import Iterable
from typing import Final

from qvmi.errors import MemoryFault
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.guest_os import Gap, OpenFile, Process, Socket
from qvmi.semantics.linux.net.sock_common import Holder, Socks
from qvmi.semantics.linux.processes.fdtable import OpenFiles
from qvmi.semantics.linux.structures.list import Implausible, ListWalk
from qvmi.semantics.linux.structures.record import compile_reader
from qvmi.symbols.layout import Symbols, address, field_offset

__all__ = ["Sockets"]

_RETRIES: Final = 3
_MAX_GAPS: Final = 1000


class Sockets:
    """This lists the sockets that processes have open.

    Args:
        space: the kernel's address space.
        symbols: of the kernel.
        files: lists open files, some of which are sockets.
        socks: makes the rows.

    Raises:
        SymbolsError: the profile lacks what sockets need, or describes no possible layout.
    """

    def __init__(
        self, space: AddressSpace, symbols: Symbols, *, files: OpenFiles, socks: Socks
    ) -> None:
        self._socks = socks
        self._files = files
        self._operations = address(symbols, "socket_file_ops")
        self._read_file = compile_reader(
            space,
            (field_offset(symbols, "file", "f_op"), "Q"),
            (field_offset(symbols, "file", "private_data"), "Q"),
        )
        self._read_socket = compile_reader(
            space,
            (field_offset(symbols, "socket", "file"), "Q"),
            (field_offset(symbols, "socket", "sk"), "Q"),
        )

    def of(self, processes: Iterable[Process]) -> ListWalk[Socket]:
        """This lists the sockets of processes, each descriptor of one as a row."""
        by_pid = {process.pid: process for process in processes}
        files = self._files.of(by_pid.values(), operations=self._operations)
        result: ListWalk[Socket] = ListWalk(gaps=files.gaps, retries=files.retries)
        for file in files.rows.values():
            if file.kind != "socket":
                continue
            self._add(file, by_pid[file.pid], result)
            if len(result.gaps) > _MAX_GAPS:
                why = "given up: so many sockets are wrong"
                result.gaps.append(Gap("struct socket", file.address, why))
                break
        return result

    def _add(self, file: OpenFile, process: Process, result: ListWalk[Socket]) -> None:
        """This adds one socket, if its file is still that of a socket behind the reading of it."""
        why = ""
        for _ in range(_RETRIES):
            try:
                before = self._read_file(file.address)
                if before[0] != self._operations:
                    return  # a special file in a folder, or closed and used again
                row = self._row(file, before[1])
                if self._read_file(file.address) == before:
                    result.rows[len(result.rows)] = row
                    return
            except (MemoryFault, Implausible) as error:
                why = str(error)
            result.retries += 1
        if self._is_closed(file, process):
            return
        where = f"descriptor {file.fd} of process {file.pid}"
        result.gaps.append(Gap("struct socket", file.address, f"{where}: {why}"))

    def _is_closed(self, file: OpenFile, process: Process) -> bool:
        """This tells whether a descriptor leads elsewhere by now, or nowhere."""
        try:
            return self._files.leads_to(process, file.fd) != file.address
        except MemoryFault:
            return False

    def _row(self, file: OpenFile, socket: int) -> Socket:
        owner, sock = self._read_socket(socket)
        if owner != file.address:
            raise Implausible(f"the socket at {socket:#x} is of the file at {owner:#x}")
        return self._socks.row(sock, Holder(file.pid, file.fd, file.inode))
