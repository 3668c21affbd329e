"""The form of findings."""

import msgspec
import pytest

from qvmi.addr import Va
from qvmi.codepacks.codepack import (
    MAX_DATA_BYTES,
    MAX_KEY_LENGTH,
    MAX_OBSERVATIONS,
    MAX_SETTLE_S,
    Finding,
    Observation,
    Severity,
    hexadecimal,
)
from qvmi.errors import UsageError

OBSERVATION = Observation(view="list", present=True, address=Va(0xFFFF888000001000))


def finding(
    *,
    technique: str = "T1014",
    key: str = "key",
    evidence: tuple[Observation, ...] = (OBSERVATION,),
) -> Finding:
    return Finding(
        claim="x", severity=Severity.LOW, technique=technique, key=key, evidence=evidence
    )


@pytest.mark.parametrize(
    "technique", ["", "T1", "1014", "T1014.1", "T1014.0011", "T1014\n", "t1014"]
)
def test_refuses_a_technique_that_is_no_attack_id(technique: str) -> None:
    with pytest.raises(UsageError):
        finding(technique=technique)


def test_takes_a_sub_technique() -> None:
    assert finding(technique="T1547.006").technique == "T1547.006"


def test_refuses_a_key_that_identifies_nothing_or_is_too_long() -> None:
    assert len(finding(key="x" * MAX_KEY_LENGTH).key) == MAX_KEY_LENGTH
    for key in ("", "x" * (MAX_KEY_LENGTH + 1)):
        with pytest.raises(UsageError):
            finding(key=key)


def test_refuses_a_finding_without_evidence_or_with_too_much() -> None:
    assert len(finding(evidence=(OBSERVATION,) * MAX_OBSERVATIONS).evidence) == MAX_OBSERVATIONS
    for evidence in ((), (OBSERVATION,) * (MAX_OBSERVATIONS + 1)):
        with pytest.raises(UsageError):
            finding(evidence=evidence)


def test_is_the_same_after_a_journey_as_json() -> None:
    original = finding()
    assert msgspec.json.decode(msgspec.json.encode(original), type=Finding) == original


@pytest.mark.parametrize("seconds", [-0.1, MAX_SETTLE_S + 1, float("inf"), float("nan")])
def test_refuses_a_time_to_settle_that_never_ends_or_is_none(seconds: float) -> None:
    with pytest.raises(UsageError):
        Finding(
            claim="x",
            severity=Severity.LOW,
            technique="T1014",
            key="k",
            evidence=(OBSERVATION,),
            settle_s=seconds,
        )


def test_holds_bytes_of_the_guest_as_hexadecimal_up_to_a_bound() -> None:
    seen = Observation(view="idt_table", present=True, data=hexadecimal(b"\x00\xff"))
    assert seen.data == "00ff"
    long = hexadecimal(bytes(MAX_DATA_BYTES + 1))
    assert len(Observation(view="text", present=True, data=long).data) == 2 * MAX_DATA_BYTES


@pytest.mark.parametrize("data", ["0", "0g", "FF", "00\n", "00" * (MAX_DATA_BYTES + 1)])
def test_refuses_data_that_is_no_hexadecimal_or_too_long(data: str) -> None:
    with pytest.raises(UsageError):
        Observation(view="idt_table", present=True, data=data)
