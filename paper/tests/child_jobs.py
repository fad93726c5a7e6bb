"""Work for processes in tests: it must be importable by name."""

import os
import time


def succeed(argument):
    return [argument]


def raise_it(argument):
    raise RuntimeError(f"no luck with {argument}")


def sleep_long(argument):
    time.sleep(3600)


def die(argument):
    os._exit(3)
