"""All that this package knows of redis-py: how clients are made and checked, and what their errors mean.

Imported when the first helper is made, not with the package: redis-py takes a while, and loads hiredis where that is.
redis-py 5.0.8 is the lowest version that the tests run on.
"""

from __future__ import annotations

import os
import select
from functools import cache
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import redis
import redis.asyncio
import redis.asyncio.retry
import redis.asyncio.sentinel
import redis.sentinel
from redis import exceptions
from redis.backoff import NoBackoff
from redis.client import NEVER_DECODE
from redis.retry import Retry

from freeim.bus_mode import publish_script
from freeim.commands import Command
from freeim.embedded.place import find
from freeim.errors import ConfigError, RedisUnavailable
from freeim.redis_url import SENTINEL_SCHEMES, RedisAddress, parse_redis_url

RedisError: Final = exceptions.RedisError
ResponseError: Final = exceptions.ResponseError

CONNECT_SECONDS: Final = 1.0
SENTINEL_SECONDS: Final = 0.5
"""How long one Sentinel may take to be reached, and to answer; they are asked one after another."""

_UNLIMITED: Final = 2**31 - 1


@cache
def _marking(base: Any) -> Any:
    """Return a connection class whose errors tell that it was never connected, so that nothing can have been sent."""

    class Marking(base):  # type: ignore[misc]
        def connect(self) -> None:
            try:
                super().connect()
            except BaseException as error:
                error.freeim_unsent = True  # type: ignore[attr-defined]
                raise

    return Marking


@cache
def _marking_async(base: Any) -> Any:
    """Return the same for asyncio; and these connections notice when they were cut while they idled.

    A loop learns of it only when it next turns, which may be after the next command was sent: in a program that runs
    its loop for one call at a time, always.
    """

    class Marking(base):  # type: ignore[misc]
        async def connect(self) -> None:
            try:
                await super().connect()
            except BaseException as error:
                error.freeim_unsent = True  # type: ignore[attr-defined]
                raise

        async def can_read_destructive(self) -> bool:  # how redis-py below 8 asks before it reuses a connection
            return _readable(self) or bool(await super().can_read_destructive())

        async def can_read(self, *args: Any, **options: Any) -> bool:  # and how 8 does
            return _readable(self) or bool(await super().can_read(*args, **options))

    return Marking


def _readable(connection: Any) -> bool:
    """Tell whether an idle connection has anything to read: its end, or the rest of an answer that nobody read."""
    writer = getattr(connection, "_writer", None)
    # TLS has messages of its own, which come when nobody has asked for anything.
    if writer is None or writer.get_extra_info("ssl_object") is not None or not hasattr(select, "poll"):
        return False
    sock = writer.get_extra_info("socket")
    if sock is None or sock.fileno() < 0:
        return False
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def _manners(timeout: float, retry: Any) -> dict[str, Any]:
    """Return the options of our own client: short waits, and never a second attempt, which could deliver twice."""
    return {
        "socket_connect_timeout": CONNECT_SECONDS,
        "socket_timeout": timeout,
        "retry": retry,
        "retry_on_timeout": False,
        "health_check_interval": 0,
        "protocol": 2,
        "decode_responses": False,
    }


def _tls_options(url: str) -> dict[str, Any]:
    """Return what a URL with TLS needs beside. redis-py compares the certificate with the host only since version 6."""
    parts = urlsplit(url)
    if parts.scheme != "rediss" or "none" in parse_qs(parts.query).get("ssl_cert_reqs", ()):
        return {}
    return {"ssl_check_hostname": True}


class EmbeddedConnection(redis.UnixDomainSocketConnection):
    """A connection to the embedded Redis, wherever it is by then: the app may have been started before the node."""

    def connect(self) -> None:
        """Find the server and connect."""
        self.path = embedded_socket()
        super().connect()  # type: ignore[no-untyped-call]


class AsyncEmbeddedConnection(redis.asyncio.UnixDomainSocketConnection):
    """The same for asyncio."""

    async def connect(self) -> None:
        """Find the server and connect."""
        self.path = embedded_socket()
        await super().connect()  # type: ignore[no-untyped-call]


def embedded_socket() -> str:
    """Return the path of the embedded Redis's socket.

    Raises:
        redis.exceptions.ConnectionError: There is none, or it cannot be trusted.
    """
    try:
        place = find()
    except ConfigError as error:
        raise exceptions.ConnectionError(str(error)) from error
    if place is None:
        raise exceptions.ConnectionError(
            "no Redis was named (redis=, FREEIM_REDIS_URL), and no node of this user runs with the embedded one; start "
            "freeim-server first, or name a Redis"
        )
    return place.socket


def redis_url(url: str | None) -> str | None:
    """Return the URL to use: the one given, else the environment's; None for the embedded Redis."""
    return url or os.environ.get("FREEIM_REDIS_URL") or None


