"""Files that one person sends to another: FreeIM's example, an announcement first, and the link when all is there."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final
from urllib.parse import unquote

from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse

from freeim import AsyncImHelper, FreeImError
from freeim.demo import checks
from freeim.demo.checks import Refused
from freeim.demo.messages import receiver
from freeim.demo.web import done, logger, message, person

MOST_FILES: Final = 100
"""How many files are kept, those included that are being sent, before the oldest goes."""
KEPT_UPLOADS: Final = 10
"""The same for files of the largest size: how many times that many bytes are kept."""
UPLOAD_SECONDS: Final = 600.0
"""How long the sending of one file may take."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A file that is complete. On disk it has a name of our own; the one its sender gave goes into a header only."""

    path: Path
    name: str
    size: int
    people: frozenset[int]


class Incoming:
    """A file that is being written."""

    file: BinaryIO

    def __init__(self, store: Files) -> None:
        self._store = store
        self.size = 0

    def write(self, chunk: bytes) -> None:
        """Add to the file.

        Raises:
            Refused: It is larger than a file may be, or there is no room for it.
        """
        self._store.check(self.size + len(chunk))
        self._store.make_room(len(chunk))
        self.size += len(chunk)
        self.file.write(chunk)


class Files:
    """The files of this process, in a folder that ends with it.

    Args:
        folder: Where they are kept.
        largest: The largest file that is taken, in bytes.
    """

    def __init__(self, folder: Path, largest: int = checks.LARGEST_UPLOAD) -> None:
        self.largest = largest
        self._folder = folder
        self._stored: dict[str, Stored] = {}  # the oldest first
        self._used = 0
        self._coming = 0

    def check(self, size: int) -> None:
        """Refuse a file that is larger than one may be."""
        if size > self.largest:
            raise Refused(413, "too-large", f"a file has at most {self.largest} bytes")

    def make_room(self, size: int) -> None:
        """Count bytes that are about to be written, and delete the oldest files for them."""
        while self._used + size > self.largest * KEPT_UPLOADS:
            self._delete_oldest()
        self._used += size

    @contextlib.asynccontextmanager
    async def incoming(self, name: str, people: frozenset[int]) -> AsyncIterator[tuple[str, Incoming]]:
        """Take a file: give its id and where to write; keep it only if the block ends without an exception."""
        while len(self._stored) + self._coming >= MOST_FILES:
            self._delete_oldest()
        key = secrets.token_urlsafe(24)
        path = self._folder / key
        incoming = Incoming(self)
        self._coming += 1
        try:
            with path.open("xb") as incoming.file:
                yield key, incoming
        except BaseException:  # also where the end of the file, which is written last, has no room
            self._used -= incoming.size
            path.unlink(missing_ok=True)
            raise
        finally:
            self._coming -= 1
        self._stored[key] = Stored(path, name, incoming.size, people)

    def get(self, key: str, reader: int) -> Stored:
        """Return a file to one of the two whom it concerns. For all others it is not there."""
        found = self._stored.get(key)
        if found is None or reader not in found.people:
            raise Refused(404, "no-file", "there is no such file, or it is not for you")
        return found

    def _delete_oldest(self) -> None:
        if not self._stored:
            raise Refused(507, "full", "too many files are being sent at the moment")
        stored = self._stored.pop(next(iter(self._stored)))
        stored.path.unlink(missing_ok=True)
        self._used -= stored.size


# The endpoints


async def upload(request: Request) -> JSONResponse:
    """Take a file, the body of the request as it is. Its name is in a header of our own, percent-encoded.

    That header also keeps out the forms of other sites, which cannot set any.
    """
    who, to = person(request), receiver(request, request.query_params.get("to"))
    name = checks.file_name(unquote(request.headers.get("x-file-name", ""), errors="surrogateescape"))
    store: Files = request.state.files
    size = request.headers.get("content-length", "")
    store.check(int(size) if size.isdecimal() else 0)
    fields: dict[str, Any] = {"to": to, "key": checks.key(request.query_params.get("key"))}
    coming = {"name": name, "size": int(size) if size.isdecimal() else None}
    helper: AsyncImHelper = request.state.helper
    await helper.send_message(who.id, to, message("file-coming", who, file=coming, **fields))
    try:
        async with store.incoming(name, frozenset({who.id, to})) as (key, incoming):
            async with asyncio.timeout(UPLOAD_SECONDS):
                async for chunk in request.stream():
                    incoming.write(chunk)
    except (Refused, ClientDisconnect, OSError) as error:  # a TimeoutError is an OSError
        with contextlib.suppress(FreeImError):
            await helper.send_message(who.id, to, message("file-failed", who, file=coming, **fields))
        if isinstance(error, TimeoutError):
            raise Refused(408, "too-slow", f"a file must be sent within {UPLOAD_SECONDS:g} seconds") from error
        if isinstance(error, OSError):
            raise Refused(507, "full", f"the file cannot be kept: {error.strerror}") from error
        raise
    complete = {"name": name, "size": incoming.size, "url": f"/files/{key}"}
    letter = message("file", who, file=complete, **fields)
    await helper.send_message(who.id, [to, who.id], letter, receipt=True)
    logger.info("client %d sent a file of %d bytes to client %d", who.id, incoming.size, to)
    return done(at=letter["at"], file=complete)


async def download(request: Request) -> FileResponse:
    """Give a file to its sender or receiver, always to be saved and never to be shown."""
    store: Files = request.state.files
    stored = store.get(request.path_params["key"], person(request).id)
    return FileResponse(
        stored.path,
        media_type="application/octet-stream",
        filename=stored.name,
        content_disposition_type="attachment",
    )
