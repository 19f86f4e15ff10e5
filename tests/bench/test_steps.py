"""The steps of an event loop are seen from outside of the process, and so is one that is long."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from bench.steps import LONG_MS, Steps

# Says "ready" and then does for each line that it reads what the line says, as a callback of the loop of a node.
PROGRAM = """
import asyncio, os, sys, time, uvloop

def spin(seconds):
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass

async def main():
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    def obey():
        line = os.read(0, 100).decode()
        if not line:
            loop.remove_reader(0)
            done.set_result(None)
        elif line.startswith("spin"):
            spin(float(line.split()[1]))
        elif line.startswith("sleep"):
            time.sleep(float(line.split()[1]))  # a step that is long by the clock alone
        else:
            spinning = loop.run_in_executor(None, spin, float(line.split()[1]))
            spinning.add_done_callback(lambda _: print("done", flush=True))
            return
        loop.call_soon(loop.call_soon, lambda: print("done", flush=True))
    loop.add_reader(0, obey)
    print("ready", flush=True)
    await done

uvloop.run(main())
"""


class Loop:
    """A process with an event loop, and what is seen of its steps."""

    def __init__(self, steps: Steps, popen: subprocess.Popen[str]) -> None:
        self.steps = steps
        self._popen = popen

    def do(self, line: str) -> None:
        """Let it do something; returns when the step is over."""
        assert self._popen.stdin is not None
        self._popen.stdin.write(line)
        self._popen.stdin.flush()
        self.hear()

    def hear(self) -> None:
        assert self._popen.stdout is not None
        assert self._popen.stdout.readline()


@pytest.fixture
def loop() -> Iterator[Loop]:
    with (
        Steps() as steps,
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            env={**os.environ, **steps.environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as popen,
    ):
        loop = Loop(steps, popen)
        loop.hear()
        yield loop
        assert popen.stdin is not None
        popen.stdin.close()


def test_short_steps_are_counted(loop: Loop) -> None:
    before = loop.steps.seen().count
    for _ in range(5):
        loop.do("spin 0")
    seen = loop.steps.seen()
    assert seen.count >= before + 5
    assert 0 < seen.longest <= seen.longest_wall


def test_a_long_step_is_noticed(loop: Loop) -> None:
    loop.do(f"spin {3 * LONG_MS / 1000}")
    seen = loop.steps.seen()
    assert seen.long >= 1
    assert seen.long_wall >= 1
    assert 3 * LONG_MS / 1000 <= seen.longest < 1
    assert seen.longest_wall >= 3 * LONG_MS / 1000


def test_a_step_that_only_waits_is_long_by_the_clock_alone(loop: Loop) -> None:
    loop.do("spin 0")
    loop.steps.reset()
    loop.do("spin 0")
    loop.do(f"sleep {3 * LONG_MS / 1000}")
    seen = loop.steps.seen()
    assert seen.longest_wall >= 3 * LONG_MS / 1000
    assert seen.longest < 3 * LONG_MS / 1000


def test_other_threads_do_not_count(loop: Loop) -> None:
    loop.steps.reset()
    loop.do("thread 0.1")
    loop.do("spin 0")
    assert loop.steps.seen().longest < 0.1


def test_a_reset_forgets_what_was_long(loop: Loop) -> None:
    loop.do("spin 0.1")
    loop.steps.reset()
    assert loop.steps.seen().count == 0
    loop.do("spin 0")
    loop.do("spin 0")
    seen = loop.steps.seen()
    assert seen.count > 0
    assert seen.longest < 0.1


def test_a_process_without_the_file_runs_as_always() -> None:
    with Steps() as steps:
        preload = {"LD_PRELOAD": steps.environment["LD_PRELOAD"]}
        program = "import asyncio, uvloop; uvloop.run(asyncio.sleep(0.01)); print('fine')"
        done = subprocess.run(
            [sys.executable, "-c", program], env={**os.environ, **preload}, capture_output=True, text=True, check=True
        )
    assert (done.stdout, done.stderr) == ("fine\n", "")
