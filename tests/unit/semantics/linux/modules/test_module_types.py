"""BTF of modules: found where the kernel keeps it, and whatever a guest claims, an answer."""

import pytest

from qvmi.errors import WalkFailed
from qvmi.semantics.linux.modules.module_types import ModuleBtf, ModuleTypes
from qvmi.semantics.linux.structures.list import ListWalk
from qvmi.symbols.btf import Btf
from tests.synthetic.btf import BtfBuilder, Member
from tests.unit.semantics.linux.loaded_modules import BTF_HEAD, LoadedModules, ModuleSpec


def kernel() -> BtfBuilder:
    btf = BtfBuilder()
    btf.struct_("net_device", 8, [Member("mtu", btf.int_("int", 4, signed=True))])
    return btf


def split(base: BtfBuilder) -> bytes:
    btf = BtfBuilder(base)
    btf.struct_("veth_priv", 8, [Member("peer", btf.pointer(2))])
    return btf.build()


def walk(memory: LoadedModules) -> ListWalk[ModuleBtf]:
    return ModuleTypes(memory.space(), memory.symbols, Btf(kernel().build())).types()


def loaded() -> LoadedModules:
    return LoadedModules(ModuleSpec("veth"), ModuleSpec("bridge"))


def test_each_module_has_its_own_types_on_top_of_the_kernels() -> None:
    memory = loaded()
    memory.add_btf("veth", split(kernel()))
    memory.add_btf("bridge", split(kernel()))
    found = walk(memory)
    assert [(one.name, one.module) for one in found.rows.values()] == list(memory.at.items())
    veth = next(iter(found.rows.values())).btf
    record = veth.find_compound("veth_priv")
    assert record is not None
    (peer,) = veth.members(record)
    assert veth.type(veth.type(peer.type_id).size_or_type).name == "net_device"


def test_the_kernels_own_word_on_where_they_are_counts_more_than_what_is_known() -> None:
    memory = loaded()
    btf = memory.add_btf("veth", split(kernel()))
    memory.layouts["btf_module"] = (40, {"list": 8, "module": 24, "btf": 32})
    entry = memory.put(bytes(40))
    memory.poke(entry + 24, "QQ", memory.at["veth"], btf)
    memory.link(BTF_HEAD, [entry + 8])
    assert [one.name for one in walk(memory).rows.values()] == ["veth"]


def test_a_kernel_before_5_11_keeps_none() -> None:
    memory = loaded()
    del memory.symbols.addresses["btf_modules"]
    found = walk(memory)
    assert (found.rows, found.gaps) == ({}, [])


def test_a_list_that_cannot_be_read_is_an_error() -> None:
    memory = loaded()
    memory.symbols.addresses["btf_modules"] = 0x1000
    with pytest.raises(WalkFailed, match="btf_modules"):
        walk(memory)


@pytest.mark.parametrize("size", [0xFFFFFFFF, (32 << 20) + 1, 7 << 20])
def test_a_size_that_cannot_be_is_a_gap_and_the_other_modules_are_read(size: int) -> None:
    memory = loaded()
    memory.add_btf("veth", b"", size=size)
    memory.add_btf("bridge", split(kernel()))
    found = walk(memory)
    assert [one.name for one in found.rows.values()] == ["bridge"]
    assert found.gaps


def test_bytes_that_are_no_btf_are_a_gap_that_names_the_module() -> None:
    memory = loaded()
    memory.add_btf("veth", b"no BTF" * 10)
    found = walk(memory)
    assert not found.rows
    assert [gap.reason.partition(":")[0] for gap in found.gaps] == ["veth"]


def test_all_modules_together_have_no_more_types_than_is_bearable() -> None:
    memory = loaded()
    data = split(kernel())
    large = data + bytes((6 << 20) - len(data))
    first = memory.add_btf("veth", large)
    for _ in range(20):
        memory.btf_entries.append(memory.put(bytes(32)))
        memory.poke(memory.btf_entries[-1] + 16, "QQ", memory.at["veth"], first)
    memory.link(BTF_HEAD, memory.btf_entries)
    found = walk(memory)
    assert len(found.rows) == 64 // 6
    assert [gap.reason for gap in found.gaps] == ["more than 64 MiB"]
