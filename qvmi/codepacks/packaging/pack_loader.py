"""A codepack's code, imported from the bytes that were verified: no file is opened again.

That of qvmi's own, and of whatever else is installed beside it, is imported as all code is.

References: Python's ``importlib.abc`` (``MetaPathFinder``, ``InspectLoader``).
"""

import hashlib
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import CodeType, ModuleType
from typing import Final, cast

from qvmi.codepacks.codepack import Codepack
from qvmi.codepacks.look import in_words
from qvmi.codepacks.manifest import Kind, Manifest
from qvmi.codepacks.packaging.pack_folder import PackFolder
from qvmi.codepacks.packaging.pack_signature import VerifiedPack
from qvmi.codepacks.service import ServicePack, is_service
from qvmi.errors import CodepackError, CodepackRefused, QvmiError
from qvmi.policy import Grant

__all__ = ["load", "load_any", "load_bytes", "load_installed"]

_ROOT: Final = "qvmi_codepack_"
"""What the modules of codepacks are below, so that none can stand in for a module of anybody else's."""
_DIGEST_DIGITS: Final = 16
_INIT: Final = "__init__.py"


def load(pack: VerifiedPack, **options: object) -> Codepack:
    """This makes a codepack out of its verified bytes.

    Its modules import each other relatively (``from .rules import …``); what is not among the verified
    bytes is not found there, whatever lies in the folder by now.

    Args:
        pack: what was verified.
        options: what its entry point is called with, in place of its baseline.

    Raises:
        CodepackRefused: it cannot be imported, is another than its manifest says, or is a service.
    """
    return load_bytes(pack.folder, **options)


def load_bytes(folder: PackFolder, **options: object) -> Codepack:
    """This is :func:`load` where somebody else has verified the bytes, such as the parent of this process."""
    made = load_any(folder, **options)
    if is_service(made):
        raise CodepackRefused(folder.manifest.name, "it is a service: it is not asked to look")
    return cast("Codepack", made)


def load_any(folder: PackFolder, **options: object) -> Codepack | ServicePack:
    """This is :func:`load_bytes` for a service, too."""
    manifest = folder.manifest
    finder = _Finder(_package_of(folder), folder.files, manifest.name)
    if not any(isinstance(one, _Finder) and one.package == finder.package for one in sys.meta_path):
        sys.meta_path.insert(0, finder)
    module, _, name = manifest.entry.partition(":")
    arguments = {
        "interval_s": manifest.management.interval_s,
        **manifest.baseline,
        **options,
    }
    try:
        maker = getattr(import_module(f"{finder.package}.{module}"), name)
        made: Codepack | ServicePack = maker(**arguments)
        _require_as_declared(made, manifest)
    except CodepackRefused:
        raise
    except (Exception, SystemExit) as error:
        raise CodepackRefused(
            manifest.name, f"{manifest.entry} fails: {in_words(error)}"
        ) from error
    return made


def load_installed(
    name: str, entry: str, interval_s: float, **options: object
) -> Codepack | ServicePack:
    """This makes a codepack whose code is installed here, as that of qvmi's own is.

    Args:
        name: of the codepack.
        entry: what makes it, as ``module:name``.
        interval_s: from the start of one look to the start of the next.
        options: what else the entry is called with.

    Raises:
        CodepackError: it cannot be imported or made, or is another.
        QvmiError: one of its options cannot be used.
    """
    module, _, maker = entry.partition(":")
    try:
        made: Codepack | ServicePack = getattr(import_module(module), maker)(interval_s, **options)
    except QvmiError:
        raise
    except (Exception, SystemExit) as error:
        raise CodepackError(name, f"{entry} fails: {in_words(error)}") from error
    if made.name != name:
        raise CodepackError(name, f"{entry} calls itself {made.name!r}")
    return made


def _require_as_declared(made: Codepack | ServicePack, manifest: Manifest) -> None:
    """This raises CodepackRefused where the code is another than its manifest says."""
    if made.name != manifest.name:
        raise CodepackRefused(manifest.name, f"its code calls itself {made.name!r}")
    if more := {Grant(grant) for grant in made.grants} - manifest.grants:
        asked = ", ".join(sorted(more))
        raise CodepackRefused(manifest.name, f"its code asks for more than its manifest: {asked}")
    if is_service(made) is not (manifest.kind is Kind.SERVICE):
        raise CodepackRefused(manifest.name, f"its manifest calls it {manifest.kind}, its code not")
    if is_service(made):
        return
    looking = cast("Codepack", made)
    inspect: object = looking.inspect
    if not callable(inspect) or not float(looking.interval_s) > 0:
        raise CodepackRefused(manifest.name, f"{manifest.entry} makes no codepack")


def _package_of(folder: PackFolder) -> str:
    """This is the name of its root package: another one for other bytes, which are other code."""
    digest = hashlib.sha256()
    for path, data in sorted(folder.files.items()):
        digest.update(f"{len(path)} {path} {len(data)}\n".encode())
        digest.update(data)
    name = folder.manifest.name.replace("-", "_")
    return f"{_ROOT}{name}_{digest.hexdigest()[:_DIGEST_DIGITS]}"


class _Finder(MetaPathFinder, InspectLoader):
    """This finds the modules of one codepack in its verified bytes.

    Args:
        package: the name of its root package.
        files: the verified bytes by path.
        codepack: as tracebacks name it.
    """

    def __init__(self, package: str, files: Mapping[str, bytes], codepack: str) -> None:
        self.package: Final = package
        self._files = files
        self._codepack = codepack

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """This is the module's spec; None where the module is not of this codepack."""
        del path, target
        if fullname != self.package and not fullname.startswith(f"{self.package}."):
            return None
        file = self._file_of(fullname)
        if file is None and not self.is_package(fullname):
            return None
        return spec_from_loader(
            fullname, self, origin=self._origin(file), is_package=self.is_package(fullname)
        )

    def is_package(self, fullname: str) -> bool:
        """This tells whether the module is a folder; such a one need not have an ``__init__.py``."""
        folder = self._path(fullname)
        return not folder or any(path.startswith(f"{folder}/") for path in self._files)

    def get_source(self, fullname: str) -> str:
        """This is the module's source, as tracebacks show it."""
        return self._data(fullname).decode("utf-8", "backslashreplace")

    def get_code(self, fullname: str) -> CodeType:
        """This compiles the module."""
        origin = self._origin(self._file_of(fullname))
        return compile(self._data(fullname), origin, "exec", dont_inherit=True)

    def _data(self, fullname: str) -> bytes:
        file = self._file_of(fullname)
        return b"" if file is None else self._files[file]

    def _file_of(self, fullname: str) -> str | None:
        path = self._path(fullname)
        init = f"{path}/{_INIT}" if path else _INIT
        return next((file for file in (init, f"{path}.py") if file in self._files), None)

    def _path(self, fullname: str) -> str:
        return fullname[len(self.package) + 1 :].replace(".", "/")

    def _origin(self, file: str | None) -> str:
        return f"<codepack {self._codepack}>/{file or ''}"
