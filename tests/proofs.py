"""A pytest plugin that fails a whole-suite run in which a requirement was not proven.

``docs/proofs.toml`` maps each requirement to the tests that prove it. With ``--proofs`` (which
``scripts/test`` gives when it runs everything) one more item runs last and fails when a mapped test
was not collected, did not pass, ran in fewer cases or counted fewer things than the file says.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec
import pytest

__all__ = ["Proof", "Requirement", "load_requirements", "proof_size", "unproven"]

PROOFS_FILE: Final = Path("docs") / "proofs.toml"

_LEDGER: Final = pytest.StashKey["Ledger"]()
_COUNT: Final = "count"


class Proof(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """This names one test that proves a requirement, with what it must have seen.

    Attributes:
        test: the test's id; without ``[...]`` it stands for all its parametrised cases.
        cases: how many of its cases must have run, all of them passing.
        count: the sum of what its cases must have counted with ``proof_count``.
        count_full: the same for ``QVMI_PROOF_SIZE=full``; 0 means: as `count`.
    """

    test: str
    cases: int = 1
    count: int = 0
    count_full: int = 0


class Requirement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """This is one sentence the project must live up to, with the tests that prove it.

    Attributes:
        text: the requirement in words.
        proofs: the tests; all of them together prove it.
        benchmark: the script in ``benchmarks/`` that measures it, where it speaks of speed.
    """

    text: str
    proofs: tuple[Proof, ...]
    benchmark: str = ""


class _ProofsFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    requirement: tuple[Requirement, ...]


@dataclass(frozen=True, slots=True)
class CaseResult:
    """This is how one collected test case ended.

    Attributes:
        ending: ``passed``, or why not: ``failed``, ``skipped``, ``never ran``.
        count: how many things it counted.
    """

    ending: str = "never ran"
    count: int = 0


@dataclass(slots=True)
class Ledger:
    """This collects how each test case of a run ended."""

    cases: dict[str, CaseResult] = field(default_factory=dict)

    def open_case(self, nodeid: str) -> None:
        """This notes that a case was collected."""
        self.cases[nodeid] = CaseResult()

    def close_phase(self, report: pytest.TestReport) -> None:
        """This notes how the setup, the call or the teardown of a case ended."""
        if report.when == "call" or not report.passed:
            counted = sum(int(str(n)) for key, n in report.user_properties if key == _COUNT)
            # An expected failure is reported as skipped: it proves nothing either.
            self.cases[report.nodeid] = CaseResult(report.outcome, counted)


def load_requirements(path: Path) -> tuple[Requirement, ...]:
    """This reads the requirements and their proofs.

    Raises:
        msgspec.ValidationError: an entry has an unknown key or a wrong type.
        ValueError: a requirement names no test.
    """
    requirements = msgspec.toml.decode(path.read_bytes(), type=_ProofsFile).requirement
    for requirement in requirements:
        if not requirement.proofs:
            raise ValueError(f"{path}: no test proves {requirement.text!r}")
    return requirements


def proof_size(*, ci: int, full: int) -> int:
    """This is the size a proof runs at: `full` in ``scripts/prove``, else `ci`."""
    return full if _full_size() else ci


def _full_size() -> bool:
    return os.environ.get("QVMI_PROOF_SIZE") == "full"


def unproven(
    requirements: Sequence[Requirement], cases: Mapping[str, CaseResult], *, full: bool
) -> list[str]:
    """These are the reasons why requirements are not proven, one line each; empty when all are."""
    return [
        f"{requirement.text}\n    {proof.test}: {shortfall}"
        for requirement in requirements
        for proof in requirement.proofs
        for shortfall in _shortfalls(proof, cases, full=full)
    ]


def _shortfalls(proof: Proof, cases: Mapping[str, CaseResult], *, full: bool) -> Iterator[str]:
    matching = {
        nodeid: result
        for nodeid, result in cases.items()
        if nodeid == proof.test or nodeid.partition("[")[0] == proof.test
    }
    if len(matching) < proof.cases:
        yield f"{len(matching)} cases collected, {proof.cases} needed"
    for nodeid, result in matching.items():
        if result.ending != "passed":
            yield f"{nodeid} {result.ending}"
    needed = (full and proof.count_full) or proof.count
    counted = sum(result.count for result in matching.values())
    if counted < needed:
        yield f"{counted} counted, {needed} needed"


class UnprovenError(Exception):
    """This ends a run in which requirements were not proven; its arguments are the reasons."""


class ProofsItem(pytest.Item):
    """This is the item that runs after all others and compares them with the requirements."""

    def runtest(self) -> None:
        """This fails when a requirement was not proven by the run so far."""
        reasons = unproven(
            load_requirements(self.path), self.config.stash[_LEDGER].cases, full=_full_size()
        )
        if reasons:
            raise UnprovenError(*reasons)

    def repr_failure(
        self,
        excinfo: pytest.ExceptionInfo[BaseException],
        style: object = None,  # noqa: ARG002 - pytest passes it by name
    ) -> str:
        """This lists what was not proven, without a traceback of the plugin."""
        if isinstance(excinfo.value, UnprovenError):
            return "not proven:\n" + "\n".join(map(str, excinfo.value.args))
        return str(excinfo.getrepr(style="short"))

    def reportinfo(self) -> tuple[Path, None, str]:
        """This names the item in pytest's headlines."""
        return self.path, None, self.name


def pytest_addoption(parser: pytest.Parser) -> None:
    """This adds ``--proofs``."""
    parser.addoption(
        "--proofs",
        action="store_true",
        help=f"fail unless every requirement in {PROOFS_FILE} was proven by this run",
    )


def pytest_configure(config: pytest.Config) -> None:
    """This opens an empty ledger."""
    config.stash[_LEDGER] = Ledger()
    config.pluginmanager.register(_LedgerKeeper(config.stash[_LEDGER]), "proofs-ledger")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(
    session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
) -> None:
    """This notes what was collected and, when asked to, appends the item that compares."""
    for item in items:
        config.stash[_LEDGER].open_case(item.nodeid)
    if config.getoption("--proofs"):
        items.append(
            ProofsItem.from_parent(
                session,
                name="every requirement was proven",
                nodeid=f"{PROOFS_FILE}::every requirement was proven",
                path=config.rootpath / PROOFS_FILE,
            )
        )


@dataclass(frozen=True, slots=True, eq=False)  # pytest hashes its plugins
class _LedgerKeeper:
    ledger: Ledger

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.ledger.close_phase(report)


@pytest.fixture
def proof_count(record_property: Callable[[str, object], None]) -> Callable[[int], None]:
    """This counts things a test has checked, for the minimum that ``docs/proofs.toml`` asks for."""
    return lambda n: record_property(_COUNT, n)
