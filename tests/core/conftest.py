"""How hypothesis works here: no time limit for one example (the machine may be busy), and nothing left on disk."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile(
    "freeim", deadline=None, database=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("freeim")
