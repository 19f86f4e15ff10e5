"""What to tell a person at the command line about a handshake that was refused."""

from __future__ import annotations

from typing import Final

from picows import WSInvalidStatusError

from freeim.printable import printable

LONGEST: Final = 300
"""Characters that are shown of a reason: a node's are one short line, and anybody may have answered."""

_WHAT_TO_DO: Final = {
    401: "does the node use the same Redis, --path, --prefix and --ids as this command?",
    404: "the path must be the node's --path, and a proxy must strip its own part",
    421: "each node needs a URL of its own, its --public-url; a proxy must not balance over nodes",
    426: "a proxy before the node must pass the upgrade to WebSocket on",
    429: "end other connections, or see the node's --max-per-client, --max-per-address and --handshakes-per-address",
    502: "a proxy does not reach the node: is it running, on the address that the proxy names?",
    503: "the node's /ready says what it lacks",
    504: "a proxy does not reach the node: is it running, on the address that the proxy names?",
}
"""By HTTP status. docs/troubleshooting.md has more of them, and at more length."""


def why_refused(error: WSInvalidStatusError) -> str:
    """Return the status of a refused handshake, the reason that the answer gives, and what to do, in one line.

    Args:
        error: What picows raised. Its bytes may be anything: not only nodes answer.
    """
    response = error.response
    if response is None:
        return printable(str(error))
    what = f"the answer was {response.status.value} {response.status.phrase}"
    reason = _reason(error)
    if reason:
        what += f" ({reason})"
    advice = _WHAT_TO_DO.get(response.status)
    return what if advice is None else f"{what}; {advice}"


def _reason(error: WSInvalidStatusError) -> str:
    """Return the first line of the answer's text, "" where it has none; a proxy's page is no reason."""
    assert error.response is not None
    headers = error.response.headers
    kind = headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if kind != "text/plain" or "Transfer-Encoding" in headers:
        return ""
    start = (error.raw_body or b"")[: 4 * LONGEST].decode("utf-8", "replace")
    line = printable(start.partition("\n")[0].strip())
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}…"
