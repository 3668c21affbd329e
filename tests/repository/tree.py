"""The files of this repository, as a clone would have them."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

__all__ = ["ROOT", "copy_of_the_tree", "documents", "tracked_files"]

ROOT: Final = Path(__file__).resolve().parents[2]

_LISTING_S: Final = 60


def tracked_files() -> Sequence[Path]:
    """These are the files that are, or would be, in a commit; paths relative to the root."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=_LISTING_S,
        check=True,
    ).stdout
    files = (Path(name) for name in listing.split("\0") if name)
    return sorted(file for file in files if (ROOT / file).is_file())


def documents() -> Sequence[Path]:
    """These are the Markdown files, relative to the root."""
    return [file for file in tracked_files() if file.suffix == ".md"]


def copy_of_the_tree(folder: Path) -> Path:
    """This copies what a clone would have into the folder, which is made, and returns it."""
    for file in tracked_files():
        target = folder / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / file, target)
    return folder
