"""Containers by the paths of their cgroups, as those who make them document them."""

import pytest

from qvmi.semantics.linux.processes.container import NO_CONTAINER, Container, container_of

ID = "ae836c95b4c3c9e9179e0e91015512da89fdec91612f63cebae57df9a5444c79"
OTHER = "05c48c82caff3be3d7f1e896981dd410e81487538936914f32b624d168de9db0"
UID = "72f7f152-440c-66ac-9084-e0fc1d8a910c"
UNIT = UID.replace("-", "_")
BURSTABLE = f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UNIT}.slice"
USER = "/user.slice/user-1000.slice/user@1000.service/user.slice"

RECOGNISED = {
    f"/docker/{ID}": Container("docker", ID, ""),
    f"/system.slice/docker-{ID}.scope": Container("docker", ID, ""),
    f"{USER}/docker-{ID}.scope": Container("docker", ID, ""),
    f"/docker/{ID}/init.scope": Container("docker", ID, ""),
    f"/docker/{ID}/docker/{OTHER}": Container("docker", OTHER, ""),
    f"/docker/{ID}/kubelet/kubepods/besteffort/pod{UID}/{OTHER}": Container(
        "kubernetes", OTHER, UID
    ),
    f"{BURSTABLE}/cri-containerd-{ID}.scope": Container("containerd", ID, UID),
    f"{BURSTABLE}/crio-{ID}.scope": Container("cri-o", ID, UID),
    f"{BURSTABLE}/docker-{ID}.scope": Container("docker", ID, UID),
    f"/kubepods.slice/kubepods-pod{UNIT}.slice/crio-{ID}.scope/container": Container(
        "cri-o", ID, UID
    ),
    f"/kubepods/burstable/pod{UID}/{ID}": Container("kubernetes", ID, UID),
    f"/kubepods/pod{UID}/{ID}": Container("kubernetes", ID, UID),
    f"/kubepods/besteffort/pod{UID}/crio-{ID}": Container("cri-o", ID, UID),
    f"/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{UNIT}.slice/cri-containerd-{ID}.scope": (
        Container("containerd", ID, UID)
    ),
    f"/system.slice/containerd.service/kubepods-besteffort-pod{UNIT}.slice:cri-containerd:{ID}": (
        Container("containerd", ID, UID)
    ),
    f"/machine.slice/libpod-{ID}.scope/container": Container("podman", ID, ""),
    f"{USER}/libpod-{ID}.scope": Container("podman", ID, ""),
    f"/libpod_parent/libpod-{ID}": Container("podman", ID, ""),
    f"/system.slice/nginx.service/libpod-payload-{ID}": Container("podman", ID, ""),
    f"/system.slice/nerdctl-{ID}.scope": Container("nerdctl", ID, ""),
    "/lxc.payload.web/init.scope": Container("lxc", "web", ""),
    "/lxc.payload/web": Container("lxc", "web", ""),
    "/lxc/101/ns/init.scope": Container("lxc", "101", ""),
    r"/machine.slice/machine-debian\x2d12.scope/payload": Container(
        "systemd-nspawn", "debian-12", ""
    ),
    "/machine.slice/systemd-nspawn@debian.service/payload": Container(
        "systemd-nspawn", "debian", ""
    ),
}
NONE = (
    "",
    "/",
    "/system.slice/ssh.service",
    "/docker",
    "/docker/buildx",
    f"/docker/{ID[:-1]}",
    f"/docker/{ID}0",
    f"/docker/{ID.upper()}",
    f"/{ID}",
    f"/pod{UID}/{ID}",
    f"/pod0/{ID}",
    f"/system.slice/docker-{ID}.mount",
    f"{BURSTABLE}/crio-conmon-{ID}.scope",
    f"/machine.slice/libpod-conmon-{ID}.scope",
    BURSTABLE,
    f"/kubepods/burstable/pod{UID}",
    "/lxc.monitor.web",
    "/lxc",
    r"/machine.slice/machine-qemu\x2d1\x2dvm.scope",
    r"/machine.slice/machine-lxc\x2d2\x2dct.scope",
    "/machine.slice/systemd-nspawn@debian.service/supervisor",
)


@pytest.mark.parametrize("path", RECOGNISED)
def test_a_documented_form_is_recognised(path: str) -> None:
    assert container_of(path) == RECOGNISED[path]


@pytest.mark.parametrize("path", NONE)
def test_what_is_like_one_is_not_taken_for_it(path: str) -> None:
    assert container_of(path) == NO_CONTAINER


@pytest.mark.parametrize("part", ["-pod", "a-", "kubepods-", ":cri-containerd:", "pod0-", "\n"])
def test_a_path_made_to_take_long_does_not(part: str) -> None:
    for path in (part * 4096, "/".join([part * 40] * 200), f"/kubepods/{part * 4000}/{ID}"):
        assert container_of(path).pod == ""
