# SPDX-License-Identifier: Apache-2.0
"""``upseal completion``: completions for shells, made from the parser itself."""

from __future__ import annotations

import argparse
from typing import NamedTuple

from upseal.cli.common import OK, say

_FILES = ("FILE", "DIR")
_NOTE = """\
examples:
  upseal completion bash > ~/.local/share/bash-completion/completions/upseal
  upseal completion zsh > "${fpath[1]}/_upseal"
  upseal completion fish > ~/.config/fish/completions/upseal.fish
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    parser.epilog = _NOTE
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))


def run(args: argparse.Namespace) -> int:
    """Prints the script."""
    say({"bash": bash, "zsh": zsh, "fish": fish}[args.shell](_commands()))
    return OK


class Option(NamedTuple):
    """An option or, without flags, a positional argument."""

    flags: list[str]
    value: str
    """``none``, ``file``, ``word`` or ``choice``."""
    choices: list[str]
    about: str


class Command(NamedTuple):
    """A command with all it takes; the first has no name and stands for ``upseal`` itself."""

    name: str
    about: str
    options: list[Option]


def _commands() -> list[Command]:
    from upseal.cli.parser import COMMANDS, build

    parser = build(COMMANDS)
    found = [Command("", "", [])]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found += [
                Command(name, COMMANDS[name][1], _options(sub))
                for name, sub in action.choices.items()
            ]
        else:
            found[0].options.append(_option(action))
    return found


def _options(parser: argparse.ArgumentParser) -> list[Option]:
    """Its own, and once each those of its acts, if it has some (``upseal agent run``)."""
    found: dict[tuple[str, ...], Option] = {}
    for action in parser._actions:
        option = _option(action)
        found.setdefault(tuple(option.flags or [action.dest]), option)
        if isinstance(action, argparse._SubParsersAction):
            for act in action.choices.values():
                for option in _options(act):
                    if option.flags:
                        found.setdefault(tuple(option.flags), option)
    return list(found.values())


def _option(action: argparse.Action) -> Option:
    choices = [str(choice) for choice in action.choices or ()]
    if action.nargs == 0:
        value = "none"
    elif choices:
        value = "choice"
    else:
        value = "file" if action.metavar in _FILES else "word"
    return Option(list(action.option_strings), value, choices, str(action.help or ""))


def _flags(command: Command) -> str:
    return " ".join(flag for option in command.options for flag in option.flags)


def bash(commands: list[Command]) -> str:
    """For bash, also 3.2. Where nothing is offered, bash completes file names."""
    top, *rest = commands
    names = [command.name for command in rest]
    lines = [
        "# bash completion for upseal, made by `upseal completion bash`",
        "_upseal() {",
        "    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]}",
        "    local command= i words=",
        "    COMPREPLY=()",
        "    for ((i = 1; i < COMP_CWORD; i++)); do",
        "        case ${COMP_WORDS[i]} in",
        f"            {'|'.join(names)}) command=${{COMP_WORDS[i]}}; break ;;",
        "        esac",
        "    done",
        "    case $command:$prev in",
    ]
    for command in rest:
        for option in command.options:
            if option.flags and option.value != "none":
                which = "|".join(f"{command.name}:{flag}" for flag in option.flags)
                words = " ".join(option.choices)
                reply = f'COMPREPLY=($(compgen -W "{words}" -- "$cur")); ' if words else ""
                lines.append(f"        {which}) {reply}return ;;")
    lines += ["    esac", "    case $command in"]
    for command in rest:
        words = " ".join(w for o in command.options if not o.flags for w in o.choices)
        lines += [f"        {command.name})", f'            words="{words}"']
        lines += [f'            [[ $cur == -* ]] && words="{_flags(command)}" ;;']
    lines += [
        f'        *) words="{" ".join(names)}"',
        f'            [[ $cur == -* ]] && words="{_flags(top)}" ;;',
        "    esac",
        '    [[ -n $words ]] && COMPREPLY=($(compgen -W "$words" -- "$cur"))',
        "    return 0",
        "}",
        "complete -o bashdefault -o default -F _upseal upseal",
    ]
    return "\n".join(lines) + "\n"


def zsh(commands: list[Command]) -> str:
    """For zsh: works from ``fpath`` and when sourced."""
    top, *rest = commands
    lines = [
        "#compdef upseal",
        "# zsh completion for upseal, made by `upseal completion zsh`",
        "_upseal() {",
        "    local curcontext=$curcontext state line",
        "    local -a commands",
        "    commands=(",
        *(f"        {_quoted(f'{c.name}:{c.about}')}" for c in rest),
        "    )",
        "    _arguments -C \\",
        *(f"        {spec} \\" for o in top.options for spec in _zsh_specs(o)),
        "        '1: :->command' '*:: :->rest'",
        "    case $state in",
        "        command) _describe -t commands command commands ;;",
        "        rest)",
        "            case $words[1] in",
    ]
    for command in rest:
        specs = [spec for option in command.options for spec in _zsh_specs(option)]
        lines += [f"                {command.name}) _arguments \\"]
        lines += [f"                    {spec} \\" for spec in specs[:-1]]
        lines += [f"                    {specs[-1]} ;;"]
    lines += [
        "            esac ;;",
        "    esac",
        "}",
        'if [[ ${funcstack[1]} == _upseal ]]; then _upseal "$@"; else compdef _upseal upseal; fi',
    ]
    return "\n".join(lines) + "\n"


def _zsh_specs(option: Option) -> list[str]:
    about = option.about.replace("[", "(").replace("]", ")").replace(":", "\\:")
    does = {"file": ":file:_files", "word": ":value: ", "none": ""}.get(
        option.value, f":value:({' '.join(option.choices)})"
    )
    if not option.flags:
        return [_quoted(f":{does}")]
    return [_quoted(f"*{flag}[{about}]{does}") for flag in option.flags]


def fish(commands: list[Command]) -> str:
    """For fish."""
    top, *rest = commands
    lines = ["# fish completion for upseal, made by `upseal completion fish`"]
    for command in rest:
        lines.append(
            "complete -c upseal -n __fish_use_subcommand -f "
            f"-a {command.name} -d {_quoted(command.about)}"
        )
    for command in (top, *rest):
        seen = f"'__fish_seen_subcommand_from {command.name}'"
        where = seen if command.name else "__fish_use_subcommand"
        for option in command.options:
            parts = [f"complete -c upseal -n {where}"]
            for flag in option.flags:
                parts.append(f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}")
            if option.value == "choice":
                exclusive = "-x" if option.flags else "-f"
                parts.append(f"{exclusive} -a {_quoted(' '.join(option.choices))}")
            elif option.flags and option.value != "none":
                parts.append("-r -F" if option.value == "file" else "-x")
            if option.flags or option.value == "choice":
                lines.append(" ".join([*parts, f"-d {_quoted(option.about)}"]))
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
