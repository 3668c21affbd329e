"""What can be asked about the kernel's own code: whether what runs is what should run."""

from functools import cached_property
from typing import TYPE_CHECKING

from qvmi.semantics.guest_os import (
    CodeBaseline,
    CodeChange,
    CodePointer,
    KernelSetting,
    Listing,
    ModuleSighting,
)
from qvmi.semantics.linux.walkers import Walkers

if TYPE_CHECKING:
    from qvmi.semantics.linux.code_walkers import CodeWalkers

__all__ = ["KernelQuestions"]


class KernelQuestions(Walkers):
    """This answers the questions of :class:`qvmi.semantics.guest_os.GuestOS` about the kernel itself."""

    def system_calls(self) -> Listing[CodePointer]:
        """This lists the entries of the kernel's tables of system calls.

        Raises:
            SymbolsError: the profile lacks what this needs.
            WalkFailed: the list of modules cannot be walked at all.
        """
        return self._listing(lambda: self._code.system_calls.entries(self._code.known()))

    def code_changes(self, baseline: CodeBaseline) -> Listing[CodeChange]:
        """This lists where the kernel's code and constants are not as they were.

        Args:
            baseline: what was seen before, which is brought up to date.

        Raises:
            SymbolsError: the profile lacks what this needs.
            WalkFailed: the list of modules cannot be walked at all.
        """
        kernel = self.kernel
        baseline.begin(
            f"{kernel.build_id} at {kernel.image.start:#x}, {self.view.provenance.epoch}"
        )
        return self._listing(lambda: self._code.text.changes(baseline, self._code.known()))

    def module_sightings(self) -> Listing[ModuleSighting]:
        """This lists in which structures each module was seen: one of them is the list of modules.

        Raises:
            SymbolsError: the profile lacks what this needs.
            WalkFailed: the list of modules cannot be walked at all.
        """
        return self._listing(self._code.module_sightings.all)

    def interrupts(self) -> Listing[CodePointer]:
        """This lists the gates of x86-64's interrupt descriptor table, and vCPUs that have another.

        A vCPU's is the one that it had when its registers were read last; there are none in a dump.

        Raises:
            SymbolsError: the profile lacks what this needs.
            WalkFailed: the list of modules cannot be walked at all.
        """
        vcpus = self.view.vcpus
        return self._listing(lambda: self._code.interrupts.gates(vcpus, self._code.known()))

    def hooks(self) -> Listing[CodePointer]:
        """This lists the functions that others have hooked into the kernel; one that is nobody's says so.

        Raises:
            SymbolsError: the profile lacks what this needs.
            WalkFailed: the list of modules cannot be walked at all.
        """
        return self._listing(lambda: self._code.hooks.all(self._code.known()))

    def settings(self) -> Listing[KernelSetting]:
        """This lists the settings that name programs which the kernel starts itself.

        Raises:
            SymbolsError: the kernel's names cannot be read.
        """
        return self._listing(self._code.helpers.settings)

    @cached_property
    def _code(self) -> "CodeWalkers":
        from qvmi.semantics.linux.code_walkers import CodeWalkers  # noqa: PLC0415 - import time, for a rare need

        return CodeWalkers(self.kernel, self._modules)
