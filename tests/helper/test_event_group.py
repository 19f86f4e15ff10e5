"""A group of event buses: one handles the events, and another goes on where it was."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from freeim import AsyncImHelper, Event, ImHelper, event_group
from tests.helper.buses import Both, publish, wait_for
from tests.node.harness import until
from tests.servers import RedisServer

GROUP = "im_v2_wsGroupworkers"
TAKE_OVER_SECONDS = 10.0


def ids(bus: Both) -> list[Any]:
    return [event.client_id for event in bus.events]


def in_group(both: Any, server: RedisServer, **more: Any) -> Both:
    return both(server.url, group="workers", **more)


def leader_of(buses: list[Both], seconds: float = TAKE_OVER_SECONDS) -> Both:
    """Wait until one of these leads, and return it."""
    wait_for(lambda: [bus for bus in buses if bus.bus.leading], seconds)
    [leader] = [bus for bus in buses if bus.bus.leading]
    return leader


def aligned() -> None:
    """Wait until members that have just come know where the leader is: for two of its beats."""
    time.sleep(2 * event_group.BEAT_SECONDS + 0.5)


def test_one_of_a_group_handles_the_events_and_others_take_over_without_loss_or_repetition(
    both: Any, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = in_group(both, redis_server)
    wait_for(lambda: first.bus.leading)
    second, third = in_group(both, redis_server), in_group(both, redis_server)
    aligned()
    publish(redis_server, range(1, 51))
    wait_for(lambda: len(first.events) == 50)
    monkeypatch.setattr(event_group, "BEAT_SECONDS", 60.0)
    time.sleep(1.2)  # nobody beats from here on: it is the leader's last word that wakes the others
    stopper = threading.Thread(target=first.stop)
    stopper.start()
    publish(redis_server, range(51, 101))  # while the leader stops, and until somebody has taken over
    stopper.join()
    began = time.monotonic()
    leader_of([second, third], 1.0)
    assert time.monotonic() - began < 1.0, "at a clean stop the next one takes over at once"
    wait_for(lambda: len(first.events) + len(second.events) + len(third.events) == 100)
    time.sleep(0.3)
    assert ids(first) + ids(second) + ids(third) == list(range(1, 101))
    assert [first.resyncs, second.resyncs, third.resyncs] == [1, 0, 0], "only who begins cannot know what was before"


def test_the_fence_of_the_events_grows_with_each_take_over(both: Any, redis_server: RedisServer) -> None:
    fences = []
    for number in range(1, 4):
        bus = in_group(both, redis_server)
        leader_of([bus])
        publish(redis_server, [number])
        wait_for(lambda b=bus: b.events)  # type: ignore[misc]
        fences.append(bus.events[-1].fence)
        bus.stop()
    assert fences == [1, 2, 3]
    assert redis_server.hash("im_v2_wsFences") == {"workers": "3"}
    assert redis_server.command("EXISTS", GROUP) == 0, "the lease was given back"


def test_who_cannot_know_what_was_handled_before_begins_with_a_resync(both: Any, redis_server: RedisServer) -> None:
    bus = in_group(both, redis_server)
    leader_of([bus])
    wait_for(lambda: bus.resyncs == 1)
    bus.stop()
    publish(redis_server, [1])
    later = in_group(both, redis_server)
    leader_of([later])
    wait_for(lambda: later.resyncs == 1)
    publish(redis_server, [2])
    wait_for(lambda: later.events)
    assert ids(later) == [2]


def test_groups_of_different_names_and_buses_without_a_group_do_not_share(both: Any, redis_server: RedisServer) -> None:
    buses = [in_group(both, redis_server), both(redis_server.url, group="others"), both(redis_server.url)]
    wait_for(lambda: all(bus.bus.leading for bus in buses))
    publish(redis_server, [1])
    wait_for(lambda: all(ids(bus) == [1] for bus in buses))
    assert [bus.events[0].fence for bus in buses] == [1, 1, None]


def test_a_leader_whose_subscription_is_cut_hands_over_and_nothing_is_lost(
    both: Any, redis_server: RedisServer
) -> None:
    first = in_group(both, redis_server)
    leader_of([first])
    [cut] = [
        line.split()[0].removeprefix(b"id=").decode()
        for line in redis_server.command("CLIENT", "LIST", "TYPE", "pubsub").splitlines()
    ]
    second = in_group(both, redis_server)
    aligned()
    publish(redis_server, range(1, 11))
    wait_for(lambda: len(first.events) == 10)
    redis_server.command("CLIENT", "KILL", "ID", cut)
    publish(redis_server, range(11, 31))
    wait_for(lambda: second.bus.leading, 5.0)  # sooner than a lease runs out: the first has given it back
    wait_for(lambda: len(first.events) + len(second.events) >= 30)
    assert set(ids(first)) | set(ids(second)) == set(range(1, 31))
    assert (first.resyncs, second.resyncs) == (1, 0)


def test_a_redis_that_comes_back_empty_leaves_one_leader_that_resyncs_and_a_greater_fence(
    both: Any, own_redis_server: RedisServer
) -> None:
    buses = [in_group(both, own_redis_server) for _ in range(3)]
    leader = leader_of(buses)
    publish(own_redis_server, [1])
    wait_for(lambda: leader.events)
    aligned()
    own_redis_server.stop()
    wait_for(lambda: not any(bus.bus.subscribed for bus in buses))
    own_redis_server.start()
    wait_for(lambda: sum(bus.resyncs for bus in buses) == 2, TAKE_OVER_SECONDS)
    leader = leader_of(buses)
    assert leader.resyncs >= 1
    publish(own_redis_server, [2])
    wait_for(lambda: leader.events and leader.events[-1].client_id == 2)
    assert leader.events[-1].fence == 2, "the members remember it for a Redis that does not"
    assert sum(ids(bus).count(2) for bus in buses) == 1


def test_while_redis_refuses_writes_nobody_handles_events_and_afterwards_none_is_missing(
    both: Any, own_redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    buses = [in_group(both, own_redis_server) for _ in range(2)]
    leader_of(buses)
    aligned()
    own_redis_server.command("CONFIG", "SET", "maxmemory", "1")
    wait_for(lambda: not any(bus.bus.leading for bus in buses), TAKE_OVER_SECONDS)
    publish(own_redis_server, range(1, 11))
    time.sleep(0.5)
    assert [bus.events for bus in buses] == [[], []]
    assert any("cannot renew its lease" in record.getMessage() for record in caplog.records)
    own_redis_server.command("CONFIG", "SET", "maxmemory", "0")
    wait_for(lambda: sum(len(bus.events) for bus in buses) == 10, TAKE_OVER_SECONDS)
    assert sorted(ids(buses[0]) + ids(buses[1])) == list(range(1, 11))
    assert sum(bus.resyncs for bus in buses) == 1, "at the start"


def test_a_lease_whose_end_was_put_off_by_a_clock_that_went_back_is_cut_to_its_length(
    both: Any, redis_server: RedisServer
) -> None:
    redis_server.command("SET", GROUP, "a dead leader", "PX", 3_600_000)
    redis_server.command("HSET", "im_v2_wsFences", "workers", 7)
    bus = in_group(both, redis_server)
    leader_of([bus])
    publish(redis_server, [1])
    wait_for(lambda: bus.events)
    assert bus.events[0].fence == 8


def test_garbage_in_the_channel_of_the_marks_is_logged_once_and_passed_over(
    both: Any, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    bus = in_group(both, redis_server)
    leader_of([bus])
    with caplog.at_level(logging.WARNING, "freeim"):
        for garbage in (
            b"",
            b"{",
            b"5",
            b"\xff",
            b"[" * 100_000,
            b'{"fence":1}',
            b'{"fence":-1,"mark":1,"handled":null}',
        ):
            redis_server.command("PUBLISH", GROUP, garbage)
        publish(redis_server, [1])
        wait_for(lambda: bus.events)
    assert len([r for r in caplog.records if "skipped a mark" in r.getMessage()]) == 1
    assert bus.bus.leading


def test_what_a_member_keeps_is_bounded_and_it_knows_when_something_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(event_group, "KEPT_EVENTS", 10)
    kept = event_group.Backlog()
    mark = event_group.Mark((1, 1), None, False)
    kept.add(mark)
    kept.forget(event_group.Place(mark.id, 0))
    for number in range(10):
        assert not kept.missed
        kept.add((b"", b"%d" % number))
    assert (kept.missed, len(kept)) == (False, 10)
    kept.add((b"", b"10"))
    assert (kept.missed, kept.place, len(kept)) == (True, None, 10)
    assert kept.next() == (b"", b"1")


def test_a_process_that_ends_without_stopping_its_bus_hands_over_all_the_same(redis_server: RedisServer) -> None:
    program = f"""
