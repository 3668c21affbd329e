"""What every Linux plugin of Volatility answers on one guest, before and after evidence was planted in it.

``python -m tests.guests.volatility_observation KERNEL FILE`` makes one in a process of its own, as
`observe_all` does for all kernels.
"""

import gc
import pickle
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import qvmi
from qvmi.errors import PluginFailed, UsageError
from qvmi.semantics.linux.guest import LinuxGuest
from qvmi.semantics.volatility_bridge.bridge import VolatilityBridge
from qvmi.semantics.volatility_bridge.table import VolatilityTable
from tests.guests.aarch64_guests import NARROW, aarch64
from tests.guests.doings import do_things
from tests.guests.lab import KERNELS, Guest, GuestConfig, Lab, MissingPartError
from tests.guests.planting import Planted, Soil, planted
from tests.guests.volatility_truth import Scene
from tests.repository.tree import ROOT

__all__ = [
    "AARCH64",
    "OBSERVE_S",
    "X86_64",
    "Answers",
    "Guests",
    "Observation",
    "linux_plugins",
    "observe_all",
    "old_name_of",
]

Guests = Mapping[str, GuestConfig]
"""Guests by their kernels."""

X86_64: Final[Guests] = {kernel: GuestConfig(kernel=kernel) for kernel in KERNELS}
AARCH64: Final[Guests] = {
    "6.12-arm64": aarch64(),
    "7.x-arm64": aarch64("7.x-arm64", NARROW),
}
"""Five levels of page tables with 52 bits, and four with 48. Nothing is planted in them."""

OBSERVE_S: Final = 1800
"""It takes some 45 s on an idle machine; other tests run beside it, and go first."""
_NICENESS: Final = 5
"""Low enough to let other tests' guests go first, high enough that those observed answer in time."""
_CLEAR_AFTER: Final = 12
"""Plugins, whose garbage is some 300 MB. Looking for it at each turn takes a fifth of the time."""
_MISSING: Final = 77
"""Exit status that says that the host lacks a part of the lab."""

Answers = Mapping[str, VolatilityTable | str]
"""Tables by the names of plugins; a text is what one failed with."""


@dataclass(frozen=True, slots=True)
class Observation:
    """This is what plugins saw in a guest.

    Attributes:
        kernel: of the guest.
        answers: of all plugins, on the guest at rest.
        scene: what the guest said of itself then.
        planted: what was planted then, by the plugin that should find it.
        found: the answers of those plugins.
    """

    kernel: str
    answers: Answers
    scene: Scene
    planted: Mapping[str, Planted]
    found: Answers


def linux_plugins() -> tuple[str, ...]:
    """These are all Linux plugins that there are, those that want for a package among them."""
    failed = VolatilityBridge.import_folders(())
    missing = (name.removeprefix("volatility3.plugins.") for name in failed)
    known = [*VolatilityBridge.plugins(), *missing]
    return tuple(sorted(name for name in known if name.startswith("linux.")))


def old_name_of(name: str) -> str | None:
    """This is the plugin that another one is only an old name of, None for one that is none."""
    text = VolatilityBridge.plugins().get(name, "")
    if "(deprecated)" not in text:
        return None
    stem = name.split(".")[1]
    (found,) = (
        one for one in VolatilityBridge.plugins() if one.startswith(f"linux.malware.{stem}.")
    )
    return found


@contextmanager
def observe_all(kernels: Sequence[str]) -> Iterator[Mapping[str, Future[Observation]]]:
    """This observes a guest of each kernel, one after the other, in processes of their own.

    A guest stands still while plugins look, and they take a core and half a gigabyte.
    """
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1) as pool:
        try:
            yield {
                kernel: pool.submit(_observed, kernel, Path(folder) / kernel) for kernel in kernels
            }
        finally:
            pool.shutdown(cancel_futures=True)


