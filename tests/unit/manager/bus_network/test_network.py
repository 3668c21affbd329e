"""What a bus network refuses, and that a service VM's place stays its own."""

import sys
from pathlib import Path

import pytest

from qvmi.errors import BusNetworkFailed, UsageError
from qvmi.manager.bus_network.bridge import MAX_SEATS
from qvmi.manager.bus_network.command import run
from qvmi.manager.bus_network.host_facts import look_at_host
from qvmi.manager.bus_network.level import Choice, Way
from qvmi.manager.bus_network.network import bus_network
from tests.asynchronous import asynchronous

SOCKET = Path("/run/a folder, of mine/mqtt.sock")
FORWARDED = Choice(Way.GUESTFWD)


@asynchronous
async def test_a_service_has_one_place_however_often_it_asks() -> None:
    async with bus_network(FORWARDED) as network:
        first = await network.seat("first", SOCKET)
        assert await network.seat("first", SOCKET) == first
        assert await network.seat("second", SOCKET) != first


@asynchronous
async def test_more_places_than_a_bus_has_are_refused() -> None:
    async with bus_network(FORWARDED) as network:
        for number in range(MAX_SEATS):
            await network.seat(f"service-{number}", SOCKET)
        with pytest.raises(BusNetworkFailed, match="250 places"):
            await network.seat("one-more", SOCKET)


@asynchronous
async def test_commas_and_spaces_in_a_path_are_quoted_for_qemu() -> None:
    async with bus_network(FORWARDED) as network:
        seat = await network.seat("first", SOCKET)
    assert "'/run/a folder,, of mine/mqtt.sock'" in seat.netdev
    assert "restrict=on" in seat.netdev


@asynchronous
async def test_what_is_no_name_is_refused() -> None:
    with pytest.raises(UsageError):
        async with bus_network(FORWARDED, instance="../x"):
            raise AssertionError("it was not refused")


@asynchronous
async def test_a_qemu_that_is_not_there_is_an_obstacle_with_its_name() -> None:
    facts = await look_at_host("no-such-qemu")
    assert "no-such-qemu" in facts.obstacles[Way.GUESTFWD]


@asynchronous
async def test_a_tool_that_fails_tells_its_own_words() -> None:
    program = (sys.executable, "-c", "raise SystemExit('its words')")
    with pytest.raises(BusNetworkFailed, match="its words"):
        await run(*program)
    with pytest.raises(BusNetworkFailed, match="cannot be run"):
        await run("/no/such/program")
