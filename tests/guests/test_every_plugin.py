"""Every Linux plugin of Volatility does what the documents say on every kernel, and finds what is planted.

The truth is the guest's own word, over its serial line, and what was written into its memory.
"""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future

import pytest

from tests.guests.lab import Lab, MissingPartError
from tests.guests.volatility_observation import (
    AARCH64,
    OBSERVE_S,
    X86_64,
    Guests,
    Observation,
    linux_plugins,
    observe_all,
)
from tests.guests.volatility_survey import (
    SOMETIMES,
    check_planted,
    columns_of_document,
    outcomes_of,
    remark_of,
)

EVERY = (*X86_64, *AARCH64)
ALL_S = OBSERVE_S * len(EVERY)
"""The guests are observed one after the other, beside all other tests."""


@pytest.fixture(scope="session")
def observed(lab: Lab) -> Iterator[Mapping[str, Future[Observation]]]:
    """This is what was seen in a guest of each kernel, as it comes: whoever asks first begins it."""
    try:
        for kernel in EVERY:
            lab.provide(kernel)  # where it is seen what it fetches
    except MissingPartError as missing:
        pytest.skip(str(missing))
    with observe_all(EVERY) as coming:
        yield coming


@pytest.fixture(params=EVERY)
def seen(
    request: pytest.FixtureRequest, observed: Mapping[str, Future[Observation]]
) -> Observation:
    """This is what was seen in a guest of one kernel."""
    try:
        return observed[request.param].result()
    except MissingPartError as missing:
        pytest.skip(str(missing))


@pytest.mark.last
@pytest.mark.timeout(ALL_S)
def test_every_linux_plugin_does_what_the_document_says(
    seen: Observation, proof_count: Callable[[int], None]
) -> None:
    outcomes = outcomes_of(seen)
    table = AARCH64 if seen.kernel in AARCH64 else X86_64
    column = list(table).index(seen.kernel)
    written = {name: cells[column] for name, cells in columns_of_document(table).items()}
    assert {name: written[name] for name in outcomes} == outcomes
    assert SOMETIMES not in outcomes.values() or outcomes["linux.sockscan.Sockscan"] == SOMETIMES
    proof_count(len(outcomes))


@pytest.mark.last
@pytest.mark.timeout(ALL_S)
@pytest.mark.parametrize("seen", X86_64, indirect=True)
def test_a_plugin_finds_what_was_planted_for_it_and_nothing_else(
    seen: Observation, proof_count: Callable[[int], None]
) -> None:
    check_planted(seen)
    proof_count(sum(len(one.appears) for one in seen.planted.values()))


@pytest.mark.first
@pytest.mark.usefixtures("observed")
@pytest.mark.parametrize("table", [X86_64, AARCH64], ids=["x86_64", "aarch64"])
def test_the_document_has_every_plugin_and_no_other(table: Guests) -> None:
    written = columns_of_document(table)
    assert tuple(written) == linux_plugins()
    assert {name: cells[-1] for name, cells in written.items()} == {
        name: remark_of(name, table) for name in written
    }
