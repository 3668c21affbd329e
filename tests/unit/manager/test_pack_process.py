"""The process of a codepack, from its start until it is confined."""

import asyncio
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from qvmi.errors import CodepackError
from qvmi.manager.orders import Orders
from qvmi.manager.pack_process import Place, start
from qvmi.remote.handed_memory import HandedMemory

PLANTED = "import os; open(os.path.expanduser('~/ran'), 'w').close()"
PROBE = Orders(
    vm="vm",
    codepack="pack",
    entry="none:None",
    interval_s=1.0,
    address="",
    socket="",
    secret="",
    outbox_secret="",
    profiles="",
    memory=HandedMemory(()),
    descriptors=(),
    landlock=False,
    writers=(),
    memory_bytes=None,
    look_s=1.0,
    caveats=(),
    probe=True,
)


async def started(folder: Path) -> None:
    with suppress(CodepackError):  # that Python may have none of what qvmi needs
        await (await start(PROBE, Place(folder))).end()


def test_nothing_that_a_codepack_has_left_in_its_folder_runs_before_it_is_confined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A virtual environment would not look into its user's folder.
    plain = str(Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info[1]}")
    packages = f".local/lib/python3.{sys.version_info[1]}/site-packages"
    for place in (packages, "."):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        for module in ("usercustomize", "sitecustomize", "msgspec", "asyncio"):
            (tmp_path / place / f"{module}.py").write_text(PLANTED)
    subprocess.run((plain, "-c", ""), env={"HOME": str(tmp_path)}, check=True, cwd="/")
    (tmp_path / "ran").unlink()  # so it does run where nobody forbids it
    monkeypatch.setattr(sys, "executable", plain)
    asyncio.run(started(tmp_path))
    assert not (tmp_path / "ran").exists()
