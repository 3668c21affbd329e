"""Kernel modules out of a package: unpacked, with what they depend on, in the order they must be loaded."""

import lzma
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.guests.lab.errors import LabError, MissingPartError

__all__ = ["MODULES_AT_BOOT", "MODULES_AT_HAND", "KernelModule", "modules_with_needs"]

MODULES_AT_BOOT = ("nf_tables", "fuse", "dummy", "veth", "overlay", "loop", "bridge")
"""Loaded at boot where the kernel has them as modules; with their needs at least five on every series."""

MODULES_AT_HAND = ("ifb", "tun", "macvlan", "virtio_pci", "virtio_net")
"""Carried in the initramfs and loaded only when a test asks for it."""

DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")


@dataclass(frozen=True, slots=True)
class KernelModule:
    """This is a module's object file, decompressed."""

    name: str
    content: bytes


def modules_with_needs(folder: Path, names: tuple[str, ...]) -> tuple[KernelModule, ...]:
    """These are the named modules, each after everything it depends on; unknown names are left out."""
    files = {_module_name(path): path for path in sorted(folder.rglob("*.ko*"))}
    ordered: dict[str, KernelModule] = {}
    for name in names:
        if name in files:
            _visit(name, files, ordered)
    return tuple(ordered.values())


def _visit(name: str, files: dict[str, Path], ordered: dict[str, KernelModule]) -> None:
    if name in ordered:
        return
    content = _decompressed(files[name])
    for need in _needs(content):
        if need in files:  # what is not a file is built in
            _visit(need, files, ordered)
    ordered[name] = KernelModule(name, content)


def _module_name(path: Path) -> str:
    return path.name.partition(".ko")[0].replace("-", "_")


def _needs(content: bytes) -> Iterator[str]:
    found = DEPENDS.search(content)
    for name in found[1].decode().split(",") if found else ():
        if name:
            yield name.replace("-", "_")


def _decompressed(path: Path) -> bytes:
    packed = path.read_bytes()
    if path.suffix == ".ko":
        return packed
    if path.suffix == ".xz":
        return lzma.decompress(packed)
    if path.suffix == ".zst":
        return _unzstd(packed)
    raise LabError(
        f"{path.name} is compressed in a way this builder does not know",
        fix=f"teach {__name__} about {path.suffix}",
    )


def _unzstd(packed: bytes) -> bytes:
    try:
        return subprocess.run(["zstd", "-dc"], input=packed, capture_output=True, check=True).stdout
    except FileNotFoundError as error:
        raise MissingPartError(
            "this kernel's modules are packed with zstd, which is not on this machine",
            fix="apt-get install zstd",
        ) from error
