"""Runs one node in this process until a signal, its end, or the end of the process that watches over it."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from freeim.collector import pace_collector
from freeim.config import Options
from freeim.errors import ConfigError, HandedOver, NodeReplaced, RedisUnavailable
from freeim.exits import Exit
from freeim.lifeline import Lifeline, unpack
from freeim.limits import raise_descriptor_limit
from freeim.reload import Hangup, Sources, reload_node

if TYPE_CHECKING:
    from freeim.node import Node

STOP_SECONDS: Final = 12.0
"""How long a node may take to stop beyond its drain time: its close time-out, and what Redis needs."""

_log = logging.getLogger("freeim.server")


def serve(
    options: Options,
    announce: Callable[[str], None],
    *,
    sources: Sources | None = None,
    lifeline: Lifeline | None = None,
    restarted: bool = False,
) -> int:
    """Run one node and return the exit code of the process.

    Args:
        options: The options of this one node (see `Options.for_worker`).
        announce: Gets the banner as soon as the node serves.
        sources: Where the options are read again on SIGHUP, which is left alone where this is None.
        lifeline: Brings new options, and comes to its end when this node shall stop.
        restarted: It is started in place of a worker that has served (see `freeim.Node`).
    """
    import uvloop  # compiled, as is the node: neither exists where only the helper runs

    from freeim.node import Node

    raise_descriptor_limit()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            make_node = partial(Node, restarted=True) if restarted else Node
            return runner.run(_serve(make_node, options, announce, sources, lifeline))
    except ConfigError as error:
        _log.error("%s", error)
        return Exit.CONFIG
    except RedisUnavailable as error:
        _log.error("%s", error)
        return Exit.REDIS
    except HandedOver as error:
        _log.info("%s", error)
        return Exit.HANDED_OVER
    except NodeReplaced as error:
        _log.error("%s", error)
        return Exit.REPLACED
    except Exception:
        _log.critical("freeim-server ends because of a defect; please report it with these lines", exc_info=True)
        return Exit.DEFECT


async def _serve(
    make_node: Callable[[Options], Node],
    options: Options,
    announce: Callable[[str], None],
    sources: Sources | None,
    lifeline: Lifeline | None,
) -> int:
    node = make_node(options)
    told, reloads = _watch_signals(sources, lifeline)
    _log.debug("starting the node %s", options.node or options.bind)
    start = asyncio.ensure_future(node.start())
    await _first(start, told)
    if not start.done():
        start.cancel()
        await _bounded(start, STOP_SECONDS)
        return Exit.STOPPED
    try:
        start.result()
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {options.bind}: {error.strerror or error}; choose another --bind"
        ) from error
    pace_collector(asyncio.get_running_loop())
    announce(node.banner())
    finished = asyncio.ensure_future(node.finished())
    label = "" if lifeline is None else options.node or options.bind
    reloading = asyncio.ensure_future(_reload_each(node, reloads, label))
    await _first(finished, told)
    reloading.cancel()
    stop = asyncio.ensure_future(node.stop())
    handed_over = finished.done() and finished.exception() is None
    # Whoever is connecting while the node is handed over is served first.
    arriving = node.options.handshake_timeout if handed_over else 0.0
    await _bounded(stop, arriving + node.options.drain + STOP_SECONDS)
    stop.result()
    if finished.done():
        finished.result()
    finished.cancel()
    return Exit.HANDED_OVER if handed_over else Exit.STOPPED


_Reloads = asyncio.Queue[Callable[[], Options | None]]
"""Each finds new options, see `reload_node`. They wait until the node serves."""


async def _reload_each(node: Node, reloads: _Reloads, label: str) -> None:
    while True:
        find = await reloads.get()
        try:
            reload_node(node, find, label)
        except Exception:  # whatever it is, nobody is to be disconnected for it
            node.reloads["error"] += 1
            _log.critical("not reloaded because of a defect; please report it with these lines", exc_info=True)


def _watch_signals(sources: Sources | None, lifeline: Lifeline | None) -> tuple[asyncio.Event, _Reloads]:
    """Return an event that is set by SIGTERM, Ctrl-C, the end of the terminal, or that of the lifeline; and reloads.

    A second Ctrl-C ends at once.
    """
    loop = asyncio.get_running_loop()
    told = asyncio.Event()
    reloads: _Reloads = asyncio.Queue()

    def tell(why: str) -> None:
        if not told.is_set():
            _log.info("stopping: %s", why)
            told.set()

    def interrupt() -> None:
        if told.is_set():
            os._exit(Exit.INTERRUPTED)
        tell("Ctrl-C (once more to stop at once)")

    def read_lifeline(held: Lifeline) -> None:
        lines = held.receive()
        if lines is None:
            loop.remove_reader(held.descriptor)
            tell("the process that started this worker is gone")
        else:
            take_lines(lines)

    def take_lines(lines: list[bytes]) -> None:
        for line in lines:
            reloads.put_nowait(partial(unpack, line))

    loop.add_signal_handler(signal.SIGTERM, tell, "SIGTERM")
    if sources is not None:
        read_again = sources.read_again
        Hangup(
            lambda: tell("SIGHUP, the terminal is gone"),
            lambda: reloads.put_nowait(lambda: read_again().for_worker()),
        )
    if lifeline is None:
        loop.add_signal_handler(signal.SIGINT, interrupt)
    else:
        take_lines(lifeline.take())
        loop.add_reader(lifeline.descriptor, read_lifeline, lifeline)
    return told, reloads


async def _first(task: asyncio.Future[None], told: asyncio.Event) -> None:
    """Wait until the task is done or the event is set."""
    waiting = asyncio.ensure_future(told.wait())
    await asyncio.wait((task, waiting), return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()


async def _bounded(task: asyncio.Future[None], seconds: float) -> None:
    """Wait for the end of a task; end the process where it takes too long."""
    await asyncio.wait((task,), timeout=seconds)
    if not task.done():
        _log.error("the node did not stop within %g s; leaving it as it is", seconds)
        os._exit(Exit.STOPPED)  # what holds the node up would hold up the end of the loop too
