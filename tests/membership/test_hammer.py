"""The hammer: join then send, leave then send, by several processes at once; nothing may be missed, nothing stray."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.membership.cluster import nodes_on, readiness, redis_without
from tests.membership.processes import Helper
from tests.servers import RedisServer

PUBLISHERS = 3
CLIENTS_EACH = 8
ROOMS = [f"room{n}" for n in range(CLIENTS_EACH)]
SECONDS = 60


@dataclass
class Totals:
    """What all publishing processes and the bystanders saw."""

    pairs: int = 0
    missed: int = 0
    strays: int = 0
    disordered: int = 0
    in_rooms: int = 0
    directs: int = 0
    seconds: float = 0.0
    flips: int = 0
    connects: int = 0
    bystanders: list[int] = field(default_factory=list)
    examples: list[Any] = field(default_factory=list)


def hammer(redis: RedisServer, nodes: list[str], pairs: int) -> Totals:
    """Flip and send until all processes together have done their pairs."""
    totals = Totals()
    with contextlib.ExitStack() as stack:
        publishers = []
        for process in range(PUBLISHERS):
            first = 100 * process + 1
            publishers.append(
                stack.enter_context(
                    Helper(
                        "publisher",
                        socket_path=redis.socket_path,
                        nodes=nodes,
                        process=process,
                        clients=list(range(first, first + CLIENTS_EACH)),
                        seconds=SECONDS,
                        pairs=-(-pairs // PUBLISHERS),
                    )
                )
            )
        churn = stack.enter_context(
            Helper("churn", socket_path=redis.socket_path, nodes=nodes, rooms=ROOMS, first_id=100_000)
        )
        for helper in (*publishers, churn):
            helper.answer()
        for helper in publishers:
            helper.tell(go=True)
        for helper in publishers:
            result = helper.answer(SECONDS + 40)
            for name in ("pairs", "missed", "strays", "disordered", "in_rooms", "directs"):
                setattr(totals, name, getattr(totals, name) + result[name])
            totals.examples += result["examples"]
            totals.seconds = max(totals.seconds, result["seconds"])
        assert churn.process.stdin is not None
        churn.process.stdin.close()
        churn.process.stdin = None
        others = churn.answer()
        totals.flips, totals.connects = others["flips"], others["connects"]
        totals.bystanders, totals.disordered = others["got"], totals.disordered + others["disordered"]
    print(f"{totals.pairs} pairs in {totals.seconds:.1f} s, {totals}")
    return totals


def check(totals: Totals, pairs: int) -> None:
    assert (totals.missed, totals.strays, totals.disordered) == (0, 0, 0), totals.examples
    assert totals.pairs >= pairs
    # The others were busy, and each bystander got each message to a room once.
    assert totals.flips > 10 * totals.seconds
    assert totals.connects > totals.seconds
    assert totals.directs > pairs / 10
    assert totals.bystanders == [totals.in_rooms] * 2


def test_no_message_is_missed_or_stray_after_fifty_thousand_joins_and_leaves(redis_server: RedisServer) -> None:
    pairs = 50_000
    with nodes_on(redis_server) as nodes:
        assert "without" not in readiness(nodes[0])
        check(hammer(redis_server, nodes, pairs), pairs)


def test_no_message_is_missed_or_stray_when_redis_is_far_from_the_nodes(redis_server: RedisServer) -> None:
    pairs = 10_000
    with nodes_on(redis_server, round_trip=0.002) as nodes:
        check(hammer(redis_server, nodes, pairs), pairs)


def test_the_hammer_notices_when_messages_may_overtake_the_reading_of_memberships(redis_server: RedisServer) -> None:
    pairs = 2_000
    with nodes_on(redis_server, barrier=False, round_trip=0.002) as nodes:
        totals = hammer(redis_server, nodes, pairs)
    assert totals.pairs >= pairs
    assert totals.missed > pairs / 100
    assert totals.strays > pairs / 100


@pytest.mark.parametrize("missing", ["CLIENT", "RESP3"])
def test_no_message_is_missed_or_stray_where_redis_refuses_to_track(missing: str) -> None:
    pairs = 8_000
    with redis_without(missing) as redis, nodes_on(redis) as nodes:
        assert "without CLIENT TRACKING" in readiness(nodes[0])
        check(hammer(redis, nodes, pairs), pairs)
