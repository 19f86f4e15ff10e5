"""The metrics of a node, read when they are asked for: nobody but a scrape pays for them.

docs/watching.md explains each; a test compares the two.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from freeim._core import Router
    from freeim.node.node import Node

_KINDS = ("direct", "channel", "broadcast", "force_offline")


class Metrics(Collector):
    """All metrics of one node.

    Args:
        node: Started, or about to be.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._started = time.time()
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def page(self, accept: str) -> tuple[bytes, str]:
        """Return the page of all metrics, and its content type.

        Args:
            accept: The Accept header: the text format of Prometheus, or OpenMetrics where that is asked for.
        """
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type

    def describe(self) -> Iterable[Metric]:
        """Return nothing: the registry would collect only to learn the names."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yield each metric with its samples."""
        yield _labelled(
            GaugeMetricFamily,
            "freeim_node_info",
            "Always 1; says which node this is, and its version.",
            ("node", "version"),
            {(self._node.name, version("freeim")): 1},
        )
        yield from self._connections()
        yield from self._messages()
        yield from self._losses()
        yield from self._resume()
        yield from self._redis()
        yield from self._process()

    def _connections(self) -> Iterator[Metric]:
        connections, acceptor = self._node._connections, self._node._acceptor
        open_now = len(connections.living) - connections.resume.away
        yield _gauge("connections", "WebSocket connections that are open and counted.", open_now)
        yield _gauge("clients", "Clients with a connection here, open or away.", len(self._node._bus.router.clients))
        yield _gauge("sockets", "Sockets of terminals that are open, WebSocket or not yet.", connections.accepted)
        yield _gauge("sockets_limit", "Sockets that the limit of descriptors allows.", acceptor.capacity)
        yield _labelled(
            CounterMetricFamily,
            "freeim_handshakes",
            "Requests for a WebSocket by their end: the HTTP status, or gone where the peer left first.",
            ("result",),
            connections.handshakes,
        )
        yield _labelled(
            CounterMetricFamily,
            "freeim_closes",
            "WebSocket connections that ended or are about to, by close code and by who began it; 1006 is a lost one.",
            ("by", "code"),
            connections.closes,
        )

    def _messages(self) -> Iterator[Metric]:
        router, fanout = self._node._bus.router, self._node._connections.fanout
        yield _labelled(
            CounterMetricFamily,
            "freeim_messages",
            "Messages that were published to this node, by kind.",
            ("kind",),
            dict(zip(_KINDS, router.messages, strict=True)),
        )
        yield _counter("received_bytes", "Bytes that were published to this node.", router.received)
        yield _counter("deliveries", "Messages handed to a connection, one for each that gets it.", router.deliveries)
        yield _counter("delivered_bytes", "Bytes of the frames of these.", router.delivered)
        yield _counter("writes", "Calls of send(2) for frames.", fanout.writes)
        yield _fanout(router)
        yield _gauge("queue_bytes", "Bytes that wait for slow terminals.", fanout.waiting)
        yield _gauge("queue_memory_bytes", "Memory of what waits for slow terminals.", fanout.memory)
        yield _gauge("queue_limit_bytes", "Memory that it may take.", fanout.node_queue_limit)
        yield _labelled(
            GaugeMetricFamily,
            "freeim_bus_queue_bytes",
            "Memory of what came from Redis and waits: to be handled, or until somebody's membership has been read.",
            ("waits_for",),
            {"node": self._node._session.queued, "membership": self._node._bus.waiting_for_membership},
        )
        yield _gauge("bus_queue_limit_bytes", "Memory that each of the two may take.", router.window_limit)

    def _losses(self) -> Iterator[Metric]:
        bus, connections, stream = self._node._bus, self._node._connections, self._node._stream
        yield _labelled(
            CounterMetricFamily,
            "freeim_dropped_messages",
            "Messages that were lost here, by reason.",
            ("reason",),
            {
                "bus_queue": bus.dropped_for_all,
                "membership": bus.dropped_for_membership,
                "malformed": bus.bad_payloads,
                "trimmed": stream.position.lost if stream is not None else 0,
                "away": bus.router.forgotten,
            },
        )
        yield _labelled(
            CounterMetricFamily,
            "freeim_slow_connections_cut",
            "Connections that were closed since they read too slowly, by the limit that was passed.",
            ("limit",),
            connections.cut,
        )
        text = "Bytes that waited for connections that were too slow, and were dropped when these were closed."
        yield _counter("slow_dropped_bytes", text, connections.fanout.dropped)

    def _resume(self) -> Iterator[Metric]:
        resume = self._node._connections.resume
        yield _gauge("resume_away", "Connections that are lost and may be resumed.", resume.away)
        yield _labelled(
            CounterMetricFamily,
            "freeim_resume_away_ended",
            "Connections that are not away any more, by what ended it.",
            ("reason",),
            resume.ends,
        )
        yield _labelled(
            CounterMetricFamily,
            "freeim_resumes",
            "Terminals that came back with a last id: resumed, or told that they missed something and why.",
            ("result",),
            resume.results,
        )
        yield _counter("resume_replayed_messages", "Messages that were sent again from a log.", resume.replayed)
        yield _gauge(
            "resume_memory_bytes", "Memory of what is kept for terminals that may come back.", resume.logs.memory
        )
        yield _gauge("resume_memory_limit_bytes", "Memory that it may take.", resume.logs.limit)

    def _redis(self) -> Iterator[Metric]:
        session = self._node._session
        yield _gauge("redis_up", "1 while the node is connected to Redis and agrees with it, else 0.", session.up)
        yield _gauge("redis_tracking", "1 while Redis tells of changed memberships, else 0.", session.tracking)
        yield _counter("bus_gaps", "How often the connection to Redis was lost.", session.gaps)
        stream = self._node._stream
        caught_up = 0 if stream is None else stream.caught_up
        yield _counter("caught_up_messages", "Messages of the node's stream that came while it was away.", caught_up)
        presence = self._node._presence
        yield _counter("restored_connections", "Connections that Redis had lost, put back.", presence.restored)
        yield _counter("buried_connections", "Connections of dead nodes, taken out by this one.", presence.buried)
        yield _labelled(
            CounterMetricFamily,
            "freeim_redis_errors",
            "Errors that Redis answered, by code; connection is a connection lost, or an attempt that failed.",
            ("code",),
            session.errors,
        )
        yield HistogramMetricFamily(
            "freeim_probe_round_trip_seconds",
            "Time from publishing a probe to hearing it on the bus.",
            _cumulative(session.round_trip),
            session.round_trip.sum,
        )

    def _process(self) -> Iterator[Metric]:
        lag = self._node._connections.clockwork.lag
        yield HistogramMetricFamily(
            "freeim_loop_lag_seconds",
            "How late the event loop was, looked at ten times a second.",
            _cumulative(lag),
            lag.sum,
        )
        yield _labelled(
            CounterMetricFamily,
            "freeim_reloads",
            "How often the options were read again, by result.",
            ("result",),
            self._node.reloads,
        )
        # The names that Prometheus knows. Its own collector would count the descriptors, one by one.
        yield CounterMetricFamily("process_cpu_seconds", "CPU time, user and system.", time.process_time())
        yield GaugeMetricFamily("process_start_time_seconds", "Start of the node, in Unix time.", self._started)
        resident = _resident_bytes()
        if resident is not None:
            yield GaugeMetricFamily("process_resident_memory_bytes", "Memory in use.", resident)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"freeim_{name}", text, value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"freeim_{name}", text, value)


def _labelled(
    family: type[CounterMetricFamily] | type[GaugeMetricFamily],
    name: str,
    text: str,
    labels: tuple[str, ...],
    values: Mapping[str, int] | Mapping[tuple[str, str], int],
) -> Metric:
    metric = family(name, text, labels=labels)
    for key, value in values.items():
        metric.add_metric((key,) if isinstance(key, str) else key, value)
    return metric


def _fanout(router: Router) -> Metric:
    buckets = _cumulative((float("inf") if bound is None else bound, count) for bound, count in router.fanout_sizes)
    name, text = "freeim_fanout_connections", "Connections that a message was handed to at once."
    return HistogramMetricFamily(name, text, buckets, router.deliveries - router.replayed)


def _cumulative(counts: Iterable[tuple[float, int]]) -> list[tuple[str, float]]:
    """Return buckets as Prometheus has them: each with all that do not pass its bound."""
    total = 0
    buckets: list[tuple[str, float]] = []
    for bound, count in counts:
        total += count
        buckets.append(("+Inf" if bound == float("inf") else f"{bound:g}", total))
    return buckets


def _resident_bytes() -> int | None:
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # macOS
        return None
