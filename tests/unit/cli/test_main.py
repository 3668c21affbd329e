"""The command as a process: what it imports, prints and ends with."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import qvmi as package
from tests.command_line import DEADLINE_S, QVMI, environment, qvmi, qvmi_on_terminal
from tests.repository.tree import ROOT

# What takes longest to import, each with some package that needs it.
SLOW = {"argparse", "asyncio", "dataclasses", "logging", "msgspec", "qemu", "rich", "qvmi.errors"}


def run(*arguments: str, code: str, **changes: str) -> subprocess.CompletedProcess[str]:
    """This runs a program of the test's own in place of the command."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env=environment(**changes),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


def imported_by(*arguments: str) -> set[str]:
    """These are the modules that a run of the command has imported when it ends."""
    code = (
        "import sys; before = set(sys.modules); from qvmi.cli.main import main; code = main();"
        "print(*sys.modules.keys() - before, file=sys.stderr); sys.exit(code)"
    )
    done = run(*arguments, code=code)
    assert done.returncode == 0
    return set(done.stderr.split())


def test_says_its_version() -> None:
    done = qvmi("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"qvmi {package.__version__}\n", "")


def test_says_its_version_among_other_options() -> None:
    assert qvmi("--json", "--version").stdout == f"qvmi {package.__version__}\n"


def test_the_version_is_said_without_any_slow_import() -> None:
    assert imported_by("--version") & SLOW == set()


def test_help_is_given_without_what_only_a_machine_needs() -> None:
    assert imported_by("--help") & {"asyncio", "msgspec", "qemu", "rich"} == set()


def test_a_codepack_is_imported_where_it_runs_and_no_sooner() -> None:
    code = (
        "import sys, qvmi.cli.handlers.watching, qvmi.cli.handlers.pack_running;"
        "from qvmi.cli.declared.words import PACKS;"
        "from qvmi.codepacks.manifest import built_in_manifest as manifest;"
        "print(*sys.modules.keys() & {manifest(name).entry.partition(':')[0] for name in PACKS})"
    )
    done = run(code=code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "\n", "")


def test_a_pipe_is_served_without_rich() -> None:
    assert not any(name.partition(".")[0] == "rich" for name in imported_by("find"))


def test_without_a_command_it_is_wrong_usage() -> None:
    done = qvmi()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "qvmi: the following arguments are required: COMMAND (see: qvmi --help)\n"
    )


@pytest.mark.parametrize("command", ["info", "ps", "tree", "modules", "threads", "regs", "watch"])
def test_without_a_machine_it_is_wrong_usage_and_says_what_to_do(command: str) -> None:
    done = qvmi(command, "--json")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--qmp ADDR" in done.stderr
    assert "qvmi find" in done.stderr


