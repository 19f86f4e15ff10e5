"""The unix socket of ``--handover``: who may reach it, how it comes to its place, and what is passed through it."""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import secrets
import socket
import stat
import struct
from typing import Final

from freeim.errors import ConfigError

MAX_SOCKETS: Final = 2
"""Sockets that are passed: for terminals, and for the metrics."""

_UCRED: Final = struct.Struct("3i")
"""struct ucred of Linux (unix(7)): process, user and group id."""


def check_folder(path: str) -> None:
    """Check that nobody but this user can put a socket at a path.

    Raises:
        ConfigError: Somebody could, or there is no such folder.
    """
    folder = os.path.dirname(path)
    try:
        info = os.stat(folder)
    except OSError as error:
        problem = f"cannot be used: {error.strerror}"
    else:
        if not stat.S_ISDIR(info.st_mode):
            problem = "is no folder"
        elif info.st_uid != os.geteuid():
            problem = f"belongs to the user with the id {info.st_uid}, not to this one ({os.geteuid()})"
        elif info.st_mode & 0o022:
            problem = "can be written by others"
        else:
            return
    raise ConfigError(
        f"the folder {folder!r} of --handover {problem}; make one of this user's own (mkdir -m 700)", "handover"
    )


def is_same_user(sock: socket.socket) -> bool:
    """Whether the other end of a unix socket is a process of this user, where the system tells."""
    if not hasattr(socket, "SO_PEERCRED"):
        return True  # macOS: the modes of folder and socket have to do
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    _, user, _ = _UCRED.unpack(raw)
    return bool(user == os.geteuid())


async def knock(path: str) -> socket.socket | None:
    """Connect to who serves at a path; None where nobody does: there is no socket, or its process is dead.

    Raises:
        ConfigError: It is there, and cannot be used.
    """
    sock = socket.socket(socket.AF_UNIX)
    sock.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(sock, path)
        if not is_same_user(sock):
            raise ConfigError(f"the process at {path!r} is another user's; --handover is for one user", "handover")
    except (FileNotFoundError, ConnectionRefusedError):
        sock.close()
        return None
    except OSError as error:
        sock.close()
        raise ConfigError(f"--handover {path!r} cannot be used: {error.strerror or error}", "handover") from error
    except BaseException:
        sock.close()
        raise
    return sock


def send(sock: socket.socket, line: bytes, sockets: list[socket.socket]) -> None:
    """Send a line together with sockets, over a connection on which nothing else waits.

    Raises:
        OSError: The other end is gone.
    """
    sent = socket.send_fds(sock, [line], [each.fileno() for each in sockets])
    if sent < len(line):
        raise BlockingIOError("the first line did not fit into the socket")


async def receive(sock: socket.socket) -> tuple[bytes, list[socket.socket]]:
    """Wait for bytes, and return them with the sockets that came along.

    Raises:
        OSError: The other end is gone.
    """
    await _readable(sock)
    flags = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
    data, ancillary, _, _ = sock.recvmsg(65536, socket.CMSG_SPACE(MAX_SOCKETS * array.array("i").itemsize), flags)
    descriptors = array.array("i")
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors.frombytes(content[: len(content) // descriptors.itemsize * descriptors.itemsize])
    found: list[socket.socket] = []
    for descriptor in descriptors:
        try:
            os.set_inheritable(descriptor, False)
            found.append(socket.socket(fileno=descriptor))
        except OSError:  # something else than a socket
            os.close(descriptor)
    return data, found


async def _readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_reader(sock.fileno(), lambda: None if ready.done() else ready.set_result(None))
    try:
        await ready
    finally:
        loop.remove_reader(sock.fileno())


def is_listener(sock: socket.socket) -> bool:
    """Whether a socket listens for TCP connections."""
    try:
        return sock.type == socket.SOCK_STREAM and bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except OSError:
        return False


class Door:
    """A listening unix socket. It is made beside its path, and put there by `open`: whoever was there is replaced.

    Args:
        path: Where it shall be.

    Raises:
        ConfigError: The folder is not this user's own, or the socket cannot be made.
    """

    def __init__(self, path: str) -> None:
        check_folder(path)
        self._path = path
        self._place = f"{path}.{secrets.token_hex(3)}"
        self.sock = socket.socket(socket.AF_UNIX)
        try:
            self.sock.setblocking(False)
            self.sock.bind(self._place)
            os.chmod(self._place, 0o600)  # nobody can connect before listen()
            self.sock.listen(4)
            self._inode = os.stat(self._place).st_ino
        except OSError as error:
            self.sock.close()
            raise ConfigError(f"--handover {path!r} cannot be used: {error.strerror or error}", "handover") from error

    def open(self) -> None:
        """Put it at its path.

        Raises:
            OSError: It cannot be put there.
        """
        os.rename(self._place, self._path)
        self._place = self._path

    def close(self, *, leave: bool = False) -> None:
        """End it.

        Args:
            leave: Leave the file: a successor puts its own there.
        """
        self.sock.close()
        if not leave:
            with contextlib.suppress(OSError):
                if os.stat(self._place).st_ino == self._inode:
                    os.unlink(self._place)
