"""Fakes with call logs and armed faults, to test codepacks and what is built on qvmi without a machine.

>>> from qvmi.codepacks.detectors.hidden_processes import HiddenProcesses
>>> from qvmi.testing import FakeGuest, FakeMemory, fake_process
>>> init, evil = fake_process(1, name="init"), fake_process(666, name="evil")
>>> guest = FakeGuest(processes=[init], process_ids=[init, evil])
>>> [finding.claim for finding in HiddenProcesses().inspect(guest, FakeMemory({}))]
['process 666 (evil) is in init_pid_ns.idr but not in init_task.tasks']
>>> guest.calls[:3]
['processes', 'process_ids', 'task_sightings']

What a codepack is shown beside memory is made of rows, too.

>>> from qvmi.codepacks.detectors.flows_without_owner import FlowsWithoutOwner
>>> from qvmi.testing import fake_flow, fake_resources
>>> flow = fake_flow("192.0.2.7:443", unowned=True, socket=None, pid=None)
>>> shown = fake_resources(flows=[flow])
>>> for finding in FlowsWithoutOwner().inspect(guest, FakeMemory({}), shown):
...     print(finding.claim)
the tcp flow of 10.0.2.15:40000 with 192.0.2.7:443 has no socket in the guest
"""

from qvmi.testing.guest import FakeGuest
from qvmi.testing.machine import FakeMachine
from qvmi.testing.memory import FakeMemory, MemoryRead
from qvmi.testing.packs import load_pack, looks
from qvmi.testing.resources import fake_disk_difference, fake_flow, fake_resources
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
    "fake_disk_difference",
    "fake_flow",
    "fake_mapping",
    "fake_module",
    "fake_mount",
    "fake_process",
    "fake_program",
    "fake_resources",
    "fake_socket",
    "load_pack",
    "looks",
]
