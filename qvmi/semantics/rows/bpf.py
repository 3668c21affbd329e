"""Rows about eBPF programs."""

import msgspec

from qvmi.addr import Va

__all__ = ["BpfMap", "BpfProgram"]


class BpfMap(msgspec.Struct, frozen=True, gc=False):
    """This is a map that a program uses.

    Args:
        id: as ``bpftool map`` shows it.
        type: such as ``hash``: the kernel's own name, or a number where it has no names.
        name: what who made it calls it; it is the guest's word.
        address: of its ``struct bpf_map``.
    """

    id: int
    type: str
    name: str
    address: Va


class BpfProgram(msgspec.Struct, frozen=True, gc=False):
    """This is one eBPF program that the kernel has loaded.

    Args:
        id: as ``bpftool prog`` shows it.
        type: such as ``socket_filter``: the kernel's own name, or a number where it has no names.
        name: what who loaded it calls it; it is the guest's word.
        tag: a digest of its instructions, in hexadecimal.
        load_time_s: seconds after the guest's boot.
        uid: of who loaded it, in the initial user namespace.
        jited: whether it runs as machine code.
        jit_address: where that begins, None without.
        jit_size: bytes of it, of all its functions.
        instructions: how many it has, as they were changed by the verifier.
        maps: that it uses.
        target: the kernel's function that it was made for; empty for most types.
        attached: where it is attached, as far as a link or a socket tells: such as ``xdp lo``,
            ``raw_tracepoint task_rename``, ``socket 4711`` (an inode).
        pids: of the processes that have it, its link or its socket open.
        address: of its ``struct bpf_prog``.
    """

    id: int
    type: str
    name: str
    tag: str
    load_time_s: float
    uid: int
    jited: bool
    jit_address: Va | None
    jit_size: int
    instructions: int
    maps: tuple[BpfMap, ...]
    target: str
    attached: tuple[str, ...]
    pids: tuple[int, ...]
    address: Va
