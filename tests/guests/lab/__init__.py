"""Real guests for tests, the demo and benchmarks: Debian's kernels in QEMU, with a known population inside.

This room shares no code with qvmi, so that what it says can be the oracle for what qvmi sees.

    from tests.guests.lab import GuestConfig, Lab

    lab = Lab()                                          # one cache: QVMI_GUEST_CACHE or the user's
    with lab.restore(GuestConfig(kernel="6.1")) as guest:
        guest.qmp                                        # address for the subject: path or HOST:PORT
        guest.monitor.execute("query-status")            # the lab's own QMP, on a second monitor
        truth = guest.settled_truth()                    # tasks, modules, mounts, sockets, by /proc
        guest.kallsyms()                                 # digest, counts and some addresses
        guest.start_storm(); guest.stop_storm()          # forks, each accounted for
        guest.run("ls /")                                # a shell command inside
    with lab.boot(GuestConfig(kernel=None), until="started") as guest:   # firmware alone
        ...

A restored guest is thawed from a state saved when its population was complete; the first restore of a
configuration boots and saves it. Guests end with their block, or with the process that made them,
even if that is killed.
"""

from tests.guests.lab.accelerator import accelerator
from tests.guests.lab.control import GuestRefused
from tests.guests.lab.errors import LabError, MissingPartError
from tests.guests.lab.factory import Lab
from tests.guests.lab.guest import Guest
from tests.guests.lab.kernel_series import ARM64_KERNELS, KERNELS
from tests.guests.lab.kernels import debug_vmlinux
from tests.guests.lab.machine_config import GuestConfig
from tests.guests.lab.monitor import Monitor, MonitorError
from tests.guests.lab.newer_qemu import NEWER_QEMUS, chosen_qemu, qemu_named
from tests.guests.lab.proc_files import Descriptor, KmsgRecord, MapsLine, MountInfo, NetSocket
from tests.guests.lab.qemu import DISTRIBUTION, QEMU_VARIABLE, Qemu
from tests.guests.lab.truth import Kallsyms, Module, Storm, Task, Truth

__all__ = [
    "ARM64_KERNELS",
    "DISTRIBUTION",
    "KERNELS",
    "NEWER_QEMUS",
    "QEMU_VARIABLE",
    "Descriptor",
    "Guest",
    "GuestConfig",
    "GuestRefused",
    "Kallsyms",
    "KmsgRecord",
    "Lab",
    "LabError",
    "MapsLine",
    "MissingPartError",
    "Module",
    "Monitor",
    "MonitorError",
    "MountInfo",
    "NetSocket",
    "Qemu",
    "Storm",
    "Task",
    "Truth",
    "accelerator",
    "chosen_qemu",
    "debug_vmlinux",
    "qemu_named",
]
