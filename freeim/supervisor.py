"""``--workers N``: one process for each node, started, restarted and stopped together."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from freeim.config import Options
from freeim.embedded.join import join
from freeim.errors import ConfigError
from freeim.exits import Exit
from freeim.lifeline import REFUSED, pack
from freeim.log import configure
from freeim.reload import Hangup, Sources, tell_refused
from freeim.worker import FOR_SUPERVISOR, start, unpack_banner

KILL_SECONDS = 15.0
"""How long the workers may take to stop, beyond their drain time, until they are killed."""

FIRST_PAUSE: Final = 0.5
LONGEST_PAUSE: Final = 30.0
"""A crashed worker starts again after a pause, which doubles from the first to the longest."""
SIGNAL_SECONDS: Final = 0.5
"""How much later than a worker this process may hear a signal that was sent to the whole group, on a busy machine."""
STEADY_SECONDS: Final = 60.0
"""A worker that lived this long starts again with the first pause."""

_log = logging.getLogger("freeim.supervisor")


def supervise(options: Options, announce: Callable[[str], None], sources: Sources) -> int:
    """Run all workers until a signal or the end of the group, and return the exit code.

    Args:
        options: The options of the group; each worker gets its own out of them.
        announce: Gets one banner for all, when the last worker serves.
        sources: Where the options came from.

    Raises:
        ConfigError, RedisUnavailable: The embedded Redis is to be used and cannot be.
    """
    # The embedded Redis outlives a worker that crashes, so that the next one finds all as it was.
    with contextlib.ExitStack() as stack:
        if options.embedded:
            stack.callback(join().close)
        return asyncio.run(_Group(options, announce, sources).run())


class _Worker:
    """One place in the group, taken by one process after the other."""

    def __init__(self, index: int, options: Options, spawning: asyncio.Lock) -> None:
        self._spawning = spawning
        self.index = index
        self.options = options
        self.process: asyncio.subprocess.Process | None = None
        self.banner: str | None = None

    async def run_once(self, serving: Callable[[_Worker, int], None]) -> int:
        """Run one process to its end and return its exit code; `serving` is called when its node serves."""
        async with self._spawning:
            with _signals_blocked():
                options = self.options
                process = await start(options, os.environ, restarted=self.banner is not None)
        self.process = process
        if self.options is not options:  # reloaded meanwhile
            self.tell(pack(self.options))
        assert process.stdout is not None
        line = await process.stdout.readline()
        if line:
            self.banner = unpack_banner(line)
            serving(self, process.pid)
        return await process.wait()

    def reload(self, options: Options) -> None:
        """Let this process, and each later one, have new options."""
        self.options = options
        self.tell(pack(options))

    def tell(self, line: bytes) -> None:
        """Write a line on the lifeline of a process that runs."""
        process = self.process
        if process is not None and process.returncode is None:
            assert process.stdin is not None
            process.stdin.write(line)


class _Group:
    def __init__(self, options: Options, announce: Callable[[str], None], sources: Sources) -> None:
        self._sources = sources
        self._drain = options.drain
        self._announce = announce
        self._announced = False
        spawning = asyncio.Lock()  # the blocking of signals does not nest
        self._workers = [_Worker(index, options.for_worker(index), spawning) for index in range(options.workers)]
        self._told = asyncio.Event()

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        Hangup(self._terminal_gone, self._reload)
        loop.add_signal_handler(signal.SIGTERM, self._told.set)
        loop.add_signal_handler(signal.SIGINT, self._interrupt)
        _log.info("starting %d workers", len(self._workers))
        tending = [asyncio.ensure_future(self._tend(worker)) for worker in self._workers]
        told = asyncio.ensure_future(self._told.wait())
        code = await self._first_end(told, set(tending))
        self._told.set()
        for task in (told, *tending):
            task.cancel()
        await asyncio.gather(told, *tending, return_exceptions=True)
        await self._stop()
        return code

    async def _first_end(self, told: asyncio.Task[bool], tending: set[asyncio.Task[int]]) -> int:
        """Wait until the group is to end, and return its exit code: told to, by a worker, or handed over as a whole."""
        while tending:
            await asyncio.wait((told, *tending), return_when=asyncio.FIRST_COMPLETED)
            codes = [task.result() for task in tending if task.done()]
            tending = {task for task in tending if not task.done()}
            bad = [code for code in codes if code != Exit.HANDED_OVER]
            if bad:
                return bad[0]
            if told.done():
                break
        return Exit.STOPPED

    async def _tend(self, worker: _Worker) -> int:
        """Keep one worker running; return the exit code of one that ends the whole group."""
        pause = 0.0
        while True:
            started = time.monotonic()
            code = await worker.run_once(self._serving)
            # A mistake in the configuration, or Redis away at the very start, is for people to mend. Later on Redis
            # may come back, so the worker is started again.
            never_served = worker.banner is None
            if code == Exit.HANDED_OVER:
                _log.info("worker %d (%s) has been handed over", worker.index, worker.options.node)
                return code
            if code == Exit.REPLACED or (never_served and code in (Exit.CONFIG, Exit.REDIS)):
                return code
            if code == Exit.STOPPED:
                # Somebody has told it to stop; perhaps the whole group, and we shall hear it in a moment.
                await asyncio.sleep(SIGNAL_SECONDS)
            pause = next_pause(pause, time.monotonic() - started)
            _log.error(
                "worker %d (%s) %s; starting it again in %g s", worker.index, worker.options.node, _ended(code), pause
            )
            await asyncio.sleep(pause)

    def _serving(self, worker: _Worker, process_id: int) -> None:
        _log.info("worker %d (%s) serves as process %d", worker.index, worker.options.node, process_id)
        banners = [worker.banner for worker in self._workers if worker.banner is not None]
        if len(banners) == len(self._workers) and not self._announced:
            self._announced = True
            self._announce(merge_banners(banners))

    def _reload(self) -> None:
        if self._told.is_set():
            return
        try:
            options = self._sources.read_again()
        except ConfigError as error:
            tell_refused(error)
            for worker in self._workers:
                worker.tell(REFUSED)
            return
        configure(options.log_level, options.log_format)
        self._drain = options.drain
        _log.info("reloading %d workers", len(self._workers))
        for worker in self._workers:
            worker.reload(options.for_worker(worker.index))

    def _terminal_gone(self) -> None:
        if not self._told.is_set():
            _log.info("stopping: SIGHUP, the terminal is gone")
            self._told.set()

    def _interrupt(self) -> None:
        if self._told.is_set():
            self._kill()
            os._exit(Exit.INTERRUPTED)
        _log.info("stopping: Ctrl-C (once more to stop at once)")
        self._told.set()

    async def _stop(self) -> None:
        running = self._running()
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        try:
            async with asyncio.timeout(self._drain + KILL_SECONDS):
                for process in running:
                    await process.wait()
        except TimeoutError:
            _log.error("%d of %d workers did not stop in time; killing them", len(self._running()), len(self._workers))
            self._kill()
            for process in running:
                await process.wait()

    def _running(self) -> list[asyncio.subprocess.Process]:
        processes = (worker.process for worker in self._workers)
        return [process for process in processes if process is not None and process.returncode is None]

    def _kill(self) -> None:
        for process in self._running():
            with contextlib.suppress(ProcessLookupError):
                process.kill()


def next_pause(last: float, lived: float) -> float:
    """Return how long to wait until a worker is started again.

    Args:
        last: The pause before its last start; 0 where there was none.
        lived: How many seconds it ran.
    """
    return FIRST_PAUSE if last == 0 or lived >= STEADY_SECONDS else min(2 * last, LONGEST_PAUSE)


def merge_banners(banners: Sequence[str]) -> str:
    """Return one banner for all workers: a line that all of them have stands there once."""
    pages = [banner.splitlines() for banner in banners]
    if len({len(page) for page in pages}) > 1:
        return "\n".join(banners)
    # dict.fromkeys drops the repetitions and keeps the order.
    return "\n".join(line for row in zip(*pages, strict=True) for line in dict.fromkeys(row))


def _ended(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """Block what workers leave to us, for those started meanwhile too: they inherit it until they unblock it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, FOR_SUPERVISOR)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
