"""The answer to ``info registers -a``, taken apart into what is printed of each vCPU.

References: QEMU ``hw/core/cpu-common.c`` and ``monitor/hmp-cmds.c`` (``hmp_info_registers``), 7.2 to 10.1.
"""

import re
from typing import Final

from qvmi.errors import QmpProtocolError

__all__ = ["INFO_REGISTERS", "malformed", "vcpu_dumps"]

INFO_REGISTERS: Final = "info registers -a"
"""The monitor line whose answer is understood here."""

_MAX_VCPUS: Final = 4096  # the largest vCPU number of any machine type of QEMU 10
_MAX_TEXT: Final = 10 << 20  # characters; as much as one QMP message may carry
_HEADER: Final = re.compile(r"^CPU#([0-9]+)\s*$", re.MULTILINE)


def vcpu_dumps(text: str) -> list[tuple[int, str]]:
    """This is (number, text) of each vCPU, in the order QEMU printed them; at least one.

    Raises:
        QmpProtocolError: the text is not about vCPUs, or about more than there can be.
    """
    if len(text) > _MAX_TEXT:
        raise malformed(f"{len(text)} characters, more than {_MAX_TEXT}")
    headers = list(_HEADER.finditer(text))
    if not 0 < len(headers) <= _MAX_VCPUS:
        raise malformed(f"{len(headers)} vCPUs, expected 1 to {_MAX_VCPUS}: {text[:80]!r}")
    ends = [header.start() for header in headers[1:]] + [len(text)]
    found = [
        (int(header[1]), text[header.end() : end])
        for header, end in zip(headers, ends, strict=True)
    ]
    if len(dict(found)) != len(found):
        raise malformed("a vCPU is printed twice")
    return found


def malformed(problem: str) -> QmpProtocolError:
    """This is the error of an answer that cannot be read."""
    return QmpProtocolError(INFO_REGISTERS, problem)
