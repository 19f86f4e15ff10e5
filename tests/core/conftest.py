"""How hypothesis works here: no time limit for one example (the machine may be busy), and nothing left on disk.

A failure is shown as it was found. Looking for the smallest one takes minutes, longer than a test may: set
``FREEIM_SHRINK=1`` and ``--timeout 0`` for that.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, Phase, settings

from freeim._core import HAVE_EPOLL

# The core's own sockets are under an epoll, which only Linux has.
collect_ignore = [] if HAVE_EPOLL else ["test_slow_sockets.py", "test_socket.py"]

settings.register_profile(
    "freeim",
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
    phases=tuple(Phase) if os.environ.get("FREEIM_SHRINK") else (Phase.explicit, Phase.reuse, Phase.generate),
)
settings.load_profile("freeim")
