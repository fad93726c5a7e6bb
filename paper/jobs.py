"""Jobs in processes of their own: one thread each, a cap on their time, and a reason for every job that does not end well."""

from __future__ import annotations

import multiprocessing as mp
import multiprocessing.connection as connection
import signal
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

# What jobs import, read once before the first: jobs start at once, and all of them run the same code.
_PRELOAD = [
    "paper.table4_job", "bayesprune.tabular.estimators", "bayesprune.baselines",
    "bayesprune.train.memory", "sklearn.ensemble", "sklearn.linear_model", "sklearn.pipeline",
]  # fmt: skip


@dataclass(frozen=True)
class Job:
    """What a process does.

    Args:
        work: a function of one argument, importable by name.
        argument: plain data.
        cap: seconds after which the process is killed; None lets it run.
    """

    work: Callable[[Any], Any]
    argument: Any
    cap: float | None = None


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Args:
        status: "done", "failed" or "timed out".
        value: what `work` returned, None unless done.
        reason: in words, "" if done.
        seconds: from the start of the process.
    """

    status: str
    value: Any
    reason: str
    seconds: float


def run_jobs(
    jobs: Sequence[Job],
    parallel: int,
    finished: Callable[[Job, Outcome], None],
    *,
    start_until: float | None = None,
    grace: float = 0.0,
) -> int:
    """Run jobs in order, `parallel` at a time, each in a fresh process with one thread.

    Args:
        jobs: what to do, first things first.
        parallel: processes at once.
        finished: called in this process with every job that ended, in order of ending.
        start_until: no job is started after this many seconds; those that run go on to their end.
        grace: seconds that jobs have to end by themselves when this process is interrupted.

    Returns:
        How many jobs were not started.

    Example:
        >>> run_jobs([], 2, print)
        0
    """
    method = "forkserver" if "forkserver" in mp.get_all_start_methods() else "spawn"
    context: Any = mp.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(_PRELOAD)
    begin, waiting = time.monotonic(), list(jobs)
    here = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, _interrupt) if here else None
    running: dict[Any, tuple[Any, Job, float]] = {}
    try:
        while waiting or running:
            may_start = start_until is None or time.monotonic() - begin < start_until
            while waiting and may_start and len(running) < parallel:
                job = waiting.pop(0)
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(target=_child, args=(job.work, job.argument, sender), daemon=True)
                process.start()
                sender.close()
                running[receiver] = (process, job, time.monotonic())
            if not running:
                break
            now = time.monotonic()
            left = [started + job.cap - now for _, job, started in running.values() if job.cap is not None]
            ready = connection.wait(list(running), timeout=max(0.0, min([*left, 5.0])))
            for receiver, (process, job, started) in list(running.items()):
                seconds = time.monotonic() - started
                if receiver in ready:
                    outcome = _received(receiver, process, seconds)
                elif job.cap is not None and seconds >= job.cap:
                    process.kill()
                    outcome = Outcome("timed out", None, f"killed after {job.cap / 60:.3g} minutes", seconds)
                else:
                    continue
                process.join()
                receiver.close()
                del running[receiver]
                finished(job, outcome)
    finally:
        for process, _, _ in running.values() if grace else ():
            process.terminate()
        patience = time.monotonic() + grace
        for process, _, _ in running.values():
            process.join(max(0.0, patience - time.monotonic()))
            process.kill()
            process.join()
        if here:
            signal.signal(signal.SIGTERM, before)
    return len(waiting)


def _interrupt(number: int, frame: Any) -> None:
    """End as Ctrl-C does, so that no process is left behind."""
    raise KeyboardInterrupt


def _received(receiver: Any, process: Any, seconds: float) -> Outcome:
    try:
        good, value = receiver.recv()
    except EOFError:
        process.join()
        return Outcome("failed", None, f"the process died with exit code {process.exitcode}", seconds)
    return Outcome("done", value, "", seconds) if good else Outcome("failed", None, value, seconds)


def _child(work: Callable[[Any], Any], argument: Any, sender: Any) -> None:
    from threadpoolctl import threadpool_limits

    try:
        import torch

        from bayesprune.train.memory import keep_freed_memory

        torch.set_num_threads(1)
        keep_freed_memory()
        with threadpool_limits(limits=1):
            sender.send((True, work(argument)))
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{last.filename.rpartition('/')[2]}:{last.lineno}"
        sender.send((False, f"{type(error).__name__}: {error} ({place})"))
    finally:
        sender.close()
