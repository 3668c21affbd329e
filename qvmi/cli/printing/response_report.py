"""The report of a response: why it was, what was done, and how the guest is."""

from collections.abc import Iterator

from qvmi.cli.printing.moments import duration, utc_moment
from qvmi.cli.printing.report_page import head, table, text, timeline
from qvmi.cli.printing.watch_report import facts_in_words
from qvmi.codepacks.alert import Alert
from qvmi.manager.response.scene import Story
from qvmi.semantics.guest_os import GuestOS

__all__ = ["response_page"]


def response_page(guest: GuestOS | None, story: Story) -> str:
    """This is the page, with what is in the guest where that is known."""
    return "\n".join(_pieces(guest, story))


def _pieces(guest: GuestOS | None, story: Story) -> Iterator[str]:
    yield head(story.title)
    for number, alert in enumerate(story.alerts, start=1):
        yield from _alert(number, alert)
    rows = [
        (told.step or "", told.word, told.outcome, told.what, told.problem, f"{told.paused_s:.3f}")
        for told in story.records
    ]
    yield table("steps", ("step", "what", "outcome", "told", "problem", "stood_still_s"), rows)
    if story.files:
        yield table("files", ("name",), [(name,) for name in story.files])
    if guest is None:
        yield f'<p class="gap">not seen: the guest: {text(story.unseen)}'
        return
    yield from _guest(guest)


def _alert(number: int, alert: Alert) -> Iterator[str]:
    finding = alert.finding
    yield f"<h2>alert {number} of {text(alert.codepack)}</h2><p>{text(finding.claim)}"
    yield f"<p>{text(finding.severity)}, {text(finding.technique)}, seen at {utc_moment(alert.last_seen)};"
    yield f"evidence {text(alert.evidence_hash)}"
    if alert.held_by:
        yield f"; held to its policy by {text(alert.held_by)}"
    yield from (f'<p class="gap">{text(caveat)}' for caveat in alert.caveats)
    rows = [
        (
            one.view,
            "present" if one.present else "absent",
            "" if one.address is None else f"{one.address:#x}",
            one.data,
            ", ".join(facts_in_words(one.facts)),
        )
        for one in finding.evidence
    ]
    yield table(f"evidence_{number}", ("view", "there", "address", "bytes", "facts"), rows)


def _guest(guest: GuestOS) -> Iterator[str]:
    facts, processes = guest.facts(), guest.processes()
    sockets, modules = guest.sockets(), guest.modules()
    yield f"<h2>guest</h2><p>{text(facts.banner)}<p>{text(processes.provenance.taken)}"
    uptime_s = round(facts.uptime_s or 0)
    yield f"up {duration(uptime_s)}"
    yield from timeline(processes.items, uptime_s or 1)
    for name, listing in (("processes", processes), ("sockets", sockets), ("modules", modules)):
        fields = listing[0].__struct_fields__ if listing.items else ()
        rows = [[getattr(row, field) for field in fields] for row in listing]
        yield table(name, fields, rows, listing.gaps)
