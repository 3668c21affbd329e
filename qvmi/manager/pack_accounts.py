"""The accounts of codepacks: with new secrets for each process that is started again."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from qvmi.bus.account import Account
from qvmi.errors import BusError, CodepackError
from qvmi.manager.accounts import outbox_account, pack_account
from qvmi.manager.pack_spec import PackSpec

if TYPE_CHECKING:
    from qvmi.bus.throttle import Admission, Throttle

__all__ = ["PackAccounts"]


class PackAccounts:
    """These are the accounts of one machine's codepacks, two of each: one speaks and asks, one sends alerts.

    Args:
        vm: the machine's name on the bus.
        packs: the codepacks.

    Attributes:
        throttle: lets in again whom it has put out; set with :attr:`admission` before any is renewed.
        admission: who lets accounts in.
    """

    def __init__(self, vm: str, packs: Iterable[PackSpec]) -> None:
        self.admission: Admission | None = None
        self.throttle: Throttle | None = None
        self._vm: Final = vm
        self._used: set[str] = set()
        self._of = {spec.name: self._made(spec) for spec in packs}

    @property
    def all(self) -> list[Account]:
        """These are the accounts of all codepacks."""
        return [account for pair in self._of.values() for account in pair]

    def of(self, codepack: str) -> tuple[Account, Account]:
        """These are a codepack's: that which speaks, and that of its outbox."""
        return self._of[codepack]

    async def renew(self, spec: PackSpec) -> None:
        """This gives a codepack other secrets, unless it was never told those that it has.

        Raises:
            CodepackError: the broker does not take note of it.
        """
        if spec.name not in self._used or self.admission is None:
            self._used.add(spec.name)
            return
        pair = self._of[spec.name] = self._made(spec)
        try:
            for account in pair:
                if self.throttle is not None:
                    self.throttle.replace(account)
                await self.admission.admit(account)
        except BusError as error:
            raise CodepackError(spec.name, f"its secret cannot be changed: {error}") from error

    async def revoke(self, codepack: str) -> None:
        """This lets a codepack in no more; BusError where the broker does not take note of it."""
        for account in self._of[codepack]:
            if self.throttle is not None:
                self.throttle.forget(account)
            if self.admission is not None:
                await self.admission.revoke(account.name)

    def _made(self, spec: PackSpec) -> tuple[Account, Account]:
        speaks = pack_account(self._vm, spec.name, spec.policy)
        return speaks, outbox_account(self._vm, spec.name)
