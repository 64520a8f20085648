"""Ctrl-C while a process still imports its modules."""

from __future__ import annotations

import signal


def end_quietly() -> None:
    """Let SIGINT end the process without a traceback; its status stays that of an interrupt.

    Where SIGINT is ignored, as in a shell's background jobs, it stays so.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def raise_again() -> None:
    """Let SIGINT raise `KeyboardInterrupt` again, for code that has something to clean up."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
