"""The family tree of processes, which a guest may have made a loop or a chain without end."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from qvmi.semantics.guest_os import Process

__all__ = ["ASCII_GUIDES", "LINE_GUIDES", "MAX_DRAWN_DEPTH", "Branch", "Guides", "branches"]

MAX_DRAWN_DEPTH: Final = 32
"""Deepest level that is indented; real trees have a dozen, and each level of a chain of a hundred
thousand processes would make all lines behind it longer."""


class Guides(msgspec.Struct, frozen=True):
    """These are the pieces that lines of a tree are drawn with.

    Args:
        child: leads to a child that has younger siblings.
        last: leads to the last child.
        passing: stands for an ancestor's younger siblings further down.
        blank: stands for an ancestor that was a last child.
    """

    child: str
    last: str
    passing: str
    blank: str


LINE_GUIDES: Final = Guides("├─ ", "└─ ", "│  ", "   ")
ASCII_GUIDES: Final = Guides("|- ", "`- ", "|  ", "   ")


class Branch(msgspec.Struct, frozen=True, gc=False):
    """This is a process at its place in the tree.

    Args:
        process: what stands there.
        depth: the number of its ancestors.
        lasts: for the ancestors below the root, and itself, whether each is a last child; no more
            than MAX_DRAWN_DEPTH of them.
    """

    process: Process
    depth: int
    lasts: tuple[bool, ...] = ()

    def indent(self, guides: Guides) -> str:
        """This is what stands before the process's name."""
        if not self.lasts:
            return ""
        passed = "".join(guides.blank if last else guides.passing for last in self.lasts[:-1])
        if self.depth > MAX_DRAWN_DEPTH:
            return f"{passed}{guides.last}(level {self.depth}) "
        return passed + (guides.last if self.lasts[-1] else guides.child)


def branches(processes: Sequence[Process]) -> Iterator[Branch]:
    """This yields every process once, each behind its parent.

    Those whose parent is not listed stand at the top. So does the first of a loop of parents.
    """
    listed = {process.pid for process in processes}
    children: defaultdict[int, list[int]] = defaultdict(list)
    roots: list[int] = []
    for number, process in enumerate(processes):
        orphan = process.ppid not in listed or process.ppid == process.pid
        (roots if orphan else children[process.ppid]).append(number)
    drawn: set[int] = set()
    for start in (*roots, *range(len(processes))):
        waiting = [] if start in drawn else [(start, Branch(processes[start], 0))]
        while waiting:
            number, branch = waiting.pop()
            drawn.add(number)
            yield branch
            # Taken away, so that a second process of the same pid gets none of them.
            born = [child for child in children.pop(branch.process.pid, ()) if child not in drawn]
            waiting += [
                (child, _below(branch, processes[child], last=child == born[-1]))
                for child in reversed(born)
            ]


def _below(parent: Branch, process: Process, *, last: bool) -> Branch:
    lasts = (*parent.lasts, last)[:MAX_DRAWN_DEPTH]
    return Branch(process, parent.depth + 1, lasts)
