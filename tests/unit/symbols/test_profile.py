"""The memo of a kernel build on disk: kept, found again, and never believed when damaged."""

import hashlib
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qvmi.addr import Va
from qvmi.errors import CorruptTable, MemoryFault, UsageError
from qvmi.symbols.kallsyms import Addressing, KallsymsTables
from qvmi.symbols.layout import Field
from qvmi.symbols.profile import (
    Profile,
    ProfileCache,
    enumerator_key,
    field_key,
    size_key,
    symbol_key,
)
from qvmi.symbols.witness import Witness

BANNER = b"Linux version 6.1.0-56-cloud-amd64 (Debian) #1 SMP"
IMAGE = Va(0xFFFF_FFFF_9C60_0000)
MOVED = Va(0xFFFF_FFFF_8100_0000)
BANNER_OFFSET = 0x11F_FFE0

TABLES = KallsymsTables(
    names=Va(IMAGE + 0x1000),
    count=87347,
    markers=Va(IMAGE + 0x2000),
    token_table=Va(IMAGE + 0x3000),
    token_index=Va(IMAGE + 0x4000),
    offsets=Va(IMAGE + 0x5000),
    addressing=Addressing.ABSOLUTE_PERCPU,
    relative_base=IMAGE,
    seqs_of_names=Va(IMAGE + 0x6000),
    long_names=True,
)


WITNESS = Witness.of([(Va(IMAGE + 0x1000), b"the bytes of a name"), (Va(IMAGE + 0x5000), b"1234")])


def profile(banner: bytes = BANNER, tables: KallsymsTables = TABLES) -> Profile:
    return Profile(
        banner=banner,
        banner_address=Va(IMAGE + BANNER_OFFSET),
        tables=tables,
        symbols={"init_task": Va(IMAGE + 0x100), "cpu_info": Va(0x1000)},
        fields={"task_struct.pid": Field("pid", 1234)},
        sizes={"task_struct": 9792},
        enumerators={"pageflags.PG_head": 16},
        witnesses={
            symbol_key("init_task"): WITNESS,
            symbol_key("cpu_info"): WITNESS,
            field_key("task_struct.pid"): WITNESS,
            size_key("task_struct"): WITNESS,
            enumerator_key("pageflags.PG_head"): WITNESS,
        },
        changed=True,
    )


def running(banner: bytes = BANNER, image: Va = IMAGE) -> Callable[[Va, int], bytes]:
    """A kernel's memory that holds nothing but its banner."""

    def read(va: Va, size: int) -> bytes:
        if va != image + BANNER_OFFSET:
            raise MemoryFault(va, size, kind="virtual")
        return (banner + b"\n\0").ljust(size, b"\xee")

    return read


@pytest.fixture
def cache(tmp_path: Path) -> ProfileCache:
    return ProfileCache(tmp_path / "profiles")


# ------------------------------------------------------------------------------------------ kept and found


def test_a_profile_is_found_again_as_it_was(cache: ProfileCache) -> None:
    cache.save(profile(), IMAGE)
    assert cache.match(IMAGE, running()) == replace(profile(), changed=False)


def test_addresses_in_the_image_move_with_it(cache: ProfileCache) -> None:
    cache.save(profile(), IMAGE)
    found = cache.match(MOVED, running(image=MOVED))
    assert found is not None
    assert found.symbols == {"init_task": MOVED + 0x100, "cpu_info": 0x1000}
    assert found.banner_address == MOVED + BANNER_OFFSET


def test_all_tables_move_with_the_image(cache: ProfileCache) -> None:
    cache.save(profile(), IMAGE)
    found = cache.match(MOVED, running(image=MOVED))
    assert found is not None
    distance = MOVED - IMAGE
    assert found.tables == KallsymsTables(
        names=Va(TABLES.names + distance),
        count=87347,
        markers=Va(TABLES.markers + distance),
        token_table=Va(TABLES.token_table + distance),
        token_index=Va(TABLES.token_index + distance),
        offsets=Va(TABLES.offsets + distance),
        addressing=Addressing.ABSOLUTE_PERCPU,
        relative_base=IMAGE + distance,
        seqs_of_names=Va(TABLES.seqs_of_names + distance),
        long_names=True,
    )


def test_tables_that_do_not_exist_do_not_move(cache: ProfileCache) -> None:
    tables = replace(
        TABLES, addressing=Addressing.PLACE_RELATIVE, relative_base=0, seqs_of_names=Va(0)
    )
    cache.save(profile(tables=tables), IMAGE)
    found = cache.match(MOVED, running(image=MOVED))
    assert found is not None
    assert (found.tables.relative_base, found.tables.seqs_of_names) == (0, 0)


def test_each_build_has_a_profile_of_its_own(cache: ProfileCache) -> None:
    other = b"Linux version 6.12.107"
    cache.save(profile(), IMAGE)
    cache.save(profile(other), IMAGE)
    for banner in (BANNER, other):
        found = cache.match(IMAGE, running(banner))
        assert found is not None
        assert found.banner == banner


