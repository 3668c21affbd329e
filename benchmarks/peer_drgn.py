"""The peer: drgn with the kernel's full debug information, over the same mapping of the same RAM file.

drgn takes the RAM as a memory segment that a function reads from the mapping, the fastest of the
ways it has to a running QEMU; ``set_qemu_qmp`` is four times slower. It needs the debug package of exactly
this kernel on disk, and a VMCOREINFO note, which is looked for here as its users do.
"""

from collections.abc import Iterator
from mmap import ACCESS_READ, mmap
from pathlib import Path

import drgn
from drgn.helpers.linux.list import list_for_each_entry
from drgn.helpers.linux.sched import task_state_to_char

__all__ = ["Row", "attached", "processes", "processes_copied"]

Row = tuple[int, int, int, int, int, str, str, int, bool, float]
"""pid, tgid, ppid, uid, gid, state, name, address, kernel thread, start time in seconds."""

_PF_KTHREAD = 0x0020_0000
_NANOSECONDS = 1_000_000_000
_NOTE = b"OSRELEASE="
_NOTE_SIZE = 4096


def attached(ram: Path, vmlinux: Path) -> drgn.Program:
    """This attaches to the guest whose memory is in a file, up to the loaded debug information."""
    with ram.open("rb") as file:
        memory = mmap(file.fileno(), 0, access=ACCESS_READ)
    note = _vmcoreinfo(memory)
    program = drgn.Program(drgn.Platform(drgn.Architecture.X86_64), vmcoreinfo=note)
    program.add_memory_segment(
        0, len(memory), lambda _, size, at, __: memory[at : at + size], physical=True
    )
    program.set_linux_kernel_custom(note, is_live=True)
    program.load_debug_info([str(vmlinux)])
    return program


def processes(program: drgn.Program) -> list[Row]:
    """This lists the processes of the kernel's task list, member by member as drgn's helpers do."""
    return [_row(task, task.real_cred, task.value_()) for task in _tasks(program)]


def processes_copied(program: drgn.Program) -> list[Row]:
    """This lists them by copying each struct whole first, the fastest way that was found."""
    return [
        _row(copy, copy.real_cred[0].read_(), task.value_())
        for task in _tasks(program)
        for copy in (task[0].read_(),)
    ]


def _tasks(program: drgn.Program) -> Iterator[drgn.Object]:
    head = program["init_task"].tasks.address_of_()
    return list_for_each_entry("struct task_struct", head, "tasks")


def _row(task: drgn.Object, credentials: drgn.Object, address: int) -> Row:
    return (
        task.pid.value_(),
        task.tgid.value_(),
        task.real_parent.tgid.value_(),
        credentials.uid.val.value_(),
        credentials.gid.val.value_(),
        task_state_to_char(task),
        task.comm.string_().decode("utf-8", "backslashreplace"),
        address,
        task.flags.value_() & _PF_KTHREAD != 0,
        task.start_boottime.value_() / _NANOSECONDS,
    )


def _vmcoreinfo(memory: mmap) -> bytes:
    """This finds the text of the running kernel's note, which begins with its release."""
    at = memory.find(_NOTE)
    while at >= 0:
        text = memory[at : at + _NOTE_SIZE].partition(b"\0")[0]
        if b"KERNELOFFSET=" in text and b"NUMBER(phys_base)=" in text:
            return text
        at = memory.find(_NOTE, at + 1)
    raise LookupError("no VMCOREINFO note in the guest's memory")
