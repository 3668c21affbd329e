"""What is remembered of a kernel's code from the first sight of it."""

from dataclasses import dataclass, field

from qvmi.semantics.rows.code import CodeChange

__all__ = ["CodeBaseline", "CodeMemory"]


@dataclass(slots=True)
class CodeMemory:
    """This is one region of code as it was.

    Attributes:
        kept: its bytes at first sight, with the changes that the kernel has made in good faith since.
        judged: pages that are otherwise, by their offsets, as they were when they were judged last.
        problems: what was wrong then.
        looks: since everything was judged anew.
    """

    kept: bytearray
    judged: dict[int, bytes] = field(default_factory=dict)
    problems: tuple[CodeChange, ...] = ()
    looks: int = 0


@dataclass(slots=True)
class CodeBaseline:
    """This is what whoever watches code keeps from one look to the next.

    It is made empty, and given to :meth:`~qvmi.semantics.guest_os.GuestOS.code_changes` again and
    again, which fills it. It forgets everything when another kernel runs.

    Attributes:
        kernel: which kernel it is of; empty before the first look.
        regions: by name and place.
    """

    kernel: str = ""
    regions: dict[tuple[str, int, int], CodeMemory] = field(default_factory=dict)

    def begin(self, kernel: str) -> None:
        """This forgets what is of another kernel."""
        if kernel != self.kernel:
            self.kernel = kernel
            self.regions = {}
