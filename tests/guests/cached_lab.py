"""Files that a guest is made to hold in memory, each kind in a known way, and what it says of them."""

from dataclasses import dataclass
from typing import Final, Self

from tests.guests.lab import Guest

__all__ = ["FOLDER", "TOLD", "Told"]

FOLDER: Final = "/run/cached"
_MAKING: Final = """
echo 0 > /proc/sys/vm/dirty_writeback_centisecs; mkdir -p {0}/deep/er
dd if=/dev/urandom of={0}/large bs=4k count=700
dd if=/dev/urandom of={0}/holes bs=4k count=3 seek=500
dd if=/dev/urandom of={0}/holes bs=4k count=1 conv=notrunc; truncate -s 5000001 {0}/holes
printf 'hello secret-marker-4711' > {0}/deep/er/small
mkdir {0}/huge; mount -t tmpfs -o huge=always,size=64m huge {0}/huge
dd if=/dev/urandom of={0}/huge/folios bs=1M count=5
mkdir {0}/twin; mount -t tmpfs twin {0}/twin; printf twin > {0}/twin/file
truncate -s 16M {0}/image; mke2fs -F {0}/image; mknod /dev/loop0 b 7 0; losetup /dev/loop0 {0}/image
blockdev --setra 0 /dev/loop0; mkdir {0}/disk; mount -t ext4 /dev/loop0 {0}/disk
dd if=/dev/urandom of={0}/disk/part bs=4k count=300; cp {0}/disk/part {0}/disk/none
cp {0}/disk/part {0}/part; sync; echo 3 > /proc/sys/vm/drop_caches
dd if={0}/disk/part of=/dev/null bs=4k count=40 skip=100
dd if=/dev/urandom of={0}/disk/dirty bs=4k count=20; printf x > {0}/disk/byte
mkdir {0}/lower {0}/upper {0}/work {0}/merged {0}/bound; printf below > {0}/lower/one
mount -t overlay -o lowerdir={0}/lower,upperdir={0}/upper,workdir={0}/work overlay {0}/merged
printf ' changed' >> {0}/merged/one; mount --bind {0}/deep/er {0}/bound
dd if=/dev/urandom of={0}/gone bs=1000 count=9; sleep 1000000 9<{0}/gone >/dev/null 2>&1 & echo $! > {0}/pid
while ! [ -e /proc/$(cat {0}/pid)/fd/9 ]; do sleep 0.1; done; rm {0}/gone
"""
"""Of the sparse file pages 0 and 500 to 502 are there, and its size is no multiple of a page. Each line is a
request of its own."""

TOLD: Final = ("large", "holes", "deep/er/small", "huge/folios", "image", "disk/dirty", "upper/one")
"""Files that are whole in memory."""


@dataclass(frozen=True, slots=True)
class Told:
    """This is what a guest says of such files.

    Attributes:
        sleeper: the process that holds the deleted file.
        sums: SHA-256 by the path below the folder; `gone` is the deleted file.
        sizes: in bytes; `inodes` likewise.
        pages: those that a file in memory takes, of 4 KiB.
    """

    sleeper: int
    sums: dict[str, str]
    sizes: dict[str, int]
    inodes: dict[str, int]
    pages: dict[str, int]

    @classmethod
    def by(cls, guest: Guest) -> Self:
        """This has a guest make the files, and asks about them."""
        for line in _MAKING.strip().split("\n"):
            guest.run(line.format(FOLDER))
        sleeper = int(guest.run(f"cat {FOLDER}/pid"))
        names = [*TOLD, "part"]
        sums, stats = (
            [
                line.split()
                for line in guest.run(f"cd {FOLDER}; {command} {' '.join(names)}")
                .decode()
                .split("\n")
                if line
            ]
            for command in ("sha256sum", "stat -c '%n %s %i %b'")
        )
        gone = guest.run(f"sha256sum /proc/{sleeper}/fd/9").decode().split()[0]
        return cls(
            sleeper,
            {**{name: digest for digest, name in sums}, "gone": gone},
            {name: int(size) for name, size, _, _ in stats},
            {name: int(inode) for name, _, inode, _ in stats},
            {name: int(blocks) // 8 for name, _, _, blocks in stats},
        )