def test_saving_again_replaces(cache: ProfileCache) -> None:
    cache.save(profile(), IMAGE)
    richer = profile()
    richer.add_symbol("tk_core", Va(IMAGE + 0x200), WITNESS)
    assert cache.save(richer, IMAGE) == cache.save(richer, IMAGE)
    found = cache.match(IMAGE, running())
    assert found is not None
    assert found.symbols["tk_core"] == IMAGE + 0x200
    assert len(list(cache.folder.iterdir())) == 1


def test_once_saved_there_is_nothing_to_save(cache: ProfileCache) -> None:
    kept = profile()
    cache.save(kept, IMAGE)
    assert not kept.changed
    kept.add_size("cred", 176, WITNESS)
    assert kept.changed


def test_an_answer_without_a_witness_is_not_kept(cache: ProfileCache) -> None:
    kept = profile()
    kept.add_symbol("modules", None)
    kept.add_field("task_struct.nested", Field("nested", 8))
    kept.add_enumerator("pageflags.PG_tail", None)
    cache.save(kept, IMAGE)
    assert cache.match(IMAGE, running()) == replace(profile(), changed=False)


def test_what_an_answer_rests_on_moves_with_the_image(cache: ProfileCache) -> None:
    cache.save(profile(), IMAGE)
    found = cache.match(MOVED, running(image=MOVED))
    assert found is not None
    distance = MOVED - IMAGE
    assert set(found.witnesses.values()) == {WITNESS.moved(distance)}


def test_others_may_not_read_the_cache(cache: ProfileCache) -> None:
    path = cache.save(profile(), IMAGE)
    assert stat.S_IMODE(cache.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_name_that_no_kernel_has_is_not_remembered(cache: ProfileCache) -> None:
    kept = profile()
    kept.add_symbol("\udcff", None)
    kept.add_field("täsk.comm|", None)
    kept.add_size("\ud800", None)
    assert kept == profile()
    cache.save(kept, IMAGE)


def test_a_forgotten_profile_is_gone(cache: ProfileCache) -> None:
    cache.save(profile(), IMAGE)
    cache.remove(profile(), IMAGE)
    cache.remove(profile(), IMAGE)
    assert cache.match(IMAGE, running()) is None


# -------------------------------------------------------------------------------------------- nothing fits


def test_without_a_folder_there_is_no_profile(cache: ProfileCache) -> None:
    assert cache.match(IMAGE, running()) is None


def test_another_kernels_profile_does_not_match_and_stays(cache: ProfileCache) -> None:
    cache.save(profile(), IMAGE)
    assert cache.match(IMAGE, running(b"Linux version 5.10")) is None
    assert cache.match(IMAGE, running()) is not None


def test_where_the_banner_cannot_be_read_nothing_matches(cache: ProfileCache) -> None:
    cache.save(profile(), IMAGE)
    assert cache.match(MOVED, running()) is None
    assert cache.match(IMAGE, running()) is not None


@pytest.mark.parametrize(
    "name",
    [
        "README",
        "11fffe0.json",
        "-" + "0" * 32 + ".json",
        "zz-" + "0" * 32 + ".json",
        "11fffe0-" + "0" * 31 + ".json",
        "11fffe0-" + "0" * 32,
        "f" * 200 + "-" + "0" * 32 + ".json",
        ".tmp",
        "11fffe0-\udcff.json",
    ],
)
def test_other_files_in_the_folder_are_left_alone(cache: ProfileCache, name: str) -> None:
    cache.save(profile(), IMAGE)
    (cache.folder / name).write_text("mine")
    assert cache.match(IMAGE, running()) is not None
    assert (cache.folder / name).read_text() == "mine"


def test_a_folder_with_a_profiles_name_is_no_profile(cache: ProfileCache) -> None:
    path = cache.save(profile(), IMAGE)
    path.unlink()
    path.mkdir()
    assert cache.match(IMAGE, running()) is None


# ------------------------------------------------------------------------------------------------ damaged


def sealed(body: bytes) -> bytes:
    """A file whose checksum is right."""
    digest = hashlib.sha256(body).hexdigest()
    return b'{"sha256":"%s","profile":%s}' % (digest.encode(), body)


def changed_body(path: Path, **changes: object) -> bytes:
    body = json.loads(path.read_text())["profile"] | changes
    return sealed(json.dumps(body).encode())


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"",
        lambda data: data[: len(data) // 2],
        lambda data: data.replace(b"87347", b"87348"),
        lambda data: b"\xff" + data,
        lambda _: b"[" * 100_000,
        lambda _: sealed(b"[" * 100_000),
        lambda _: sealed(b"{}"),
        lambda _: b'{"sha256":1}',
        lambda _: b"null",
    ],
)
def test_a_damaged_file_is_removed_and_not_believed(
    cache: ProfileCache, damage: Callable[[bytes], bytes]
) -> None:
    path = cache.save(profile(), IMAGE)
    path.write_bytes(damage(path.read_bytes()))
    assert cache.match(IMAGE, running()) is None
    assert not path.exists()


