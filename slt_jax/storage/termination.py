"""Notice of SIGTERM, so that a run can be saved before the process ends."""

import contextlib
import signal
import threading
from collections.abc import Iterator


class Notice:
    """Whether the process was asked to end, and whether somebody saw to it."""

    def __init__(self):
        self.given = False
        self.obeyed = False


@contextlib.contextmanager
def notice_of_termination() -> Iterator[Notice]:
    """Catch SIGTERM for the duration of the block.

    The handler that was there is put back, and given the signal if the block did not obey it.
    Threads other than the main one cannot have handlers: there nothing is caught.
    """
    notice = Notice()
    if threading.current_thread() is not threading.main_thread():
        yield notice
        return

    def receive(number: int, frame: object) -> None:
        notice.given = True

    previous = signal.signal(signal.SIGTERM, receive)
    try:
        yield notice
    finally:
        # None stands for a handler that was not installed from Python.
        signal.signal(signal.SIGTERM, signal.SIG_DFL if previous is None else previous)
        if notice.given and not notice.obeyed:
            signal.raise_signal(signal.SIGTERM)
