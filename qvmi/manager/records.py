"""Records of what the manager refuses and undoes, which is done though no record can be kept of it."""

import logging
from contextlib import suppress
from typing import Final

from qvmi.audit import LOGGER
from qvmi.errors import AuditFailed

__all__ = ["note", "record"]

_audit: Final = logging.getLogger(LOGGER)


def record(text: str, *values: object) -> None:
    """This tells the audit log of a refusal, or of the end of something; it never raises.

    What is begun or changed is told to the logger itself, so that it is not done where no record of
    it can be kept. That a guest goes on to run must not depend on a full disk.
    """
    with suppress(AuditFailed):
        _audit.warning(text, *values)


def note(text: str, *values: object) -> None:
    """This tells the audit log alone of what people are told otherwise; it never raises."""
    with suppress(AuditFailed):
        _audit.info(text, *values)
