"""How every command ends: with a message instead of a traceback, and with one of the documented exit codes."""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import ParamSpec

from fcot.base.console import say
from fcot.base.errors import FcotError, UsageError
from fcot.base.stopping import stop_requested

Arguments = ParamSpec("Arguments")


def entry_point(main: Callable[Arguments, None]) -> Callable[Arguments, None]:
    """Decorate the ``main`` of a command.

    The exit code is 0 on success, 1 after an error, 2 if the command line cannot be read, 130 after Ctrl-C, and 128 + n after signal n.
    That includes SIGPIPE: whoever read the output, such as ``head``, has closed it.
    """

    @functools.wraps(main)
    def command(*arguments: Arguments.args, **options: Arguments.kwargs) -> None:
        try:
            main(*arguments, **options)
            sys.stdout.flush()
        except FcotError as error:
            say(str(error))
            sys.exit(2 if isinstance(error, UsageError) else 1)
        except KeyboardInterrupt:
            stopped_by = stop_requested()
            say(f"\n{f'stopped by {stopped_by.name}' if stopped_by else 'interrupted'}; the same command continues where this one stopped")
            sys.exit(130 if stopped_by is None else 128 + stopped_by)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes stdout once more at its end
            sys.exit(128 + signal.SIGPIPE)

    return command


def with_help(text: str) -> Callable[[Callable[[list[str]], None]], Callable[..., None]]:
    """Decorate the ``main`` of a command whose words are not read by argparse: without words or with ``--help`` it prints its help.

    Args:
        text: The help. The decorated function takes the words of the command line, by default those of this process.
    """

    def decorate(main: Callable[[list[str]], None]) -> Callable[..., None]:
        @functools.wraps(main)
        def command(arguments: Sequence[str] | None = None) -> None:
            words = list(sys.argv[1:] if arguments is None else arguments)
            if not words or {"--help", "-h"} & set(words):
                print(text, end="")
            else:
                main(words)

        return command

    return decorate
