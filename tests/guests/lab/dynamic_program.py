"""A program of this machine with the libraries it is linked to, for a guest that has none.

References: ld.so(8) (``LD_TRACE_LOADED_OBJECTS``, as ldd(1) uses it).
"""

import re
import shutil
import subprocess
from pathlib import Path

from tests.guests.lab.errors import MissingPartError

__all__ = ["with_libraries"]

_LIBRARY = re.compile(r"(/\S+) \(0x[0-9a-f]+\)$", re.MULTILINE)
_SECONDS = 60


def with_libraries(program: str) -> dict[str, bytes]:
    """This gives a program as ``bin/NAME``, and its libraries under the paths that it seeks them at."""
    found = shutil.which(program)
    if found is None:
        raise MissingPartError(
            f"{program} is not on this machine", fix=f"apt-get install {program}"
        )
    told = subprocess.run(
        [found],
        env={"LD_TRACE_LOADED_OBJECTS": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=True,
    )
    libraries = {
        name.lstrip("/"): Path(name).read_bytes() for name in _LIBRARY.findall(told.stdout)
    }
    return {f"bin/{program}": Path(found).read_bytes(), **libraries}