import time
from freeim import ImHelper
bus = ImHelper({redis_server.url!r}, nodes=["a"]).event_bus(group="workers")
while not bus.leading:
    time.sleep(0.01)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)
    assert redis_server.command("EXISTS", GROUP) == 0


@pytest.mark.parametrize("kind", [ImHelper, AsyncImHelper])
@pytest.mark.parametrize(
    ("group", "error"), [("", ValueError), (5, TypeError), (b"x", TypeError), ("\ud800", ValueError)]
)
def test_a_group_must_have_a_name(kind: Any, group: Any, error: type[Exception]) -> None:
    async def run() -> None:
        with pytest.raises(error, match="group"):
            kind(nodes=["a"]).event_bus(group=group)

    asyncio.run(run())


# -- asyncio only -----------------------------------------------------------------------------------------------


def run_async(server: RedisServer, work: Callable[[AsyncImHelper], Awaitable[None]]) -> None:
    async def run() -> None:
        async with AsyncImHelper(server.url, nodes=["a"]) as helper:
            await work(helper)

    asyncio.run(run())


async def take(bus: Any, count: int) -> list[Any]:
    found: list[Any] = []
    async for event in bus:
        found.append(event.client_id)
        if len(found) == count:
            break
    return found


def test_the_bus_of_a_group_can_be_iterated_and_the_next_goes_on_behind_the_last_event(
    redis_server: RedisServer,
) -> None:
    async def work(helper: AsyncImHelper) -> None:
        async with helper.event_bus(group="workers") as second:
            async with helper.event_bus(group="workers") as first:
                await until(lambda: first.leading or second.leading, "a leader")
                leader, other = (first, second) if first.leading else (second, first)
                await asyncio.sleep(2 * event_group.BEAT_SECONDS + 0.5)
                publish(redis_server, range(1, 11))
                assert await asyncio.wait_for(take(leader, 4), 5) == [1, 2, 3, 4]
                if leader is second:
                    await leader.__aexit__(None, None, None)
                    assert await asyncio.wait_for(take(other, 6), 5) == [5, 6, 7, 8, 9, 10]
                    return
            assert await asyncio.wait_for(take(other, 6), 5) == [5, 6, 7, 8, 9, 10]

    run_async(redis_server, work)


