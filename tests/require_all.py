"""A pytest plugin that turns every skip into a failure when ``QVMI_REQUIRE_ALL=1``.

Continuous integration sets it on a host it has prepared: there, a test that cannot run is a defect
of the preparation, never a reason to be quiet. On a user's own host a skip stays a skip.
"""

import os
from collections.abc import Generator

import pytest

__all__: list[str] = []


def _all_required() -> bool:
    return os.environ.get("QVMI_REQUIRE_ALL") == "1"


def _failure_text(longrepr: object) -> str:
    # A skip's longrepr is (path, line, reason).
    reason = longrepr[2] if isinstance(longrepr, tuple) else longrepr
    return f"QVMI_REQUIRE_ALL=1 allows no skip, and this was one: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """This fails a test that skipped itself; an expected failure is not a skip."""
    report = yield
    if report.skipped and _all_required() and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = _failure_text(report.longrepr)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """This fails a module that skipped itself as a whole."""
    report = yield
    if report.skipped and _all_required():
        report.outcome = "failed"
        report.longrepr = _failure_text(report.longrepr)
    return report
