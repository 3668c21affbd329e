"""The guest's init is right where nothing else in the guest could tell: its digest and its channel."""

import hashlib
import re
import subprocess
from pathlib import Path

import pytest

from tests.guests.lab import GuestConfig
from tests.guests.lab.initramfs import INIT_SOURCES
from tests.guests.pool import GuestPool

DRIVER = r"""
#include <stdio.h>
#include "sha256.h"
int main(void) {
    struct sha256 hash;
    char block[7], hex[SHA256_HEX_SIZE];
    size_t got;
    sha256_start(&hash);
    while ((got = fread(block, 1, sizeof block, stdin)) > 0)
        sha256_add(&hash, block, got);
    sha256_hex(&hash, hex);
    puts(hex);
}
"""
BLOCK = 64  # bytes; FIPS 180-4 pads to whole blocks, and with 8 bytes of length
LENGTHS = (0, 1, BLOCK - 9, BLOCK - 8, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK - 8, 100_003)


@pytest.fixture(scope="module")
def sha256_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sha256")
    (folder / "driver.c").write_text(DRIVER)
    sources = (folder / "driver.c", INIT_SOURCES / "sha256.c")
    subprocess.run(
        ["gcc", "-O1", f"-I{INIT_SOURCES}", "-o", folder / "sha256", *sources],
        check=True,
        timeout=60,
    )
    return folder / "sha256"


@pytest.mark.parametrize("length", LENGTHS)
def test_digest_is_that_of_the_standard(sha256_program: Path, length: int) -> None:
    data = bytes(i * 7 & 0xFF for i in range(length))
    said = subprocess.run([sha256_program], input=data, capture_output=True, check=True, timeout=60)
    assert said.stdout.decode().strip() == hashlib.sha256(data).hexdigest()


def test_kallsyms_digest_is_what_busybox_computes(guests: GuestPool) -> None:
    guest = guests.restore(GuestConfig())
    kallsyms = guest.kallsyms()
    guest.run("grep -v '\\[' /proc/kallsyms > /tmp/kernel")
    found = re.fullmatch(
        rb"(\w{64})  /tmp/kernel\n(\d+) /tmp/kernel\n(\d+)\n",
        guest.run("cd /tmp; sha256sum /tmp/kernel; wc -l /tmp/kernel; wc -l < /proc/kallsyms"),
    )
    assert found
    assert (found[1].decode(), int(found[2])) == (kallsyms.sha256, kallsyms.count)
    assert int(found[3]) - int(found[2]) == sum(kallsyms.module_symbols.values())


def test_passes_every_byte_through_the_control_port(guests: GuestPool) -> None:
    guest = guests.restore(GuestConfig())
    command = r"i=0; while [ $i -lt 256 ]; do printf \\x$(printf %x $i); i=$((i+1)); done"
    assert guest.run(command) == bytes(range(256))


def test_answers_longer_than_every_buffer_between_us_arrive_whole(guests: GuestPool) -> None:
    guest = guests.restore(GuestConfig())
    assert guest.run("yes 0123456789 | head -n 6000") == b"0123456789\n" * 6000
