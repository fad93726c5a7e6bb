"""Independent pieces of work beside each other on a CPU: one thread each, instead of all threads on each in turn."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import torch

T = TypeVar("T")


def side_by_side(tasks: Sequence[Callable[[], T]]) -> list[T]:
    """Run tasks without gradients in as many threads as torch may use, and return their results in order."""
    threads = torch.get_num_threads()
    workers = min(threads, len(tasks))
    if workers < 2:
        with torch.no_grad():
            return [task() for task in tasks]
    inference = torch.is_inference_mode_enabled()

    def run(part: Sequence[Callable[[], T]]) -> list[T]:
        with torch.inference_mode(inference), torch.no_grad():  # both belong to a thread
            return [task() for task in part]

    # A share each, not one task after the other: what is handed over costs as much as a small operation.
    parts = [tasks[len(tasks) * w // workers : len(tasks) * (w + 1) // workers] for w in range(workers)]
    found = _pool(workers, threads // workers, threads, os.getpid()).map(run, parts)
    return [result for part in found for result in part]


@cache
def _pool(workers: int, each: int, threads: int, process: int) -> ThreadPoolExecutor:
    """Threads that stay, each with its own number of torch's threads; a forked process gets its own."""
    pool = ThreadPoolExecutor(
        workers, thread_name_prefix="bayesprune", initializer=torch.set_num_threads, initargs=(each,)
    )
    list(pool.map(lambda _: time.sleep(0.01), range(workers)))  # long enough for every thread to be started
    torch.set_num_threads(threads)  # the setting of a new thread is also the default of those to come
    return pool
