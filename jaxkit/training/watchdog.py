"""No run hangs in silence: a thread that speaks when a dispatch, or a compilation, takes far longer than it should.

Deadlocks of the CPU runtime have been reported for vmapped programs with few cores; the main thread then waits inside
the runtime for
ever. The watchdog prints where the run stands and every thread's stack, and with ``JAXKIT_HANG_ABORT_S`` set ends the
process (exit code 124), which leaves the last checkpoint to resume from.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from jaxkit import check

PATIENCE_S = 300.0
EXIT_CODE = 124


class Watchdog:
    """Tell it ``alive(what)`` before each thing that may hang; it speaks after ``patience_s`` without a word, then
    twice that, ..."""

    def __init__(self, patience_s: float = PATIENCE_S, abort_s: float | None = None):
        self.patience_s, self.abort_s = patience_s, abort_s
        self._what, self._since, self._said = "start", time.monotonic(), 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="jaxkit-watchdog", daemon=True)

    def alive(self, what: str) -> None:
        """The run has come this far, and now does ``what``."""
        self._what, self._since, self._said = what, time.monotonic(), 0.0

    def _watch(self) -> None:
        limits = [limit for limit in (self.patience_s, self.abort_s) if limit]
        while not self._done.wait(min([5.0, *(limit / 4 for limit in limits)])):
            waited = time.monotonic() - self._since
            if waited > max(self.patience_s, 2 * self._said):
                self._said = waited
                print(
                    f"jaxkit: no sign of life for {waited:.0f} s in: {self._what}. Stacks follow.",
                    file=sys.stderr,
                    flush=True,
                )
                faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
            if self.abort_s is not None and waited > self.abort_s:
                print(
                    f"jaxkit: given up after {waited:.0f} s in: {self._what} (JAXKIT_HANG_ABORT_S)",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(EXIT_CODE)

    def start(self) -> Watchdog:
        self._thread.start()
        return self

    def stop(self) -> None:
        self._done.set()
        self._thread.join()


def _seconds(variable: str) -> float | None:
    """A limit from the environment; None where it is not set."""
    text = os.environ.get(variable)
    try:
        return None if not text else float(check.positive(variable, float(text)))
    except ValueError:
        raise check.UsageError(f"{variable} must be a number of seconds above 0, got {text!r}") from None


@contextmanager
def watchdog(patience_s: float | None = None) -> Iterator[Watchdog]:
    """A watchdog for the block; ``JAXKIT_HANG_PATIENCE_S`` and ``JAXKIT_HANG_ABORT_S`` set its limits from outside."""
    patience = patience_s or _seconds("JAXKIT_HANG_PATIENCE_S") or PATIENCE_S
    dog = Watchdog(patience, _seconds("JAXKIT_HANG_ABORT_S")).start()
    try:
        yield dog
    finally:
        dog.stop()
