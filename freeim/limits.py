"""The limits that the operating system sets."""

from __future__ import annotations

import resource


def raise_descriptor_limit() -> int:
    """Raise the soft limit of open files to the hard one, and return the limit in effect.

    Each connection is one descriptor, and the soft limit is 1,024 on most systems (256 on macOS).
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # macOS reports "no limit" as its hard limit and refuses just that as a soft one, so we look for what it grants.
    wanted = hard if hard != resource.RLIM_INFINITY else 1 << 20
    while wanted > soft != resource.RLIM_INFINITY:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            return wanted
        except (ValueError, OSError):
            wanted //= 2
    return soft
