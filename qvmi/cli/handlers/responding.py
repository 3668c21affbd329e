"""Acting on alerts while watching: what the options of ``watch`` make of the responder."""

from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from qvmi.bus.message import Message
from qvmi.bus.topic import name_from
from qvmi.cli.declared.words import RESPONSE_HOLDER
from qvmi.cli.printing.output import Output
from qvmi.errors import UsageError
from qvmi.policy import Policies, Policy

if TYPE_CHECKING:
    from qvmi.machine.machine import Machine
    from qvmi.manager.companion import Companion
    from qvmi.manager.response.journal import Journal
    from qvmi.manager.response.playbook import Playbook
    from qvmi.manager.response.responder import Responder

__all__ = [
    "Response",
    "Wishes",
    "granted",
    "in_vain",
    "journal_path",
    "opened_journal",
    "responding",
]

_FOLDER: Final = "response"
_JOURNAL: Final = "journal"


@dataclass(frozen=True, slots=True)
class Wishes:
    """This is what the options of ``watch`` say of acting on alerts.

    Args:
        playbook: the file of playbooks; None for nothing.
        respond: whether what they say is done.
        state: the folder of the journal; None for the usual one.
    """

    playbook: str | None = None
    respond: bool = False
    state: str | None = None


@dataclass(frozen=True, slots=True)
class Response:
    """This is what alerts lead to.

    Args:
        responder: acts on them; None for nobody.
        asked: the codepacks that playbooks ask.
    """

    responder: "Responder | None" = None
    asked: Collection[str] = ()

    @property
    def companions(self) -> "Sequence[Companion]":
        """These work beside the codepacks."""
        return () if self.responder is None else (self.responder,)

    async def heard(self, messages: AsyncIterator[Message]) -> AsyncIterator[Message]:
        """These are the messages of others, each of which the responder has heard, too."""
        async for message in messages:
            if self.responder is not None:
                if message.codepack == RESPONSE_HOLDER:  # it has told of that already
                    continue
                self.responder.take(message)
            yield message


@asynccontextmanager
async def responding(
    machine: object,
    output: Output,
    tell: Callable[[Message], None],
    wishes: Wishes,
    *,
    policies: Policies,
    packs: Collection[str],
) -> AsyncIterator[Response]:
    """This makes the responder that the options ask for; at the end it undoes what is to be undone.

    Raises:
        UsageError: the options do not fit together, or what was done cannot be noted.
        BadSettings: the playbooks cannot be used.
    """
    if wishes.playbook is None:
        if wishes.respond:
            raise UsageError("--respond goes with --playbook FILE, which says what is done")
        yield Response()
        return
    from qvmi.manager.response.playbook_file import read_playbooks

    playbooks = read_playbooks(Path(wishes.playbook))
    live = _live(machine, packs)
    acts = wishes.respond
    noting = opened_journal(wishes.state, name_from(live.address)) if acts else nullcontext()
    with noting as journal:
        policy = granted(policies)
        responder = _responder(live, playbooks, policy, journal, tell)
        names = ", ".join(one.name for one in playbooks)
        how = "done as far as it is granted" if acts else "told and not done: --respond does it"
        output.message(f"playbooks: {names}; what they say is {how}")
        for words in in_vain(playbooks, policy, packs):
            output.message(words)
        try:
            yield Response(responder, {one.when.ask.codepack for one in playbooks if one.when.ask})
        finally:
            await responder.close()


def _live(machine: object, packs: Collection[str]) -> "Machine":
    """This is the machine.

    Raises:
        UsageError: it is none that runs, or a codepack has the responder's name.
    """
    from qvmi.machine.machine import Machine

    if not isinstance(machine, Machine):
        raise UsageError("playbooks are for a live machine")
    if RESPONSE_HOLDER in packs:
        raise UsageError(f"the name {RESPONSE_HOLDER!r} of a codepack is taken by the responder")
    return machine


def _responder(
    machine: "Machine",
    playbooks: "Sequence[Playbook]",
    policy: Policy,
    journal: "Journal | None",
    tell: Callable[[Message], None],
) -> "Responder":
    from qvmi.cli.printing.response_report import response_page
    from qvmi.manager.response.responder import Responder

    return Responder(
        machine,
        playbooks,
        vm=name_from(machine.address),
        policy=policy,
        journal=journal,
        tell=tell,
        report=response_page,
    )


def granted(policies: Policies) -> Policy:
    """This is what whoever acts on alerts may do: what its own table says, and nothing else."""
    return policies.named.get(RESPONSE_HOLDER, Policy(frozenset()))


def in_vain(
    playbooks: "Sequence[Playbook]", policy: Policy, packs: Collection[str]
) -> Iterator[str]:
    """These are words on what of playbooks cannot come to pass: a file may be for other watches, too."""
    from qvmi.manager.response.steps import NEEDS
    from qvmi.settings import nearest

    needed = {
        grant for one in playbooks for step in one.then for grant in NEEDS.get(type(step), ())
    }
    if missing := sorted(grant for grant in needed if not policy.allows(grant)):
        lacks = f"not granted to {RESPONSE_HOLDER}: {', '.join(missing)}"
        table = f"[codepacks.{RESPONSE_HOLDER}]"
        yield f"{lacks}: steps that need it are refused; {table} in --policy FILE grants it"
    for one in playbooks:
        others = [other.codepack for other in (one.when.agree, one.when.ask) if other is not None]
        for name in dict.fromkeys([one.when.codepack, *others]):
            if name is not None and name not in packs:
                near = nearest(name, list(packs))
                yield f"playbook {one.name} waits for codepack {name!r}, which is not here{near}"


def opened_journal(state: str | None, vm: str) -> "Journal":
    """This opens the journal of what was done to a machine.

    Raises:
        UsageError: it cannot be opened, or somebody else has it.
    """
    from qvmi.manager.response.journal import Journal

    return Journal(journal_path(state, vm))


def journal_path(state: str | None, vm: str) -> Path:
    """This is where the journal of what was done to a machine is, or would be."""
    from qvmi.manager.home import default_state_folder

    folder = default_state_folder() if state is None else Path(state)
    return folder / vm / _FOLDER / _JOURNAL
