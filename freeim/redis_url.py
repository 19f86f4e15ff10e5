"""The address of Redis as a URL: ``redis://``, ``rediss://`` (TLS), ``unix://``, or ``redis+sentinel://``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit, urlunsplit

DEFAULT_PORT: Final = 6379
SENTINEL_PORT: Final = 26379

SENTINEL_SCHEMES: Final = ("redis+sentinel", "rediss+sentinel")

_PASSWORD: Final = re.compile(r"://([^:@/]*):.*@", re.DOTALL)
_PASSWORD_IN_QUERY: Final = re.compile(r"(password=)[^&#]*")


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """What a Redis URL says.

    ``socket_path`` is set for ``unix://``, ``sentinels`` and ``service`` for ``redis+sentinel://``, where host and port
    are what the Sentinels say, and ``host`` and ``port`` for the others.
    """

    tls: bool
    host: str
    port: int
    socket_path: str | None
    username: str | None
    password: str | None
    database: int
    sentinels: tuple[tuple[str, int], ...] = ()
    service: str = ""
    sentinel_username: str | None = None
    sentinel_password: str | None = None

    @property
    def place(self) -> str:
        """Where it is, for people: without user or password."""
        if self.sentinels:
            return f"{self.service!r} of the Sentinels {', '.join(f'{host}:{port}' for host, port in self.sentinels)}"
        return self.socket_path or f"{self.host}:{self.port}"


def parse_redis_url(url: str) -> RedisAddress:
    """Read a Redis URL.

    Args:
        url: ``redis://[user][:password@]host[:port][/db]``, the same with ``rediss://``,
            ``unix://[user][:password@]/path/to/socket[?db=N]``, or
            ``redis+sentinel://[user][:password@]host[:port][,host[:port]...]/service[/db]``, the same with
            ``rediss+sentinel://``; its query may hold ``sentinel_username`` and ``sentinel_password``.

    Raises:
        ValueError: The text is no such URL. The sentence never holds the password.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("redis", "rediss", "unix", *SENTINEL_SCHEMES):
        raise ValueError("it must begin with redis://, rediss:// (TLS), unix:// or redis+sentinel://")
    if parts.fragment:
        raise ValueError("it has a part after '#'; write %23 for a '#' in a password")
    if parts.scheme in SENTINEL_SCHEMES:
        return _sentinel_address(parts)
    database = 0
    for key, value in parse_qsl(parts.query, keep_blank_values=True):
        if key != "db":
            raise ValueError(f"it has the parameter {key!r}, but only 'db' is known (?db=0)")
        database = _database(value)
    username = unquote(parts.username) if parts.username else None
    password = unquote(parts.password) if parts.password else None
    if parts.scheme == "unix":
        if parts.hostname or not parts.path:
            raise ValueError("a socket's path must be absolute: unix:///run/redis/redis.sock, with three slashes")
        return RedisAddress(False, "", 0, unquote(parts.path), username, password, database)
    try:
        port = parts.port
    except ValueError:
        raise ValueError("its port must be a number from 1 to 65535 (a '/' in a password is written %2F)") from None
    if not parts.hostname or port == 0:
        raise ValueError("it must name a host and may name a port from 1 to 65535: redis://127.0.0.1:6379")
    path = parts.path.removeprefix("/")
    if path:
        database = _database(path)
    host = unquote(parts.hostname)
    return RedisAddress(parts.scheme == "rediss", host, port or DEFAULT_PORT, None, username, password, database)


def _sentinel_address(parts: SplitResult) -> RedisAddress:
    extra: dict[str, str | None] = {"sentinel_username": None, "sentinel_password": None}
    for key, value in parse_qsl(parts.query, keep_blank_values=True):
        if key not in extra:
            raise ValueError(f"it has the parameter {key!r}, but only {' and '.join(map(repr, extra))} are known")
        extra[key] = value
    userinfo, _, hosts = parts.netloc.rpartition("@")
    username, colon, password = userinfo.partition(":")
    service, _, database = parts.path.removeprefix("/").partition("/")
    if not service:
        raise ValueError("it must name the service that the Sentinels watch: redis+sentinel://host:26379/mymaster")
    return RedisAddress(
        parts.scheme == "rediss+sentinel",
        "",
        0,
        None,
        unquote(username) or None,
        unquote(password) if colon else None,
        _database(database) if database else 0,
        tuple(_sentinel(each) for each in hosts.split(",")),
        unquote(service),
        **extra,
    )


def _sentinel(text: str) -> tuple[str, int]:
    one = urlsplit(f"//{text}")
    try:
        port = one.port
    except ValueError:
        port = 0
    if not one.hostname or port == 0:
        raise ValueError("each of its Sentinels must be a host, or a host and a port from 1 to 65535: host:26379")
    return unquote(one.hostname), port or SENTINEL_PORT


def _database(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"its database must be a number, not {text!r}")
    return int(text)


def with_password(url: str, password: str) -> str:
    """Return a URL (one that `parse_redis_url` takes) with this password in it."""
    parts = urlsplit(url)
    userinfo, _, host = parts.netloc.rpartition("@")
    user = userinfo.partition(":")[0]
    netloc = f"{user}:{quote(password, safe='')}@{host}"
    # urlunsplit drops an empty netloc's slashes for schemes it does not know; ours is never empty.
    return urlunsplit(parts._replace(netloc=netloc))


def mask_redis_url(url: str) -> str:
    """Return the URL with ``***`` for the password; works for malformed URLs too."""
    return _PASSWORD_IN_QUERY.sub(r"\1***", _PASSWORD.sub(r"://\1:***@", url))
