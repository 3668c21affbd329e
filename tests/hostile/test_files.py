"""Files, mounts, memory maps and a log with wrong words anywhere: answers, gaps or errors of ours."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qvmi.errors import QvmiError
from qvmi.semantics.linux.fs.d_path import Paths
from qvmi.semantics.linux.fs.mount import Mounts
from qvmi.semantics.linux.printk import KernelLog
from qvmi.semantics.linux.processes.command_line import CommandLines
from qvmi.semantics.linux.processes.fdtable import OpenFiles
from qvmi.semantics.linux.processes.vma import Mappings
from qvmi.semantics.linux.structures.list import ListWalk
from qvmi.semantics.linux.tasks.task import Tasks
from tests.hostile.bounds import cpu_seconds
from tests.synthetic.kernel_files import LIST_LAYOUTS, TREE_LAYOUTS, KernelFiles
from tests.synthetic.kernel_memory import DIRECT_MAP

if TYPE_CHECKING:
    from qvmi.semantics.guest_os import Process

MOST_GAPS = 12_000
PAGE = 0x1000
PIDS = range(2, 6)

values = st.one_of(
    st.sampled_from([0, 1, 2, 3, 0xFF, 0x1000, 0xFFFF_FFFF, (1 << 64) - 1, 1 << 63]),
    st.sampled_from([0x4141_4141_4141_4141, 0xDEAD_0000_0000_0122]),
    st.integers(0, 0x6000).map(lambda offset: DIRECT_MAP + 0x1000 + (offset & ~7)),
    st.integers(0, 0x6000).map(lambda offset: (DIRECT_MAP + 0x1000 + (offset & ~0xFF)) | 0x0E),
    st.integers(0, (1 << 64) - 1),
)
words = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), values), min_size=1, max_size=8)


def populated(*, tree: bool) -> KernelFiles:
    memory = KernelFiles(TREE_LAYOUTS if tree else LIST_LAYOUTS)
    mounts = [memory.root_mount]
    for number in range(2, 5):
        place = memory.dentry(b"mnt", memory.root)
        on = (mounts[-1], place)
        mounts.append(memory.mount(memory.dentry(b"/"), on=on, number=number))
    namespace = memory.namespace(mounts)
    for pid in PIDS:
        task = memory.add_process(pid)
        memory.enter(task, namespace)
        odd = memory.dentry(b"", namer="pipefs_dname", inode=memory.inode(number=pid))
        names = [memory.dentry(b"d%d" % pid, memory.root), odd]
        files = [memory.file(name) for name in names]
        memory.open(task, dict(enumerate(files)), size=8)
        mm = memory.memory(task, pgd=DIRECT_MAP, arg_start=PAGE, arg_end=3 * PAGE, env_end=PAGE)
        at = [(n, 2 * n * PAGE) for n in range(1, 10)]
        pages = [memory.vma(mm, start, start + PAGE, vm_file=files[n % 2]) for n, start in at]
        memory.link(mm, pages)
    memory.log([b"record %d" % number for number in range(12)])
    return memory


def ask_everything(memory: KernelFiles) -> Iterator[tuple[str, ListWalk[Any]]]:
    space, symbols = memory.space, memory.symbols
    tasks = Tasks(space, symbols, ram_size=1 << 20)
    paths = Paths(space, symbols)
    processes: list[Process] = []
    with suppress(QvmiError):
        processes = list(tasks.processes().rows.values())
    mounts = Mounts(space, symbols, tasks=tasks, paths=paths)
    maps = Mappings(space, symbols, tasks=tasks, paths=paths)
    lines = CommandLines(space, symbols, tasks=tasks)
    files = OpenFiles(space, symbols, tasks=tasks, paths=paths)
    questions: dict[str, Callable[[], ListWalk[Any]]] = {
        "mounts": partial(mounts.of_all, processes),
        "files": partial(files.of, processes),
        "maps": partial(maps.of_all, processes),
        "lines": partial(lines.of, processes),
        "log": KernelLog(space, symbols).records,
    }
    for process in processes:
        questions |= {
            f"maps {process.pid}": partial(maps.of, process),
            f"mounts {process.pid}": partial(mounts.of, process),
            f"variables {process.pid}": partial(lines.environment, process),
        }
    for name, question in questions.items():
        with suppress(QvmiError):
            yield name, question()


@settings(max_examples=300, deadline=None)
@given(tree=st.booleans(), wrong=words)
def test_wrong_words_anywhere_are_answers_gaps_or_errors_of_ours(
    wrong: list[tuple[float, int]], *, tree: bool
) -> None:
    memory = populated(tree=tree)
    start, size = DIRECT_MAP + 0x1000, memory.free - DIRECT_MAP - 0x1000
    for place, value in wrong:
        memory.u64(start + (int(place * size) & ~7), value)
    with cpu_seconds(20):
        for _, walk in ask_everything(memory):
            assert len(walk.gaps) < MOST_GAPS


@pytest.mark.parametrize("tree", [True, False])
def test_what_is_altered_is_whole_but_for_the_pages_of_user_memory(*, tree: bool) -> None:
    walks = dict(ask_everything(populated(tree=tree)))
    assert len(walks) == 5 + 3 * len(PIDS)
    assert {name.partition(" ")[0] for name, walk in walks.items() if walk.gaps} == {
        *("lines", "variables")
    }
    assert all(walk.rows for name, walk in walks.items() if not name.startswith("variables"))
