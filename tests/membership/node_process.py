"""A node as a process, with what the command does not offer: the barrier can be switched off."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import uvloop

from freeim.config import Options
from freeim.node import Node
from tests.membership.processes import stdin_closed


async def main(options: dict[str, Any], barrier: bool) -> None:
    options["nodes"] = tuple(options.get("nodes", ()))
    async with Node(Options(**options), barrier=barrier) as node:
        print(json.dumps({"name": node.name, "banner": node.banner()}), flush=True)
        await stdin_closed()


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    uvloop.run(main(**json.loads(sys.argv[1])))
