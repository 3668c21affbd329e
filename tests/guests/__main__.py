"""The command ``python -m tests.guests``: builds guests, lists them, and runs one for people and scripts.

    python -m tests.guests build [SERIES...]       fetch kernels and newer QEMUs, make initramfs files
    python -m tests.guests series                  which kernels this machine can fetch, oldest first
    python -m tests.guests qemus                   which newer QEMUs it can fetch, by suite, oldest first
    python -m tests.guests list                    what the cache holds
    python -m tests.guests debug 6.1               fetch a kernel's debug information, print its path
    python -m tests.guests boot --kernel 6.1       run a guest until standard input closes or SIGTERM comes
    python -m tests.guests boot --restore          the same, thawed from a saved state
    python -m tests.guests boot --kernel 6.12-arm64    the same on an aarch64 machine

``boot`` prints one JSON object with the addresses as soon as the guest is ready, then takes one request
a line (``truth``, ``storm start``, ``run ls``, ...) and prints the guest's JSON lines in answer.
``hide NAME`` takes a process off the guest's list of tasks from outside, as a rootkit would inside.
``card`` plugs a NIC into a machine of type pc.
"""

import argparse
import json
import signal
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from tests.guests.lab import (
    DISTRIBUTION,
    NEWER_QEMUS,
    Guest,
    GuestConfig,
    GuestRefused,
    Lab,
    LabError,
    MissingPartError,
    debug_vmlinux,
    qemu_named,
)
from tests.guests.lab.cache import read_record
from tests.guests.lab.kernel_series import ARM64_KERNELS, kernel_series
from tests.guests.lab.qemu import chosen_name
from tests.guests.network_card import plug_card
from tests.guests.rootkit import hide_process

EXIT_FAILED = 1


