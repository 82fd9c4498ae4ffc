"""bestrun completion: what Tab completes in bash, zsh and fish: verbs, options, settings, their values, and RUNs.

click knows verbs and options, and asks here for the rest. The shell's script sends the line up to the cursor; the words
of it are split here, since bash itself cuts a word at each = and :, and wants only the piece behind the last of them.
"""

import os
import re
from typing import Any, get_args

import click
from click.shell_completion import CompletionItem, ShellComplete, add_completion_class, split_arg_string

from ..terminal import say

VARIABLE = "_BESTRUN_COMPLETE"  # set by the scripts below: the shell asks
WORD = re.compile(r"[\w.-]+")  # nothing else is offered: a folder of another name would be typed as a command

BASH = """\
_bestrun_completion() {
    local reply
    COMPREPLY=()
    while IFS= read -r reply; do
        case $reply in
            file,*) compopt -o default 2>/dev/null ;;
            dir,*) compopt -o dirnames 2>/dev/null ;;
            plain,*) COMPREPLY+=("${reply#plain,}") ;;
        esac
    done < <(COMP_LINE=${COMP_LINE:0:$COMP_POINT} COMP_WORDBREAKS=$COMP_WORDBREAKS %(variable)s=bash_complete \\
        "$1" 2>/dev/null)
    if [[ ${COMPREPLY[0]} == *= ]]; then compopt -o nospace 2>/dev/null; fi
}
complete -o nosort -F _bestrun_completion bestrun 2>/dev/null || complete -F _bestrun_completion bestrun
"""

ZSH = """\
#compdef bestrun
_bestrun_completion() {
    local reply
    local -a open whole
    local line=${(j: :)words[1,CURRENT]}
    for reply in "${(@f)$(COMP_LINE=$line %(variable)s=zsh_complete ${words[1]} 2>/dev/null)}"; do
        case $reply in
            file,*) _files ;;
            dir,*) _files -/ ;;
            plain,*=) open+=("${reply#plain,}") ;;
            plain,*) whole+=("${reply#plain,}") ;;
        esac
    done
    compadd -S '' -a open
    compadd -a whole
}
if (( ! $+functions[compdef] )); then autoload -Uz compinit && compinit -i; fi
compdef _bestrun_completion bestrun
"""

FISH = """\
function _bestrun_completion
    set -l command (commandline -cpo)[1]
    for reply in (COMP_LINE=(commandline -cp | string collect) %(variable)s=fish_complete $command 2>/dev/null)
        switch $reply
            case 'file,*'
                __fish_complete_path (commandline -ct)
            case 'dir,*'
                __fish_complete_directories (commandline -ct)
            case 'plain,*'
                string sub -s 7 -- $reply
        end
    end
end
complete --command bestrun --no-files --arguments '(_bestrun_completion)'
"""


class _Shell(ShellComplete):
    """The line up to the cursor in, a line a possible word out: its kind (plain, file, dir), a comma, the word."""

    def source_vars(self) -> Any:
        return {"variable": VARIABLE}

    def get_completion_args(self) -> tuple[list[str], str]:
        line = os.environ.get("COMP_LINE", "")
        words = split_arg_string(line)[1:]
        if not words or re.search(r"(?<!\\)\s$", line) and not _open_quote(line):
            return words, ""
        return words[:-1], words[-1]

    def format_completion(self, item: CompletionItem) -> str:
        return f"{item.type},{item.value}"


class Bash(_Shell):
    name, source_template = "bash", BASH

    def format_completion(self, item: CompletionItem) -> str:
        line, given = os.environ.get("COMP_LINE", ""), self.get_completion_args()[1]
        breaks = "" if _open_quote(line) else os.environ.get("COMP_WORDBREAKS", "")
        keeps = max((given.rfind(one) for one in "=:" if one in breaks), default=-1) + 1
        return f"{item.type},{item.value[keeps:]}"


class Zsh(_Shell):
    name, source_template = "zsh", ZSH


class Fish(_Shell):
    name, source_template = "fish", FISH


