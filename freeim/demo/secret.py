"""The secret that signs the cookies. It must outlive a restart of the app, or everybody would become somebody else."""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

VARIABLE: Final = "FREEIM_DEMO_SECRET"
SHORTEST: Final = 16


def find_secret(given: str | None, environ: Mapping[str, str]) -> str:
    """Return the secret: the one given, that of the environment, or that of a file, which is made where it is missing.

    Args:
        given: What the command line says.
        environ: The environment.

    Raises:
        ValueError: The secret is too short to keep anything, or there is no place for a file.
        OSError: The file can neither be read nor made.
    """
    secret, where = given or environ.get(VARIABLE, ""), "--secret" if given else VARIABLE
    if not secret:
        path = _state_folder(environ) / "demo-secret"
        secret, where = _read_or_make(path), str(path)
    if len(secret) < SHORTEST:
        raise ValueError(f"{where}: the secret needs at least {SHORTEST} characters")
    return secret


def _state_folder(environ: Mapping[str, str]) -> Path:
    named = environ.get("XDG_STATE_HOME", "")
    if os.path.isabs(named):
        return Path(named) / "freeim"
    try:
        return Path.home() / ".local" / "state" / "freeim"
    except RuntimeError:
        raise ValueError(f"this user has no home folder to keep one in; set {VARIABLE}") from None


def _read_or_make(path: Path) -> str:
    with contextlib.suppress(FileNotFoundError):
        return path.read_text(encoding="ascii").strip()
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, draft = tempfile.mkstemp(dir=path.parent)  # only its owner may read it
    try:
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(secrets.token_urlsafe(32) + "\n")
        # A link either is there, with all of its text, or was there already: two that start at once agree.
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
    finally:
        os.unlink(draft)
    return path.read_text(encoding="ascii").strip()
