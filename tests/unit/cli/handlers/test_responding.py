"""A watch with playbooks says before anything happens what of them cannot come to pass."""

from collections.abc import Collection

from qvmi.cli.handlers.responding import in_vain
from qvmi.manager.response.playbook_file import parse_playbooks
from qvmi.policy import Grant, Policy

BOOK = b"""\
version = 1
[playbooks.one]
folder = "/var/lib/evidence"
[playbooks.one.when]
codepack = "hidden-sockets"
ask = {codepack = "hidden-processes", deadline-s = 60}
[[playbooks.one.then]]
do = "nic-down"
[[playbooks.one.then]]
do = "dump"
[[playbooks.one.then]]
do = "message"
text = "over"
"""
BOTH = ("hidden-processes", "hidden-sockets")
ALL = Policy(frozenset({Grant.NIC, Grant.PAUSE, Grant.READ_MEMORY}))


def told(policy: Policy = ALL, packs: Collection[str] = BOTH) -> list[str]:
    return list(in_vain(parse_playbooks("book.toml", BOOK), policy, packs))


def test_what_steps_need_and_nobody_has_granted_is_told_with_the_way_out() -> None:
    (words,) = told(Policy(frozenset({Grant.NIC})))
    assert words.startswith("not granted to response: pause, read-memory: ")
    assert words.endswith("[codepacks.response] in --policy FILE grants it")


def test_a_playbook_that_waits_for_a_codepack_that_is_not_here_is_told_of() -> None:
    (words,) = told(packs=["hidden-processes"])
    assert words.startswith("playbook one waits for codepack 'hidden-sockets', which is not here; ")
    assert len(told(packs=["credentials"])) == 2


def test_of_what_can_come_to_pass_nothing_is_told() -> None:
    assert told() == []
