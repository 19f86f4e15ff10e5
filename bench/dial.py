"""How the C programs of the suite are told of Redis; see dial.h."""

from __future__ import annotations

from bench.processes import BenchError
from freeim.redis_url import RedisAddress, parse_redis_url


def dial_words(url: str) -> tuple[RedisAddress, list[str]]:
    """Return the address of Redis, and how the command line of a program names it.

    Raises:
        BenchError: It is only to be reached by TLS, which the C programs do not speak.
    """
    address = parse_redis_url(url)
    if address.tls:
        raise BenchError("this scenario reaches Redis without TLS only: give the benchmarks a redis:// or unix:// URL")
    return address, (["unix", address.socket_path] if address.socket_path else ["tcp", address.host, str(address.port)])


def auth_lines(address: RedisAddress) -> list[str]:
    """Return the lines by which a program is told to log in; none where there is no password."""
    if address.password is None:
        return []
    return command_lines("AUTH", *([address.username] if address.username else []), address.password)


def command_lines(*words: str) -> list[str]:
    """Return the lines by which a program is told to send a command to Redis; it answers with a line."""
    return [f"command {len(words)}", *words]
