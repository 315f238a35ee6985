"""Many independent jobs on several processes: of this machine, or of a Ray cluster.

    with engine("local", workers=2) as run:
        for index, result in run(function, jobs):    # as they finish
            ...

`function` and the jobs must be picklable. A job that raises gives a `Failed`, and the others go on; a process
that dies (out of memory, killed) ends the run with one line. One torch thread a job, so that a result doesn't
depend on who computed it.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from multiprocessing.connection import wait as wait_for
from typing import Any, Literal, Protocol, TypeVar, get_args

import torch

from marsnn.checks import count
from marsnn.errors import InputError, MarsnnError, MissingDependencyError

Engine = Literal["local", "ray"]

Job = TypeVar("Job")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Failed:
    """What came of a job that raised: the error in one line."""

    message: str


class Run(Protocol):
    """Runs every job; yields (index, result or Failed) as they finish, in any order."""

    def __call__(
        self, function: Callable[[Job], Result], jobs: Sequence[Job]
    ) -> Iterator[tuple[int, Result | Failed]]: ...


def check_engine(name: str, workers: int) -> None:
    """Refuse an engine that is unknown or not installed, before anything is started."""
    if name not in get_args(Engine):
        raise InputError(f"no engine named {name!r}; known: {', '.join(get_args(Engine))}")
    count("workers", workers)
    if name == "ray" and find_spec("ray") is None:
        raise MissingDependencyError("ray", "ray")


@contextmanager
def engine(name: Engine = "local", workers: int = 2, address: str | None = None) -> Iterator[Run]:
    """A way to run jobs, taken down at the end however that comes.

    Args:
        name: "local" runs `workers` fresh processes of this machine, or none besides this one for 1; "ray"
            runs on a Ray cluster.
        workers: processes at a time. An existing cluster runs as many as it has processors for.
        address: of an existing Ray cluster ("auto" finds one); None takes RAY_ADDRESS, and without that
            starts a cluster of `workers` processors here, which ends with the block.

    Nothing is started before the first job.
    """
    check_engine(name, workers)
    with ExitStack() as stack:
        if name == "ray":
            yield _Ray(stack, workers, address)
        elif workers == 1:
            yield _here
        else:
            yield _Local(stack, workers)


def attempt(function: Callable[[Job], Result], job: Job) -> Result | Failed:
    """The result, or what went wrong: on one torch thread, leaving torch as it was."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=()):
            return function(job)
    except Exception as error:
        return Failed(f"{type(error).__name__}: {error}")
    finally:
        torch.set_num_threads(threads)


def _here(function: Callable[[Job], Result], jobs: Sequence[Job]) -> Iterator[tuple[int, Result | Failed]]:
    for index, job in enumerate(jobs):
        yield index, attempt(function, job)


class _Local:
    """Processes that start afresh (spawn), so that a caller's threads can't deadlock them."""

    def __init__(self, stack: ExitStack, workers: int) -> None:
        self.pool = ProcessPoolExecutor(
            workers, mp_context=multiprocessing.get_context("spawn"), initializer=_begin_worker
        )
        stack.callback(self._stop)

    def __call__(
        self, function: Callable[[Job], Result], jobs: Sequence[Job]
    ) -> Iterator[tuple[int, Result | Failed]]:
        check_picklable((function, list(jobs)))
        pending: dict[Future[Result | Failed], int] = {
            self.pool.submit(attempt, function, job): index for index, job in enumerate(jobs)
        }
        while pending:
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                index = pending.pop(future)
                try:
                    yield index, future.result()
                except BrokenProcessPool as error:
                    raise MarsnnError(
                        "a worker process ended before its job: killed, out of memory (then use fewer "
                        'workers), or started by a script without  if __name__ == "__main__":'
                    ) from error

    def _stop(self) -> None:
        """At once: nobody waits for results any more."""
        processes = list((self.pool._processes or {}).values())
        self.pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.kill()
        for process in processes:
            process.join()


def _begin_worker() -> None:
    """Ctrl-C is the parent's to handle; when the parent is gone, so is this process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:

        def follow(sentinel: int) -> None:
            wait_for([sentinel])
            os._exit(1)

        threading.Thread(target=follow, args=(parent.sentinel,), daemon=True).start()


def check_picklable(values: object) -> None:
    """Refuse what can't travel to another process, saying how to write it."""
    try:
        pickle.dumps(values)
    except Exception as error:
        raise InputError(
            f"can't be sent to another process ({type(error).__name__}: {error}); use a function at the top "
            "level of an importable module in place of a lambda or an inner function, or workers=1"
        ) from error


class _Ray:
    """Ray tasks of one processor each, never tried twice."""

    def __init__(self, stack: ExitStack, workers: int, address: str | None) -> None:
        self.stack = stack
        self.workers = workers
        self.address = address or os.environ.get("RAY_ADDRESS")

    def __call__(
        self, function: Callable[[Job], Result], jobs: Sequence[Job]
    ) -> Iterator[tuple[int, Result | Failed]]:
        if not jobs:
            return
        import ray

        self._connect(ray)
        remote: Any = ray.remote(num_cpus=1, max_retries=0)(attempt)
        pending = {remote.remote(function, job): index for index, job in enumerate(jobs)}
        try:
            while pending:
                (ready, *_), _ = ray.wait(list(pending))
                index = pending.pop(ready)
                try:
                    yield index, ray.get(ready)
                except ray.exceptions.RayError as error:
                    first = str(error).strip().splitlines()[0]
                    raise MarsnnError(f"Ray lost a worker ({type(error).__name__}: {first})") from error
        finally:
            for reference in pending:
                ray.cancel(reference, force=True)

    def _connect(self, ray: Any) -> None:
        if ray.is_initialized():  # the caller's own, or ours of an earlier phase
            return
        try:
            if self.address:
                ray.init(address=self.address, log_to_driver=False)
            else:
                ray.init(num_cpus=self.workers, include_dashboard=False, log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            where = f"at {self.address}" if self.address else "started here"
            raise MarsnnError(f"no Ray cluster {where}: {str(error).splitlines()[0]}") from error
        self.stack.callback(ray.shutdown)


# ---- what a job says about itself -------------------------------------------------------------------


def start_peak_memory() -> int | None:
    """Start a new high-water mark of this process's memory, and return what it holds now, in bytes.

    Memory that the C library keeps for later is given back first, so that an earlier job leaves no trace.
    None where the system has no mark to start: only Linux has one.
    """
    gc.collect(1)  # the young: a whole collection takes longer than a small training
    with suppress(OSError, AttributeError, TypeError):  # not glibc: what is kept stays in the mark's base
        ctypes.CDLL(None).malloc_trim(0)
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        return None
    return _memory("VmRSS")


def peak_memory_mb(start: int | None) -> float | None:
    """How far memory rose above `start` since `start_peak_memory`, in units of 10^6 bytes."""
    peak = _memory("VmHWM")
    return None if start is None or peak is None else max(0, peak - start) / 1e6


def _memory(name: str) -> int | None:
    """A field of this process's status, in bytes."""
    try:
        with open("/proc/self/status") as file:
            line = next(line for line in file if line.startswith(f"{name}:"))
    except (OSError, StopIteration):
        return None
    return int(line.split()[1]) * 1024
