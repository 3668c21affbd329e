"""Addresses: which ones an address space can have at all."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvmi.addr import Va, canonical


@pytest.mark.parametrize(
    ("va", "va_bits", "answer"),
    [
        (0, 48, True),
        (0x0000_7FFF_FFFF_FFFF, 48, True),
        (0x0000_8000_0000_0000, 48, False),
        (0xFFFF_7FFF_FFFF_FFFF, 48, False),
        (0xFFFF_8000_0000_0000, 48, True),
        (0x00FF_FFFF_FFFF_FFFF, 57, True),
        (0x0100_0000_0000_0000, 57, False),
        (0xFF00_0000_0000_0000, 57, True),
        ((1 << 64) - 1, 48, True),
        (1 << 64, 48, False),
        (-1, 48, False),
    ],
)
def test_an_address_is_canonical_if_its_upper_bits_are_alike(
    va: int, va_bits: int, *, answer: bool
) -> None:
    assert canonical(Va(va), va_bits) is answer


@given(st.integers(0, (1 << 64) - 1), st.sampled_from([48, 57]))
def test_canonical_addresses_are_the_sign_extended_ones(va: int, va_bits: int) -> None:
    low = va & (1 << va_bits) - 1
    extended = low | (-1 << va_bits if low >> (va_bits - 1) else 0)
    assert canonical(Va(va), va_bits) == (va == extended % (1 << 64))
