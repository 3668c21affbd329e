r"""Containers, as the paths of their cgroups tell them.

References, one for each form:

- docker: https://docs.docker.com/engine/containers/runmetrics ("Find the cgroup for a given container"):
  ``/docker/ID`` by the driver cgroupfs, ``/system.slice/docker-ID.scope`` by the driver systemd.
- Kubernetes: https://kubernetes.io/docs/concepts/architecture/cgroups and kubelet's
  pkg/kubelet/cm/cgroup_manager_linux.go: ``/kubepods/CLASS/podUID/ID``, or below
  ``…kubepods-CLASS-podUID.slice``, with ``_`` for ``-`` in the id.
- containerd's CRI: internal/cri/server/podsandbox/helpers.go (``getCgroupsPath``):
  ``SLICE:cri-containerd:ID``, which runc's systemd driver makes ``cri-containerd-ID.scope`` of.
- CRI-O: internal/config/cgmgr (``CrioPrefix``): ``crio-ID.scope``, or ``crio-ID``; its monitor is in
  ``crio-conmon-ID``, which is no container.
- Podman: libpod/container_internal_linux.go (``libpod-ID.scope``, ``libpod-ID``; crun's
  ``--cgroups=split`` has ``libpod-payload-ID``); its monitor is in ``libpod-conmon-ID``.
- nerdctl: pkg/cmd/container/run_cgroup_linux.go: ``nerdctl-ID.scope``.
- LXC: src/lxc/cgroups (``lxc.payload.NAME``, before version 4 ``lxc/NAME``); its monitor is in
  ``lxc.monitor.NAME``.
- systemd-nspawn: systemd-nspawn(1), systemd-machined(8), org.freedesktop.machine1(5):
  ``machine-NAME.scope`` or ``systemd-nspawn@NAME.service``, names escaped by systemd-escape(1);
  libvirt's machines are there, too, as ``machine-qemu…`` and ``machine-lxc…``:
  https://libvirt.org/cgroups.html.
"""

import re
from typing import Final, NamedTuple

__all__ = ["NO_CONTAINER", "Container", "container_of"]

_ID: Final = r"(?P<id>[0-9a-f]{64})"
_NAME: Final = r"(?P<id>.+)"
_FORMS: Final = (
    ("docker", "", rf"docker-{_ID}\.scope"),
    ("docker", "docker", _ID),
    ("containerd", "", rf"(?:[^:]+:cri-containerd:|cri-containerd-){_ID}(?:\.scope)?"),
    ("cri-o", "", rf"crio-{_ID}(?:\.scope)?"),
    ("podman", "", rf"libpod-(?:payload-)?{_ID}(?:\.scope)?"),
    ("nerdctl", "", rf"nerdctl-{_ID}\.scope"),
    ("kubernetes", r"(?:.+-)?pod[0-9a-f_-]+(?:\.slice)?", _ID),
    ("lxc", "", rf"lxc\.payload\.{_NAME}"),
    ("lxc", r"lxc(?:\.payload)?", _NAME),
    ("systemd-nspawn", "", rf"machine-(?!(?:qemu|lxc)\\x2d){_NAME}\.scope"),
    ("systemd-nspawn", "", rf"systemd-nspawn@{_NAME}\.service"),
)
"""Runtime, form of the cgroup above the container's where that counts, form of its own."""
_CONTAINERS: Final = tuple(
    (runtime, above and re.compile(above, re.DOTALL), re.compile(form, re.DOTALL))
    for runtime, above, form in _FORMS
)
_UID: Final = r"(?P<uid>[0-9a-f]{32}|[0-9a-f]{8}(?:[_-][0-9a-f]{4}){3}[_-][0-9a-f]{12})"
_POD: Final = re.compile(
    rf"(?:.*kubepods(?:-besteffort|-burstable)?-)?pod{_UID}(?:\.slice(?::cri-containerd:.*)?)?",
    re.DOTALL,
)
_OF_KUBERNETES: Final = "kubepods"
_PODS_ALONE: Final = "kubernetes"
"""What has an id below a pod is a container, whatever runs it; elsewhere it may be anything."""
_ESCAPED: Final = "systemd-nspawn"
_ESCAPE: Final = re.compile(r"\\x([0-9a-f]{2})")
_SUPERVISOR: Final = "supervisor"
"""Below a container of systemd-nspawn's: where its own process is, which is in no container."""


class Container(NamedTuple):
    """This is the container that a cgroup belongs to.

    Args:
        runtime: what keeps it; empty for none.
        id: by which the runtime knows it.
        pod: the Kubernetes pod that it is of; empty for none.
    """

    runtime: str
    id: str
    pod: str


NO_CONTAINER: Final = Container("", "", "")


def container_of(path: str) -> Container:
    """This recognises the innermost container that a cgroup's path leads through.

    Args:
        path: from the root of its hierarchy. Who may make cgroups may call them so.

    Returns:
        One without a runtime where the path has none of the known forms.
    """
    names = path.split("/")
    for place in range(len(names) - 1, 0, -1):
        for runtime, above, form in _CONTAINERS:
            found = form.fullmatch(names[place])
            if not found or (above and not above.fullmatch(names[place - 1])):
                continue
            if runtime == _ESCAPED and names[place + 1 : place + 2] == [_SUPERVISOR]:
                continue
            pod = _pod_of(names[: place + 1])
            if runtime == _PODS_ALONE and not pod:
                continue
            name = _unescaped(found["id"]) if runtime == _ESCAPED else found["id"]
            return Container(runtime, name, pod)
    return NO_CONTAINER


def _pod_of(names: list[str]) -> str:
    """This is the id of the pod that the last of some nested cgroups is in."""
    for place, name in reversed(tuple(enumerate(names))):
        found = _POD.fullmatch(name)
        if found and any(_OF_KUBERNETES in above for above in names[: place + 1]):
            return found["uid"].replace("_", "-")
    return ""


def _unescaped(name: str) -> str:
    """This undoes what systemd-escape does to what may not stand in the name of a unit."""
    return _ESCAPE.sub(lambda code: chr(int(code[1], 16)), name)
