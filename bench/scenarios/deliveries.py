"""What fanout, burst and room have in common: messages to a channel, measured in turn with the yardstick."""

from __future__ import annotations

from bench.outcome import Figure, Outcome, ratios
from bench.publisher import text
from bench.stand import Settings, Stand, stand


def measure(scenario: str, settings: Settings, members: int, messages: int, meaning: str, *, together: bool) -> Outcome:
    """Send messages to the first `members` of all connections.

    Args:
        scenario: Its name.
        settings: How much.
        members: How many of the connections are in the channel.
        messages: How many a round.
        meaning: What the ratio is.
        together: All at once; else each when the one before has arrived everywhere.
    """
    outcome = Outcome(
        scenario, f"{messages} messages of {settings.size} bytes to {members} of {settings.connections} connections"
    )
    # Bare sends cost the same whether 20 or 100 of them follow each other, and a hundred take long.
    bare_messages = max(1, messages // 5) if together else messages
    node, bare, seconds = [], [], []
    with stand(settings, {"channel": members}, outcome) as here:
        # The kernel grows the buffers of a connection with its first messages; that belongs to neither side.
        settings.progress(f"{scenario}: warming up")
        _node_round(here, outcome, members, messages, together)
        _bare_round(here, outcome, members, bare_messages, together)
        user, system = here.node.cpu_split()
        for number in range(settings.rounds):
            settings.progress(f"{scenario}: round {number + 1} of {settings.rounds}")
            cpu, wall = _node_round(here, outcome, members, messages, together)
            node.append(cpu / messages / members * 1e6)
            seconds.append(wall)
            cpu = _bare_round(here, outcome, members, bare_messages, together)
            bare.append(cpu / bare_messages / members * 1e6)
        user, system = (now - before for now, before in zip(here.node.cpu_split(), (user, system), strict=True))
    rate = [messages * members / each for each in seconds]
    outcome.figures = [
        Figure(f"{scenario}_ratio", "higher", meaning, ratios(bare, node)),
        Figure(f"{scenario}_cpu", "lower", "CPU of the node for a delivery", node, "µs"),
        Figure(f"{scenario}_bare_cpu", "", "CPU of the yardstick for a send", bare, "µs"),
        Figure(f"{scenario}_kernel", "", "the kernel's share of the node's CPU", [system / max(user + system, 0.01)]),
        Figure(f"{scenario}_rate", "higher", "deliveries a second, by the clock", rate, "/s"),
    ]
    return outcome


def _node_round(here: Stand, outcome: Outcome, members: int, messages: int, together: bool) -> tuple[float, float]:
    receivers = range(1, members + 1)
    stream, size = here.next_stream(), here.settings.size

    def command(number: int) -> bytes:
        return here.publisher.to_channel("channel", text(stream, number, size))

    def send() -> None:
        if together:
            here.publisher.send([command(number) for number in range(1, messages + 1)])
            return
        for number in range(1, messages + 1):
            here.publisher.send([command(number)])
            here.crowd.wait(receivers, number)

    cpu, tally = here.round(outcome, send, receivers, messages)
    return cpu, tally.seconds


def _bare_round(here: Stand, outcome: Outcome, members: int, messages: int, together: bool) -> float:
    receivers = range(1, members + 1)
    stream = here.next_stream()

    def send() -> None:
        if together:
            here.yardstick.ask(f"rounds {messages} 0 {members} {stream}")
            return
        for number in range(1, messages + 1):
            here.yardstick.ask(f"rounds 1 0 {members} {stream}")
            here.bare_crowd.wait(receivers, number)

    return here.bare_round(outcome, send, receivers, messages)[0]
