"""QEMU's answers about disks are read as documented, and what they leave open is refused."""

import json
from typing import Any

import pytest

from qvmi.errors import QmpProtocolError
from qvmi.qmp.block import BlockDevice, BlockImage, parse_block_devices

# From a QEMU 7.2 with `-drive file=top.qcow2,if=virtio,id=d0`, shortened to what is read.
TOP: dict[str, Any] = {
    "filename": "top.qcow2",
    "format": "qcow2",
    "virtual-size": 67108864,
    "backing-image": {"filename": "ext.raw", "format": "raw", "virtual-size": 67108864},
    "format-specific": {"type": "qcow2", "data": {"compat": "1.1", "corrupt": False}},
}
NODES = [
    {"drv": "raw", "file": "ext.raw"},
    {"drv": "file", "file": "ext.raw"},
    {"drv": "qcow2", "file": "top.qcow2"},
    {"drv": "file", "file": "top.qcow2"},
]


def block(image: dict[str, Any] | None) -> dict[str, Any]:
    inserted = {"node-name": "#block121", "ro": False, "drv": "qcow2", "image": image}
    return {
        "device": "d0",
        "qdev": "/machine/peripheral/vd1/virtio-backend",
        "removable": False,
        **({} if image is None else {"inserted": inserted}),
    }


def only(image: dict[str, Any] | None, nodes: object = NODES) -> BlockDevice:
    (device,) = parse_block_devices([block(image)], nodes)
    return device


def described(**node: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
    return {"filename": f"json:{json.dumps(node)}", "format": "raw", "virtual-size": 1}


def test_a_chain_is_told_from_the_image_that_is_written() -> None:
    device = only(TOP)
    assert device.images == (BlockImage("qcow2", "top.qcow2"), BlockImage("raw", "ext.raw"))
    assert (device.backend, device.node, device.size) == ("d0", "#block121", 67108864)
    assert (device.format, device.read_only) == ("qcow2", False)
    assert not device.refused


def test_a_node_that_is_described_tells_its_file() -> None:
    file = {"driver": "file", "filename": "/var/tmp/vl.KFXGZ3"}  # noqa: S108 - QEMU's own
    device = only(described(driver="raw", file=file, backing={"driver": "raw"}))
    assert device.images == (BlockImage("raw", "/var/tmp/vl.KFXGZ3"),)  # noqa: S108 - as above


@pytest.mark.parametrize(
    ("image", "why"),
    [
        (None, "no medium"),
        (TOP | {"format": "vmdk"}, "vmdk"),
        (TOP | {"encrypted": True}, "encrypted"),
        (TOP | {"format-specific": {"data": {"data-file": "x"}}}, "another file"),
        (TOP | {"format-specific": {"data": {"encrypt": {}}}}, "encrypted"),
        (TOP | {"filename": "other.qcow2"}, "nothing that QEMU names"),
        (TOP | {"backing-image": {"filename": "b", "format": "luks"}}, "luks"),
        (described(driver="raw", file={"driver": "nbd", "host": "h"}), "nbd"),
        (described(driver="raw", file={"driver": "host_device", "filename": "/dev/sda"}), "host_d"),
        (described(driver="raw", offset=0, file={"driver": "file", "filename": "x"}), "offset"),
        (described(driver="raw"), "tells of no file"),
        (described(driver="raw", file="node"), "tells of no file"),
        ({"filename": "json:{", "format": "raw"}, "tells of no file"),
        ({"filename": "json:" + "[" * 100_000, "format": "raw"}, "tells of no file"),
    ],
)
def test_what_is_no_plain_image_in_a_file_is_refused(
    image: dict[str, Any] | None, why: str
) -> None:
    device = only(image)
    assert why in device.refused
    assert device.images == ()


def test_a_name_that_is_also_a_device_of_the_host_is_refused() -> None:
    nodes = [*NODES, {"drv": "host_device", "file": "top.qcow2"}]
    assert "file and host_device" in only(TOP, nodes).refused


def test_a_chain_without_end_is_refused() -> None:
    image = {"filename": "ext.raw", "format": "raw"}
    for _ in range(100):
        image = {"filename": "ext.raw", "format": "raw", "backing-image": image}  # type: ignore[dict-item] # nested
    assert "more than 64 images" in only(image).refused


def test_a_chain_deeper_than_can_be_read_is_an_error() -> None:
    image = dict[str, Any](TOP)
    for _ in range(100_000):
        image = {"filename": "ext.raw", "format": "raw", "backing-image": image}
    with pytest.raises(QmpProtocolError):
        only(image)


@pytest.mark.parametrize("blocks", [None, {}, [{"device": 1}], [{"device": "x", "inserted": {}}]])
def test_an_answer_of_another_form_is_an_error(blocks: object) -> None:
    with pytest.raises(QmpProtocolError):
        parse_block_devices(blocks, NODES)
