"""Asking the manager: a question goes over the bus, an answer or an error comes back."""

from collections.abc import Awaitable, Callable
from typing import Final, Protocol, TypeVar

import msgspec

from qvmi.errors import BadMessage
from qvmi.remote.messages import Answer, MachineState, Question

__all__ = ["ANSWER_S", "Ask", "Asking"]

ANSWER_S: Final = 10.0
"""How long an answer may take: as long as QEMU's own and what happens between."""

Told = TypeVar("Told")


class Ask(Protocol):
    """This carries the body of one question to the manager, and brings back that of the answer."""

    def __call__(
        self, question: dict[str, object], *, timeout_s: float
    ) -> Awaitable[dict[str, object]]:
        """This asks; it raises BusError where no answer comes."""
        ...


class Asking:
    """This asks typed questions.

    Args:
        ask: carries them.
        heard: is told the machine's state, which comes with each answer.
    """

    def __init__(self, ask: Ask, heard: Callable[[MachineState], None]) -> None:
        self._ask = ask
        self._heard = heard

    async def ask(
        self, question: Question, told: type[Told], *, timeout_s: float = ANSWER_S
    ) -> Told:
        """This asks, and is what was told.

        Raises:
            BusError: no answer came, or one that is none.
            QvmiError: what the manager has refused it with.
        """
        body: dict[str, object] = msgspec.to_builtins(question)
        answer = _read(await self._ask(body, timeout_s=timeout_s), Answer)
        self._heard(answer.state)
        if answer.refusal is not None:
            raise answer.refusal.error()
        return _read(answer.told, told)


def _read(body: dict[str, object], kind: type[Told]) -> Told:
    try:
        return msgspec.convert(body, kind)
    except msgspec.ValidationError as error:
        raise BadMessage(f"answer of the manager: {error}") from error