@cache
def _watched(base: Any) -> Any:
    """Return a connection class that asks Sentinels for the master each time it connects.

    Not redis-py's own: its pool keeps connections to the Sentinels open that nobody closes.
    """

    class Watched(base):  # type: ignore[misc]
        def __init__(self, *, sentinels: RedisAddress, **options: Any) -> None:
            self._sentinels = sentinels
            super().__init__(**options)

        def connect(self) -> None:
            if self._sock is None:
                asking = redis.sentinel.Sentinel(  # type: ignore[no-untyped-call]
                    list(self._sentinels.sentinels), sentinel_kwargs=_sentinel_options(self._sentinels, self.retry)
                )
                try:
                    self.host, self.port = asking.discover_master(self._sentinels.service)  # type: ignore[no-untyped-call]
                finally:
                    for each in asking.sentinels:
                        each.close()
            super().connect()

        def read_response(self, *args: Any, **options: Any) -> Any:
            try:
                return super().read_response(*args, **options)
            except exceptions.ReadOnlyError:
                self.disconnect()  # it was a master: the next attempt asks again
                raise

    return Watched


@cache
def _watched_async(base: Any) -> Any:
    """Return the same for asyncio."""

    class Watched(base):  # type: ignore[misc]
        def __init__(self, *, sentinels: RedisAddress, **options: Any) -> None:
            self._sentinels = sentinels
            super().__init__(**options)

        async def connect(self) -> None:
            if not self.is_connected:
                asking = redis.asyncio.sentinel.Sentinel(  # type: ignore[no-untyped-call]
                    list(self._sentinels.sentinels), sentinel_kwargs=_sentinel_options(self._sentinels, self.retry)
                )
                try:
                    self.host, self.port = await asking.discover_master(self._sentinels.service)
                finally:
                    for each in asking.sentinels:
                        await each.aclose()
            await super().connect()

        async def read_response(self, *args: Any, **options: Any) -> Any:
            try:
                return await super().read_response(*args, **options)
            except exceptions.ReadOnlyError:
                await self.disconnect()
                raise

    return Watched


def _sentinel_options(address: RedisAddress, retry: Any) -> dict[str, Any]:
    """Return how to connect to the Sentinels of a URL."""
    return {
        "socket_connect_timeout": SENTINEL_SECONDS,
        "socket_timeout": SENTINEL_SECONDS,
        "retry": retry,
        "protocol": 2,
        "username": address.sentinel_username,
        "password": address.sentinel_password,
        "ssl": address.tls,
        "ssl_check_hostname": address.tls,
    }


def _master_options(address: RedisAddress) -> dict[str, Any]:
    """Return how to connect to the master that the Sentinels of a URL name."""
    options = {
        "sentinels": address,
        "username": address.username,
        "password": address.password,
        "db": address.database,
    }
    return options | {"ssl_check_hostname": True} if address.tls else options


def _sentinel_address(url: str | None) -> RedisAddress | None:
    """Return what a URL says about Sentinels; None where it names none."""
    return parse_redis_url(url) if url is not None and url.startswith(SENTINEL_SCHEMES) else None


def open_sync(url: str | None, timeout: float) -> redis.Redis:
    """Make a client of our own; no I/O. Options in the URL's query win over ours."""
    options = _manners(timeout, Retry(NoBackoff(), 0))
    pool: Any
    if url is None:
        pool = redis.ConnectionPool(EmbeddedConnection, max_connections=_UNLIMITED, **options)
    elif (address := _sentinel_address(url)) is not None:
        kind = _watched(redis.SSLConnection if address.tls else redis.Connection)
        options |= _master_options(address)
        pool = redis.ConnectionPool(kind, max_connections=_UNLIMITED, **options)
    else:
        options |= _tls_options(url)
        pool = redis.ConnectionPool.from_url(url, max_connections=_UNLIMITED, **options)
    pool.connection_class = _marking(pool.connection_class)
    return redis.Redis(connection_pool=pool)


def open_async(url: str | None, timeout: float) -> redis.asyncio.Redis:
    """Make an asyncio client of our own; no I/O. Options in the URL's query win over ours."""
    options = _manners(timeout, redis.asyncio.retry.Retry(NoBackoff(), 0))
    pool: Any
    if url is None:
        pool = redis.asyncio.ConnectionPool(AsyncEmbeddedConnection, max_connections=_UNLIMITED, **options)
    elif (address := _sentinel_address(url)) is not None:
        kind = _watched_async(redis.asyncio.SSLConnection if address.tls else redis.asyncio.Connection)
        options |= _master_options(address)
        pool = redis.asyncio.ConnectionPool(kind, max_connections=_UNLIMITED, **options)
    else:
        options |= _tls_options(url)
        pool = redis.asyncio.ConnectionPool.from_url(url, max_connections=_UNLIMITED, **options)
    pool.connection_class = _marking_async(pool.connection_class)
    return redis.asyncio.Redis(connection_pool=pool)


