"""A wrong detector: the right one with a line of its source changed, for the length of a block.

What is compiled from the changed source takes the place of what the module's functions execute; no file and
no module is changed.
"""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Final

__all__ = ["Mutation", "mutated"]

_ROOM: Final = "qvmi."


@dataclass(frozen=True, slots=True)
class Mutation:
    """This is a change of a module's source.

    Attributes:
        module: its name, without ``qvmi.``.
        old: what is in it exactly once.
        new: what is there instead, in as many lines.
    """

    module: str
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.module}: {self.old!r} -> {self.new!r}"


@contextmanager
def mutated(mutation: Mutation) -> Iterator[None]:
    """This lets the functions of a module do something else for the length of the block.

    Raises:
        AssertionError: the source has no such text, or the change makes no function do anything else.
    """
    module = importlib.import_module(_ROOM + mutation.module)
    wrong = _functions(_twin(module, mutation))
    changed = [
        (function, wrong[name].__code__)
        for name, function in _functions(module).items()
        if function.__code__ != wrong[name].__code__
    ]
    assert changed, f"it changes no function: {mutation}"
    right = [(function, function.__code__) for function, _ in changed]
    _put(changed)
    try:
        yield
    finally:
        _put(right)


def _put(codes: list[tuple[FunctionType, CodeType]]) -> None:
    for function, code in codes:
        function.__code__ = code


def _twin(module: ModuleType, mutation: Mutation) -> ModuleType:
    """This is a module beside the right one, made from the changed source; nobody imports it."""
    path = module.__file__
    assert path is not None
    source = Path(path).read_text()
    assert source.count(mutation.old) == 1, f"not once in the source: {mutation}"
    assert mutation.old.count("\n") == mutation.new.count("\n"), "line numbers would change"
    twin = ModuleType(module.__name__)
    twin.__file__ = path
    code = compile(source.replace(mutation.old, mutation.new), path, "exec", dont_inherit=True)
    exec(code, twin.__dict__)  # noqa: S102 - our own source
    return twin


def _functions(module: ModuleType) -> dict[str, FunctionType]:
    """These are the functions and methods that a module defines, by their names."""
    found: dict[str, FunctionType] = {}
    for name, value in vars(module).items():
        if getattr(value, "__module__", None) != module.__name__:
            continue
        members = vars(value) if isinstance(value, type) else {"": value}
        for inner, member in members.items():
            function = _function(member)
            # What dataclasses make has no source.
            if function is not None and function.__code__.co_filename == module.__file__:
                found[f"{name}.{inner}"] = function
    return found


def _function(member: object) -> FunctionType | None:
    inner: object = member
    if isinstance(member, property):
        inner = member.fget
    elif isinstance(member, cached_property):
        inner = member.func
    elif isinstance(member, (classmethod, staticmethod)):
        inner = member.__func__
    return inner if isinstance(inner, FunctionType) else None
