"""Lava's Python started once: it imports Lava, and then forks for each run that it is asked for.

Most of a short run in Lava is the start of its Python. Runs under Python 3.10, which reads a line of JSON for
each run and answers with its exit code; -14, that of an alarm, where it took too long.
"""

import contextlib
import gc
import importlib
import json
import os
import runpy
import signal
import sys

IMPORTED = (
    "h5py", "lava.magma.compiler.compiler", "lava.magma.core.run_conditions", "lava.magma.core.run_configs",
    "lava.magma.runtime.runtime", "lava.proc.conv.models", "lava.proc.conv.process", "lava.proc.dense.models",
    "lava.proc.dense.process", "lava.proc.lif.models", "lava.proc.lif.process", "lava.proc.rf.process",
    "lava.proc.rf_iz.process", "lava.proc.sdn.process", "lava.proc.sparse.process", "lava.utils.weightutils",
)  # fmt: skip


def become(script, arguments, folder, environment, output, errors, timeout):
    """In the fork: be what `python -B script arguments` is, there and with this environment."""
    signal.alarm(timeout)
    for number, name in ((0, os.devnull), (1, output), (2, errors)):
        file = os.open(name, os.O_RDWR | os.O_CREAT)
        os.dup2(file, number)
        os.close(file)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [script, *arguments]
    sys.path[0] = os.path.dirname(script)
    runpy.run_path(script, run_name="__main__")


def serve():
    """What to become, in each fork; None at the end of the input."""
    for name in IMPORTED:
        with contextlib.suppress(ImportError):  # a run that needs it says so by itself
            importlib.import_module(name)
    gc.freeze()  # what is imported is neither searched nor copied in a fork
    for line in sys.stdin:
        child = os.fork()
        if not child:
            os.setsid()  # with the processes that Lava starts
            return json.loads(line)
        _, status = os.waitpid(child, 0)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        print(os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status), flush=True)
    return None


if __name__ == "__main__":
    asked = serve()
    if asked:
        become(*asked)
