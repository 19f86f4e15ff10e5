"""What the scripts mean, in Python: the model that Redis must agree with after each step of a history."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field

FENCED, USED, REPLAY = -2, -3, -1
NOBODY = -1
GONE = "gone:"

Number = str
Epoch = str


def event_text(token_json: str, connections: int) -> str:
    return token_json.removesuffix("}") + f',"Item3":{connections}}}'


@dataclass
class Model:
    """Redis's keys as sets and counters, and the rules of docs/protocol.md; nothing expires by itself."""

    alive: set[Epoch] = field(default_factory=set)
    lease: dict[str, Epoch] = field(default_factory=dict)
    shares: dict[Epoch, str] = field(default_factory=dict)
    share: defaultdict[Epoch, dict[Number, tuple[str, str]]] = field(default_factory=lambda: defaultdict(dict))
    online: Counter[str] = field(default_factory=Counter)
    members: set[tuple[str, str]] = field(default_factory=set)  # (client, channel), as Chan has it
    index: set[tuple[str, str]] = field(default_factory=set)  # (client, channel), as Client has it
    gone: dict[str, Epoch] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)
    events: list[tuple[str, str]] = field(default_factory=list)
    """("Online" or "Offline", payload) of what the last step published."""

    def open(
        self,
        epoch: Epoch,
        number: Number,
        client: str,
        token_json: str,
        token: str | None,
        channels: list[str],
    ) -> int:
        if epoch not in self.alive:
            return FENCED
        if number in self.share[epoch]:
            return REPLAY
        if token is not None:
            if token not in self.tokens:
                return USED
            self.tokens.remove(token)
        self.share[epoch][number] = client, token_json
        self.online[client] += 1
        self.gone.pop(client, None)
        restored = {(client, channel) for channel in channels}
        self.members |= restored
        self.index = {pair for pair in self.index | restored if pair[0] != client or pair in self.members}
        self.events.append(("Online", event_text(token_json, self.online[client])))
        return self.online[client]

    def close(self, epoch: Epoch, number: Number) -> int:
        found = self.share[epoch].pop(number, None)
        if found is None:
            return 0
        client, token_json = found
        if not number.startswith(GONE):
            self.online[client] = max(self.online[client] - 1, 0)
        elif self.gone.get(client) != epoch:
            return 1
        else:
            del self.gone[client]
            if self.online[client]:
                return 1
        if not self.online[client]:
            self.members -= {pair for pair in self.index if pair[0] == client}
            self.index = {pair for pair in self.index if pair[0] != client}
        self.events.append(("Offline", event_text(token_json, self.online[client])))
        return 1

    def drain(self, name: str, epoch: Epoch, heir: Epoch, numbers: list[Number]) -> tuple[int, Epoch, list[str]]:
        """Return the reply, and which clients are now awaited by whom."""
        heir = self.lease.get(name) or heir
        if heir == epoch or heir not in self.shares:
            return NOBODY, "", []
        found = [self.share[epoch].pop(number) for number in numbers if number in self.share[epoch]]
        gone = []
        for client, token_json in found:
            self.online[client] = max(self.online[client] - 1, 0)
            if not self.online[client]:
                self.share[heir][GONE + client] = client, token_json
                self.gone[client] = heir
                gone.append(client)
        return len(found), heir, gone

    def dead(self, epoch: Epoch, subscribers: int) -> int:
        if subscribers > 1:
            return 0
        self.alive.discard(epoch)
        return 1

    def beat(self, name: str, epoch: Epoch, stance: str, other: Epoch) -> bytes:
        owner = self.lease.get(name, epoch)
        if stance == "back" and owner == other:
            self.alive.discard(other)
            owner = epoch
        elif stance != "drains" and owner != epoch and not (stance == "offered" and owner == other):
            return b"REPLACED"
        revived = epoch not in self.alive
        if owner == epoch and stance != "drains":
            self.lease[name] = epoch
        self.alive.add(epoch)
        self.shares[epoch] = name
        return b"REVIVED" if revived else b"OK"

    def take(self, name: str, epoch: Epoch, owner_lives: bool, takeover: bool, predecessor: Epoch) -> bytes:
        owner = self.lease.get(name)
        if predecessor and predecessor not in self.alive:
            return b"GONE"
        if owner is not None and owner != predecessor:
            if owner_lives and not takeover:
                return b"TAKEN"
            if not owner_lives:
                self.alive.discard(owner)
        self.lease[name] = epoch
        self.alive.add(epoch)
        self.shares[epoch] = name
        return b"OK"

    def release(self, name: str, epoch: Epoch) -> int:
        if self.lease.get(name) == epoch:
            del self.lease[name]
        self.alive.discard(epoch)
        if not self.share[epoch]:
            self.shares.pop(epoch, None)
        return len(self.share[epoch])

    def join(self, client: str, channel: str) -> None:
        self.members.add((client, channel))
        self.index.add((client, channel))

    def leave(self, client: str, channel: str) -> None:
        self.members.discard((client, channel))
        self.index.discard((client, channel))

    def flush(self) -> None:
        """Redis lost everything."""
        self.__init__()  # type: ignore[misc]