SHELLS = {kind.name: kind for kind in (Bash, Zsh, Fish)}
for kind in SHELLS.values():
    add_completion_class(kind)


def _open_quote(line: str) -> bool:
    """Whether the cursor stands inside of quotes."""
    quote = ""
    for character in re.sub(r"\\.", "", line):
        if character in "'\"" and quote in ("", character):
            quote = "" if quote else character
    return bool(quote)


@click.command(short_help="What Tab completes: a script for bash, zsh or fish.")
@click.argument("shell", type=click.Choice(list(SHELLS)))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script with which Tab completes verbs, options, settings, their values, and RUNs.

    \b
    eval "$(bestrun completion bash)"          in ~/.bashrc
    eval "$(bestrun completion zsh)"           in ~/.zshrc
    bestrun completion fish | source           in ~/.config/fish/config.fish
    """
    script = SHELLS[shell](context.find_root().command, {}, "bestrun", VARIABLE).source()
    say(script.removesuffix("\n"), raw=True)


def _items(words: list[str], incomplete: str, prefix: str = "") -> list[CompletionItem]:
    return [CompletionItem(prefix + word) for word in words if (prefix + word).startswith(incomplete)]


def _folders(kind: str) -> list[str]:
    """Names of the folders in `runs` or `sweeps` of the home; none where it cannot be read."""
    from ..storage.home import find_home

    try:
        with os.scandir(find_home() / kind) as entries:
            names = [entry.name for entry in entries if WORD.fullmatch(entry.name) and entry.is_dir()]
            return sorted(name for name in names if not name.startswith("."))  # what bestrun gc is removing
    except OSError:
        return []


def runs_here(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """RUNs that this machine knows: latest, best, and the folders of the home."""
    return _items(["latest", "best", *_folders("runs")], incomplete)


def sweeps_here(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return _items(_folders("sweeps"), incomplete)


def settings(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """NAME= of every setting and group; behind the = what it may be, where that is a choice."""
    from ..settings.compose import learn_own, options
    from ..settings.config import FIELDS, OPTIONS

    learn_own()
    name, equals, value = incomplete.partition("=")
    if not equals:
        typed = dict(word.partition("=")[::2] for word in context.params.get("overrides") or ())
        names = [*OPTIONS, "recipe", *(key for key in FIELDS if key != "tags" and _stands_with(key, typed)), "tags."]
        if context.params.get("multirun"):
            names += ["sweep", *_sweep_settings()]
        return [item for item in _items([f"{key}=".replace(".=", ".") for key in names], incomplete)]
    before = value.rpartition(",")[0] + "," if "," in value and context.params.get("multirun") else ""
    if name in (*OPTIONS, "recipe", "sweep"):
        choices = options(name)
    elif name == "from_run":
        choices = ["latest", "best", *_folders("runs")]
    else:
        choices = _choices(name)
    return _items(choices, incomplete, f"{name}={before}")


def _stands_with(key: str, typed: dict[str, str]) -> bool:
    """Whether a setting is one of the option that was typed for its group."""
    from ..settings.config import OPTIONS

    group, _, rest = key.partition(".")
    option = OPTIONS.get(group, {}).get(typed.get(group, ""))
    return option is None or rest in option.model_fields


def _sweep_settings() -> list[str]:
    from ..sweep.space import SweepSettings

    return [f"sweep.{key}" for key in SweepSettings.model_fields if key != "space"]


def _choices(name: str) -> list[str]:
    """The words among which a setting chooses; none where it takes anything else."""
    from ..metrics import objectives
    from ..settings.config import FIELDS

    if name == "objective.metric":
        return objectives()
    if name.startswith("sweep."):
        from ..sweep.space import SweepSettings

        field = SweepSettings.model_fields.get(name.removeprefix("sweep."))
    else:
        field = FIELDS.get(name)
    words = _words(field.annotation) if field else []
    return [*words, "null"] if words and type(None) in get_args(field and field.annotation) else words


def _words(kind: object) -> list[str]:
    if kind is bool:
        return ["true", "false"]
    if isinstance(kind, str):
        return [kind]
    return [word for part in get_args(kind) for word in _words(part)]
