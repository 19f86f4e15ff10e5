"""Who may come in: pages by their origin, addresses by what they have already, terminals by what they send."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from freeim.config import Options
from freeim.node.address_limits import AddressLimits
from freeim.node.http import Refusal, Request
from freeim.node.proxies import Proxies
from freeim.node.sparse_log import SparseLog
from freeim.origins import Origins, is_origin

if TYPE_CHECKING:
    from freeim.node.handshake import Handshake
    from freeim.node.terminal import Terminal

log = logging.getLogger("freeim")

LONGEST_SHOWN: Final = 100
"""Characters of an origin that is logged; a token has more."""

LINES_PER_MINUTE: Final = 20
"""Log lines about connections that a limit refuses or cuts; the rest of the minute is counted."""


class Admission:
    """The rules that need nothing from Redis. What is not limited is not looked at.

    Args:
        options: The node's options.
    """

    def __init__(self, options: Options) -> None:
        self.log = SparseLog(logging.INFO, LINES_PER_MINUTE, "a limit refused or cut %d more connections")
        self._silent_proxies: set[str] = set()
        self._addresses: AddressLimits | None = None
        self._inbound: dict[Handshake | Terminal, int] = {}
        """Bytes that came in the present second."""
        self._second = 0.0
        self.reload(options)

    def reload(self, options: Options) -> None:
        """Take new options, for all that is asked from now on. A socket keeps the address that it was counted at."""
        self._origins = Origins(options.origins) if options.origins else None
        self._proxies = Proxies(options.trusted_proxies) if options.trusted_proxies else None
        self._inbound_rate = options.inbound_rate
        limits = options.max_per_address, options.handshakes_per_address
        if self._addresses is not None:
            # It goes on counting without a limit too: there may be one again while these sockets are open.
            self._addresses.set_limits(*limits)
        elif any(limits):
            self._addresses = AddressLimits(*limits)

    # ---- before the 101

    def admit(self, handshake: Handshake) -> bool:
        """Look at where an accepted connection comes from; False where it must be cut."""
        if (self._addresses is None and self._proxies is None) or handshake.address is not None:
            return True
        peer = handshake.peer_address
        return peer is None or self.place(handshake, peer)

    def is_proxy(self, address: str) -> bool:
        """Whether an address is that of a trusted proxy."""
        return self._proxies is not None and address in self._proxies

    def place(self, handshake: Handshake, address: str) -> bool:
        """Note where a connection comes from, as far as is known, and count it there.

        Returns:
            False where it must be cut: its address has far too many.
        """
        if self._place(handshake, address):
            return True
        self.log.tell("cut a connection of %s: it has far more than --max-per-address allows", handshake.peer)
        return False

    def _place(self, handshake: Handshake, address: str) -> bool:
        handshake.address = address
        handshake.from_proxy = self.is_proxy(address)
        return handshake.from_proxy or self._addresses is None or self._addresses.enter(handshake, address)

    def check(self, handshake: Handshake, request: Request) -> None:
        """Look at a WebSocket request.

        Raises:
            Refusal: 403 for the page of another origin, 429 where its address has or asks for too much.
        """
        if self._origins is not None:
            self._check_origin(self._origins, request.headers.get("origin"))
        if handshake.from_proxy:
            self._look_behind_proxy(handshake, request)
        if self._addresses is not None:
            self._addresses.check(handshake)

    def _check_origin(self, origins: Origins, origin: str | None) -> None:
        # A browser always says whose page it is, and nobody else has to.
        if origin is not None and not origins.allow(origin):
            # Only what a browser would send: in anything else a client could have put anything, its token too.
            known = len(origin) <= LONGEST_SHOWN and is_origin(origin)
            log.debug("the origin %s is not in --origins", origin if known else "of the request")
            raise Refusal(403, "pages of this origin may not connect; --origins lists those that may")

    def _look_behind_proxy(self, handshake: Handshake, request: Request) -> None:
        assert handshake.address is not None
        terminal = handshake.address
        if self._proxies is not None:  # else none is trusted any more since a reload a moment ago
            terminal = self._proxies.terminal_behind(terminal, request.headers.get("x-forwarded-for", ""))
        self._place(handshake, terminal)
        if handshake.from_proxy and handshake.address not in self._silent_proxies:
            self._silent_proxies.add(handshake.address)
            log.warning(
                "the trusted proxy %s does not say where its terminals come from: let it set X-Forwarded-For. Until "
                "then there is no limit on their addresses. This is said once for each proxy",
                handshake.address,
            )

    # ---- afterwards

    def hand_over(self, handshake: Handshake, terminal: Terminal) -> None:
        """The 101 is about to be written: the socket is the terminal's from now on."""
        if self._addresses is not None:
            self._addresses.hand_over(handshake, terminal)

    def leave(self, holder: Handshake | Terminal) -> None:
        """A socket is gone."""
        self._inbound.pop(holder, None)
        if self._addresses is not None:
            self._addresses.leave(holder)

    def count(self, terminal: Terminal, size: int) -> bool:
        """Count bytes that a terminal has sent; False where that is too much for one second."""
        if not self._inbound_rate:
            return True
        sent = self._inbound[terminal] = self._inbound.get(terminal, 0) + size
        return sent <= self._inbound_rate

    def look_at_clock(self, now: float) -> None:
        """Begin a new second where it is time; to be called several times in each."""
        if now - self._second >= 1.0:
            self._second = now
            self._inbound.clear()
            if self._addresses is not None:
                self._addresses.next_second()
