"""Records the transcripts anew, from the QEMU that is chosen: ``python -m tests.wire.record``.

``QVMI_TEST_QEMU=sid python -m tests.wire.record`` records those of a newer one beside the distribution's.
"""

import json
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.guests.bare_qemu import bare_qemu
from tests.guests.lab import GuestConfig, Lab
from tests.guests.lab.monitor import Monitor
from tests.guests.multiboot import halted_program
from tests.wire.recorded_qemu import header_of, recording_of

_MEMFD = "memory-backend-memfd"
_FILE = "memory-backend-file,share=on,mem-path="

# name: (what it shows, QEMU's arguments); `{}` stands for a folder of the machine's own.
_FIRMWARE: dict[str, tuple[str, tuple[str, ...]]] = {
    "q35": (
        "q35, 2 vCPUs that have not begun, default RAM",
        ("-machine", "q35", "-m", "256", "-smp", "2", "-S"),
    ),
    "pc": (
        "pc, default RAM that the firmware has write-protected in parts, a VGA card, halted in 16-bit code",
        (
            "-machine",
            "pc",
            "-m",
            "256",
            "-name",
            "guest=recorded,debug-threads=on",
            "-device",
            "VGA",
        ),
    ),
    "pc_32_bit": (
        "pc, halted in 32-bit code with known registers",
        ("-machine", "pc", "-m", "128", "-kernel", "{}/program"),
    ),
    "q35_large": (
        "q35, 6 GiB in a shared file, two DIMMs of a memfd and private memory, an nvdimm, a VGA card",
        (
            *("-machine", "q35,memory-backend=main,nvdimm=on", "-S"),
            *("-m", "6G,slots=4,maxmem=32G", "-device", "VGA"),
            *("-object", _FILE + "{}/ram,id=main,size=6G"),
            *("-object", _MEMFD + ",id=hot,size=1G,share=on", "-device", "pc-dimm,memdev=hot"),
            *("-object", "memory-backend-ram,id=own,size=512M", "-device", "pc-dimm,memdev=own"),
            *("-object", _FILE + "{}/nv,id=nv,size=128M", "-device", "nvdimm,memdev=nv,id=stick"),
        ),
    ),
    "pc_numa": (
        "pc, 5 GiB on two NUMA nodes, a memfd and private memory",
        (
            *("-machine", "pc", "-m", "5G", "-smp", "2", "-S"),
            *("-object", _MEMFD + ",id=node0,size=2G", "-numa", "node,memdev=node0,cpus=0"),
            *("-object", "memory-backend-ram,id=node1,size=3G"),
            *("-numa", "node,memdev=node1,cpus=1"),
        ),
    ),
}


KNOWN_REGISTERS = {
    "eax": 0x80000001,
    "ebx": 0xB0000002,
    "ecx": 0xC0000003,
    "edx": 0xD0000004,
    "esi": 0x50000005,
    "edi": 0xD1000006,
    "ebp": 0xB9000007,
    "esp": 0x59000008,
}


def main() -> None:
    """This records every transcript, or those named as arguments."""
    wanted = set(sys.argv[1:])
    for name, (shows, arguments) in _FIRMWARE.items():
        if not wanted or name in wanted:
            folder = tempfile.mkdtemp(prefix="qvmi-record-")
            (Path(folder) / "program").write_bytes(halted_program(KNOWN_REGISTERS))
            filled = tuple(argument.replace("{}", folder) for argument in arguments)
            with bare_qemu(*filled, folder=Path(folder)) as machine:
                if "-S" not in arguments:
                    _wait_for_halt(machine.monitor)
                _record(name, shows, machine.qmp, machine.pid, folder)
    if not wanted or "linux" in wanted:
        config = GuestConfig(kernel="6.1", memory_mib=3072)
        with Lab(say=print).restore(config) as guest:
            guest.monitor.execute("stop")
            shows = "q35, a Debian 6.1 kernel with 5-level paging, 3 GiB in a shared file"
            _record("linux", shows, guest.qmp, guest.pid, str(guest.folder))
    if not wanted or "linux_aarch64" in wanted:
        config = GuestConfig(kernel="6.12-arm64", machine="virt")
        with Lab(say=print).restore(config) as guest:
            guest.monitor.execute("stop")
            shows = "virt, a Debian 6.12 kernel with 52-bit addresses, 512 MiB in a shared file"
            _record("linux_aarch64", shows, guest.qmp, guest.pid, str(guest.folder))


def _wait_for_halt(monitor: Monitor) -> None:
    """This waits until the firmware, or the program it starts, has nothing to do any more."""
    deadline = time.monotonic() + 30
    while "HLT=1" not in monitor.human("info registers -a"):
        if time.monotonic() > deadline:
            raise TimeoutError("the guest does not come to rest")
        time.sleep(0.05)
    monitor.execute("stop")


def _record(name: str, shows: str, qmp: str, pid: int, folder: str) -> None:
    with _conversation(qmp) as (greeting, ask):
        lines = [f"S: {greeting}"]
        for command, arguments in _requests(ask):
            request = {"execute": command, "arguments": arguments}
            lines += [f"C: {json.dumps(request)}", f"S: {json.dumps(ask(request))}"]
    version = json.loads(greeting)["QMP"]["version"]
    header = header_of(shows, pid, version)
    text = "\n".join([*header, *lines]).replace(folder, "/run/vm")
    recording_of(name, version).write_text(text.replace(str(Path.home()), "~") + "\n")


def _requests(ask: Any) -> Iterator[tuple[str, dict[str, object]]]:  # noqa: ANN401 - a callable
    yield "qmp_capabilities", {"enable": ["oob"]}
    for line in ("info registers -a", "info mtree -f -o", "info mtree -f", "info registers -z"):
        yield "human-monitor-command", {"command-line": line}
    for address in (0x1000, 0xFEE00000, 0x7000000000):
        yield "human-monitor-command", {"command-line": f"gpa2hva {address:#x}"}
    for command in ("status", "version", "memdev", "cpus-fast", "name", "kvm", "target"):
        yield f"query-{command}", {}
    yield "no-such-command", {}
    for backend in ask({"execute": "query-memdev", "arguments": {}})["return"]:
        for wanted in ("mem-path", "offset", "type"):
            yield "qom-get", {"path": f"/objects/{backend['id']}", "property": wanted}


@contextmanager
def _conversation(qmp: str) -> Iterator[tuple[str, Any]]:
    with socket.socket(socket.AF_UNIX) as stream, stream.makefile("rwb") as file:
        stream.connect(qmp)
        greeting = file.readline().decode().strip()

        def ask(request: dict[str, object]) -> dict[str, object]:
            file.write(json.dumps(request).encode() + b"\n")
            file.flush()
            while "event" in (answer := json.loads(file.readline())):
                pass
            reply: dict[str, object] = answer
            return reply

        yield greeting, ask


if __name__ == "__main__":
    main()
