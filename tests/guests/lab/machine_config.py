"""Which machine a test wants, as data, and the QEMU command line that makes it.

References: qemu-system-x86_64(1): -machine, -object memory-backend-file, -numa, -incoming; QEMU
``docs/system/arm/virt.rst`` and ``docs/system/arm/cpu-features.rst`` (``pauth-impdef``).
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from tests.guests.lab.errors import LabError

__all__ = ["VIRT", "GuestConfig", "MachineFiles", "RamBlock", "qemu_arguments", "ram_blocks"]

RamKind = Literal["file", "memfd", "private", "numa", "dimm"]

MIB = 1 << 20
LEAST_MEMORY_MIB = 256
DIMM_MIB = 256
KERNEL_ARGUMENTS = "console=ttyS0 panic=-1"
VIRT = "virt"
"""QEMU's machine type for aarch64 guests."""

# Under TCG, QEMU 7.2's cmpxchg16b makes 6.12 panic in its allocator; kernels that do not find the
# instruction use a lock instead. Under KVM the processor does it, so the flag changes nothing that matters.
CPU_BY_KERNEL = {"6.12": "max,cx16=off", "7.x": "max,cx16=off"}
# Pointer authentication by the architecture's own cipher takes half of an emulated guest's time.
VIRT_CPU = "max,pauth-impdef=on"


@dataclass(frozen=True, slots=True)
class GuestConfig:
    """This says which guest a test wants. Equal configurations share one saved state.

    Attributes:
        kernel: the series, as in `KERNELS`; None for firmware alone.
        machine: QEMU's machine type; ``virt`` runs the kernels of `ARM64_KERNELS`, the others `KERNELS`.
        memory_mib: all memory together, in MiB.
        cpu_flags: added to the CPU model, as ``la57=off``.
        append: added to the kernel's command line, as ``nokaslr pti=on``.
        ram: how QEMU holds memory: one shared file, a memfd, private pages, two shared files on two
            NUMA nodes, or a file and a DIMM of its own.
        tcp: QMP on a port of the loopback interface instead of a Unix socket.
        gdbstub: a gdbstub on a Unix socket.
        extra: further QEMU arguments.
    """

    kernel: str | None = "6.1"
    machine: Literal["pc", "q35", "virt"] = "q35"
    cpus: int = 2
    memory_mib: int = 512
    cpu_flags: str = ""
    append: str = ""
    ram: RamKind = "file"
    tcp: bool = False
    gdbstub: bool = False
    extra: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what cannot boot."""
        if self.memory_mib < LEAST_MEMORY_MIB:
            raise LabError(
                f"{self.memory_mib} MiB are too little for these kernels",
                fix=f"ask for at least {LEAST_MEMORY_MIB}",
            )
        if self.kernel is not None and self.kernel.endswith("-arm64") != (self.machine == VIRT):
            raise LabError(
                f"a {self.machine} machine cannot run the kernel {self.kernel}",
                fix=f"take machine={VIRT!r} for arm64's kernels, and another one for all others",
            )

    @property
    def qemu(self) -> str:
        """This is the emulator that has the machine."""
        return "qemu-system-aarch64" if self.machine == VIRT else "qemu-system-x86_64"

    @property
    def cpu(self) -> str:
        """This is QEMU's ``-cpu``."""
        base = VIRT_CPU if self.machine == VIRT else CPU_BY_KERNEL.get(self.kernel or "", "max")
        return ",".join(part for part in (base, self.cpu_flags) if part)

    @property
    def name(self) -> str:
        """This is what differs from the default, for people; it need not be unique."""
        default = asdict(GuestConfig())
        mine = asdict(self)
        kernel = mine.pop("kernel") or "firmware"
        changed = [
            f"{key}={value}"
            for key, value in mine.items()
            if value != default[key] and key != "extra"
        ]
        return " ".join([kernel, *changed, *self.extra])


@dataclass(frozen=True, slots=True)
class RamBlock:
    """This is one memory backend: its QEMU id, its size, and the file it lives in, if any."""

    name: str
    size: int
    file_name: str | None


@dataclass(frozen=True, slots=True)
class MachineFiles:
    """This is what machines of one configuration share.

    Attributes:
        kernel: the bzImage, None for firmware alone; `initramfs` likewise.
        accelerator: ``kvm`` or ``tcg``.
    """

    kernel: Path | None
    initramfs: Path | None
    accelerator: str


