"""Fuzz one target, as `tests/fuzz/__main__.py` asks: ``python -m tests.fuzz.sanitized TARGET [libFuzzer options]``."""

from __future__ import annotations

import ctypes
import logging
import sys

import atheris

with atheris.instrument_imports(include=["freeim"]):
    from tests.fuzz.targets import TARGETS

logging.disable()
name = sys.argv.pop(1)
atheris.Setup(sys.argv, TARGETS[name])
ctypes.CDLL(None).freeim_cover()
atheris.Fuzz()