def _observed(kernel: str, file: Path) -> Observation:
    python = ("nice", "-n", str(_NICENESS), sys.executable, "-W", "ignore")
    done = subprocess.run(
        [*python, "-m", __name__, kernel, str(file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=OBSERVE_S,
        check=False,
    )
    if done.returncode == _MISSING:
        raise MissingPartError(done.stderr.strip(), fix="install it")
    assert done.returncode == 0, done.stderr
    observation = pickle.loads(file.read_bytes())  # noqa: S301 - the child of ours wrote it just now
    assert isinstance(observation, Observation)
    return observation


def observe(guest: Guest) -> Observation:
    """This observes a guest, which is as before and runs on afterwards, but for what was done in it."""
    kernel = str(guest.config.kernel)
    soil = None if kernel in AARCH64 else Soil.prepared(guest)
    before, said = guest.settled_truth(), Scene.ask(guest)
    with qvmi.attach_sync(guest.qmp, cache=guest.folder / "profiles") as machine:
        ask = partial(_answer, VolatilityBridge(), machine.guest)
        with _standing_still(guest):
            names = [name for name in linux_plugins() if old_name_of(name) is None]
            answers = _answers(ask, names)
        scene = Scene(before, guest.truth(), said)
        if soil is None:
            return Observation(kernel, answers, scene, {}, {})
        done = do_things(guest)
        with _standing_still(guest), planted(guest, machine.guest, soil) as more:
            evidence = {**done, **more}
            found = _answers(ask, tuple(evidence))
    guest.truth()  # it still answers
    return Observation(kernel, answers, scene, evidence, found)


@contextmanager
def _standing_still(guest: Guest) -> Iterator[None]:
    guest.monitor.execute("stop")
    yield
    guest.monitor.execute("cont")


def _answers(
    ask: Callable[[str], VolatilityTable | str], names: Sequence[str]
) -> dict[str, VolatilityTable | str]:
    """This asks one plugin after the other, and now and then clears up behind them."""
    answers = {}
    for number, name in enumerate(names, 1):
        answers[name] = ask(name)
        if number % _CLEAR_AFTER == 0:
            gc.collect()
    return answers


def _answer(bridge: VolatilityBridge, guest: LinuxGuest, name: str) -> VolatilityTable | str:
    """This is a plugin's answer without the files it made, or what it failed with."""
    try:
        table = bridge.answer(guest, name, _options(guest).get(name, {}))
    except (PluginFailed, UsageError) as error:
        return str(error)
    if table.gaps:
        return "; ".join(gap.reason for gap in table.gaps)
    return replace(table, files=())


def _options(guest: LinuxGuest) -> Mapping[str, dict[str, object]]:
    """These are the options that plugins cannot do without, or fail sooner with."""
    return {
        "linux.kallsyms.Kallsyms": {"modules": True},
        "linux.module_extract.ModuleExtract": {"base": guest.modules().items[0].struct_address},
        "linux.pagecache.InodePages": {"find": "/init"},
        "linux.vmaregexscan.VmaRegExScan": {"pattern": r"\x7fELF", "pid": [1]},
        "linux.vmayarascan.VmaYaraScan": {"yara_string": "linux", "pid": [1]},
    }


def main(kernel: str, file: str) -> int:
    """This observes a guest of a kernel, and writes down what was seen.

    Returns:
        The exit status.
    """
    gc.disable()  # but for `_CLEAR_AFTER`
    try:
        with Lab().restore({**X86_64, **AARCH64}[kernel]) as guest:
            observation = observe(guest)
    except MissingPartError as missing:
        sys.stderr.write(str(missing))
        return _MISSING
    Path(file).write_bytes(pickle.dumps(observation))
    return 0


if __name__ == "__main__":
    warnings.simplefilter("ignore", FutureWarning)  # old names tell that they are old
    # Pickled classes must be those of the module that others import.
    from tests.guests.volatility_observation import main as observing

    sys.exit(observing(*sys.argv[1:]))
