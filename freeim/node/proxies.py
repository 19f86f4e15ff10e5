"""Proxies whose word is believed, and what they say: the address that a terminal comes from."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import Final

_WITH_PORT: Final = re.compile(r"\[([0-9A-Fa-f:.]+)\](?::\d{1,5})?|(\d+\.\d+\.\d+\.\d+):\d{1,5}")


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        found = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        return found.ipv4_mapped  # a socket that listens on [::] sees IPv4 so
    return found


class Proxies:
    """The list of trusted proxies.

    Args:
        networks: Addresses and networks as `ipaddress.ip_network` reads them.
    """

    def __init__(self, networks: Iterable[str]) -> None:
        self._networks = [ipaddress.ip_network(network) for network in networks]

    def __contains__(self, address: str) -> bool:
        """Tell whether an address is that of a trusted proxy."""
        found = _address(address)
        return found is not None and any(found in network for network in self._networks)

    def terminal_behind(self, peer: str, forwarded: str) -> str:
        """Return the address nearest to us that is no trusted proxy's: nobody could have invented that one.

        Each proxy appends the address that it sees to ``X-Forwarded-For``, so what stands to the left of the nearest
        stranger's address is whatever that stranger likes.

        Args:
            peer: The address that the node sees.
            forwarded: The header's value; empty where there is none.

        Returns:
            The furthest trusted proxy itself where the header names nobody else, or goes on with something that is no
            address.
        """
        entries = forwarded.split(",")
        while peer in self and entries:
            text = entries.pop().strip()
            with_port = _WITH_PORT.fullmatch(text)
            found = _address(with_port[1] or with_port[2] if with_port else text)
            if found is None:
                break
            peer = str(found)
        return peer
