"""A process of distdl's own leaves when its work is done, with all that was to be done at its end."""

from __future__ import annotations

import gc
import subprocess
import sys

from distdl import own_process

SCRIPT = """
import atexit, os, sys, threading, time
from distdl import own_process

class Told:
    def __del__(self):
        os.write(1, b"taken down;")

kept = Told()  # as a library's thread that still runs: whoever takes the process down piece by piece meets it
finish = own_process.begin() if "begin" in sys.argv else lambda code: None
atexit.register(print, "at exit;", end="")
threading.Thread(target=lambda: (time.sleep(0.2), print("thread;", end=""))).start()
print("work;", end="")
if "raise" in sys.argv:
    raise ValueError("a mistake")
finish(3)
"""


def end_of(*arguments: str) -> tuple[int, str, str]:
    done = subprocess.run([sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout, done.stderr


def test_it_ends_with_its_work_and_is_not_taken_down() -> None:
    assert "taken down" in end_of()[1]  # what Python does by itself
    assert end_of("begin") == (3, "work;thread;at exit;", "")


def test_an_exception_is_told_as_ever() -> None:
    code, out, error = end_of("begin", "raise")
    assert code == 1 and "ValueError: a mistake" in error and "thread;at exit;" in out


def test_garbage_is_looked_for_as_usual_once_it_has_loaded() -> None:
    program = "import gc; from distdl import own_process as p; p.begin(); print(gc.get_threshold()[0], p.loaded()"
    told = subprocess.run(
        [sys.executable, "-c", f"{program}, gc.get_threshold()[0], p.loaded())"], capture_output=True, text=True
    )
    assert told.stdout.split() == [str(own_process.LOADING_THRESHOLD), "True", str(gc.get_threshold()[0]), "False"]
    assert not own_process.loaded()  # the tests' process is not distdl's
