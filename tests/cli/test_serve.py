"""What the command does with a node that misbehaves: it ends, with the right code, in a bounded time."""

from __future__ import annotations

import sys

import pytest

from tests.cli.command import Server, run_program

# The real command around a node that does one thing differently.
PROGRAM = """
import asyncio, signal, sys
import freeim.node, freeim.serve
from freeim.cli import main

class Node:
    def __init__(self, options): self.options = options
    async def start(self): pass
    async def finished(self): await asyncio.Event().wait()
    async def stop(self): pass
    def banner(self): return "serves"

{change}
freeim.node.Node = Node
sys.exit(main([]))
"""


def program(change: str) -> tuple[str, ...]:
    return (sys.executable, "-c", PROGRAM.format(change=change))


@pytest.mark.parametrize("method", ["start", "finished", "stop"])
def test_a_defect_is_exit_code_1_and_a_traceback_in_the_log(method: str) -> None:
    change = f"async def broken(self): raise KeyError('oops')\nNode.{method} = broken\n"
    if method == "stop":
        change += "async def over(self): pass\nNode.finished = over"
    done = run_program(*program(change))
    assert done.returncode == 1
    assert "fatal freeim-server ends because of a defect" in done.stderr
    assert done.stderr.endswith("    KeyError: 'oops'\n")


def test_a_node_that_hangs_in_stop_is_left_after_a_bounded_time() -> None:
    change = (
        "freeim.serve.STOP_SECONDS = 0.2\n"
        "async def hang(self):\n"
        "    while True:\n"
        "        try: await asyncio.sleep(60)\n"
        "        except asyncio.CancelledError: pass\n"
        "async def over(self): signal.raise_signal(signal.SIGTERM); await asyncio.sleep(60)\n"
        "Node.stop = hang; Node.finished = over"
    )
    with Server(program=program(change)) as server:
        assert server.wait(5) == 0
        assert "the node did not stop within 0.2 s" in server.stderr


def test_a_node_that_hangs_in_start_does_not_outlive_a_signal() -> None:
    change = (
        "freeim.serve.STOP_SECONDS = 0.2\n"
        "async def hang(self):\n"
        "    signal.raise_signal(signal.SIGTERM)\n"
        "    while True:\n"
        "        try: await asyncio.sleep(60)\n"
        "        except asyncio.CancelledError: pass\n"
        "Node.start = hang"
    )
    with Server(program=program(change)) as server:
        assert server.wait(5) == 0
        assert server.stdout == ""


def test_a_node_that_ends_by_itself_is_stopped_first() -> None:
    change = (
        "from freeim.errors import NodeReplaced\n"
        "async def end(self): raise NodeReplaced('another process took the name')\n"
        "async def stop(self): print('stopped')\n"
        "Node.finished = end; Node.stop = stop"
    )
    done = run_program(*program(change))
    assert done.returncode == 4
    assert done.stdout == "serves\nstopped\n"
    assert done.stderr.endswith("error another process took the name\n")
