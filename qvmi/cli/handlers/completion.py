"""The command that prints a script for a shell to complete qvmi's words with: ``completion``."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from qvmi.cli.exit_code import ExitCode
from qvmi.cli.handlers.completion_words import Option, Words, all_words
from qvmi.cli.printing.output import Output

__all__ = ["completion", "script"]


def completion(output: Output, *, shell: str) -> ExitCode:
    """This prints the script."""
    for line in script(shell):
        output.line(line)
    return ExitCode.FINE


def script(shell: str) -> Iterator[str]:
    """This yields the lines of the script for one of the shells of ``commands.SHELLS``."""
    return _SCRIPTS[shell](all_words())


def _bash(words: Sequence[Words]) -> Iterator[str]:
    """References: bash(1), Programmable Completion."""
    valued = _valued(words)
    files = "|".join(_flags(option for option in valued if option.is_file))
    others = "|".join(_flags(option for option in valued if not option.is_file))
    yield '# Completion of qvmi for bash: eval "$(qvmi completion bash)"'
    yield "_qvmi() {"
    yield "    local before=${COMP_WORDS[COMP_CWORD - 1]} command='' words='' i"
    yield "    for ((i = 1; i < COMP_CWORD; i++)); do"
    yield "        case ${COMP_WORDS[i]} in"
    yield f"        {'|'.join(_flags(valued))}) ((i++)) ;;"
    yield "        -*) ;;"
    yield "        *) command=${COMP_WORDS[i]}; break ;;"
    yield "        esac"
    yield "    done"
    yield "    COMPREPLY=()"
    yield "    case $before in"
    yield f"    {files}) compopt -o default; return ;;"
    yield f"    {others}) return ;;"
    yield "    esac"
    yield "    case $command in"
    for one in words:
        yield f"    '{one.name}') words='{' '.join(one.all)}' ;;"
    yield "    esac"
    yield '    mapfile -t COMPREPLY < <(compgen -W "$words" -- "${COMP_WORDS[COMP_CWORD]}")'
    yield "}"
    yield "complete -F _qvmi qvmi"


def _zsh(words: Sequence[Words]) -> Iterator[str]:
    """References: zshcompsys(1), _arguments and _describe."""
    before, *commands = words
    yield "#compdef qvmi"
    yield '# Completion of qvmi for zsh: eval "$(qvmi completion zsh)", behind compinit.'
    yield "_qvmi() {"
    yield "    local curcontext=$curcontext state line"
    yield "    local -a commands"
    yield "    commands=("
    for one in commands:
        yield f"        {_quoted(f'{one.name}:{one.text}')}"
    yield "    )"
    options = " ".join(_zsh_option(option) for option in before.options)
    yield f"    _arguments -C {options} '1: :->command' '*:: :->argument' && return"
    yield "    case $state in"
    yield "    command) _describe command commands ;;"
    yield "    argument)"
    yield "        case $words[1] in"
    for one in commands:
        own = [_zsh_option(option) for option in one.options]
        own += [f"'*:word:({' '.join(one.choices)})'"] if one.choices else []
        yield f"        {one.name}) _arguments {' '.join(own)} ;;"
    yield "        esac ;;"
    yield "    esac"
    yield "}"
    yield 'if [[ $funcstack[1] == _qvmi ]]; then _qvmi "$@"; else compdef _qvmi qvmi; fi'


def _zsh_option(option: Option) -> str:
    flags = f"{{{','.join(option.flags)}}}" if len(option.flags) > 1 else option.flags[0]
    text = option.text.replace("[", r"\[").replace("]", r"\]").replace(":", r"\:")
    value = f":{option.value}:{'_files' if option.is_file else ' '}" if option.value else ""
    return f"{flags}{_quoted(f'[{text}]{value}')}"


def _fish(words: Sequence[Words]) -> Iterator[str]:
    """References: complete(1) of fish."""
    commands = words[1:]
    names = " ".join(one.name for one in commands)
    yield "# Completion of qvmi for fish: qvmi completion fish > ~/.config/fish/completions/qvmi.fish"
    yield "complete -c qvmi -f"
    for one in words:
        seen = f"__fish_seen_subcommand_from {one.name}" if one.name else ""
        where = _quoted(seen or f"not __fish_seen_subcommand_from {names}")
        for option in one.options:
            flags = " ".join(_fish_flag(flag) for flag in option.flags)
            value = " -r -F" if option.is_file else " -x" if option.value else ""
            yield f"complete -c qvmi -n {where} {flags}{value} -d {_quoted(option.text)}"
        for choice in one.choices if one.name else ():
            yield f"complete -c qvmi -n {where} -a {choice}"
    where = _quoted(f"not __fish_seen_subcommand_from {names}")
    for one in commands:
        yield f"complete -c qvmi -n {where} -a {one.name} -d {_quoted(one.text)}"


def _fish_flag(flag: str) -> str:
    return f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}"


def _quoted(text: str) -> str:
    """This quotes a text for all three shells."""
    return "'" + text.replace("'", "'\\''") + "'"


def _valued(words: Sequence[Words]) -> tuple[Option, ...]:
    """These are the options of all commands that take a value, each once."""
    return tuple(dict.fromkeys(option for one in words for option in one.options if option.value))


def _flags(options: Iterator[Option] | Sequence[Option]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(flag for option in options for flag in option.flags))


_SCRIPTS: Final[Mapping[str, Callable[[Sequence[Words]], Iterator[str]]]] = {
    "bash": _bash,
    "zsh": _zsh,
    "fish": _fish,
}
