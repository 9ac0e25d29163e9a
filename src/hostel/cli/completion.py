"""Print the completion script for a shell. To use it:

  bash   eval "$(hostel completion bash)"      in ~/.bashrc
  zsh    eval "$(hostel completion zsh)"       in ~/.zshrc, after compinit
  fish   hostel completion fish | source       in ~/.config/fish/config.fish
"""

import argparse
import importlib

# What a positional argument's metavar completes to.
_VMS = "hostel ps --quiet 2>/dev/null"
_IMAGES = "hostel image ls --quiet 2>/dev/null"
_FILES = ("--kernel", "--initrd", "--symbols", "--socket", "--backing", "--base", "--cloud-init", "--ssh-key")
_TAKE_FILES = ("disk",)  # commands of which any argument may be a file


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=["bash", "zsh", "fish"])


def run(args: argparse.Namespace) -> int:
    print({"bash": bash, "zsh": zsh, "fish": fish}[args.shell](), end="")
    return 0


def options() -> dict[str, tuple[list[tuple[str, str]], str]]:
    """For each command: its long options with their help, and what its arguments complete to."""
    from hostel.cli.main import COMMANDS
    from hostel.cli.parser import Parser

    out = {}
    for command, (module, _) in COMMANDS.items():
        parser = Parser(prog=command)
        importlib.import_module(module).configure(parser)
        flags, what = _flags(parser), ""
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                what = "words:" + " ".join(action.choices)
                flags = list(dict(pair for sub in (parser, *action.choices.values()) for pair in _flags(sub)).items())
            elif not action.option_strings and action.metavar in ("NAME", "IMAGE"):
                what = what or {"NAME": "vms", "IMAGE": "images"}[str(action.metavar)]
            elif not action.option_strings and action.choices:
                what = "words:" + " ".join(map(str, action.choices))
        out[command] = (flags, what)
    return out


def _flags(parser: argparse.ArgumentParser) -> list[tuple[str, str]]:
    return [(flag, action.help or "") for action in parser._actions for flag in action.option_strings
            if flag.startswith("--")]  # fmt: skip


def _words(what: str) -> str:
    if what.startswith("words:"):
        return what[6:]
    return {"vms": f"$({_VMS})", "images": f"micro $({_IMAGES})", "": ""}[what]


def bash() -> str:
    table = options()
    cases = "".join(
        f'    {command}) words="{" ".join(flag for flag, _ in flags)} {_words(what)}" ;;\n'
        for command, (flags, what) in table.items()
    )
    return f"""\
_hostel() {{
  local current="${{COMP_WORDS[COMP_CWORD]}}" previous="${{COMP_WORDS[COMP_CWORD-1]}}" words=""
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "{" ".join(table)} --help --version" -- "$current")); return
  fi
  case "$previous" in {"|".join(_FILES)}) COMPREPLY=($(compgen -f -- "$current")); return ;; esac
  case "${{COMP_WORDS[1]}}" in
{cases}  esac
  COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o bashdefault -o default -F _hostel hostel
"""


def zsh() -> str:
    table = options()
    cases = "".join(
        f"    {command}) choices=({' '.join(flag for flag, _ in flags)} {_words(what)}) ;;\n"
        for command, (flags, what) in table.items()
    )
    return f"""\
_hostel() {{
  local -a choices
  if (( CURRENT == 2 )); then compadd -- {" ".join(table)} --help --version; return; fi
  case "$words[CURRENT-1]" in {"|".join(_FILES)}) _files; return ;; esac
  case "$words[2]" in
{cases}  esac
  compadd -- $choices || _files
}}
compdef _hostel hostel
"""


def fish() -> str:
    from hostel.cli.main import COMMANDS

    lines = ["complete -c hostel -f"]
    for command, (_, text) in COMMANDS.items():
        lines.append(f"complete -c hostel -n __fish_use_subcommand -a {command} -d {_quote(text)}")
    for command, (flags, what) in options().items():
        seen = f"-n '__fish_seen_subcommand_from {command}'"
        for flag, text in flags:
            file = " -r -F" if flag in _FILES else ""
            lines.append(f"complete -c hostel {seen} -l {flag[2:]}{file} -d {_quote(text)}")
        if command in _TAKE_FILES:
            lines.append(f"complete -c hostel {seen} -F")
        if what:
            words = what[6:] if what.startswith("words:") else f"({_VMS if what == 'vms' else _IMAGES})"
            lines.append(f"complete -c hostel {seen} -a {_quote(words)}")
    return "\n".join(lines) + "\n"


def _quote(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