def main(arguments: list[str] | None = None) -> int:
    """This runs one command; the status is 1 when a part is missing, and the error says which."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    given = _parser().parse_args(arguments)
    try:
        given.action(Lab(say=_say), given)
    except LabError as error:
        _say(str(error))
        return EXIT_FAILED
    except KeyboardInterrupt:
        return 0
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.guests", description=__doc__.split("\n")[0]
    )
    commands = parser.add_subparsers(required=True)
    build = commands.add_parser("build", help="fetch kernels and QEMUs, make initramfs files")
    build.add_argument("series", nargs="*", help="these alone, and no QEMU; default: all")
    build.set_defaults(action=_build)
    series = commands.add_parser("series", help="name the kernels to be had here, oldest first")
    series.set_defaults(action=_series)
    qemus = commands.add_parser("qemus", help="name the newer QEMUs to be had here, oldest first")
    qemus.set_defaults(action=_qemus)
    debug = commands.add_parser("debug", help="fetch a kernel's debug information, 300 MB")
    debug.add_argument("series")
    debug.set_defaults(action=_debug)
    commands.add_parser("list", help="show what the cache holds").set_defaults(action=_list)
    boot = commands.add_parser("boot", help="run a guest until standard input closes")
    boot.set_defaults(action=_boot)
    _add_boot_options(boot)
    return parser


def _add_boot_options(boot: argparse.ArgumentParser) -> None:
    boot.add_argument("--kernel", default="6.1", help="a series, or none for firmware alone")
    boot.add_argument(
        "--machine", choices=["pc", "q35", "virt"], help="default: as the kernel wants"
    )
    boot.add_argument("--cpus", type=int, default=2)
    boot.add_argument("--memory", type=int, default=512, help="MiB")
    boot.add_argument("--cpu-flags", default="", help="added to the CPU model, as la57=off")
    boot.add_argument("--append", default="", help="added to the kernel's command line")
    boot.add_argument("--ram", default="file", choices=["file", "memfd", "private", "numa", "dimm"])
    boot.add_argument("--tcp", action="store_true", help="QMP on a loopback port")
    boot.add_argument("--gdbstub", action="store_true")
    boot.add_argument(
        "--qemu", default=chosen_name(), choices=[DISTRIBUTION, *NEWER_QEMUS], help="or its suite"
    )
    boot.add_argument(
        "--restore", action="store_true", help="thaw a saved guest instead of booting"
    )
    boot.add_argument("--paused", action="store_true", help="leave the vCPUs stopped")
    boot.add_argument("--dir", type=Path, help="put links to the guest's sockets and files there")


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def _print_json(row: object) -> None:
    sys.stdout.write(f"{json.dumps(row)}\n")
    sys.stdout.flush()


def _build(lab: Lab, given: argparse.Namespace) -> None:
    for name in given.series or kernel_series(lab.cache):
        start = time.monotonic()
        try:
            parts = lab.provide(name)
        except MissingPartError as missing:
            if given.series or name not in ARM64_KERNELS:
                raise
            _say(f"{name}: left out, because {missing}")
            continue
        _say(f"{name}: {parts} ({time.monotonic() - start:.1f} s)")
    for name in () if given.series else NEWER_QEMUS:
        _build_qemu(lab, name)


def _build_qemu(lab: Lab, name: str) -> None:
    """Fetch a newer QEMU; where none is to be had, only the tests that want it say so again."""
    start = time.monotonic()
    try:
        version = qemu_named(name, lab.cache, lab.say).version()
    except LabError as error:
        _say(str(error))
        return
    _say(f"QEMU {name}: {version} ({time.monotonic() - start:.1f} s)")


def _series(lab: Lab, _given: argparse.Namespace) -> None:
    sys.stdout.write("".join(f"{name}\n" for name in kernel_series(lab.cache)))


def _qemus(lab: Lab, _given: argparse.Namespace) -> None:
    for name in NEWER_QEMUS:
        with suppress(MissingPartError):
            qemu_named(name, lab.cache, lab.say)
            sys.stdout.write(f"{name}\n")


def _debug(lab: Lab, given: argparse.Namespace) -> None:
    sys.stdout.write(f"{debug_vmlinux(given.series, lab.cache, lab.say)}\n")


def _list(lab: Lab, _given: argparse.Namespace) -> None:
    for kind in ("kernels", "qemus", "states", "debug"):
        for folder in lab.cache.builds(kind):
            _print_json(
                {"kind": kind, "folder": str(folder), **read_record(folder / "record.json")}
            )


def _boot(lab: Lab, given: argparse.Namespace) -> None:
    config = GuestConfig(
        kernel=None if given.kernel == "none" else given.kernel,
        machine=given.machine or ("virt" if given.kernel in ARM64_KERNELS else "q35"),
        cpus=given.cpus,
        memory_mib=given.memory,
        cpu_flags=given.cpu_flags,
        append=given.append,
        ram=given.ram,
        tcp=given.tcp,
        gdbstub=given.gdbstub,
    )
    lab = replace(lab, qemu=qemu_named(given.qemu, lab.cache, lab.say))
    start = time.monotonic()
    make = lab.restore if given.restore else lab.boot
    with make(config, paused=given.paused) as guest:
        _say(
            f"guest {config.name}: ready after {time.monotonic() - start:.2f} s ({guest.accelerator})"
        )
        if given.dir:
            _link(guest, given.dir)
        _print_json(_addresses(guest))
        for line in sys.stdin:
            _answer(guest, line.strip())


def _answer(guest: Guest, words: str) -> None:
    try:
        if words.startswith("hide "):
            hidden = hide_process(guest, words.removeprefix("hide "))
            _print_json({"kind": "hidden", "pid": hidden.pid, "address": hidden.address})
            return
        if words == "card":
            plug_card(guest)
            words = ""
        for row in guest.ask(words) if words else ():
            _print_json(row)
        _print_json({"kind": "end", "ok": True})
    except (GuestRefused, LabError) as error:
        _print_json({"kind": "end", "ok": False, "error": str(error)})


def _addresses(guest: Guest) -> dict[str, object]:
    return {
        "qmp": guest.qmp,
        "pid": guest.pid,
        "folder": str(guest.folder),
        "ram": [str(path) for path in guest.ram_paths],
        "gdb": str(guest.gdb_socket) if guest.config.gdbstub else None,
        "accelerator": guest.accelerator,
        "kernel": guest.config.kernel,
    }


def _link(guest: Guest, folder: Path) -> None:
    """Give the guest's files names that a script can know beforehand."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in guest.folder.iterdir():
        link = folder / path.name
        link.unlink(missing_ok=True)
        link.symlink_to(path)


if __name__ == "__main__":
    sys.exit(main())
