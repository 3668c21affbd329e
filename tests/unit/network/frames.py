"""Frames to read, and captures of them."""

import struct
import subprocess
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path

__all__ = ["as_tcpdump_reads", "capture", "dns_answer", "frame", "label_name"]

CARD = bytes.fromhex("525400000066")
OTHER = bytes.fromhex("525400000001")


def frame(  # noqa: PLR0913 - one for each part of it
    source: tuple[str, int],
    target: tuple[str, int],
    *,
    protocol: str = "tcp",
    flags: int = 0x18,
    payload: bytes = b"",
    tags: Sequence[int] = (),
    options: bytes = b"",
) -> bytes:
    """This is a frame of TCP or UDP, without checksums."""
    ports = struct.pack(">HH", source[1], target[1])
    if protocol == "tcp":
        body = ports + struct.pack(">IIBBHHH", 1, 1, 0x50, flags, 1000, 0, 0) + payload
    else:
        body = ports + struct.pack(">HH", 8 + len(payload), 0) + payload
    number = {"tcp": 6, "udp": 17}[protocol]
    ends = ip_address(source[0]).packed + ip_address(target[0]).packed
    if ip_address(source[0]).version == 4:
        header = struct.pack(
            ">BBHHHBBH",
            0x45 + len(options) // 4,
            0,
            20 + len(options) + len(body),
            1,
            0,
            64,
            number,
            0,
        )
        packet, kind = header + ends + options + body, 0x0800
    else:
        header = struct.pack(
            ">IHBB", 6 << 28, len(options) + len(body), 0 if options else number, 64
        )
        packet, kind = header + ends + options + body, 0x86DD
    tagged = b"".join(struct.pack(">HH", tag, 5) for tag in tags)
    return OTHER + CARD + tagged + struct.pack(">H", kind) + packet


def capture(frames: Sequence[bytes], order: str = "<", magic: int = 0xA1B2C3D4) -> bytes:
    """This is a capture file of them."""
    head = struct.pack(f"{order}IHHiIII", magic, 2, 4, 0, 0, 65535, 1)
    return head + b"".join(
        struct.pack(f"{order}IIII", 1, 2, len(one), len(one)) + one for one in frames
    )


def as_tcpdump_reads(folder: Path, content: bytes) -> list[str]:
    """These are the lines that tcpdump prints of a capture."""
    path = folder / "capture.pcap"
    path.write_bytes(content)
    done = subprocess.run(
        ["tcpdump", "-nn", "-t", "-r", path], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.splitlines()


def label_name(name: str) -> bytes:
    """This is a name as DNS writes it."""
    return b"".join(bytes([len(part)]) + part.encode() for part in name.split(".")) + b"\0"


def dns_answer(name: str, *records: tuple[int, bytes]) -> bytes:
    """This is an answer whose records point to the name in the question."""
    question = label_name(name) + struct.pack(">HH", 1, 1)
    answers = b"".join(
        b"\xc0\x0c" + struct.pack(">HHIH", kind, 1, 60, len(data)) + data for kind, data in records
    )
    return struct.pack(">HHHHHH", 7, 0x8180, 1, len(records), 0, 0) + question + answers
