"""Guests for any test: thawed or booted as the machine a test asks for, gone when the test ends."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import settings

from tests.guests.lab import Lab, chosen_qemu
from tests.guests.pool import GuestPool

UNITS = Path(__file__).parent / "unit"

# How long an example takes says how busy the host is, nothing about the subject.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """This puts tests without a guest behind what begins to run beside the others, which has a core then."""
    items.sort(key=_turn)


def _turn(item: pytest.Item) -> int:
    if item.get_closest_marker("first"):
        return 0
    if item.get_closest_marker("last"):
        return 3
    return 1 if item.path.is_relative_to(UNITS) else 2


@pytest.fixture(scope="session")
def lab(pytestconfig: pytest.Config) -> Lab:
    say = _speaker(pytestconfig)
    return Lab(say=say, qemu=chosen_qemu(say=say))


def _speaker(config: pytest.Config) -> Callable[[str], None]:
    """Return what prints past the capturing: a first boot of a machine may take its time."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    capture = config.pluginmanager.get_plugin("capturemanager")

    def say(text: str) -> None:
        if reporter and capture:
            with capture.global_and_fixture_disabled():
                reporter.write_line(text)

    return say


@pytest.fixture
def guests(lab: Lab) -> Iterator[GuestPool]:
    """This makes guests for one test: ``guests.restore(GuestConfig(...))``."""
    with ExitStack() as stack:
        yield GuestPool(lab, stack)
