"""The command that serves other tools: ``gateway``."""

from collections.abc import Sequence
from pathlib import Path

from qvmi.cli.declared.words import GATEWAY_HOLDER
from qvmi.cli.exit_code import ExitCode
from qvmi.cli.printing.output import Output
from qvmi.cli.stop_signal import stop_signal, until_stopped
from qvmi.errors import UsageError
from qvmi.manager.gateways.gateway import Places, gateways
from qvmi.policy import READ_ONLY, Grant, Policy, read_policies
from qvmi.qmp.monitor import Monitor

__all__ = ["gateway"]


async def gateway(  # noqa: PLR0913 - what its command declares
    monitor: Monitor,
    gdb: str | None,
    output: Output,
    *,
    qmp_listen: str | None,
    gdb_listen: str | None,
    policy: str | None,
    grants: Sequence[tuple[str, ...]],
) -> ExitCode:
    """This serves until Ctrl-C, or until the machine is gone.

    Raises:
        UsageError: a socket cannot be made, or there is nothing to serve on.
        MachineGone: QEMU has ended.
    """
    places = Places(
        None if qmp_listen is None else Path(qmp_listen),
        None if gdb_listen is None else Path(gdb_listen),
    )
    if monitor.descriptor is None:
        raise UsageError(f"{monitor.target}: libvirt holds this machine's monitor, not qvmi")
    granted = READ_ONLY if policy is None else read_policies(Path(policy)).of(GATEWAY_HOLDER)
    granted = granted.plus(*(Grant(name) for names in grants for name in names))
    opened = gateways(monitor, places, granted, gdb=gdb)
    with stop_signal() as stop:
        async with opened as serving:
            _tell(output, places, granted)
            await until_stopped(serving.until_gone(), stop)
    if serving.stood_still_s:
        ms = serving.stood_still_s * 1000
        output.message(f"the guest stood still for {ms:.1f} ms in all, for those who held it")
    return ExitCode.FINE


def _tell(output: Output, places: Places, policy: Policy) -> None:
    grants = ", ".join(sorted(grant.value for grant in policy.grants))
    for what, path in (("QMP", places.qmp), ("gdb", places.gdb)):
        if path is not None:
            output.message(f"{what} on {path}: {grants or 'nothing'}; Ctrl-C ends it")
    if places.gdb is not None and not policy.allows(Grant.PAUSE):
        output.message(
            "gdb stops the guest, which is not granted: it can look at one that stands still already;"
            " see --may-pause"
        )
