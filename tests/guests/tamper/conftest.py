"""Guests to tamper with, the same for all tests of this folder."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.guests.aarch64_guests import aarch64
from tests.guests.kernel_packs.tampered_kernel import KnownSymbols
from tests.guests.lab import GuestConfig, Lab
from tests.guests.pool import GuestPool
from tests.guests.tamper.scenario import X86_64
from tests.guests.tamper.scene import Scene, scene_of
from tests.guests.watched import Watched


@pytest.fixture(scope="package", params=X86_64)
def scene(
    lab: Lab, profiles: Path, known_symbols: KnownSymbols, request: pytest.FixtureRequest
) -> Iterator[Scene]:
    """This is a running guest of each kernel, which tests leave as they found it."""
    with ExitStack() as stack:
        guest = GuestPool(lab, stack).restore(GuestConfig(kernel=request.param))
        yield stack.enter_context(scene_of(guest, profiles, known_symbols))


@pytest.fixture(scope="package")
def arm(lab: Lab, profiles: Path, known_symbols: KnownSymbols) -> Iterator[Scene]:
    """This is the same on arm64."""
    with ExitStack() as stack:
        guest = GuestPool(lab, stack).restore(aarch64(gdbstub=True))
        yield stack.enter_context(scene_of(guest, profiles, known_symbols))


@pytest.fixture
def its(scene: Scene) -> Watched:
    """This is the same guest as `scene`, for who does not stop it."""
    return scene.its
