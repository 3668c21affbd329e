"""What reads the kernel's code and whatever leads into it, each part made when it is first needed."""

from functools import cached_property

from qvmi.semantics.linux.hooks.extable import KnownCode
from qvmi.semantics.linux.hooks.hooks import KernelHooks
from qvmi.semantics.linux.hooks.idt import InterruptTable
from qvmi.semantics.linux.hooks.kernel_text import KernelText
from qvmi.semantics.linux.hooks.syscall import SystemCallTables
from qvmi.semantics.linux.hooks.umh import UserModeHelpers
from qvmi.semantics.linux.kernel.discovery import Kernel
from qvmi.semantics.linux.modules.module import Modules
from qvmi.semantics.linux.modules.module_sightings import ModuleSightings

__all__ = ["CodeWalkers"]


class CodeWalkers:
    """These are the walkers of a kernel's code.

    Args:
        kernel: the kernel that runs there.
        modules: its modules.

    Raises:
        SymbolsError: of each attribute, that the profile lacks what it needs.
    """

    def __init__(self, kernel: Kernel, modules: Modules) -> None:
        self._kernel = kernel
        self._modules = modules

    def known(self) -> KnownCode:
        """This is what code there is at this moment."""
        return KnownCode(self._kernel.space, self._kernel.symbols, self._modules)

    @cached_property
    def system_calls(self) -> SystemCallTables:
        """This reads the tables of system calls."""
        return SystemCallTables(self._kernel.space, self._kernel.symbols)

    @cached_property
    def interrupts(self) -> InterruptTable:
        """This reads the tables of interrupts."""
        return InterruptTable(self._kernel.space, self._kernel.symbols)

    @cached_property
    def text(self) -> KernelText:
        """This compares code and constants with what they were."""
        kernel = self._kernel
        architecture = kernel.image.architecture
        return KernelText(kernel.space, kernel.symbols, self._modules, architecture=architecture)

    @cached_property
    def hooks(self) -> KernelHooks:
        """This finds functions that others have hooked into the kernel."""
        kernel = self._kernel
        return KernelHooks(kernel.space, kernel.symbols, self._modules, image=kernel.image)

    @cached_property
    def module_sightings(self) -> ModuleSightings:
        """This finds modules in every structure that leads to them."""
        return ModuleSightings(self._kernel.space, self._kernel.symbols, self._kernel.image)

    @cached_property
    def helpers(self) -> UserModeHelpers:
        """This reads which programs the kernel starts itself."""
        return UserModeHelpers(self._kernel.space, self._kernel.symbols)
