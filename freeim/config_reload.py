"""What of new options can be applied while a node runs."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from freeim.config import OPTIONS, Options


class Change(NamedTuple):
    """What becomes of options when they are read again.

    Attributes:
        options: Those in force from then on.
        changed: The names of the options that have changed.
        kept: The names of those that would have, but take a restart: they keep their old values.
    """

    options: Options
    changed: tuple[str, ...]
    kept: tuple[str, ...]


def merge(old: Options, new: Options) -> Change:
    """Return what is in force when `new` is read where `old` is in force.

    Raises:
        ConfigError: What has changed contradicts what cannot.
    """
    differ = [name for name in OPTIONS if getattr(old, name) != getattr(new, name)]
    bound = _bound(old, new)
    kept = tuple(name for name in differ if name in bound or not OPTIONS[name].reload)
    changed = tuple(name for name in differ if name not in kept)
    return Change(take(old, new, changed), changed, kept)


def take(old: Options, new: Options, names: tuple[str, ...]) -> Options:
    """Return the old options with the new values of these.

    Raises:
        ConfigError: They contradict the others.
    """
    return replace(old, **{name: getattr(new, name) for name in names})


def _bound(old: Options, new: Options) -> set[str]:
    """Return options that can change, and cannot in this case."""
    bound: set[str] = set()
    if (old.tls_cert is None) != (new.tls_cert is None):
        bound |= {"tls_cert", "tls_key"}  # who is connected, and every URL handed out, is with or without TLS
    if old.redis_url != new.redis_url:
        bound.add("redis_password_file")  # it is the password for that URL
    if new.send_buffer == 0:
        bound.add("send_buffer")  # a socket whose buffer was set has no way back to the system's choice
    return bound
