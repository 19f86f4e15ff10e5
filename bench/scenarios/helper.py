"""What an application spends on the helper: its calls against redis-py's bare publish of the same bytes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import redis

from bench.outcome import Figure, Outcome, ratios
from bench.publisher import text
from bench.stand import Settings, Stand, stand
from freeim import ImHelper, Raw, envelope

RECEIVERS = 1000
BATCH = 1000


def run(settings: Settings) -> Outcome:
    """Measure single messages, batches, and messages to many; what is sent is delivered and verified."""
    calls, few = settings.many(5000), settings.many(200)
    everybody = list(range(1, min(RECEIVERS, settings.connections) + 1))
    outcome = Outcome(
        "helper",
        f"{calls} messages of {settings.size} bytes to one client, {few} to {len(everybody)}",
    )
    publish, send, single, batch, to_many, to_one = [], [], [], [], [], []
    with (
        stand(settings, {}, outcome) as here,
        redis.Redis.from_url(settings.url) as client,
        ImHelper(settings.url, prefix=here.names.prefix, nodes=[here.node.node]) as helper,
    ):
        channel = here.names.server(here.node.node)
        calling = _Caller(here, outcome)
        for number in range(settings.rounds):
            settings.progress(f"helper: round {number + 1} of {settings.rounds}")
            # The payloads are made before the clock starts: it is the bare call that is timed.
            payloads = [envelope.direct(0, [1], envelope.direct_tail(each, False)) for each in calling.messages(calls)]
            publish.append(calling.time(payloads, [1], lambda payload: client.publish(channel, payload))[0])
            cpu, wall = calling.time(calling.raw(calls), [1], lambda each: helper.send_message(0, 1, each))
            send.append(cpu)
            single.append(wall)
            batch.append(calling.time_batches(helper, calls))
            cpu, _ = calling.time(calling.raw(few), everybody, lambda each: helper.send_message(0, everybody, each))
            to_many.append(cpu)
            to_one.append(calling.time(calling.raw(few), [1], lambda each: helper.send_message(0, 1, each))[0])
    meaning = f"CPU of send_message to {len(everybody)} receivers / to one"
    outcome.figures = [
        Figure("helper_send_ratio", "lower", "CPU of send_message / of redis-py's publish", ratios(send, publish)),
        Figure("helper_many_ratio", "lower", meaning, ratios(to_many, to_one)),
        Figure("helper_batch_ratio", "higher", "calls a second in a batch / one by one", ratios(single, batch)),
        Figure("helper_send_cpu", "lower", "CPU of send_message", [each / calls * 1e6 for each in send], "µs"),
    ]
    return outcome


class _Caller:
    """Makes calls, times them in this process, and has what they send verified."""

    def __init__(self, here: Stand, outcome: Outcome) -> None:
        self._here = here
        self._outcome = outcome

    def messages(self, count: int) -> list[str]:
        stream = self._here.next_stream()
        return [text(stream, number, self._here.settings.size) for number in range(1, count + 1)]

    def raw(self, count: int) -> list[Raw]:
        return [Raw(each) for each in self.messages(count)]

    def time(
        self, what: Sequence[object], receivers: Sequence[int], call: Callable[..., object]
    ) -> tuple[float, float]:
        """Call with each; return the CPU seconds of this process, and the seconds by the clock."""
        spent = [0.0, 0.0]

        def send() -> None:
            wall, cpu = time.perf_counter(), time.process_time()
            for each in what:
                call(each)
            spent[:] = time.process_time() - cpu, time.perf_counter() - wall

        self._here.round(self._outcome, send, receivers, len(what))
        return spent[0], spent[1]

    def time_batches(self, helper: ImHelper, calls: int) -> float:
        """Send messages to one client in batches; return the seconds by the clock."""
        messages = self.raw(calls)
        spent = [0.0]

        def send() -> None:
            wall = time.perf_counter()
            for start in range(0, calls, BATCH):
                with helper.batch() as batch:
                    for each in messages[start : start + BATCH]:
                        batch.send_message(0, 1, each)
            spent[0] = time.perf_counter() - wall

        self._here.round(self._outcome, send, [1], calls)
        return spent[0]
