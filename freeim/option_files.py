"""The files that options name, read at the start and at each reload."""

from __future__ import annotations

import hashlib
import ssl
from typing import NamedTuple

from freeim.config import Options
from freeim.config_reload import Change, merge
from freeim.errors import ConfigError
from freeim.tls import server_context


class OptionFiles(NamedTuple):
    """What they hold.

    Attributes:
        redis_url: The URL of Redis with its password; None for the embedded Redis.
        context: What TLS connections are accepted with; None without TLS.
        digests: Of the files of TLS, by option: a renewed certificate keeps its file's name.
    """

    redis_url: str | None
    context: ssl.SSLContext | None
    digests: dict[str, bytes]


def read_files(options: Options) -> OptionFiles:
    """Read them.

    Raises:
        ConfigError: One cannot be read or used; the sentence says which, and why.
    """
    return OptionFiles(options.redis_url_with_password(), server_context(options), _digests(options))


def change_to(old: Options, new: Options) -> tuple[Change, OptionFiles]:
    """Return what becomes of options that are read again, and what the files of those in force hold.

    Raises:
        ConfigError: The new ones cannot be used, not even after a restart.
    """
    change = merge(old, new)
    if change.kept:
        read_files(new)
    return change, read_files(change.options)


def changed_files(old: OptionFiles, new: OptionFiles) -> set[str]:
    """Return the names of the options whose files hold something else."""
    changed = {name for name, digest in new.digests.items() if digest != old.digests.get(name)}
    return changed if new.redis_url == old.redis_url else changed | {"redis_password_file"}


def _digests(options: Options) -> dict[str, bytes]:
    digests = {}
    for name in ("tls_cert", "tls_key"):
        file = getattr(options, name)
        if file is None:
            continue
        try:
            with open(file, "rb") as stream:
                digests[name] = hashlib.sha256(stream.read()).digest()
        except OSError as error:  # a moment ago it could be read
            raise ConfigError(f"{name} {file!r} cannot be read: {error.strerror}", name) from error
    return digests
