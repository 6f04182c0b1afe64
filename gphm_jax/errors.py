"""The two ways a command can fail, and how they become one line and an exit status."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from absl import app, flags

_HELP = ("?", "help", "helpshort", "helpfull", "helpxml")  # absl's flags


class InputError(ValueError):
    """The input or the flags are at fault: one line saying what, where and what to do (exit status 2)."""


class TrainingError(RuntimeError):
    """A run cannot go on, through no fault of the flags: one line, resumable (exit status 1)."""


def run_main(main: Callable[[Sequence[str]], None]) -> None:
    """Runs an absl `main`, turning known failures into one line on stderr and an exit status.

    0 = done, 2 = input or flags at fault, 1 = anything else (interface of all commands). Failures that are
    neither `InputError` nor `TrainingError` keep their traceback: they are defects, to be reported whole.
    """

    def guarded(argv: Sequence[str]) -> int:
        try:
            if len(argv) > 1:
                raise InputError(f"unexpected argument '{argv[1]}': flags are written --name=value")
            main(argv)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except TrainingError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("error: interrupted; run the same command again to resume", file=sys.stderr)
            return 1
        return 0

    def flags_parser(argv: list[str]) -> list[str]:
        try:
            return flags.FLAGS(argv)
        except (flags.Error, ValueError, AttributeError, KeyError, OSError) as error:
            print(f"error: {_first_line(error)}", file=sys.stderr)
            sys.exit(2)
        except SystemExit:
            if any(argument.lstrip("-").split("=")[0] in _HELP for argument in argv[1:]):
                sys.exit(0)  # absl, once it has shown the help, leaves with 1
            raise

    app.run(guarded, flags_parser=flags_parser)


def _first_line(error: BaseException) -> str:
    """What went wrong, in one line: the `InputError` that a config file raised, else the error's own first line."""
    # A config's unknown key is a KeyError, or an AttributeError around one, whose text is a quoted representation.
    inner = error.args[0] if error.args and isinstance(error.args[0], KeyError) else error
    if isinstance(inner, KeyError) and inner.args:
        return "no setting " + ": ".join(str(inner.args[0]).splitlines())
    lines = (str(error).strip() or type(error).__name__).splitlines()
    # The flag parser reports a config file's error as the text of its traceback.
    named = [line.split("InputError: ", 1)[1] for line in lines if "InputError: " in line]
    return named[-1] if named else lines[0]
