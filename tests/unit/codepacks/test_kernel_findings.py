"""What the codepacks that watch the kernel say of the rows that they are given."""

from msgspec.structs import replace

from qvmi.addr import Va
from qvmi.codepacks.codepack import MAX_KEY_LENGTH, Severity
from qvmi.codepacks.detectors.code_pointer_findings import pointer_findings
from qvmi.codepacks.detectors.hidden_modules import HiddenModules
from qvmi.codepacks.detectors.kernel_hooks import KernelHooks
from qvmi.codepacks.detectors.kernel_settings import KernelSettings
from qvmi.codepacks.detectors.kernel_text import KernelText
from qvmi.codepacks.detectors.system_calls import SystemCalls
from qvmi.semantics.guest_os import CodeChange, CodePointer, Gap, KernelSetting, ModuleSighting
from qvmi.testing import FakeGuest, FakeMemory

RIGHT = CodePointer("sys_call_table", "0 read", Va(0x100), Va(0x1000), "kernel", "__x64_sys_read")
WRONG = CodePointer("sys_call_table", "1 write", Va(0x108), Va(0x2000), "", "", "it leads out")
OVERWRITTEN = CodeChange("kernel", Va(0x1004), "vfs_read+0x4", b"\x55", b"\xc3", "", "overwritten")
TRAPPED = CodeChange(
    "kernel", Va(0x1000), "vfs_read", b"\x90", b"\xcc", "ftrace", "a trap", is_passing=True
)
MEMORY = FakeMemory({})


def test_only_what_cannot_be_right_is_a_finding() -> None:
    [finding] = SystemCalls().inspect(FakeGuest(system_calls=[RIGHT, WRONG]), MEMORY)
    assert finding.claim == "sys_call_table[1 write] leads to 0x2000: it leads out"
    assert [one.address for one in finding.evidence] == [0x108, 0x2000]
    assert [one.present for one in finding.evidence] == [True, False]


def test_code_that_is_as_it_should_be_a_moment_later_is_no_finding() -> None:
    guest = FakeGuest(code_changes=[OVERWRITTEN])
    guest.show("code_changes", [OVERWRITTEN, TRAPPED], once=True)
    [finding] = KernelText().inspect(guest, MEMORY)
    assert finding.claim.startswith("vfs_read+0x4")
    guest.show("code_changes", [])
    guest.show("code_changes", [OVERWRITTEN], once=True)
    assert not list(KernelText().inspect(guest, MEMORY))


def test_what_should_be_there_is_told_beside_what_is_where_it_is_known() -> None:
    found, right_bytes = bytes.fromhex("0020000000000000"), bytes.fromhex("00200081ffffffff")
    known = replace(WRONG, found=found, expected=right_bytes)
    [finding] = SystemCalls().inspect(FakeGuest(system_calls=[known]), MEMORY)
    there, _, right = finding.evidence
    assert (there.present, there.address, there.data) == (True, 0x108, "0020000000000000")
    assert (right.present, right.address, right.data) == (False, 0x108, "00200081ffffffff")


def test_the_same_place_is_the_same_finding_wherever_it_leads_and_others_are_not() -> None:
    moved = CodePointer("sys_call_table", "1 write", Va(0x108), Va(0x3000), "", "", "it leads out")
    other = CodePointer("sys_call_table", "1 write", Va(0x110), Va(0x2000), "", "", "it leads out")
    [a, b, c] = [
        finding.key
        for row in (WRONG, moved, other)
        for finding in SystemCalls().inspect(FakeGuest(system_calls=[row]), MEMORY)
    ]
    assert a == b != c


def test_a_name_of_the_guests_does_not_make_a_key_too_long() -> None:
    guest = FakeGuest(
        system_calls=[CodePointer("t", "x" * 1000, Va(1), Va(2), "", "", "it leads out")]
    )
    [finding] = SystemCalls().inspect(guest, MEMORY)
    assert len(finding.key) == MAX_KEY_LENGTH