def test_a_socket_that_is_not_there_is_3(tmp_path: Path) -> None:
    done = qvmi("--qmp", str(tmp_path / "none.sock"), "ps")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith(f"qvmi: {tmp_path}/none.sock: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["", "/nonexistent/guest.json", "."])
def test_a_file_that_cannot_be_written_is_said_before_anything_is_attached_to(
    tmp_path: Path, name: str
) -> None:
    done = qvmi("--qmp", str(tmp_path / "none.sock"), "isf", "-o", name)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("qvmi: argument -o/--output: ")


def test_find_prints_a_listing_as_json() -> None:
    done = qvmi("find", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(json.loads(done.stdout)) == ["gaps", "items", "provenance"]


def broken(fault: str) -> str:
    """This is a program in which ``qvmi find`` meets a fault."""
    return (
        "import sys, qvmi.cli.handlers.machines\n"
        f"def find(output): {fault}\n"
        "qvmi.cli.handlers.machines.find = find\n"
        "from qvmi.cli.main import main\n"
        "sys.exit(main())"
    )


def test_a_bug_is_called_one_without_a_traceback() -> None:
    done = run("find", code=broken("raise ValueError('\\x1b[2J')"))
    assert (done.returncode, done.stdout) == (70, "")
    assert done.stderr == "qvmi: this is a bug in qvmi: ValueError: \\x1b[2J\n"


def test_a_bug_is_shown_to_those_who_debug() -> None:
    done = run("find", code=broken("raise ValueError('\\x1b[2J')"), QVMI_DEBUG="1")
    assert done.returncode == 70
    assert "Traceback (most recent call last):" in done.stderr
    assert "in find" in done.stderr
    assert "\x1b" not in done.stderr


def test_what_was_found_is_printed_before_what_went_wrong() -> None:
    fault = "output.line('found'); raise qvmi.errors.UnknownGuest('then blind')"
    done = run("find", code=broken(fault))
    assert (done.returncode, done.stdout, done.stderr) == (4, "found\n", "qvmi: then blind\n")


REFUSED = "from qvmi.policy.policy import refuse; refuse(qvmi.errors.PolicyDenied('look', 'write'))"


def test_a_refusal_that_was_logged_is_told_once() -> None:
    done = run("find", code=broken(REFUSED))
    assert (done.returncode, done.stderr.count("look: not granted")) == (4, 1)
    assert done.stderr.count("\n") == 1


def test_what_went_wrong_behind_a_refusal_that_was_borne_is_told_too() -> None:
    borne = f"""
    try: {REFUSED}
    except qvmi.errors.PolicyDenied: pass
    raise qvmi.errors.UnknownGuest('then blind')"""
    done = run("find", code=broken(borne))
    assert done.stderr.splitlines() == [
        "qvmi: refused: look: not granted (needs grant 'write')",
        "qvmi: then blind",
    ]


def test_what_is_only_for_the_audit_log_is_written_there_and_not_shown(tmp_path: Path) -> None:
    log = tmp_path / "audit.log"
    fault = (
        "\n    import logging; from qvmi.audit import AuditLog; from pathlib import Path\n"
        f"    with AuditLog(Path({str(log)!r})):\n"
        "        logging.getLogger('qvmi.audit').info('a client comes')\n"
        "        logging.getLogger('qvmi.audit').warning('a client is refused')\n"
        "    from qvmi.cli.exit_code import ExitCode; return ExitCode.FINE"
    )
    done = run("find", code=broken(fault))
    assert (done.returncode, done.stderr) == (0, "qvmi: a client is refused\n")
    assert [json.loads(line)["text"] for line in log.read_text().splitlines()] == [
        "a client comes",
        "a client is refused",
    ]


def test_what_the_library_for_qmp_logs_is_for_those_who_debug() -> None:
    fault = "import logging; logging.getLogger('qemu.qmp.protocol').error('torn'); raise ValueError"
    assert "torn" not in run("find", code=broken(fault)).stderr
    assert "torn" in run("find", code=broken(fault), QVMI_DEBUG="1").stderr


def test_an_interrupt_is_130_without_a_word() -> None:
    done = run("find", code=broken("raise KeyboardInterrupt"))
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_a_reader_that_has_seen_enough_ends_it_quietly() -> None:
    fault = "[output.line('x' * 100) for _ in range(100_000)]"
    with subprocess.Popen(
        [sys.executable, "-c", broken(fault), "find"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"x" * 100 + b"\n"
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(DEADLINE_S) == 141


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", ["--version", "--help", "completion bash", "find --json"])
def test_an_output_that_cannot_be_written_is_wrong_usage(arguments: str, unbuffered: str) -> None:
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        done = subprocess.run(
            [*QVMI, *arguments.split()],
            cwd=ROOT,
            env=environment(PYTHONUNBUFFERED=unbuffered),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr == "qvmi: the output cannot be written: No space left on device\n"


def with_closed(streams: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """This runs the command with streams closed, as a shell says it."""
    return subprocess.run(
        ["sh", "-c", f'exec "$0" "$@" {streams}', *QVMI, *arguments],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


@pytest.mark.parametrize("closed", ["<&-", "2>&-", "<&- 2>&-"])
@pytest.mark.parametrize("arguments", ["--version", "completion bash", "find --json"])
def test_a_closed_stdin_or_stderr_changes_nothing(arguments: str, closed: str) -> None:
    done = with_closed(closed, *arguments.split())
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


@pytest.mark.parametrize("closed", [">&-", "<&- >&-"])
@pytest.mark.parametrize("arguments", ["--version", "--help", "completion bash", "find --json"])
def test_a_result_for_a_closed_stdout_cannot_be_written(arguments: str, closed: str) -> None:
    done = with_closed(closed, *arguments.split())
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "qvmi: the output cannot be written: Bad file descriptor\n"


def test_with_nobody_to_tell_the_exit_code_still_tells() -> None:
    done = with_closed(">&- 2>&-", "completion", "bash")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")


def test_a_closed_stdout_does_not_hide_wrong_usage() -> None:
    done = with_closed(">&-", "nonsense")
    assert done.returncode == 2
    assert "nonsense" in done.stderr


def test_ctrl_c_ends_a_wait_for_qemu_at_once(tmp_path: Path) -> None:
    address = tmp_path / "silent.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(address))
        listener.listen()
        with qvmi_on_terminal("--qmp", str(address), "--timeout", "1000000", "ps") as screen:
            listener.settimeout(DEADLINE_S)
            connection, _ = listener.accept()
            screen.type(b"\x03")
            assert screen.end() == 130
            connection.close()
    assert screen.screen == b"^C"
