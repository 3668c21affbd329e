"""Alerts."""

import hashlib
import json

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from qvmi.addr import Va
from qvmi.codepacks.alert import Alert, AlertState, evidence_hash
from qvmi.codepacks.codepack import Finding, Observation, Severity
from qvmi.codepacks.confirmation import Confirmed
from qvmi.view import Provenance, Taken
from tests.unit.codepacks.packs import finding

facts = st.dictionaries(
    st.text(max_size=8),
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(0, 2**64 - 1),
        st.text(max_size=8),
        st.floats(min_value=0.001, max_value=1e15),
    ),
    max_size=4,
)


@given(st.text(max_size=20), facts)
def test_the_evidence_hash_can_be_computed_from_the_published_json(
    claim: str, details: dict[str, str | int | float | bool | None]
) -> None:
    original = Finding(
        claim=claim,
        severity=Severity.LOW,
        technique="T1014",
        key="k",
        evidence=(Observation(view="v", present=True, address=Va(2**64 - 1), facts=details),),
    )
    published = json.loads(msgspec.json.encode(original))
    text = json.dumps(published, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert evidence_hash(original) == hashlib.sha256(text.encode()).hexdigest()


def test_any_change_of_the_evidence_changes_the_hash() -> None:
    first = finding()
    changed = msgspec.structs.replace(
        first, evidence=(msgspec.structs.replace(first.evidence[0], present=False),)
    )
    assert evidence_hash(first) != evidence_hash(changed)


def test_raised_and_cleared_are_joined_by_hash_and_key() -> None:
    confirmed = Confirmed(finding(), rounds=2, first_seen=1.0, last_seen=2.0)
    provenance = Provenance(Taken.LIVE, 3.0)
    raised = Alert.of(confirmed, codepack="pack", provenance=provenance)
    cleared = Alert.of(confirmed, codepack="pack", provenance=provenance, cleared_because="gone")
    assert (raised.state, raised.reason) == (AlertState.RAISED, "")
    assert (cleared.state, cleared.reason) == (AlertState.CLEARED, "gone")
    assert raised.evidence_hash == cleared.evidence_hash
    assert raised.finding == cleared.finding
