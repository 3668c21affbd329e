"""A bench for each test."""

from collections.abc import Iterator

import pytest

from tests.isolation.bench import Bench, bench


@pytest.fixture(name="bench")
def made_bench() -> Iterator[Bench]:
    with bench() as made:
        yield made
