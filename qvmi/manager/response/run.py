"""One run of a playbook, from its first step to its last; in the end the guest runs, whatever failed."""

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from typing import Final, ParamSpec, TypeVar

from qvmi.audit import LOGGER
from qvmi.codepacks.alert import Alert
from qvmi.errors import PolicyDenied, QvmiError, StepRefused
from qvmi.machine.completion import ended, to_the_end
from qvmi.manager.records import note, record
from qvmi.manager.response.actor import Actor
from qvmi.manager.response.journal import Journal, Run
from qvmi.manager.response.playbook import OnFailure, Playbook
from qvmi.manager.response.prepared import Prepared
from qvmi.manager.response.records import Outcome, Record
from qvmi.manager.response.scene import Scene
from qvmi.manager.response.steps import STEPS, Pause, Resume, Step
from qvmi.manager.response.stillness import Stillness

__all__ = ["PlaybookRun", "audit", "noting", "undo_run"]

Noted = ParamSpec("Noted")
Result = TypeVar("Result")

_WORDS: Final = {kind: word for word, kind in STEPS.items()}
_BAD: Final = frozenset({Outcome.REFUSED, Outcome.FAILED})

_audit: Final = logging.getLogger(LOGGER)

Tell = Callable[[Record], None]
"""Takes what is told of a run."""


class PlaybookRun:
    """This takes the steps of a playbook.

    Args:
        playbook: which one.
        alerts: what led to it.
        name: of the run.
        vm: the machine's name on the bus.
        actor: takes the steps.
        journal: what is done is noted in; None for a dry run, which does nothing.
        tell: takes what is told of it.
    """

    def __init__(  # noqa: PLR0913 - what a run is made of
        self,
        playbook: Playbook,
        alerts: tuple[Alert, ...],
        *,
        name: str,
        vm: str,
        actor: Actor,
        journal: Journal | None,
        tell: Tell,
    ) -> None:
        self._playbook = playbook
        self._actor = actor
        self._journal = journal
        self._noted: Run | None = None
        self._tell_others = tell
        self._raised = min((alert.last_seen for alert in alerts), default=time.time())
        stillness = Stillness(actor.machine, self._pause_was_ended)
        self.scene = Scene(name, vm, playbook.name, alerts, playbook.folder, stillness)

    async def play(self) -> None:
        """This takes all steps."""
        if self._journal is not None:
            scene = self.scene
            self._noted = await noting(self._journal.begin, scene.run, scene.playbook, scene.alerts)
        await self._play(1)

    async def go_on(self, noted: Run) -> None:
        """This takes the steps of a run that was cut off, from the one that had not ended."""
        self._noted = noted
        first = noted.next_step
        if self._stops_for(*noted.ended.values()):  # it was cut off as it was about to end
            self._leave_out(self._steps[first - 1 :])
            await self._end()
            return
        pauses = [one for one in self._steps[: first - 1] if isinstance(one[1], Pause | Resume)]
        if pauses and isinstance(pauses[-1][1], Pause):  # it was over with whoever held it
            await self._take(*pauses[-1])
        await self._play(first)

    @property
    def _steps(self) -> list[tuple[int, Step]]:
        return list(enumerate(self._playbook.then, start=1))

    async def _play(self, first: int) -> None:
        steps = self._steps[first - 1 :]
        try:
            while steps:
                if self._stops_for(await self._take(*steps.pop(0))):
                    self._leave_out(steps)
                    break
        finally:
            await to_the_end(self._let_run())
        await self._end()

    def _stops_for(self, *outcomes: Outcome) -> bool:
        """This tells whether no further step is taken behind these."""
        return self._playbook.on_failure is OnFailure.STOP and not _BAD.isdisjoint(outcomes)

    async def _end(self) -> None:
        """This notes that the run is over."""
        if self._journal is not None and self._noted is not None:
            await noting(self._journal.end, self._noted)

    async def _take(self, number: int, step: Step) -> Outcome:
        """This takes one step; whatever becomes of it is told."""
        done = ""
        try:
            prepared = await self._actor.prepare(step, self.scene)
            if self._journal is None:
                return self._tell(number, step, Outcome.WOULD_DO, prepared.what)
            await self._note_begin(self._journal, number, step, prepared)
            done = f"not all of it: {prepared.what}"
            what = await prepared.act()
        except QvmiError as error:
            outcome = _outcome_of(error)
            await self._note_end(number, outcome)
            return self._tell(number, step, outcome, done, str(error))
        await self._note_end(number, Outcome.DONE)
        return self._tell(number, step, Outcome.DONE, what)

    async def _note_begin(
        self, journal: Journal, number: int, step: Step, prepared: Prepared
    ) -> None:
        """This makes sure that it will be known what was begun, before it is.

        Raises:
            UsageError, AuditFailed: that cannot be kept; but a guest is let run all the same.
        """
        words = f"{self.scene.run}: step {number} begins: {prepared.what}"
        if isinstance(step, Resume):
            note("response %s", words)
            return
        _audit.info("response %s", words)
        if self._noted is not None:
            await noting(journal.begin_step, self._noted, number, prepared.undo)

    async def _note_end(self, number: int, outcome: Outcome) -> None:
        if self._journal is not None and self._noted is not None:
            try:
                await noting(self._journal.end_step, self._noted, number, outcome)
            except QvmiError as error:
                record("response %s: %s", self.scene.run, error)

    def _leave_out(self, steps: list[tuple[int, Step]]) -> None:
        for number, step in steps:
            self._tell(number, step, Outcome.LEFT_OUT, "", "a step before it was not done")

    async def _let_run(self) -> None:
        """This ends the pause that the run is in, if any, and says so."""
        stillness = self.scene.stillness
        held = stillness.is_held
        try:
            await stillness.end()
        except QvmiError as error:
            self.say(Outcome.FAILED, "the guest was let run", str(error))
        else:
            if held:
                self.say(Outcome.DONE, "the guest runs, as the run has ended")

    def _pause_was_ended(self, lasted_s: float) -> None:
        self.say(
            Outcome.FAILED,
            "the guest runs again",
            f"its pause had lasted as long as it may: {lasted_s:.3f} s in all",
        )

    def say(self, outcome: Outcome, what: str, problem: str = "") -> None:
        """This tells something of the run as a whole."""
        self._tell(0, None, outcome, what, problem)

    def _tell(
        self, number: int, step: Step | None, outcome: Outcome, what: str, problem: str = ""
    ) -> Outcome:
        told = Record(
            playbook=self.scene.playbook,
            run=self.scene.run,
            step=number,
            word="" if step is None else _WORDS[type(step)],
            outcome=outcome,
            what=what,
            problem=problem,
            alerts=tuple(alert.evidence_hash for alert in self.scene.alerts),
            paused_s=self.scene.stillness.total_s,
            alert_age_s=max(0.0, time.time() - self._raised),
        )
        self.scene.records.append(told)
        self._tell_others(told)
        return outcome


