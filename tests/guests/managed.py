"""A program that manages a codepack until it is killed.

Run as ``python -m tests.guests.managed QMP STATE [examined]``.
With the last word the doctor is asked, twice a second, whether the bus is out of the guest's reach.
"""

import asyncio
import sys
from pathlib import Path

import qvmi
from qvmi.manager import isolation_watch
from qvmi.manager.isolation_watch import IsolationVerdict
from qvmi.manager.manager import manage
from qvmi.manager.pack_spec import PackSpec
from qvmi.manager.proven_isolation import examined

__all__ = ["NOISY", "VM"]

VM = "web"
# It is killed more often than anybody who has no reason to stop would start it again.
NOISY = PackSpec("noisy", "tests.guests.noisy_pack:Noisy", 0.02, max_restarts=1_000_000)


async def proven() -> IsolationVerdict:
    return IsolationVerdict(proven=True)


async def main(qmp: str, state: Path, *, examine: bool) -> None:
    isolation_watch.CHECK_S = 0.5  # type: ignore[misc] # in this program alone
    async with (
        qvmi.attach(qmp, cache=state / "cache", timeout_s=30.0) as machine,
        manage(
            machine,
            [NOISY],
            vm=VM,
            state=state,
            isolation=examined(machine) if examine else lambda _: proven,
        ) as manager,
    ):
        print("ready", flush=True)  # noqa: T201 - the test reads it
        async for message in manager:
            if message.kind == "alert":
                print("alert", message.id, flush=True)  # noqa: T201 - as above


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), examine="examined" in sys.argv))
