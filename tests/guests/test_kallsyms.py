"""The symbols that are found are those of the guest's own /proc/kallsyms, to the byte."""

import hashlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

import qvmi
from qvmi.symbols.kallsyms import Kallsyms
from qvmi.symbols.live import LiveSymbols
from tests.asynchronous import asynchronous
from tests.guests.lab import Guest
from tests.guests.lab import Kallsyms as Truth
from tests.proofs import proof_size


@pytest.fixture(scope="module")
def truth(guest: Guest) -> Truth:
    return guest.kallsyms()


def _kallsyms(machine: qvmi.Machine) -> Kallsyms:
    symbols = machine.guest.kernel.symbols
    assert isinstance(symbols, LiveSymbols)
    return symbols.kallsyms


@asynchronous
async def test_digest_equals_the_guests_own(
    guest: Guest, truth: Truth, profiles: Path, proof_count: Callable[[int], None]
) -> None:
    digest, count = hashlib.sha256(), 0
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        for symbol in _kallsyms(machine).symbols():
            digest.update(f"{symbol.address:016x} {symbol.type} {symbol.name}\n".encode())
            count += 1
    assert (digest.hexdigest(), count) == (truth.sha256, truth.count)
    proof_count(count)


@asynchronous
async def test_finds_a_name_where_the_guest_has_it(
    guest: Guest, truth: Truth, profiles: Path
) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        assert {name: machine.symbols.find(name) for name in truth.addresses} == truth.addresses


@asynchronous
async def test_finds_each_name_that_is_unique(
    guest: Guest, profiles: Path, proof_count: Callable[[int], None]
) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        kallsyms = _kallsyms(machine)
        symbols = list(kallsyms.symbols())
        times = Counter(symbol.name for symbol in symbols)
        unique = [symbol for symbol in symbols if times[symbol.name] == 1]
        asked = unique[:: max(1, len(unique) // proof_size(ci=500, full=20_000))]
        assert [kallsyms.find(one.name) for one in asked] == [one.address for one in asked]
    proof_count(len(asked))


@asynchronous
async def test_a_name_that_the_kernel_lacks_is_not_found(guest: Guest, profiles: Path) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        lacking = ("", "linux_banne", "linux_bannerr", "~", "\xff", "no_such_symbol")
        assert [machine.symbols.find(name) for name in lacking] == [None] * len(lacking)


@asynchronous
async def test_the_nearest_symbol_is_the_one_an_address_lies_in(
    guest: Guest, truth: Truth, profiles: Path
) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        for name, at in truth.addresses.items():
            nearest = machine.symbols.nearest(qvmi.Va(at))
            assert nearest is not None, name
            assert nearest.address == at
        inside = machine.symbols.nearest(qvmi.Va(truth.addresses["init_task"] + 8))
        assert inside is not None
        assert (inside.name, inside.module) == ("init_task", "")