def test_what_may_be_behind_a_gap_is_watched_for_a_while() -> None:
    guest = FakeGuest()
    guest.show("system_calls", [WRONG], gaps=[Gap("modules", None, "torn")])
    [finding] = pointer_findings(guest.system_calls(), severity=Severity.HIGH)
    assert finding.settle_s >= 5
    assert finding.evidence[1].facts["gaps"] == 1


def test_overwritten_code_is_told_with_both_bytes() -> None:
    [finding] = KernelText().inspect(FakeGuest(code_changes=[OVERWRITTEN]), MEMORY)
    assert [one.facts["bytes"] for one in finding.evidence] == ["c3", "55"]
    assert finding.settle_s == 0
    assert finding.claim.startswith("vfs_read+0x4 of kernel was overwritten")


def test_what_the_kernel_passes_through_has_time() -> None:
    [finding] = KernelText().inspect(FakeGuest(code_changes=[TRAPPED]), MEMORY)
    assert finding.settle_s > 1


def test_every_look_is_given_what_the_first_one_saw() -> None:
    pack = KernelText()
    before = pack.baseline
    list(pack.inspect(FakeGuest(), MEMORY))
    assert pack.baseline is before
    assert KernelText().baseline is not before


def sightings(*structures: str, state: str = "live") -> list[ModuleSighting]:
    return [ModuleSighting(one, "evil", state, Va(0x4000)) for one in structures]


def test_a_module_that_the_list_lacks_is_told_with_who_has_it() -> None:
    listed = [ModuleSighting(one, "veth", "live", Va(1)) for one in ("modules", "mod_tree")]
    guest = FakeGuest(module_sightings=[*listed, *sightings("mod_tree")])
    [finding] = HiddenModules().inspect(guest, MEMORY)
    assert finding.claim == "module evil is in mod_tree but not in modules"
    assert guest.calls == ["module_sightings"] * 2


def test_a_module_that_was_on_its_way_is_none() -> None:
    guest = FakeGuest(module_sightings=sightings("modules", "mod_tree"))
    guest.show("module_sightings", sightings("mod_tree"), once=True)
    assert list(HiddenModules().inspect(guest, MEMORY)) == []


def test_a_listed_module_that_is_not_live_need_not_be_anywhere_else() -> None:
    rows = [*sightings("modules", state="coming"), ModuleSighting("mod_tree", "a", "live", Va(1))]
    guest = FakeGuest(module_sightings=[*rows, ModuleSighting("modules", "a", "live", Va(1))])
    assert list(HiddenModules().inspect(guest, MEMORY)) == []


HOOKED = CodePointer("netdev_chain", "", Va(0x10), Va(0x20), "", "", "nobody's code is there")


def test_a_hook_that_is_nobodys_in_two_looks_is_a_finding() -> None:
    guest = FakeGuest(hooks=[HOOKED])
    [finding] = KernelHooks().inspect(guest, MEMORY)
    assert finding.claim == "netdev_chain leads to 0x20: nobody's code is there"
    assert guest.calls == ["hooks", "hooks"]


def test_a_hook_that_was_on_its_way_is_none() -> None:
    guest = FakeGuest()
    guest.show("hooks", [HOOKED], once=True)
    assert list(KernelHooks().inspect(guest, MEMORY)) == []


def test_a_program_in_a_folder_of_everybodys_is_a_finding() -> None:
    rows = [
        KernelSetting("modprobe_path", "/sbin/modprobe", Va(1), "/sbin/modprobe"),
        KernelSetting("core_pattern", "|/tmp/x %p", Va(2), "/tmp/x"),  # noqa: S108 - told, not used
    ]
    [finding] = KernelSettings().inspect(FakeGuest(settings=rows), MEMORY)
    assert finding.evidence[0].address == 2
    assert finding.claim.startswith("core_pattern is '|/tmp/x %p'")