def ram_blocks(config: GuestConfig) -> tuple[RamBlock, ...]:
    """These are the memory backends of a configuration, in guest-physical order."""
    size = config.memory_mib * MIB
    if config.ram == "file":
        return (RamBlock("ram0", size, "ram"),)
    if config.ram == "memfd":
        return (RamBlock("ram0", size, None),)
    if config.ram == "numa":
        return (RamBlock("ram0", size // 2, "ram"), RamBlock("ram1", size - size // 2, "ram1"))
    if config.ram == "dimm":
        dimm = DIMM_MIB * MIB
        return (RamBlock("ram0", size - dimm, "ram"), RamBlock("dimm0", dimm, "ram1"))
    return ()


def qemu_arguments(config: GuestConfig, files: MachineFiles, folder: Path) -> tuple[str, ...]:
    """This is the command line, without what only a restored or paused machine adds.

    Sockets, RAM files and logs live in `folder`.
    """
    return (
        *(config.qemu, "-nodefaults", "-no-user-config", "-display", "none"),
        *(
            "-no-reboot",
            "-name",
            f"guest={config.name.replace(',', ',,')}",
            "-accel",
            files.accelerator,
        ),
        *("-cpu", config.cpu, "-smp", str(config.cpus)),
        *_memory_arguments(config, folder),
        *_port_arguments(config, folder),
        *_kernel_arguments(config, files),
        *config.extra,
    )


def _memory_arguments(config: GuestConfig, folder: Path) -> Iterator[str]:
    blocks = ram_blocks(config)
    machine: str = config.machine
    size = config.memory_mib
    if len(blocks) == 1:
        machine += f",memory-backend={blocks[0].name}"
    if config.ram == "dimm":
        machine += f",memory-backend={blocks[0].name}"
        size -= DIMM_MIB
    yield from ("-machine", machine)
    slots = f",slots=1,maxmem={config.memory_mib}M" if config.ram == "dimm" else ""
    yield from ("-m", f"{size}M{slots}")
    for block in blocks:
        yield from ("-object", _backend(block, folder))
    if config.ram == "numa":
        for node, block in enumerate(blocks):
            yield from ("-numa", f"node,nodeid={node},memdev={block.name}")
    if config.ram == "dimm":
        yield from ("-device", f"pc-dimm,id=slot0,memdev={blocks[1].name}")


def _backend(block: RamBlock, folder: Path) -> str:
    if block.file_name is None:
        return f"memory-backend-memfd,id={block.name},size={block.size},share=on"
    path = folder / block.file_name
    return f"memory-backend-file,id={block.name},size={block.size},mem-path={path},share=on"


def _port_arguments(config: GuestConfig, folder: Path) -> Iterator[str]:
    """QMP for the subject under test, a second monitor for the lab, console and control ports."""
    server = "server=on,wait=off"
    yield from ("-chardev", f"file,id=console,path={folder}/console.log,append=on")
    yield from ("-chardev", f"socket,id=control,path={folder}/control.sock,{server}")
    if config.machine == VIRT:  # it has one port of its own, of another kind
        # Two cards: QEMU 7.2 cannot save the state of pci-serial-2x, and crashes over its unused ports.
        yield from ("-device", "pci-serial,chardev=console,addr=1")
        yield from ("-device", "pci-serial,chardev=control,addr=2")
    else:
        yield from ("-serial", "chardev:console", "-serial", "chardev:control")
    where = "host=127.0.0.1,port=0,ipv4=on" if config.tcp else f"path={folder}/qmp.sock"
    yield from ("-chardev", f"socket,id=qmp,{where},{server}")
    yield from ("-mon", "chardev=qmp,mode=control")
    yield from ("-chardev", f"socket,id=monitor,path={folder}/monitor.sock,{server}")
    yield from ("-mon", "chardev=monitor,mode=control")
    if config.gdbstub:
        yield from ("-gdb", f"unix:{folder}/gdb.sock,{server}")


def _kernel_arguments(config: GuestConfig, files: MachineFiles) -> Iterator[str]:
    if files.kernel is None or files.initramfs is None:
        return
    yield from ("-kernel", str(files.kernel), "-initrd", str(files.initramfs))
    yield from ("-append", f"{KERNEL_ARGUMENTS} {config.append}".strip())
