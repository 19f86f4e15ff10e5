"""The address of Redis as a URL: ``redis://``, ``rediss://`` (TLS) or ``unix://``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl, quote, unquote, urlsplit, urlunsplit

DEFAULT_PORT: Final = 6379

_PASSWORD: Final = re.compile(r"://([^:@/]*):.*@", re.DOTALL)
_PASSWORD_IN_QUERY: Final = re.compile(r"(password=)[^&#]*")


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """What a Redis URL says. ``socket_path`` is set for ``unix://``, ``host`` and ``port`` for the others."""

    tls: bool
    host: str
    port: int
    socket_path: str | None
    username: str | None
    password: str | None
    database: int


def parse_redis_url(url: str) -> RedisAddress:
    """Read a Redis URL.

    Args:
        url: ``redis://[user][:password@]host[:port][/db]``, the same with ``rediss://``, or
            ``unix://[user][:password@]/path/to/socket[?db=N]``.

    Raises:
        ValueError: The text is no such URL. The sentence never holds the password.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("redis", "rediss", "unix"):
        raise ValueError("it must begin with redis://, rediss:// (TLS) or unix://")
    if parts.fragment:
        raise ValueError("it has a part after '#'; write %23 for a '#' in a password")
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
