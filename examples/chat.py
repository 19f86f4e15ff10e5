"""A chat between two terminals: ``python examples/chat.py 1 2`` in one, ``python examples/chat.py 2 1`` in the other.

It plays both parts: the app, which authorises connections and sends (`ImHelper`), and the terminal, which receives (a
WebSocket client; ``pip install websockets``). Needs a node that runs, and its Redis.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time

from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

from freeim import CloseCode, FreeImError, ImHelper

RECONNECT_SECONDS = 1.0


def receive(helper: ImHelper, me: int) -> None:
    """Print what arrives; connect again, each time with a fresh token, until forced offline."""
    problem = ""
    while True:
        try:
            with connect(helper.prev_connect_server(me)) as terminal:
                print(f"* connected as {me}", flush=True)
                problem = ""
                for text in terminal:
                    print(shown(json.loads(text)), flush=True)
            # Ended in good order: forced offline, or by a code that the loop above takes for an end.
            if terminal.close_code == CloseCode.GOING_AWAY and terminal.close_reason == "disconnect":
                print("* forced offline", flush=True)
                return
        except (OSError, WebSocketException, FreeImError) as error:
            told, problem = problem, str(error).partition(";")[0]
            if problem != told:
                print(f"* not connected: {problem}; trying again", flush=True)
        time.sleep(RECONNECT_SECONDS)


def shown(message: object) -> str:
    """Return a line for a message: one of this program's, a receipt for one, or anything else that an app sends."""
    match message:
        case {"from": sender, "text": text}:
            return f"{sender}: {text}"
        case {"content": str(content), "receipt": outcome}:
            delivered = "delivered" if outcome == "发送成功" else "not online"
            return f"  ({delivered}: {json.loads(content)['text']})"
    return json.dumps(message, ensure_ascii=False)


def main() -> None:
    """Chat until the end of the input."""
    parser = argparse.ArgumentParser(description="Chat in a terminal, through a FreeIM node.")
    parser.add_argument("me", type=int, help="your client id, a number other than 0")
    parser.add_argument("friend", type=int, help="the client id that your lines go to")
    parser.add_argument("--redis", metavar="URL", help="by default FREEIM_REDIS_URL, else redis://127.0.0.1:6379")
    options = parser.parse_args()
    with ImHelper(options.redis) as helper:
        threading.Thread(target=receive, args=(helper, options.me), daemon=True).start()
        for line in sys.stdin:
            try:
                message = {"from": options.me, "text": line.rstrip("\n")}
                helper.send_message(options.me, options.friend, message, receipt=True)
            except FreeImError as error:
                print(f"* not sent: {error}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print()
