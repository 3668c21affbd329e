"""Fakes with call logs and armed faults, to test codepacks and what is built on qvmi without a machine.

>>> from qvmi.codepacks.hidden_processes import HiddenProcesses
>>> from qvmi.testing import FakeGuest, FakeMemory, fake_process
>>> init, evil = fake_process(1, name="init"), fake_process(666, name="evil")
>>> guest = FakeGuest(processes=[init], process_ids=[init, evil])
>>> [finding.claim for finding in HiddenProcesses().inspect(guest, FakeMemory({}))]
['process 666 (evil) is in init_pid_ns.idr but not in init_task.tasks']
>>> guest.calls[:3]
['processes', 'process_ids', 'task_sightings']
"""

from qvmi.testing.guest import FakeGuest
from qvmi.testing.machine import FakeMachine
from qvmi.testing.memory import FakeMemory, MemoryRead
from qvmi.testing.packs import load_pack, looks
from qvmi.testing.rows import (
    fake_cached_file,
    fake_credentials,
    fake_mapping,
    fake_module,
    fake_mount,
    fake_process,
    fake_program,
    fake_socket,
)

__all__ = [
    "FakeGuest",
    "FakeMachine",
    "FakeMemory",
    "MemoryRead",
    "fake_cached_file",
    "fake_credentials",
    "fake_mapping",
    "fake_module",
    "fake_mount",
    "fake_process",
    "fake_program",
    "fake_socket",
    "load_pack",
    "looks",
]
