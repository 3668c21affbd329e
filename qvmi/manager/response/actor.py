"""Who takes the steps: each is asked of the policy first, and says what it will do before it does it."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import msgspec

from qvmi.addr import Va
from qvmi.errors import PauseError, QvmiError, StepRefused
from qvmi.machine.machine import Machine
from qvmi.manager.response.evidence import write_bundle
from qvmi.manager.response.hardware import Hardware
from qvmi.manager.response.journal import Undo
from qvmi.manager.response.prepared import Prepared
from qvmi.manager.response.records import Notice
from qvmi.manager.response.restoring import Repair, disagreement, problem_of, repairs
from qvmi.manager.response.scene import ReportMaker, Scene, Story
from qvmi.manager.response.steps import (
    DiskSnapshot,
    Dump,
    Evidence,
    NicDown,
    NicUp,
    Pause,
    Restore,
    Resume,
    Say,
    Step,
)
from qvmi.policy import AddressRange, Grant, PolicyGate, Space
from qvmi.semantics.guest_os import GuestOS
from qvmi.semantics.linux.guest import LinuxGuest
from qvmi.semantics.linux.kernel.discovery import Kernel

__all__ = ["CORE", "Actor"]

CORE: Final = "guest.core"
"""The file of a dump, in the folder of its run."""

_LOOK_S: Final = 30.0
"""Longest look at the guest for a report, or for what lies somewhere."""


@dataclass(frozen=True, slots=True)
class Actor:
    """This takes steps at one machine.

    Args:
        machine: which.
        gate: what may be done, and how often.
        say: publishes a message: its kind, its text and the run.
        report: makes the report of evidence; None where there is none.
    """

    machine: Machine
    gate: PolicyGate
    say: Callable[[str, dict[str, object]], None]
    report: ReportMaker | None = None

    async def prepare(self, step: Step, scene: Scene) -> Prepared:
        """This finds out what a step will do, and changes nothing.

        Raises:
            PolicyDenied: it may not be done; the audit log tells.
            StepRefused: there is nothing that it could be done to.
            QvmiError: QEMU or the guest did not answer.
        """
        return await self._preparing[type(step)](step, scene)

    async def undo(self, undo: Undo) -> str:
        """This undoes something, and says what it did.

        Raises:
            PolicyDenied: it may not be done.
            StepRefused: it is not as it was left.
            QvmiError: it could not be done.
        """
        if undo.word == "write":
            return await self._write_back(undo)
        return await self._hardware.undo(undo)

    @property
    def _hardware(self) -> Hardware:
        return Hardware(self.machine.monitor, self._require)

    @property
    def _preparing(self) -> Mapping[type[Step], Callable[[Any, Scene], Awaitable[Prepared]]]:
        hardware = self._hardware
        return {
            NicDown: hardware.nic_down,
            NicUp: hardware.nic_up,
            DiskSnapshot: hardware.disk_snapshot,
            Pause: self._pause,
            Resume: self._resume,
            Dump: self._dump,
            Evidence: self._evidence,
            Restore: self._restore,
            Say: self._say,
        }

    def _require(self, grant: Grant, action: str) -> None:
        self.gate.require(grant, action, now=time.monotonic())

    # ------------------------------------------------------------------------------------------ pauses

    def _longest(self, *bounds: float | None) -> float:
        """This is the shortest of some bounds and of that which is granted."""
        return min(one for one in (*bounds, self.gate.longest_pause_s) if one is not None)

    async def _pause(self, step: Pause, scene: Scene) -> Prepared:
        self._require(Grant.PAUSE, "pause the guest")
        longest = self._longest(step.longest_s)

        async def act() -> str:
            await scene.stillness.begin(longest)
            return f"the guest stands still, for {longest:g} s at most"

        return Prepared(f"let the guest stand still for {longest:g} s at most", act)

    async def _resume(self, _: Resume, scene: Scene) -> Prepared:
        async def act() -> str:
            held = scene.stillness.is_held
            await scene.stillness.end()
            return "the guest runs" if held else "the guest runs already"

        return Prepared("let the guest run on", act)

    async def _dump(self, step: Dump, scene: Scene) -> Prepared:
        action = "dump the guest"
        self.gate.policy.require_all(Grant.READ_MEMORY, f"{self.gate.holder}: {action}")
        self._require(Grant.PAUSE, action)
        path = scene.folder / CORE

        async def act() -> str:
            scene.make_folder()
            longest = self._longest(step.longest_s, scene.stillness.left_s)
            try:
                async with asyncio.timeout(longest):
                    dump = await self.machine.dump(path)
            except TimeoutError:
                why = f"the dump was not whole after {longest:g} s, and nothing of it is kept"
                raise PauseError(why) from None
            still = dump.provenance.pause_s
            return f"{path}: {dump.data_size >> 20} MiB; it took a pause of {still:.3f} s"

        return Prepared(f"dump the guest's memory to {path}", act)

    # ---------------------------------------------------------------------------------------- evidence

    async def _evidence(self, step: Evidence, scene: Scene) -> Prepared:
        async def act() -> str:
            folder = scene.make_folder()
            contents = {
                "alerts.json": _json(scene.alerts),
                "records.json": _json(scene.records),
            }
            if step.report and self.report is not None:
                page = await self._page(scene, self.report)
                contents["report.html"] = page.encode("utf-8", "replace")
            files = await asyncio.to_thread(
                write_bundle, folder, contents, run=scene.run, vm=scene.vm
            )
            return f"{folder}: {len(files)} files and the lists of their hashes"

        return Prepared(f"keep the evidence in {scene.folder}", act)

    async def _page(self, scene: Scene, report: ReportMaker) -> str:
        """This is the report, with the guest in it where the guest may be read and lets itself be.

        What a guest can do about that takes nothing else from the evidence.
        """
        title = f"{scene.playbook} on {scene.vm}"
        story = Story(title, scene.alerts, tuple(scene.records), scene.files())
        unseen = "it may not be read"
        if self.gate.policy.allows_all(Grant.READ_MEMORY):
            try:
                return await self.machine.query(
                    lambda guest: report(guest, story), timeout_s=_LOOK_S
                )
            except QvmiError as error:
                unseen = str(error)
        return report(None, replace(story, unseen=unseen))

    # ----------------------------------------------------------------------------------------- writing

    async def _restore(self, _: Restore, scene: Scene) -> Prepared:
        wanted = [repair for alert in scene.alerts for repair in repairs(alert.finding)]
        if not wanted:
            raise StepRefused("the evidence does not say which bytes should be where")
        for repair in wanted:
            what = f"write {len(repair.wanted)} bytes at {repair.address:#x}"
            place = AddressRange(Space.VIRTUAL, repair.address, len(repair.wanted))
            self.gate.require(Grant.WRITE, what, now=time.monotonic(), place=place)
            if problem := await self.machine.query(partial(_problem, repair=repair)):
                raise StepRefused(problem)
        undo = tuple(
            Undo(
                word="write",
                address=repair.address,
                there=repair.wanted.hex(),
                before=repair.there.hex(),
            )
            for repair in wanted
        )

        async def act() -> str:
            for repair in wanted:
                await self.machine.write_virtual(repair.address, repair.wanted)
            return f"{places}: as before, which was read back"

        places = ", ".join(f"{repair.address:#x}" for repair in wanted)
        return Prepared(f"write back what was at {places}", act, undo)

    async def _write_back(self, undo: Undo) -> str:
        data, va = bytes.fromhex(undo.before), Va(undo.address)
        place = AddressRange(Space.VIRTUAL, va, len(data))
        what = f"write {len(data)} bytes at {va:#x}"
        self.gate.require(Grant.WRITE, what, now=time.monotonic(), place=place)
        there = await self.machine.query(partial(_bytes_at, va=va, size=len(data)))
        if there != bytes.fromhex(undo.there):
            raise StepRefused(f"{va:#x} holds {there.hex()} by now, and not what was written")
        await self.machine.write_virtual(va, data)
        return f"{va:#x} holds again what it held"

    # ------------------------------------------------------------------------------------------- words

    async def _say(self, step: Say, scene: Scene) -> Prepared:
        notice = Notice(
            text=step.text,
            playbook=scene.playbook,
            run=scene.run,
            alerts=tuple(alert.evidence_hash for alert in scene.alerts),
        )

        async def act() -> str:
            self.say(step.kind, msgspec.to_builtins(notice))
            return f"said {step.text!r}"

        return Prepared(f"say {step.text!r} as {step.kind}", act)


def _problem(guest: GuestOS, *, repair: Repair) -> str:
    if problem := problem_of(repair, _kernel(guest).symbols.find):
        return problem
    there = _bytes_at(guest, va=repair.address, size=len(repair.there))
    if there != repair.there:
        return f"{repair.address:#x} holds {there.hex()} by now, and not what the evidence says"
    listings = (guest.system_calls, guest.interrupts)
    return disagreement(repair, (row for listing in listings for row in listing()))


def _bytes_at(guest: GuestOS, *, va: Va, size: int) -> bytes:
    return _kernel(guest).space.read(va, size)


def _kernel(guest: GuestOS) -> Kernel:
    """This is the kernel whose tables are written to.

    Raises:
        StepRefused: another system runs there.
    """
    if not isinstance(guest, LinuxGuest):
        raise StepRefused("no Linux runs there: of no other system is anything written back")
    return guest.kernel


def _json(value: object) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value)) + b"\n"
