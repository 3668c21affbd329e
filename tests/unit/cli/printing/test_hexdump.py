"""Bytes are dumped as `hexdump -C` does."""

from itertools import chain

from hypothesis import given
from hypothesis import strategies as st

from qvmi.cli.printing.hexdump import hexdump


def test_prints_address_bytes_and_text() -> None:
    # As `hexdump -C` of util-linux prints it, but for the width of the address.
    assert list(hexdump(b"Linux version 6.1\x00\xff", 0xFFFF_FFFF_B151_FFE0)) == [
        "ffffffffb151ffe0  4c 69 6e 75 78 20 76 65  72 73 69 6f 6e 20 36 2e  |Linux version 6.|",
        "ffffffffb151fff0  31 00 ff                                          |1..|",
    ]


def test_prints_nothing_for_no_bytes() -> None:
    assert list(hexdump(b"", 0)) == []


@given(st.binary(max_size=100))
def test_the_bytes_can_be_read_back(data: bytes) -> None:
    lines = hexdump(data, 0)
    assert bytes.fromhex("".join(chain(line[18:66] for line in lines))) == data


@given(st.binary(max_size=100))
def test_no_byte_reaches_a_terminal_as_a_control(data: bytes) -> None:
    assert all(line.isascii() and line.isprintable() for line in hexdump(data, 0))
