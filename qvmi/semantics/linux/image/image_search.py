"""Finding the kernel's image, in the way that suits the architecture of the vCPUs."""

from collections.abc import Sequence

from qvmi.arch import aarch64, x86_64
from qvmi.arch.registers import Registers
from qvmi.memory.physical import PhysicalMemory
from qvmi.semantics.linux.image.aarch64_image import find_aarch64_image
from qvmi.semantics.linux.image.kernel_image import KernelImage, find_kernel_image, find_known_image
from qvmi.symbols.profile import KnownBuild

__all__ = ["find_image", "find_image_of_build"]


def find_image(vcpus: Sequence[Registers], memory: PhysicalMemory) -> KernelImage:
    """This finds the kernel that the vCPUs run.

    Raises:
        UnknownGuest: there is none; the evidence says what was seen.
    """
    arm = [vcpu for vcpu in vcpus if isinstance(vcpu, aarch64.Registers)]
    return find_aarch64_image(arm, memory) if arm else find_kernel_image(_x86(vcpus), memory)


def find_image_of_build(
    vcpus: Sequence[Registers], memory: PhysicalMemory, build: KnownBuild
) -> KernelImage | None:
    """This finds the image of a build seen before with a handful of reads.

    Returns:
        None where that does not lead there, and always on aarch64, whose vectors are not told
        without stopping the guest.
    """
    return find_known_image(_x86(vcpus), memory, build)


def _x86(vcpus: Sequence[Registers]) -> list[x86_64.Registers]:
    return [vcpu for vcpu in vcpus if isinstance(vcpu, x86_64.Registers)]
