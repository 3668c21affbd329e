"""Types of global variables, which the BTF of most kernels leaves out, as a table.

BTF describes per-CPU variables only. These are the others that readers of ISF files look at; none
of them ever changed its type within the kernels that have BTF, or its name went with the type.

References: the files of Linux that define them, named above each group.
"""

from collections.abc import Mapping
from typing import Final

from qvmi.symbols.isf_schema import Array, Base, Pointer, StructRef, TypeRef

__all__ = ["ARRAYS_TO_NEXT_SYMBOL", "KNOWN_TYPES"]

_CHAR: Final = Base("char")
_INT: Final = Base("int")
_UNSIGNED: Final = Base("unsigned int")
_UNSIGNED_LONG: Final = Base("long unsigned int")
_LIST_HEAD: Final = StructRef("list_head")
_COMMAND_LINE_SIZE: Final = 2048
_IDT_ENTRIES: Final = 256

KNOWN_TYPES: Final[Mapping[str, TypeRef]] = {
    # init/init_task.c, init/version.c, init/main.c, kernel/cred.c, kernel/user.c, mm/init-mm.c
    "init_task": StructRef("task_struct"),
    "init_signals": StructRef("signal_struct"),
    "init_sighand": StructRef("sighand_struct"),
    "init_uts_ns": StructRef("uts_namespace"),
    "saved_command_line": Pointer(_CHAR),
    "boot_command_line": Array(_COMMAND_LINE_SIZE, _CHAR),
    "init_cred": StructRef("cred"),
    "init_user_ns": StructRef("user_namespace"),
    "init_nsproxy": StructRef("nsproxy"),
    "init_mm": StructRef("mm_struct"),
    # kernel/fork.c, kernel/pid.c, kernel/capability.c, ipc/msgutil.c, kernel/cgroup/cgroup.c
    "nr_threads": _INT,
    "total_forks": _UNSIGNED_LONG,
    "max_threads": _INT,
    "init_pid_ns": StructRef("pid_namespace"),
    "pid_max": _INT,
    "cap_last_cap": _INT,
    "init_ipc_ns": StructRef("ipc_namespace"),
    "init_cgroup_ns": StructRef("cgroup_namespace"),
    # fs/file.c, fs/fs_struct.c, fs/super.c
    "init_files": StructRef("files_struct"),
    "init_fs": StructRef("fs_struct"),
    "super_blocks": _LIST_HEAD,
    # kernel/module/main.c, kernel/params.c
    "modules": _LIST_HEAD,
    "mod_tree": StructRef("mod_tree_root"),
    "module_kset": Pointer(StructRef("kset")),
    "module_addr_min": _UNSIGNED_LONG,
    "module_addr_max": _UNSIGNED_LONG,
    # kernel/printk/printk.c
    "prb": Pointer(StructRef("printk_ringbuffer")),
    "log_buf": Pointer(_CHAR),
    "log_buf_len": _UNSIGNED,
    "log_first_idx": _UNSIGNED,
    "log_next_idx": _UNSIGNED,
    # kernel/resource.c
    "iomem_resource": StructRef("resource"),
    "ioport_resource": StructRef("resource"),
    # kernel/time/jiffies.c, timer.c, timekeeping.c (`tk_core` is in isf_symbols.py)
    "jiffies_64": Base("long long unsigned int"),
    "clocksource_list": _LIST_HEAD,
    # kernel/bpf/syscall.c, core.c, btf.c
    "prog_idr": StructRef("idr"),
    "map_idr": StructRef("idr"),
    "link_idr": StructRef("idr"),
    "btf_idr": StructRef("idr"),
    "bpf_kallsyms": _LIST_HEAD,
    "bpf_tree": StructRef("latch_tree_root"),
    "btf_modules": _LIST_HEAD,
    # kernel/trace/ftrace.c, kernel/tracepoint.c (entries are 32-bit offsets from themselves)
    "ftrace_ops_list": Pointer(StructRef("ftrace_ops")),
    "ftrace_list_end": StructRef("ftrace_ops"),
    "ftrace_ops_trampoline_list": _LIST_HEAD,
    "ftrace_mod_maps": _LIST_HEAD,
    "__stop___tracepoints_ptrs": _INT,
    # arch/x86/kernel: idt.c, head64.c; arch/x86/mm/kaslr.c
    "idt_table": Array(_IDT_ENTRIES, StructRef("gate_struct")),
    "phys_base": _UNSIGNED_LONG,
    "page_offset_base": _UNSIGNED_LONG,
    "vmalloc_base": _UNSIGNED_LONG,
    "vmemmap_base": _UNSIGNED_LONG,
    # mm/sparse.c, mm/slab_common.c
    "mem_section": Pointer(Pointer(StructRef("mem_section"))),
    "slab_caches": _LIST_HEAD,
    # drivers/tty/tty_io.c, drivers/tty/vt/keyboard.c, drivers/video/fbdev/core/fbmem.c
    "tty_drivers": _LIST_HEAD,
    "keyboard_notifier_list": StructRef("atomic_notifier_head"),
    "num_registered_fb": _INT,
    # net/core/net_namespace.c
    "init_net": StructRef("net"),
    "net_namespace_list": _LIST_HEAD,
    # net/socket.c
    "socket_file_ops": StructRef("file_operations"),
    "sockfs_dentry_operations": StructRef("dentry_operations"),
    # net/ipv4, net/ipv6, net/unix, net/packet: what /proc/net/* is read through
    "arp_seq_ops": StructRef("seq_operations"),
    "packet_seq_ops": StructRef("seq_operations"),
    "raw_seq_ops": StructRef("seq_operations"),
    "raw6_seq_ops": StructRef("seq_operations"),
    "tcp4_seq_ops": StructRef("seq_operations"),
    "tcp6_seq_ops": StructRef("seq_operations"),
    "udp_seq_ops": StructRef("seq_operations"),
    "udp6_seq_ops": StructRef("seq_operations"),
    "unix_seq_ops": StructRef("seq_operations"),
    "tcp4_seq_afinfo": StructRef("tcp_seq_afinfo"),
    "tcp6_seq_afinfo": StructRef("tcp_seq_afinfo"),
    "udp4_seq_afinfo": StructRef("udp_seq_afinfo"),
    "udp6_seq_afinfo": StructRef("udp_seq_afinfo"),
    "udplite4_seq_afinfo": StructRef("udp_seq_afinfo"),
    "udplite6_seq_afinfo": StructRef("udp_seq_afinfo"),
    # vmlinux.lds.h: marks without an extent of their own
    "_text": _CHAR,
    "_stext": _CHAR,
    "_etext": _CHAR,
    "_sinittext": _CHAR,
    "_einittext": _CHAR,
    "_sdata": _CHAR,
    "_edata": _CHAR,
    "_end": _CHAR,
    # kernel/kallsyms_internal.h
    "kallsyms_num_syms": _UNSIGNED,
    "kallsyms_relative_base": _UNSIGNED_LONG,
}
"""The type of a symbol that is given only where both the symbol and the type exist."""

ARRAYS_TO_NEXT_SYMBOL: Final[Mapping[str, TypeRef]] = {
    "__per_cpu_offset": _UNSIGNED_LONG,  # mm/percpu.c
    "__start___tracepoints_ptrs": _INT,
    "node_data": Pointer(StructRef("pglist_data")),  # arch/x86/mm/numa.c
    "registered_fb": Pointer(StructRef("fb_info")),
    "timekeeper_data": StructRef("tk_data"),  # kernel/time/timekeeping.c, since 6.17
}
"""The type of the elements of an array that ends where the next symbol begins."""
