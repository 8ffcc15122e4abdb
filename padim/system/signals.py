"""When work ends: Ctrl-C and SIGTERM between two steps of it, and the death of the process that asked for it."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set, instead of what they did before; the next one does that again.

    Outside the main thread, where signals don't arrive, nothing sets it.
    """
    requested = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield requested
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}

    def request(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 (of a given form)
        requested.set()
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in _SIGNALS:
        signal.signal(number, request)
    try:
        yield requested
    finally:
        restore()


def end_with(parent: int) -> None:
    """End this process about a second after its parent, which can't end it if it is killed itself."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
