"""Alerts as codepacks raise them, for tests."""

from qvmi.addr import Va
from qvmi.codepacks.alert import Alert
from qvmi.codepacks.codepack import Finding, Observation, Severity
from qvmi.codepacks.confirmation import Confirmed
from qvmi.view import Provenance, Taken

__all__ = ["alert"]


def alert(  # noqa: PLR0913 - all have a default
    codepack: str = "one",
    *,
    key: str = "k",
    severity: Severity = Severity.HIGH,
    technique: str = "T1014",
    pid: int | None = None,
    address: int | None = None,
    cleared: bool = False,
    first_seen: float = 1.0,
) -> Alert:
    """This is an alert about a process, or about a place in memory, or about neither."""
    facts: dict[str, str | int | float | bool | None] = {} if pid is None else {"pid": pid}
    place = None if address is None else Va(address)
    seen = Observation(view="a list", present=True, address=place, facts=facts)
    finding = Finding(
        claim="it is wrong", severity=severity, technique=technique, key=key, evidence=(seen,)
    )
    return Alert.of(
        Confirmed(finding, rounds=2, first_seen=first_seen, last_seen=first_seen + 1.0),
        codepack=codepack,
        provenance=Provenance(Taken.LIVE, first_seen + 1.0),
        cleared_because="gone" if cleared else "",
    )
