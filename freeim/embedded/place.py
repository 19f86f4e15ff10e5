"""Where the embedded Redis of this user lives: a folder that nobody else can enter. No I/O but on that folder."""

from __future__ import annotations

import os
import stat
import sys
from dataclasses import dataclass
from typing import Final

from freeim.errors import ConfigError

FOLDER_VARIABLE: Final = "FREEIM_RUNTIME_DIR"
"""The environment variable that names another folder; for the node and for the helper."""

SOCKET: Final = "redis.sock"

# A socket's path must fit into sockaddr_un, its final NUL included: 104 bytes on macOS, 108 on Linux.
_MAX_SOCKET_PATH: Final = 103


@dataclass(frozen=True, slots=True)
class Place:
    """One folder.

    Attributes:
        folder: Its path.
    """

    folder: str

    def path(self, name: str) -> str:
        """Return the path of a file in it."""
        return os.path.join(self.folder, name)

    @property
    def socket(self) -> str:
        """The path of the server's socket."""
        return self.path(SOCKET)

    @property
    def url(self) -> str:
        """The URL of the server."""
        return f"unix://{self.socket}"

    def make(self) -> None:
        """Make the folder where it is missing.

        Raises:
            ConfigError: It cannot be made, or see `check`.
        """
        if len(os.fsencode(self.socket)) > _MAX_SOCKET_PATH:
            raise ConfigError(
                f"the folder {self.folder!r} is too long for a socket's path; set {FOLDER_VARIABLE} to a shorter one"
            )
        try:
            os.mkdir(self.folder, 0o700)
        except FileExistsError:
            pass
        except OSError as error:
            raise ConfigError(
                f"the folder {self.folder!r} for the embedded Redis cannot be made: {error.strerror}; set "
                f"{FOLDER_VARIABLE} to another one"
            ) from error
        self.check()

    def check(self) -> None:
        """Check that nobody but this user can reach what is in the folder.

        Raises:
            ConfigError: Somebody could.
            FileNotFoundError: There is no such folder.
        """
        info = os.lstat(self.folder)
        if not stat.S_ISDIR(info.st_mode):
            problem = "is no folder"
        elif info.st_uid != os.geteuid():
            problem = f"belongs to the user with the id {info.st_uid}, not to this one ({os.geteuid()})"
        elif info.st_mode & 0o077:
            problem = "can be entered by others (its mode must be 0700)"
        else:
            return
        raise ConfigError(
            f"{self.folder!r} {problem}, so the Redis in it cannot be trusted; remove it, or set {FOLDER_VARIABLE} to "
            "a folder of your own"
        )


def places() -> list[Place]:
    """Return the folders in which this user's server may live; the first is where a new one is started.

    A login session has a runtime folder and a service of the same user may not, so all that may be meant are looked at.
    """
    named = os.environ.get(FOLDER_VARIABLE)
    if named:
        return [Place(os.path.abspath(named))]
    if sys.platform == "win32":
        return []
    runtimes = [os.environ.get("XDG_RUNTIME_DIR", ""), f"/run/user/{os.geteuid()}"]
    folders = [os.path.join(runtime, "freeim") for runtime in runtimes if _is_ours(runtime)]
    folders.append(f"/tmp/freeim-{os.geteuid()}")
    return [Place(folder) for folder in dict.fromkeys(folders)]


def trusted_places() -> list[Place]:
    """Return those of the places that nobody else can reach; some may not have been made yet.

    Raises:
        ConfigError: There are places, and none of them can be trusted.
    """
    found = []
    problem: ConfigError | None = None
    for place in places():
        try:
            place.check()
        except FileNotFoundError:
            pass  # it will be made
        except ConfigError as error:
            problem = problem or error
            continue
        found.append(place)
    if problem is not None and not found:
        raise problem
    return found


def find() -> Place | None:
    """Return where this user's server is; None where none was started.

    Raises:
        ConfigError: See `trusted_places`.
    """
    return next((place for place in trusted_places() if os.path.exists(place.socket)), None)


def _is_ours(folder: str) -> bool:
    try:
        info = os.stat(folder)
    except OSError:
        return False
    return os.path.isabs(folder) and stat.S_ISDIR(info.st_mode) and info.st_uid == os.geteuid()
