# mypy: ignore-errors
"""Run categories 1 to 7 of the Autobahn testsuite against a node, which pushes and never echoes.

Usage: ``python2.7 suite.py PORT REPORT < TOKENS`` with one connection token a line; ``__main__.py`` beside it does so.
The suite never left Python 2.7. It expects an echo of each message. Here an echo counts as a fault, and everything else
is judged by the suite.
REPORT becomes a list of JSON objects, one a case: what was sent, what was expected, and the verdict.
"""

import base64
import json
import random
import sys
import time
import zlib

from autobahntestsuite import fuzzing
from twisted.internet import reactor

ANSWER = 0.3
"""Seconds for what a node has to answer, before a case that only waited for echoes goes on to its close."""


class Client(fuzzing.FuzzingClientFactory):
    results = ()
    tokens = sys.stdin.read().split()

    def nextCase(self):  # noqa: N802 - the suite's name
        more = fuzzing.FuzzingClientFactory.nextCase(self)
        if more:
            self.resource = "/ws?token=" + self.tokens.pop()  # each opens one connection
        return more

    def buildProtocol(self, addr):  # noqa: N802
        protocol = fuzzing.FuzzingClientFactory.buildProtocol(self, addr)
        protocol.sent = []
        protocol.last = None
        case, begin, write = protocol.runCase, protocol.runCase.onOpen, protocol.sendData

        def on_open():
            # What is written from here on are frames.
            protocol.sendData = send
            begin()
            for verdict, events in case.expected.items():
                case.expected[verdict] = [event for event in events if event[0] != "message"]
            reactor.callLater(ANSWER, finish)

        def finish():
            if protocol.state == protocol.STATE_OPEN and not case.received:
                case.finishWhenDone()

        def send(data, sync=False, chopsize=None):
            now = time.time()
            if protocol.last is not None and now - protocol.last < ANSWER / 2:
                protocol.sent[-1] += data
            else:
                protocol.sent.append(data)
            protocol.last = now
            write(data, sync, chopsize)

        case.onOpen = on_open
        return protocol

    def createReports(self):  # noqa: N802
        with open(sys.argv[2], "w") as out:
            json.dump(self.results, out)


def lost(self, reason):
    """Stand in for the suite's own end of a case, which would build a page of HTML."""
    fuzzing.WebSocketClientProtocol.connectionLost(self, reason)
    case = self.runCase
    expected = {verdict: [list(event) for event in events] for verdict, events in case.expected.items()}
    case.onConnectionLost(self.failedByMe)
    self.factory.results += (
        {
            "case": self.factory.currentCaseId,
            "about": " ".join(self.Case.DESCRIPTION.split("<br>")[0].split()).decode("utf-8", "replace"),
            "sent": [base64.b64encode(zlib.compress(data, 9)).decode() for data in self.sent],
            "expected": json.loads(json.dumps(expected, encoding="latin-1")),
            "close": case.expectedClose,
            "verdict": case.behavior,
            "verdict_close": case.behaviorClose,
        },
    )


fuzzing.FuzzingClientProtocol.connectionLost = lost
random.getrandbits = lambda _: 0x0A0B0C0D  # the same masks in each run
Client(
    {
        "servers": [{"agent": "freeim", "url": "ws://127.0.0.1:" + sys.argv[1]}],
        "cases": [str(category) + ".*" for category in range(1, 8)],
    }
)
reactor.run()
