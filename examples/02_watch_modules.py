"""Tells of kernel modules that come and go, until Ctrl-C: 02_watch_modules.py /run/vm/qmp.sock."""

import contextlib
import sys
import time

import qvmi

INTERVAL_S = 0.5


def modules_by_address(machine: qvmi.SyncMachine) -> dict[qvmi.Va, qvmi.Module]:
    """This lists the modules; a machine that was reset is looked at anew."""
    try:
        listing = machine.guest.modules()
    except (qvmi.StaleView, qvmi.UnknownGuest) as error:
        print(f"{error!r}; looking again", flush=True)
        machine.refresh()
        listing = machine.guest.modules()
    return {module.struct_address: module for module in listing}


def watch(address: str) -> None:
    """This compares the list of modules with the one before, again and again."""
    with qvmi.attach_sync(address) as machine:
        before = modules_by_address(machine)
        print(f"{len(before)} modules are loaded", flush=True)
        while True:
            time.sleep(INTERVAL_S)
            now = modules_by_address(machine)
            for at in now.keys() - before.keys():
                print(f"loaded {now[at].name!r} at {now[at].address:#x}", flush=True)
            for at in before.keys() - now.keys():
                print(f"unloaded {before[at].name!r}", flush=True)
            before = now


if __name__ == "__main__":
    if len(sys.argv) != 2:  # noqa: PLR2004 - the program's name and one address
        sys.exit(f"usage: {sys.argv[0]} ADDRESS-OF-QMP")
    try:
        with contextlib.suppress(KeyboardInterrupt):
            watch(sys.argv[1])
    except qvmi.QvmiError as error:
        sys.exit(repr(error))
