"""A kernel's types are changed for Volatility only where it lags behind, and by what the kernel has."""

from qvmi.semantics.volatility_bridge.corrections import corrected
from qvmi.symbols.isf_schema import Base, Member, StructRef, UnionRef, UserType

LONG = Base("long unsigned int")
ADDRESS = StructRef("in6_addr")


def struct(**fields: Member) -> UserType:
    return UserType(64, fields, "struct")


def anonymous(name: str, offset: int = 0) -> Member:
    return Member(UnionRef(name), offset, anonymous=True)


def test_a_kernel_that_has_all_that_volatility_wants_is_left_as_it_is() -> None:
    types = {"page": struct(flags=Member(LONG, 0), index=Member(LONG, 32)), "pid": struct()}
    assert corrected(types) == types


def test_an_index_of_another_name_is_found_at_its_place_within_anonymous_parts() -> None:
    types = {
        "page": struct(flags=Member(LONG, 0), inner=anonymous("outer", 8)),
        "outer": struct(inner=anonymous("deep", 16)),
        "deep": struct(__folio_index=Member(LONG, 8)),
    }
    assert corrected(types)["page"].fields["index"] == Member(LONG, 32)
    assert "index" not in types["page"].fields


def test_flags_in_a_struct_of_their_own_become_plain() -> None:
    types = {
        "page": struct(flags=Member(StructRef("memdesc_flags_t"), 0), index=Member(LONG, 32)),
        "memdesc_flags_t": struct(f=Member(LONG, 0)),
    }
    assert corrected(types)["page"].fields["flags"] == Member(LONG, 0)


def test_a_stack_pointer_is_brought_up_from_where_aarch64_keeps_it() -> None:
    types = {
        "thread_struct": struct(tp=Member(LONG, 0), cpu_context=Member(StructRef("context"), 16)),
        "context": struct(fp=Member(LONG, 80), sp=Member(LONG, 88)),
    }
    assert corrected(types)["thread_struct"].fields["sp"] == Member(LONG, 104)
    of_x86 = types | {"thread_struct": struct(sp=Member(LONG, 24))}
    assert corrected(of_x86) == of_x86


def test_a_peer_is_looked_for_where_the_kernel_itself_does() -> None:
    old = {"ipv6_pinfo": struct(daddr=Member(ADDRESS, 16)), "sock_common": struct()}
    assert corrected(old) == old
    new = {
        "ipv6_pinfo": struct(saddr=Member(ADDRESS, 0), inner=anonymous("either", 16)),
        "either": struct(daddr=Member(ADDRESS, 0), final=Member(ADDRESS, 0)),
        "sock_common": struct(skc_v6_daddr=Member(ADDRESS, 32)),
    }
    seen = corrected(new)
    assert set(seen["either"].fields) == {"final"}
    assert set(seen["ipv6_pinfo"].fields) == {"saddr", "inner"}


def test_a_struct_that_is_a_part_of_itself_ends() -> None:
    loop = {"page": struct(inner=anonymous("page")), "sock_common": struct(inner=anonymous("page"))}
    assert corrected(loop) == loop
