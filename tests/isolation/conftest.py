"""A bench for each test."""

import os
from collections.abc import Iterator

import pytest

from tests.isolation.bench import Bench, bench


@pytest.fixture(name="bench")
def made_bench() -> Iterator[Bench]:
    if os.geteuid() != 0:
        pytest.skip("network namespaces and their bridges are made by root")
    with bench() as made:
        yield made