def test_stopping_the_bus_of_a_group_ends_its_iteration(redis_server: RedisServer) -> None:
    async def work(helper: AsyncImHelper) -> None:
        bus = helper.event_bus(group="workers")
        collector = asyncio.create_task(take(bus, 1))
        assert await bus.wait_subscribed(5)
        await asyncio.sleep(0.2)
        await bus.stop()
        assert await asyncio.wait_for(collector, 5) == []
        assert await take(bus, 1) == []

    run_async(redis_server, work)


def test_a_bus_with_a_group_and_callbacks_is_not_iterated_too(redis_server: RedisServer) -> None:
    async def work(helper: AsyncImHelper) -> None:
        async with helper.event_bus(print, group="workers") as bus:
            with pytest.raises(TypeError, match="not to both"):
                aiter(bus)

    run_async(redis_server, work)


def test_an_event_whose_coroutine_was_cancelled_is_handled_by_the_next(redis_server: RedisServer) -> None:
    async def work(helper: AsyncImHelper) -> None:
        begun = asyncio.Event()
        seen: list[Event] = []

        async def hang(event: Event) -> None:
            begun.set()
            await asyncio.sleep(60)

        first = helper.event_bus(hang, group="workers")
        await until(lambda: first.leading, "it leads")
        async with helper.event_bus(seen.append, group="workers"):
            await asyncio.sleep(2 * event_group.BEAT_SECONDS + 0.5)
            publish(redis_server, [1, 2])
            await asyncio.wait_for(begun.wait(), 5)
            await first.stop()
            await until(lambda: len(seen) == 2, "both events")
        assert [event.client_id for event in seen] == [1, 2]

    run_async(redis_server, work)


def test_an_asyncio_program_that_is_cancelled_gives_the_lease_back(redis_server: RedisServer) -> None:
    async def main() -> None:
        helper = AsyncImHelper(redis_server.url, nodes=["a"])
        bus = helper.event_bus(print, group="workers")
        await until(lambda: bus.leading, "it leads")
        # The program ends here, without a word to the bus.

    asyncio.run(main())
    assert redis_server.command("EXISTS", GROUP) == 0


def test_an_iteration_that_is_far_behind_in_a_group_loses_events_and_is_told_to_resync(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_group, "KEPT_EVENTS", 20)
    resyncs: list[None] = []

    async def work(helper: AsyncImHelper) -> None:
        async with helper.event_bus(resync=lambda: resyncs.append(None), group="workers") as bus:
            await until(lambda: bus.leading and len(resyncs) == 1, "it leads")
            publish(redis_server, range(1, 101))
            await asyncio.sleep(0.5)
            assert len(resyncs) == 1, "it would only lose more"
            iterator = aiter(bus)
            got = [int((await anext(iterator)).client_id) for _ in range(15)]
            assert got == list(range(got[0], got[0] + 15))
            assert got[0] > 80
            await until(lambda: len(resyncs) == 2, "the second resync")

    run_async(redis_server, work)
