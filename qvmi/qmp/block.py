"""The guest's disks as QEMU tells of them, and which files their bytes are in.

References: QEMU ``qapi/block-core.json`` (``query-block``, ``query-named-block-nodes``, ``ImageInfo``,
``BlockdevOptions``), ``block.c`` (``bdrv_refresh_filename``, for names that begin with ``json:``).
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from qvmi.errors import QmpProtocolError
from qvmi.qmp.monitor import Monitor

__all__ = ["BlockDevice", "BlockImage", "block_devices", "parse_block_devices"]

_MAX_CHAIN: Final = 64
"""Images that back one another; chains of more than a dozen are a mistake of somebody."""
_FORMATS: Final = frozenset({"raw", "qcow2"})
_JSON: Final = "json:"
_BESIDE: Final = frozenset({"driver", "file", "backing"})
"""What a node may say of itself in a ``json:`` name. More, such as ``offset``, changes what is where."""


class _Image(msgspec.Struct, frozen=True, rename="kebab"):
    filename: str
    format: str
    virtual_size: int = 0
    encrypted: bool = False
    backing_image: "_Image | None" = None
    format_specific: dict[str, Any] | None = None


class _Inserted(msgspec.Struct, frozen=True):
    image: _Image
    node_name: str = msgspec.field(name="node-name", default="")
    drv: str = ""
    ro: bool = False


class _Block(msgspec.Struct, frozen=True):
    device: str
    qdev: str = ""
    removable: bool = False
    inserted: _Inserted | None = None


class _Node(msgspec.Struct, frozen=True):
    drv: str
    file: str = ""


@dataclass(frozen=True, slots=True)
class BlockImage:
    """This is one image of a disk.

    Args:
        format: ``raw`` or ``qcow2``.
        filename: as QEMU was given it, which may be relative to its working directory.
    """

    format: str
    filename: str


@dataclass(frozen=True, slots=True)
class BlockDevice:
    """This is one disk of the machine.

    Args:
        backend: its name as ``-drive id=`` gave it; empty for one made by ``-blockdev``.
        qdev: path of the device that the guest sees; empty where no device has it.
        node: the name of the node with its content.
        format: of that node, such as ``qcow2``; empty without a medium.
        size: in bytes, as the guest sees it.
        read_only: whether the guest cannot write it.
        removable: whether its medium can be changed.
        images: the one that is written to first, each before the one that backs it.
        refused: why its images are not read; empty where they can be.
    """

    backend: str
    qdev: str
    node: str
    format: str
    size: int
    read_only: bool
    removable: bool
    images: tuple[BlockImage, ...]
    refused: str = ""


class _NotRead(Exception):
    """The images of a disk are none that are read."""


async def block_devices(monitor: Monitor) -> tuple[BlockDevice, ...]:
    """This asks for the machine's disks.

    Raises:
        MachineGone, QmpTimeout, QmpProtocolError: QEMU did not answer.
    """
    blocks = await monitor.execute("query-block")
    nodes = await monitor.execute("query-named-block-nodes", {"flat": True})
    return parse_block_devices(blocks, nodes)


def parse_block_devices(blocks: object, nodes: object) -> tuple[BlockDevice, ...]:
    """This reads the answers to ``query-block`` and ``query-named-block-nodes``.

    Raises:
        QmpProtocolError: they have not the documented form.
    """
    try:
        devices = msgspec.convert(blocks, tuple[_Block, ...])
        named = msgspec.convert(nodes, tuple[_Node, ...])
    except (msgspec.ValidationError, RecursionError) as error:
        raise QmpProtocolError("query-block", str(error)) from error
    return tuple(_device(block, named) for block in devices)


def _device(block: _Block, nodes: Iterable[_Node]) -> BlockDevice:
    medium = block.inserted
    images: tuple[BlockImage, ...] = ()
    refused = ""
    if medium is None:
        refused = "it has no medium"
    else:
        try:
            images = tuple(_chain(medium.image, nodes))
        except _NotRead as reason:
            refused = str(reason)
    return BlockDevice(
        block.device,
        block.qdev,
        "" if medium is None else medium.node_name,
        "" if medium is None else medium.drv,
        0 if medium is None else medium.image.virtual_size,
        read_only=medium is not None and medium.ro,
        removable=block.removable,
        images=images,
        refused=refused,
    )


def _chain(image: _Image | None, nodes: Iterable[_Node]) -> Iterator[BlockImage]:
    """These are the images of a disk, from the one that is written to.

    Raises:
        _NotRead: one of them is not read.
    """
    for _ in range(_MAX_CHAIN):
        if image is None:
            return
        yield BlockImage(image.format, _file_of(image, nodes))
        image = image.backing_image
    raise _NotRead(f"more than {_MAX_CHAIN} images back one another")


def _file_of(image: _Image, nodes: Iterable[_Node]) -> str:
    """This is the name of the file that an image is in.

    Raises:
        _NotRead: it is in none, or of a format that is not read.
    """
    data = (image.format_specific or {}).get("data")
    details: Mapping[str, Any] = data if isinstance(data, dict) else {}
    if image.format not in _FORMATS:
        raise _NotRead(f"images of the format {image.format} are not read: raw and qcow2 are")
    if image.encrypted or "encrypt" in details:
        raise _NotRead(f"the image {image.filename} is encrypted")
    if "data-file" in details:
        raise _NotRead(f"the data of the image {image.filename} is in another file")
    if image.filename.startswith(_JSON):
        return _described_file(image)
    drivers = {node.drv for node in nodes if node.file == image.filename} - _FORMATS
    if drivers != {"file"}:
        what = " and ".join(sorted(drivers)) or "nothing that QEMU names"
        raise _NotRead(f"{image.filename} is no regular file for QEMU, but {what}")
    return image.filename


def _described_file(image: _Image) -> str:
    """This is the file of an image whose name is a description of its node.

    Raises:
        _NotRead: it is no plain image in a file.
    """
    try:
        node = json.loads(image.filename.removeprefix(_JSON))
        file = node["file"]
        driver, name = file["driver"], file.get("filename")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise _NotRead("QEMU's description of the image tells of no file") from None
    more = sorted(set(node) - _BESIDE)
    if more:
        raise _NotRead(f"the image is not read as it is: {', '.join(more)} of its node is set")
    if driver != "file" or not isinstance(name, str):
        raise _NotRead(f"the image is no regular file for QEMU, but {driver}")
    return name
