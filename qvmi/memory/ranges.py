"""Sets of guest physical ranges."""

from collections.abc import Iterable

from qvmi.addr import Pa, PaRange

__all__ = ["joined"]


def joined(ranges: Iterable[PaRange]) -> tuple[PaRange, ...]:
    """This sorts ranges and joins those that touch or overlap."""
    result: list[PaRange] = []
    for one in sorted(ranges):
        if result and one.start <= result[-1].end:
            result[-1] = PaRange(result[-1].start, Pa(max(result[-1].end, one.end)))
        else:
            result.append(one)
    return tuple(result)