def test_a_file_of_another_version_is_removed(cache: ProfileCache) -> None:
    path = cache.save(profile(), IMAGE)
    path.write_bytes(changed_body(path, version=0))
    assert cache.match(IMAGE, running()) is None
    assert not path.exists()


def test_a_file_of_another_banner_than_its_name_says_is_removed(cache: ProfileCache) -> None:
    path = cache.save(profile(), IMAGE)
    other = cache.save(profile(b"Linux version 5.10"), IMAGE)
    path.write_bytes(other.read_bytes())
    assert cache.match(IMAGE, running()) is None
    assert not path.exists()
    assert other.exists()


def test_a_file_with_an_impossible_number_of_symbols_is_removed(cache: ProfileCache) -> None:
    path = cache.save(profile(), IMAGE)
    tables = json.loads(path.read_text())["profile"]["tables"] | {"count": 0}
    path.write_bytes(changed_body(path, tables=tables))
    assert cache.match(IMAGE, running()) is None


def test_a_damaged_file_does_not_hide_a_good_one(cache: ProfileCache) -> None:
    good = cache.save(profile(), IMAGE)
    bad = good.with_name(f"{BANNER_OFFSET + 16:x}-{good.stem.partition('-')[2]}.json")
    bad.write_bytes(b"rubbish")

    def read(_: Va, size: int) -> bytes:
        return running()(Va(IMAGE + BANNER_OFFSET), size)

    found = cache.match(IMAGE, read)
    assert found is not None
    assert found.banner == BANNER


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=8),
    st.booleans(),
)
def test_a_file_with_wrong_bytes_never_raises(
    cache: ProfileCache,
    wrong: list[tuple[int, int]],
    resealed: bool,  # noqa: FBT001 - by hypothesis
) -> None:
    path = cache.save(profile(), IMAGE)
    body = bytearray(msgspec.json.encode(json.loads(path.read_text())["profile"]))
    for at, byte in wrong:
        body[at % len(body)] = byte
    path.write_bytes(sealed(bytes(body)) if resealed else bytes(body))
    found = cache.match(IMAGE, running())
    assert found is None or found.banner == BANNER


# --------------------------------------------------------------------------------------- the folder itself


def test_a_folder_that_cannot_be_made_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="name another folder"):
        ProfileCache(tmp_path / "file" / "profiles").save(profile(), IMAGE)


def test_a_folder_that_cannot_be_written_is_said_so_and_left_clean(cache: ProfileCache) -> None:
    path = cache.save(profile(), IMAGE)
    path.unlink()
    (path / "in_the_way").mkdir(parents=True)
    with pytest.raises(UsageError, match="name another folder"):
        cache.save(profile(), IMAGE)
    assert [one.name for one in cache.folder.iterdir()] == [path.name]


def test_a_profile_that_grew_without_bound_is_not_kept(cache: ProfileCache) -> None:
    grown = profile()
    for number in range(100_000):
        grown.add_symbol(f"a_name_that_somebody_asked_for_{number}", IMAGE, WITNESS)
    with pytest.raises(UsageError, match="bytes"):
        cache.save(grown, IMAGE)


def test_without_the_right_to_list_the_folder_there_is_no_profile(cache: ProfileCache) -> None:
    cache.save(profile(), IMAGE)
    cache.folder.rename(cache.folder.with_name("hidden"))
    cache.folder.write_text("a file")
    assert cache.match(IMAGE, running()) is None


def test_many_writers_and_a_reader_see_whole_profiles_only(cache: ProfileCache) -> None:
    script = (
        "import sys; from pathlib import Path; from qvmi.symbols.profile import ProfileCache\n"
        "from tests.unit.symbols.test_profile import IMAGE, profile\n"
        "cache = ProfileCache(Path(sys.argv[1]))\n"
        "[cache.save(profile(), IMAGE) for _ in range(200)]\n"
    )
    cache.save(profile(), IMAGE)
    command = [sys.executable, "-c", script, str(cache.folder)]
    writers = [subprocess.Popen(command, env=os.environ | {"PYTHONPATH": "."}) for _ in range(2)]
    misses = 0
    while any(writer.poll() is None for writer in writers):
        misses += cache.match(IMAGE, running()) is None
    assert ([writer.wait() for writer in writers], misses) == ([0, 0], 0)
    assert len(list(cache.folder.iterdir())) == 1


def test_the_errors_of_loading_do_not_leave_the_cache(cache: ProfileCache) -> None:
    path = cache.save(profile(), IMAGE)
    path.write_bytes(b"rubbish")
    try:
        assert cache.match(IMAGE, running()) is None
    except CorruptTable:
        pytest.fail("a damaged memo is not the caller's concern")
