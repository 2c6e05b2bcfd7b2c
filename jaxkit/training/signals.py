"""SIGTERM and Ctrl-C while training: the handler sets a flag, the loop saves at the next boundary and then leaves."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Stop:
    """Which signal asked the run to stop; None while none has."""

    signal: int | None = None


def leave(number: int) -> None:
    """Leave as the signal's convention says: 130 after Ctrl-C (KeyboardInterrupt), 143 after SIGTERM."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Catch SIGTERM and SIGINT inside the block; a second signal leaves at once. Outside the main thread nothing is
    caught."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handler(number: int, frame: object) -> None:
        if stop.signal is not None:
            leave(number)
        stop.signal = number

    before = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, old in before.items():
            signal.signal(number, old)
