"""Ends a run in which a process of Lava's failed: Lava itself would wait for it for ever."""

import multiprocessing
import os
import sys
import threading
import time

FAILED = 3
INTERVAL_S = 0.2


class Watch:
    """Looks after the processes that Lava starts for a run, while the block lasts.

    None of them ends before the run is stopped. If one does, what it said last goes to standard error, the
    others are killed, and the program ends with exit code 3.
    """

    def __init__(self, source):
        self.source = source  # any process of the run

    def __enter__(self):
        self.done = threading.Event()
        self.thread = threading.Thread(target=self.look, daemon=True)
        self.thread.start()

    def __exit__(self, *error):
        self.done.set()
        self.thread.join()

    def look(self):
        while not self.done.wait(INTERVAL_S):
            gone = [process for process in self.started() if not process.is_alive()]
            if gone and not self.done.is_set():
                end(said(gone[0]))

    def started(self):
        """The processes as Lava keeps them; none before there are any."""
        runtime = getattr(self.source, "_runtime", None)
        return list(getattr(getattr(runtime, "_messaging_infrastructure", None), "actors", ()))


def said(process):
    """The exception that a process sent before it ended."""
    error = process.exception
    return "%s: %s" % (type(error[0]).__name__, error[0]) if error else "it ended without a word"


def end(told):
    print("error: a process of Lava's failed: " + told, file=sys.stderr, flush=True)
    for _ in range(5):  # some may be just about to be started
        for process in multiprocessing.active_children():
            process.kill()
        time.sleep(INTERVAL_S / 2)
    os._exit(FAILED)
