"""padim: all commands under one name. `padim train` is `padim-train`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from padim.cli.command import Parser, command
from padim.errors import PadimError
from padim.version import __version__

# Every command, by the name of its module here, and what it does.
COMMANDS = {
    "train": "learn what the normal images of a category look like",
    "eval": "measure how well trained models find defects",
    "predict": "score images and draw where they deviate",
    "export": "write a trained model as ONNX",
    "reproduce": "run many protocols, in tables beside the published figures",
    "data": "look at a data set",
    "synth": "make a synthetic data set",
}


def parser() -> Parser:
    """The options of `padim` itself."""
    names = "\n".join(f"  {name:<11}{what}" for name, what in COMMANDS.items())
    result = Parser(
        prog="padim",
        usage="padim COMMAND ...",
        description="Anomaly detection and localization, learned from normal images.",
        epilog=f"commands, each of which answers --help:\n{names}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("--version", action="version", version=f"padim {__version__}", help="print the version")
    result.add_argument("--print-completion", choices=("bash", "zsh", "tcsh"), help="print what a shell completes by")
    return result


@command
def main(arguments: Sequence[str] | None = None, prog: str = "padim") -> int:
    """Run a command; returns its exit code."""
    given = sys.argv[1:] if arguments is None else [*arguments]
    if given and given[0] in COMMANDS:
        return int(import_module(f"padim.cli.{given[0]}").main(given[1:], prog=f"{prog} {given[0]}"))
    own = parser()
    if given and not given[0].startswith("-"):
        own.error(f"there is no command {given[0]!r}; there are {', '.join(COMMANDS)}")
    options = own.parse_args(given)
    if options.print_completion:
        print(_completion(options.print_completion))
    else:
        own.print_help()
    return 0


def _completion(shell: str) -> str:
    """A script for a shell, with the options of all commands.

    Raises:
        PadimError: the package that writes it isn't installed.
    """
    try:
        import shtab
    except ImportError as error:
        raise PadimError("completion needs one more package: pip install 'padim-toolkit[completion]'") from error
    whole = Parser(prog="padim")
    names = whole.add_subparsers()
    for name, what in COMMANDS.items():
        own = import_module(f"padim.cli.{name}").parser()
        names.add_parser(name, parents=[own], add_help=False, help=what)
    return str(shtab.complete(whole, shell))


if __name__ == "__main__":
    sys.exit(main())
