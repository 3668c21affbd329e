"""The root file system of a guest: our init, busybox as its toolbox, and the kernel's own modules."""

import gzip
import shutil
import struct
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tests.guests.lab.cache import Cache, digest_of
from tests.guests.lab.cpio import CpioArchive
from tests.guests.lab.dynamic_program import with_libraries
from tests.guests.lab.errors import LabError, MissingPartError
from tests.guests.lab.kernels import Kernel
from tests.guests.lab.modules import (
    MODULES_AT_BOOT,
    MODULES_AT_HAND,
    KernelModule,
    modules_with_needs,
)

__all__ = ["Initramfs", "initramfs_for"]

INIT_SOURCES = Path(__file__).parent / "init"
COMPILERS = {"amd64": "gcc", "arm64": "aarch64-linux-gnu-gcc"}
COMPILER_PACKAGES = {
    "amd64": "gcc libc6-dev",
    "arm64": "gcc-aarch64-linux-gnu libc6-dev-arm64-cross",
}
OPTIONS = ("-std=gnu11", "-O2", "-static", "-pthread", "-s", "-Wall", "-Wextra", "-Werror")
TOOLS = ("sh", "sleep", "httpd", "nc", "true")
"""Called by path; the shell finds busybox's other tools by itself."""

BASH = "bash"
"""The machine's own, with its libraries, for guests that can run it; only a test starts it."""

FEWEST_MODULES = 5
PT_INTERP = 3
FILE_NAME = "initramfs.cpio.gz"

PASSWD = b"""root:x:0:0:root:/root:/bin/sh
user:x:1000:1000:a user:/:/bin/sh
nobody:x:65534:65534:nobody:/:/bin/sh
"""


@dataclass(frozen=True, slots=True)
class Initramfs:
    """This is a packed root file system; the digest names its content."""

    path: Path
    digest: str


def initramfs_for(kernel: Kernel, cache: Cache, say: Callable[[str], None]) -> Initramfs:
    """This is the root file system for a kernel, from the cache when nothing that goes into it changed."""
    sources = _sources()
    busybox = (kernel.busybox or _busybox()).read_bytes()
    dynamic = {} if kernel.busybox else with_libraries(BASH)
    builder = Path(__file__).read_bytes() + _source_of(CpioArchive) + _source_of(KernelModule)
    digest = digest_of(
        *sources.values(), busybox, *dynamic.values(), builder, kernel.package, kernel.version
    )

    def make(folder: Path) -> dict[str, str]:
        init = _compiled_init(sources, kernel.architecture, cache)
        packed = _pack(kernel, init, busybox, dynamic)
        (folder / FILE_NAME).write_bytes(packed)
        say(f"initramfs {kernel.series}: {len(packed) >> 10} KiB")
        return {"kernel": kernel.version}

    folder = cache.build("initramfs", kernel.series, digest, make)
    return Initramfs(folder / FILE_NAME, digest)


def _source_of(made: type) -> bytes:
    module = made.__module__.rpartition(".")[2]
    return (Path(__file__).parent / f"{module}.py").read_bytes()


def _sources() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(INIT_SOURCES.glob("*.[ch]"))}


def _busybox() -> Path:
    found = shutil.which("busybox")
    if found is None:
        raise MissingPartError(
            "busybox is not on this machine", fix="apt-get install busybox-static"
        )
    program = Path(found)
    if _wants_interpreter(program.read_bytes()):
        raise MissingPartError(
            f"{program} is linked dynamically: it cannot run in a guest that has no libraries",
            fix="apt-get install busybox-static",
        )
    return program


def _wants_interpreter(program: bytes) -> bool:
    """Tell whether an ELF64 file has a PT_INTERP program header (elf(5))."""
    (offset,) = struct.unpack_from("<Q", program, 32)
    size, count = struct.unpack_from("<HH", program, 54)
    kinds = (struct.unpack_from("<I", program, offset + i * size)[0] for i in range(count))
    return PT_INTERP in kinds


def _compiled_init(sources: dict[str, bytes], architecture: str, cache: Cache) -> bytes:
    """Compile process 1 once for all kernels of an architecture."""
    compiler = COMPILERS[architecture]
    digest = digest_of(*sources.values(), " ".join((compiler, *OPTIONS)))
    files = [INIT_SOURCES / name for name in sources if name.endswith(".c")]

    def make(folder: Path) -> dict[str, str]:
        _compile(files, folder / "init", architecture)
        return {"compiler": compiler}

    name = "init" if architecture == "amd64" else f"init-{architecture}"
    return (cache.build("init", name, digest, make) / "init").read_bytes()


def _compile(sources: list[Path], program: Path, architecture: str) -> None:
    compiler, packages = COMPILERS[architecture], COMPILER_PACKAGES[architecture]
    try:
        subprocess.run(
            [compiler, *OPTIONS, "-o", program, *sources],
            check=True,
            capture_output=True,
            text=True,
            timeout=300,
        )
    except FileNotFoundError as error:
        raise MissingPartError(
            f"{compiler} is not on this machine", fix=f"apt-get install {packages}"
        ) from error
    except subprocess.CalledProcessError as error:
        raise LabError(
            f"the guest's init does not compile:\n{error.stderr}",
            fix=f"apt-get install {packages}, or mend the source",
        ) from error


def _pack(kernel: Kernel, init: bytes, busybox: bytes, dynamic: Mapping[str, bytes]) -> bytes:
    archive = CpioArchive()
    for name in ("bin", "dev", "etc", "modules", "proc", "root", "run", "sys", "tmp"):
        archive.folder(name)
    archive.device("dev/console", 5, 1)
    archive.file("init", init, 0o755)
    archive.file("bin/busybox", busybox, 0o755)
    for tool in TOOLS:
        archive.symlink(f"bin/{tool}", "busybox")
    for folder in sorted({str(up) for name in dynamic for up in PurePosixPath(name).parents}):
        if folder not in ("bin", "."):
            archive.folder(folder)
    for name, content in dynamic.items():
        archive.file(name, content, 0o755)
    archive.file("etc/passwd", PASSWD)
    archive.file("root/marker.txt", b"hello secret-marker-4711\n")
    _add_modules(archive, kernel)
    return gzip.compress(archive.finish(), compresslevel=1, mtime=0)


def _add_modules(archive: CpioArchive, kernel: Kernel) -> None:
    at_boot = modules_with_needs(kernel.modules, MODULES_AT_BOOT)
    if len(at_boot) < FEWEST_MODULES:
        raise LabError(
            f"{kernel.package} has only {len(at_boot)} of the modules a guest should load",
            fix=f"name modules of this kernel in {modules_with_needs.__module__}",
        )
    loaded = [module.name for module in at_boot]
    at_hand = modules_with_needs(kernel.modules, MODULES_AT_HAND)
    for module in {m.name: m for m in (*at_boot, *at_hand)}.values():
        archive.file(f"modules/{module.name}.ko", module.content)
    archive.file("modules/load", "".join(f"/modules/{name}.ko\n" for name in loaded).encode())
