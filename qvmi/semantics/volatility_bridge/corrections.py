"""What is changed in a kernel's types for Volatility's sake: where its plugins lag behind kernels.

References: Linux net/ipv6/tcp_ipv6.c (``get_tcp6_sock``), include/linux/mm_types.h (``struct page``),
arch/arm64/include/asm/processor.h (``struct thread_struct``).

Each is decided by what the kernel has. An ISF file gets none of this: it tells the types as they are.
"""

from collections.abc import Mapping
from typing import Final

from qvmi.symbols.isf_schema import Member, StructRef, UnionRef, UserType

__all__ = ["corrected"]

_MAX_DEPTH: Final = 8
"""Anonymous structs nest two or three levels deep; deeper is a lie of the guest's."""

_HIDDEN: Final = (
    # (struct, member, struct, member that it is hidden for)
    # Volatility prefers it, the kernel's own /proc the other one; newer kernels leave it empty.
    ("ipv6_pinfo", "daddr", "sock_common", "skc_v6_daddr"),
)
_OTHER_NAMES: Final = (
    # (struct, member as Volatility calls it, member as newer kernels do)
    ("page", "index", "__folio_index"),
)
_WITHIN: Final = (
    # (struct, member as Volatility looks for it, member of a struct that has it on other architectures)
    ("thread_struct", "sp", "cpu_context"),
)
_UNWRAPPED: Final = (
    # (struct, member that newer kernels have put alone into a struct of its own)
    ("page", "flags"),
)


def corrected(types: Mapping[str, UserType]) -> Mapping[str, UserType]:
    """This gives the same structs and unions with the corrections."""
    changed = dict(types)
    for struct, member, other, instead in _HIDDEN:
        if _find(types, other, instead) is not None:
            _hide(changed, struct, member)
    for struct, name, newer in _OTHER_NAMES:
        found = _find(types, struct, newer)
        if found is not None and _find(types, struct, name) is None:
            own = changed[struct]
            changed[struct] = UserType(own.size, own.fields | {name: found}, own.kind)
    for struct, name, part in _WITHIN:
        _bring_up(changed, struct, name, part)
    for struct, name in _UNWRAPPED:
        _unwrap(changed, struct, name)
    return changed


def _find(
    types: Mapping[str, UserType], struct: str, name: str, base: int = 0, depth: int = 0
) -> Member | None:
    """This is a member, with its place in the struct though it lies in an anonymous part of it."""
    if struct not in types or depth > _MAX_DEPTH:
        return None
    fields = types[struct].fields
    if name in fields:
        return Member(fields[name].type, base + fields[name].offset)
    for field in fields.values():
        if field.anonymous and isinstance(field.type, StructRef | UnionRef):
            found = _find(types, field.type.name, name, base + field.offset, depth + 1)
            if found is not None:
                return found
    return None


def _hide(types: dict[str, UserType], struct: str, name: str, depth: int = 0) -> None:
    """This takes a member out of a struct and out of its anonymous parts."""
    if struct not in types or depth > _MAX_DEPTH:
        return
    own = types[struct]
    types[struct] = UserType(
        own.size, {key: field for key, field in own.fields.items() if key != name}, own.kind
    )
    for field in own.fields.values():
        if field.anonymous and isinstance(field.type, StructRef | UnionRef):
            _hide(types, field.type.name, name, depth + 1)


def _bring_up(types: dict[str, UserType], struct: str, name: str, part: str) -> None:
    """This gives a struct, if it lacks it, a member that one of its parts has."""
    own = types.get(struct)
    within = None if own is None else own.fields.get(part)
    if own is None or within is None or not isinstance(within.type, StructRef):
        return
    found = _find(types, within.type.name, name, within.offset)
    if found is not None and _find(types, struct, name) is None:
        types[struct] = UserType(own.size, own.fields | {name: found}, own.kind)


def _unwrap(types: dict[str, UserType], struct: str, name: str) -> None:
    """This gives a member the type of the only member that its own struct has."""
    own = types.get(struct)
    field = None if own is None else own.fields.get(name)
    if own is None or field is None or not isinstance(field.type, StructRef):
        return
    wrapper = types.get(field.type.name)
    if wrapper is not None and len(wrapper.fields) == 1:
        (only,) = wrapper.fields.values()
        bare = Member(only.type, field.offset + only.offset)
        types[struct] = UserType(own.size, own.fields | {name: bare}, own.kind)
