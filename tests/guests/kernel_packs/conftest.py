"""Guests whose kernels are tampered with, the same for all tests of this folder."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.guests.aarch64_guests import aarch64
from tests.guests.kernel_packs.tampered_kernel import (
    EVERY,
    KnownSymbols,
    Tampered,
    tampered_kernel,
)
from tests.guests.lab import GuestConfig, Lab
from tests.guests.pool import GuestPool


@pytest.fixture(scope="package", params=EVERY)
def kernel(
    lab: Lab, profiles: Path, known_symbols: KnownSymbols, request: pytest.FixtureRequest
) -> Iterator[Tampered]:
    """This is a guest that stands still, of each kernel."""
    name = str(request.param)
    config = aarch64(gdbstub=True) if name.endswith("-arm64") else GuestConfig(kernel=name)
    with ExitStack() as stack:
        guest = GuestPool(lab, stack).restore(config)
        yield stack.enter_context(tampered_kernel(guest, profiles, known_symbols))
