"""What one address may have open and ask for: a limit on who would take the node for himself alone."""

from __future__ import annotations

import ipaddress
from collections import Counter
from typing import Final

from freeim.node.http import Refusal

IPV6_PREFIX: Final = 64
"""Leading bits of an IPv6 address that count: whoever has one address of a network has all 2**64 (RFC 4291, 2.5.1)."""


def network_of(address: str) -> str:
    """Return what of an address counts: an IPv4 address, or the /64 network of an IPv6 address."""
    host, _, _zone = address.partition("%")
    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        return str(ipaddress.ip_network((found, IPV6_PREFIX), strict=False))
    return str(found)


class AddressLimits:
    """Counts the open sockets of each address, and its requests in the present second.

    A socket counts from the moment that its address is known until it is gone, whatever becomes of it: one that sends
    no request, or was refused and does not leave, counts too.

    Args:
        max_open: Open sockets; 0 is any number.
        max_requests: WebSocket requests in a second; 0 is any number.
    """

    def __init__(self, max_open: int, max_requests: int) -> None:
        self._max_open = max_open
        self._max_requests = max_requests
        self._open: Counter[str] = Counter()
        self._requests: Counter[str] = Counter()
        self._networks: dict[object, str] = {}

    def set_limits(self, max_open: int, max_requests: int) -> None:
        """Change the limits; what was counted stays."""
        self._max_open = max_open
        self._max_requests = max_requests

    def enter(self, holder: object, address: str) -> bool:
        """Count a socket.

        Args:
            holder: What holds the socket.
            address: Where it comes from.

        Returns:
            False where the address has more than twice as many as it may: they are not worth an answer.
        """
        network = self._networks[holder] = network_of(address)
        self._open[network] += 1
        return not self._max_open or self._open[network] <= 2 * self._max_open

    def hand_over(self, holder: object, successor: object) -> None:
        """Something else holds the socket from now on."""
        if holder in self._networks:
            self._networks[successor] = self._networks.pop(holder)

    def leave(self, holder: object) -> None:
        """The socket is gone; also fine for one that was not counted."""
        network = self._networks.pop(holder, None)
        if network is not None:
            self._open[network] -= 1
            if not self._open[network]:
                del self._open[network]

    def check(self, holder: object) -> None:
        """Count a WebSocket request of a socket that was counted.

        Raises:
            Refusal: 429 where the address has too many sockets, or asks too often.
        """
        network = self._networks.get(holder)
        if network is None:
            return
        if self._max_requests:
            self._requests[network] += 1
            if self._requests[network] > self._max_requests:
                raise Refusal(429, "too many requests from your address in this second", "Retry-After: 1")
        if self._max_open and self._open[network] > self._max_open:
            raise Refusal(429, "your address has as many connections as it may", "Retry-After: 10")

    def next_second(self) -> None:
        """A new second begins."""
        self._requests.clear()
