"""Random histories of a group, each checked."""

from __future__ import annotations

from functools import partial
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.helper.group_model import FaithfulGroup, ForgetfulGroup, Group
from tests.servers import RedisServer

HISTORIES = settings(
    max_examples=200, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True
)


def run(kind: type[Group], server: RedisServer) -> None:
    make: Any = partial(kind, server)
    run_state_machine_as_test(make, settings=HISTORIES)


def test_each_event_is_handled_or_followed_by_a_resync_and_never_do_two_lead(redis_server: RedisServer) -> None:
    run(FaithfulGroup, redis_server)


def test_nor_is_an_event_lost_when_redis_forgets_the_lease(redis_server: RedisServer) -> None:
    run(ForgetfulGroup, redis_server)