async def noting(note: Callable[Noted, Result], *what: Noted.args, **more: Noted.kwargs) -> Result:
    """This has a journal note something, which waits for the disk and holds up nobody else meanwhile.

    A cancel counts only then: nobody may close a journal that is being written to.

    Raises:
        UsageError: it cannot be noted.
    """
    writing = asyncio.ensure_future(asyncio.to_thread(note, *what, **more))
    cancelled = await ended(writing)
    if cancelled is not None:
        raise cancelled from writing.exception()
    return writing.result()


async def undo_run(
    noted: Run, actor: Actor, journal: Journal, tell: Tell, *, kept: Collection[Run] = ()
) -> bool:
    """This undoes what a run has done, the last thing first, and tells of each.

    Args:
        noted: the run.
        actor: undoes it.
        journal: takes note of it.
        tell: takes what is told of it.
        kept: runs that are not to be undone: what one of them has done, too, stays.

    Returns:
        Whether all of it could be undone.
    """
    well = True
    for step, undo in reversed(noted.undo):
        others = [run.name for run in kept if any(undo == one for _, one in run.undo)]
        try:
            if others:
                what, outcome = "it stays as it is", Outcome.LEFT_OUT
                problem = f"{others[-1]} has done the same, and is not undone"
            else:
                _audit.info("response %s: undoes step %d: %s", noted.name, step, undo.word)
                what, problem, outcome = await actor.undo(undo), "", Outcome.UNDONE
        except QvmiError as error:
            what, problem, outcome = "not undone", str(error), _outcome_of(error)
            well = False
        tell(
            Record(
                playbook=noted.playbook,
                run=noted.name,
                step=step,
                word=undo.word,
                outcome=outcome,
                what=what,
                problem=problem,
                alerts=tuple(alert.evidence_hash for alert in noted.alerts),
            )
        )
    await noting(journal.end, noted, undone=well)
    return well


def audit(told: Record) -> None:
    """This tells the audit log what became of a step, as everybody else is told; it cannot be taken back."""
    note("response %s", told.in_words)


def _outcome_of(error: QvmiError) -> Outcome:
    refused = isinstance(error, PolicyDenied | StepRefused)
    return Outcome.REFUSED if refused else Outcome.FAILED