def check_sync(client: object) -> redis.Redis:
    """Return a caller's client, if it is of the kind that `ImHelper` takes.

    Raises:
        TypeError: It is not.
    """
    if isinstance(client, redis.Redis) and not isinstance(client, redis.client.Pipeline):
        return client
    raise TypeError(f"ImHelper takes a URL or a redis.Redis, not {_described(client)}")


def check_async(client: object) -> redis.asyncio.Redis:
    """Return a caller's client, if it is of the kind that `AsyncImHelper` takes.

    Raises:
        TypeError: It is not.
    """
    if isinstance(client, redis.asyncio.Redis) and not isinstance(client, redis.asyncio.client.Pipeline):
        return client
    raise TypeError(f"AsyncImHelper takes a URL or a redis.asyncio.Redis, not {_described(client)}")


def _described(client: object) -> str:
    kind = type(client)
    name = f"{kind.__module__}.{kind.__qualname__}"
    if isinstance(client, redis.Redis):
        return f"{name} (for that there is ImHelper)"
    if isinstance(client, redis.asyncio.Redis):
        return f"{name} (for that there is AsyncImHelper)"
    if "Cluster" in kind.__name__:
        return f"{name} (Redis Cluster is not supported)"
    return name


def _bus_options(client: Any, timeout: float, retry: Any) -> tuple[type, dict[str, Any]]:
    """Return how to connect to the same Redis for a subscription.

    A subscription reconnects by itself in redis-py, without a word about what it missed. So it gets a connection of its
    own, whatever the policy of the client that the rest goes over.
    """
    pool = client.connection_pool
    options = dict(pool.connection_kwargs)
    for name in list(options):
        # What belongs to RESP3 and to the pool it was made for.
        if name.startswith(("maint_", "orig_", "oss_")) or name in ("cache", "cache_config", "event_dispatcher"):
            del options[name]
    options.update(_manners(timeout, retry))
    return pool.connection_class, options


def open_bus_sync(client: redis.Redis, timeout: float) -> redis.Redis:
    """Make a client for one subscription to the Redis of another client; no I/O."""
    kind, options = _bus_options(client, timeout, Retry(NoBackoff(), 0))
    return redis.Redis(connection_pool=redis.ConnectionPool(connection_class=kind, **options))


def open_bus_async(client: redis.asyncio.Redis, timeout: float) -> redis.asyncio.Redis:
    """Make an asyncio client for one subscription to the Redis of another client; no I/O."""
    kind, options = _bus_options(client, timeout, redis.asyncio.retry.Retry(NoBackoff(), 0))
    return redis.asyncio.Redis(connection_pool=redis.asyncio.ConnectionPool(connection_class=kind, **options))


def reply_options(client: Any) -> dict[str, Any]:
    """Return the options of each command by which replies come as bytes, whatever the client does with those of others.

    What other programs wrote into the hashes need not be UTF-8, and one such field must not make a list unreadable.
    """
    decodes = client.connection_pool.connection_kwargs.get("decode_responses", False)
    return {NEVER_DECODE: True} if decodes else {}


def caches(client: Any) -> bool:
    """Tell whether a client caches replies; such a one refuses plain reads outside of a pipeline."""
    return getattr(client.connection_pool, "cache", None) is not None


def unavailable(error: Exception) -> RedisUnavailable:
    """Say what an error of redis-py means for the call that met it."""
    if isinstance(error, exceptions.BusyLoadingError) or (
        isinstance(error, exceptions.ResponseError) and not isinstance(error, exceptions.ConnectionError)
    ):
        return RedisUnavailable(f"Redis refused the command: {error}", maybe_sent=False)
    if getattr(error, "freeim_unsent", False):
        return RedisUnavailable(f"Redis cannot be reached: {error}", maybe_sent=False)
    how = "did not answer in time" if isinstance(error, exceptions.TimeoutError) else "closed the connection"
    return RedisUnavailable(
        f"Redis {how} ({error}); what was being sent may have been delivered, so it was not sent again", maybe_sent=True
    )


def checked_replies(replies: list[Any], commands: list[Command]) -> list[Any]:
    """Return the replies of a pipeline.

    Raises:
        RedisUnavailable: One of them is an error. ``maybe_sent`` tells whether another of them published.
    """
    for reply in replies:
        if isinstance(reply, Exception):
            published = any(
                (command[0] == "PUBLISH" or command[:2] == ("EVAL", publish_script()))
                and not isinstance(other, Exception)
                for command, other in zip(commands, replies, strict=True)
            )
            raise RedisUnavailable(f"Redis refused a command: {reply}", maybe_sent=published) from reply
    return replies
