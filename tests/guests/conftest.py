"""Guests that the tests of this folder look at, each beside its own truth."""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.guests.kernel_packs.tampered_kernel import KnownSymbols
from tests.guests.lab import KERNELS, Guest, GuestConfig, Lab
from tests.guests.pool import GuestPool


@pytest.fixture(scope="session")
def profiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This is a cache of profiles that no test damages; the first attach to a kernel fills it."""
    return tmp_path_factory.mktemp("profiles")


@pytest.fixture(scope="session")
def known_symbols() -> KnownSymbols:
    """This is where symbols lie, as guests told it: it takes them a second."""
    return {}


@pytest.fixture(scope="module", params=KERNELS)
def guest(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Guest]:
    """This is a running guest of each kernel, the same for all tests of a module."""
    with ExitStack() as stack:
        yield GuestPool(lab, stack).restore(GuestConfig(kernel=request.param))


@pytest.fixture
def state() -> Iterator[Path]:
    """This is a folder that other users' processes can reach, as those below pytest's are not."""
    with tempfile.TemporaryDirectory(prefix="qvmi-state-") as folder:
        Path(folder).chmod(0o711)
        yield Path(folder)
