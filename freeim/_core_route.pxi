# Stage 3: who is here, and what reaches whom. No socket and no Redis: the router calls back for both.


cdef enum:
    CLIENTS_PER_LOOK = 256  # at the clock, while a message goes to many


cdef class Client:
    """A client with connections here. Its fields are explained in _core.pxd."""

    @property
    def channel_names(self):
        """The channels of the client as last read, a list of bytes."""
        return list(self.channels)


cdef class Channel:
    """A channel with members here."""


cdef Client _new_client(bytes client_id):
    cdef Client client = Client.__new__(Client)
    client.id = client_id
    client.connections = []
    client.channels = {}
    client.since = -1
    return client


cdef inline int _size_class(long long receivers) noexcept:
    """Return 0 for none, 1 for one, n for up to 4 ** (n - 1), and the last class for all that are more."""
    cdef int at = 0
    cdef long long limit = 1
    while receivers and at < SIZE_CLASSES - 1:
        at += 1
        if receivers <= limit:
            break
        limit *= 4
    return at


cdef inline bint _has_log(Client client) noexcept:
    """Whether messages for a client go into its log, as a connection of it is away and may be resumed."""
    return client.log is not None and client.log.away > 0


def _since_of(item):
    return (<Client>item[0]).since


cdef class Router:
    """The tables of clients and channels, and the rules of delivery.

    A client is *pending* from the stream position of its invalidation (or its opening) until its membership has been
    read; the messages of that time wait in a window and are replayed, in order, for that client alone. Everybody else
    is served at once.

    Args:
        system: The canonical text of the system's id.
        on_receipt: ``(message, receiver, delivered)`` for each receipt that is due.
        on_reread: ``(client)``: send HKEYS of its Client hash over the reader, now; answer with `members`.
        on_force_offline: ``(client)``: close all its connections.
        tracking: Whether membership is read per client and invalidated by Redis; if not, each channel message comes
            with the channel's members.
        window_limit: Bytes that may wait for pending clients; what comes beyond is lost for them and counted.
        guid: Whether client ids are GUIDs.
        on_other: ``(payload, message)``, what `take` does not route by itself: a payload of another form, its message
            None; or any message without tracking. Returns what `take` is to return.
        barrier: False switches the waiting of pending clients off, to show in a test what it is for.
        slice_ms: Longest time for which one message to many keeps the loop, in milliseconds.
        newest: Messages of the window that a replay looks at one by one; those before them are found by an index.
    """

    def __init__(self, bytes system not None, on_receipt, on_reread, on_force_offline, *, bint tracking=True,
                 Py_ssize_t window_limit=268_435_456, bint guid=False, on_other=None, bint barrier=True,
                 double slice_ms=2.0, Py_ssize_t newest=512):
        self.clients = {}
        self._channels = {}
        # Not a dict: the first of a dict whose oldest entries were deleted is found by walking over the holes.
        self._pending = OrderedDict()
        self._window = Window(newest)
        self._away = {}
        self._answered = {}
        self._position = 0
        self.window_limit = window_limit
        self._guid = guid
        self._on_other = on_other
        self._barrier = barrier
        self._slice = slice_ms / 1000
        self._look = CLIENTS_PER_LOOK if slice_ms else 1
        self.tracking = tracking
        self.system = system
        self._on_receipt = on_receipt
        self._on_reread = on_reread
        self._on_force_offline = on_force_offline
        self._mute_from = self._mute_until = LLONG_MAX

    @property
    def window_size(self):
        """Messages that wait for pending clients."""
        return self._window.size()

    @property
    def pending_count(self):
        """Clients whose membership is being read, or whose first opening is under way."""
        return len(self._pending) - (self._grace is not None)

    @property
    def window_bytes(self):
        """What the messages that wait for pending clients weigh; `window_limit` is the limit."""
        return self._window.memory()

    @property
    def messages(self):
        """How many messages of each kind were routed: direct, channel, broadcast, force offline."""
        return tuple([self._messages[<int>kind] for kind in range(DIRECT, KINDS)])

    @property
    def fanout_sizes(self):
        """How many messages went to how many connections at once, as ``(at most, messages)``; None is no limit."""
        bounds = (0, *(4 ** n for n in range(SIZE_CLASSES - 2)), None)
        return tuple([(bound, self._sizes[<int>number]) for number, bound in enumerate(bounds)])

    # ---- connections come and go

    def attach(self, bytes client_id not None, Connection connection not None):
        """Enter a connection whose opening begins; it is held until `Connection.attach_transport`."""
        cdef Client client = self.clients.get(client_id)
        cdef bint fresh = client is None
        if fresh:
            client = self.clients[client_id] = _new_client(client_id)
        connection.client = client
        if fresh:
            client.came = self._position
            self._begin_pending(client)
        if self._grace is not None and not client.connections:
            self._await(client, fresh)
        client.connections.append(connection)
        client.attached += 1
        if fresh:
            if self.tracking:
                client.reading = True
                self._on_reread(client)
        return client

    def confirm(self, Connection connection not None):
        """The opening of a connection has been counted in Redis."""
        cdef Client client = connection.client
        client.established = True
        if client.pending and not client.reading:
            self._settle(client)

    def retire(self, Connection connection not None):
        """A connection begins to close: nothing more is delivered to it, its presence lasts."""
        cdef Client client = connection.client
        if connection in client.connections:
            client.connections.remove(connection)
            if self._grace is not None and not client.connections:
                self._away[client.id] = client.since if client.pending else self._position

    def detach(self, Connection connection not None):
        """The socket of a connection is gone, or its opening was refused."""
        cdef Client client = connection.client
        self.retire(connection)
        client.attached -= 1
        if client.attached == 0 and not client.reading:
            self._drop(client)

    cdef _drop(self, Client client):
        # What waited for a client that never came up is decided now: its receipts say that it is offline.
        if client.pending:
            if self._rest is not None and self._last.receipt:
                self.finish()  # that message has waited too: once the client is gone, it would be answered again
            self._settle(client)
        self._update_channels(client, ())
        del self.clients[client.id]

    # ---- membership

    def members(self, Client client not None, names):
        """The answer to a re-read: the channels of a client, or None where the read failed and the old ones stay.

        Returns:
            Whether the channels have changed.
        """
        cdef bint changed = False
        client.reading = False
        client.tracked = True
        if self.clients.get(client.id) is not client:
            return False  # dropped already: an answer from before a gap came late
        if names is not None:
            changed = len(names) != len(client.channels) or any(name not in client.channels for name in names)
            if changed:
                self._update_channels(client, names)
        if client.attached == 0:
            self._drop(client)
        elif client.pending and client.established:
            self._settle(client)
            if not self.tracking:
                self._update_channels(client, ())  # they were for what had come before
        return changed

    def invalidate(self, bytes client_id not None):
        """Redis says that the Client hash of a client has changed; of one that is not here, nobody cares."""
        cdef Client client = self.clients.get(client_id)
        # A read under way answers after this invalidation in the stream, so it will include the change.
        if client is None or client.reading or not self.tracking:
            return
        self.finish()  # what came before it is not for those who wait from now on
        client.reading = True
        if self._barrier:
            self._begin_pending(client)
        self._on_reread(client)

    def hold_all(self):
        """After a gap in the stream: every membership is unknown until it is read again.

        Returns:
            The clients to read again, each now marked as being read.
        """
        cdef Client client
        if not self.tracking:
            return []
        self.finish()
        result = list(self.clients.values())
        for client in result:
            client.reading = True
            self._begin_pending(client)
        return result

    def set_tracking(self, bint tracking):
        """Change the way of membership. Without tracking none is kept, once those who wait for a re-read have it."""
        self.tracking = tracking
        if not tracking:
            for client in self.clients.values():
                self._update_channels(client, ())

    cdef _update_channels(self, Client client, names):
        cdef:
            dict before = client.channels
            dict after = {}
            Channel channel
        for name in names:
            channel = before.pop(name, None)
            if channel is None:
                channel = self._channels.get(name)
                if channel is None:
                    channel = Channel.__new__(Channel)
                    channel.name = name
                    channel.members = {}
                    self._channels[name] = channel
                channel.members[client] = client
            after[name] = channel
        for channel in before.values():
            # A name that Redis returned twice was popped above and cannot be here.
            del channel.members[client]
            if not channel.members:
                del self._channels[channel.name]
        client.channels = after

    # ---- messages

    def take(self, bytes payload not None):
        """Decode what was published on the node's channel, and route it. What comes before `open` is dropped.

        Returns:
            None; or where the slice was over before everybody was reached, what goes on with it: to be called until it
            returns None, before anything else of the stream is handled.
        """
        cdef Message message
        if not self.open:
            if payload != self.opener:
                return None
            self.open = True
        self.received += PyBytes_GET_SIZE(payload)
        message = _decode(payload, self._guid)
        if message is None or not self.tracking:
            return self._on_other(payload, message)
        self._take_in(message)
        return None if self._rest is None else self._go_on

    def route(self, Message message not None):
        """Deliver a message to everybody who does not wait, and keep it for those who do.

        Returns:
            As `take`; `finish` can also go on with it.
        """
        self._take_in(message)
        return None if self._rest is None else self._go_on

    def finish(self):
        """Reach everybody whom the last message has not reached yet, however long it takes."""
        while self._rest is not None:
            self._go_on()

    def mute_receipts(self, Py_ssize_t ahead=0):
        """Answer no receipts of the messages from here on: the other instance of this node's name does.

        Args:
            ahead: Messages that have come, and are to be routed yet.
        """
        if self._mute_from == LLONG_MAX or self._mute_until != LLONG_MAX:
            self._mute_from = self._position + ahead
            self._mute_until = LLONG_MAX

    def unmute_receipts(self, Py_ssize_t ahead=0):
        """Answer the receipts of the messages from here on again; `ahead` as in `mute_receipts`."""
        if self._mute_until == LLONG_MAX:
            self._mute_until = self._position + ahead

    cdef NoResult _take_in(self, Message message) except NoResult.FAILED:
        cdef long long before
        if self._rest is not None:
            self.finish()  # what the last one has left
        before = self.deliveries
        message.position = self._position
        self._position += 1
        if self._pending:
            if self._window.memory() < self.window_limit:
                self._window.add(message)
            else:
                self._overflow(message)
        self._route(message)
        self._reached = self.deliveries - before
        if self._rest is None:
            self._count(message)
        return NoResult.DONE

    cdef void _count(self, Message message) noexcept:
        """Count a message, once for all receivers: a delivery pays for nothing but its own count."""
        self._messages[<int>message.kind] += 1
        if self._reached:
            self.delivered += self._reached * PyBytes_GET_SIZE(message.frame)
        if message.kind != FORCE_OFFLINE:
            self._sizes[_size_class(self._reached)] += 1

    cdef NoResult _begin_pending(self, Client client) except NoResult.FAILED:
        if not client.pending:
            client.pending = True
            client.since = self._position
            self._pending[client] = None
        return NoResult.DONE

    cdef _settle(self, Client client):
        """Replay the window for one client and let it go on."""
        # In the grace what waits for who is away goes on waiting; but in a hand-over receipts do not.
        if self._grace is None or self._in_two or client.connections or _has_log(client):
            self._replay(client)
        client.pending = False
        client.settled = self._position
        del self._pending[client]
        if unlikely(self._grace is None and len(self._answered) > 0):
            self._answered.pop(client.id, None)
        self._trim()

    cdef NoResult _trim(self) except NoResult.FAILED:
        """Forget the messages that nobody waits for."""
        cdef long long oldest
        oldest = (<Client>next(iter(self._pending))).since if self._pending else self._position
        return self._window.forget(oldest)

    # ---- the grace: messages are kept for clients that come back after this node

    def begin_grace(self, bint in_two=False):
        """From here on keep each message for the clients that are still to come.

        The first connection that a client opens gets those that concern it, by the membership that is read for it,
        before anything newer; where it has been here since the grace began, those since its last connection began to
        close. `window_limit` bounds what is kept: the oldest go first. Receipts for clients that are not here wait.

        Args:
            in_two: The other instance of this node's name is there too, in a hand-over. Then no receipt waits: whether
                the receiver was here or there is known, and each instance answers for its part of the messages.
        """
        cdef Client client
        if self._grace is not None:
            return
        self.finish()
        self._in_two = in_two
        self._grace = _new_client(b"")
        self._grace.came = self._grace.since = self._position
        if self._pending:  # what waits for those stays as well: they may go, and come back in the grace
            self._grace.since = (<Client>next(iter(self._pending))).since
        self._pending[self._grace] = None
        self._pending.move_to_end(self._grace, last=False)
        for client in self.clients.values():
            if not client.connections:
                self._away[client.id] = client.since if client.pending else self._position

    def end_grace(self):
        """Keep messages for nobody any more; the receipts that waited say that the receiver is offline."""
        cdef:
            Client client
            Message message
        if self._grace is None:
            return
        self.finish()
        for message in self._window.indexed:
            self._give_up(message, False)
        for message in self._window.recent:
            self._give_up(message, False)
        for client_id in self._away:
            client = self.clients.get(client_id)
            if client is not None and client.pending and not _has_log(client) and not self._in_two:
                client.since = self._position  # it has no connection, and what it missed has just been answered
        self._away.clear()
        # Who waits has its replay yet, with what went into the log that it had before.
        self._answered = {client_id: position for client_id, position in self._answered.items()
                          if self._waits_here(client_id)}
        del self._pending[self._grace]
        self._grace = None
        # Who came in the grace waits since before it came, and the order of the others is to be that of `since` again.
        self._pending = OrderedDict(sorted(self._pending.items(), key=_since_of))
        self._trim()

    def away(self):
        """In the grace: the position from which on each client that has left is to get messages, a dict by id.

        Who has not been here since the grace began is not in it, and is to get all that was kept.
        """
        return dict(self._away)

    def set_away(self, bytes client_id not None, long long position):
        """In the grace: a client has had what is before a position, also where it waits for the rest already."""
        cdef Client client
        if self._grace is None:
            return
        client = self.clients.get(client_id)
        if client is None or not client.connections:
            self._away[client_id] = position
        elif client.pending:  # it is back already, and has had more than was known
            client.since = max(client.since, position)

    def away_since(self, bytes client_id not None):
        """In the grace: the position from which on a client that has left is to get messages; None where it has not."""
        return self._away.get(client_id)

    @property
    def position(self):
        """Of the next message in the stream of messages, counted from the start of this node."""
        return self._position

    @property
    def kept_since(self):
        """Position of the first message that is kept for clients to come; None outside of the grace."""
        return None if self._grace is None else max(self._grace.came, self._grace.since)

    cdef NoResult _await(self, Client client, bint fresh) except NoResult.FAILED:
        """A client comes back in the grace: it waits since before it came."""
        cdef object left = self._away.pop(client.id, None)
        if left is None and not fresh:
            return NoResult.DONE
        if _has_log(client):
            return NoResult.DONE  # what came meanwhile is in its log
        if not self._is_only_here(client):
            return NoResult.DONE  # its other connection, at the other instance, has heard everything
        client.came = self._position
        self._begin_pending(client)
        client.since = self._grace.came if left is None else left
        client.established = False  # until the new connection has been counted, the replay would be for nobody
        return NoResult.DONE

    cdef NoResult _overflow(self, Message message) except NoResult.FAILED:
        """The window is full. In the grace the oldest messages go, else those who wait miss the newest.

        A forced offline is not missed: it is no message that may be lost, and no second one follows.
        """
        cdef:
            Message oldest
            Client client
        if self._grace is None:
            if message.kind != FORCE_OFFLINE:
                self.dropped += 1
                return self._give_up(message, True)
            client = self.clients.get((<list>message.receivers)[0])
            if client is None or not client.pending or client.ordered > max(client.came, client.since):
                return NoResult.DONE  # it needs none, or one that it will obey is there already
            client.ordered = message.position + 1
            return self._window.add(message)
        while self._window.memory() >= self.window_limit:
            oldest = self._window.take()
            if oldest is None:
                break
            if oldest.kind == FORCE_OFFLINE:
                self._force_offline_now(oldest)
            else:
                self.forgotten += 1
            self._give_up(oldest, True)
            self._grace.since = max(self._grace.since, oldest.position + 1)
        return self._window.add(message)

    cdef bint _waits_here(self, bytes client_id) except -1:
        """Whether a client is here that is pending."""
        cdef Client client = self.clients.get(client_id)
        return client is not None and client.pending

    cdef NoResult _force_offline_now(self, Message message) except NoResult.FAILED:
        """A forced offline is kept no longer: whom it waits for goes now, without what is kept before it."""
        cdef Client client = self.clients.get((<list>message.receivers)[0])
        if client is not None and client.pending and message.position >= max(client.came, client.since):
            client.since = message.position + 1
            self._on_force_offline(client)
        return NoResult.DONE

    cdef bint _is_owed(self, Message message, bytes receiver) except -1:
        """In the grace: whether a receiver of a message is away, has not had it, and its receipt waits for that."""
        cdef Client client = self.clients.get(receiver)
        left = self._away.get(receiver)
        if self._grace is None or self._in_two or client is not None and _has_log(client):
            return False
        if left is None:
            return client is None and message.position >= self._grace.came
        return message.position >= <long long>left

    cdef bint _was_answered(self, Message message, bytes receiver) except -1:
        """Whether a receipt was given when a receiver's log got a message, which may be replayed later."""
        return message.position <= <long long>self._answered.get(receiver, -1)

    cdef bint _waits_for(self, Message message, bytes receiver) except -1:
        """Whether a receiver of a message is here and pending, and its receipt comes with the replay."""
        cdef Client client = self.clients.get(receiver)
        return client is not None and client.pending and message.position >= client.since \
            and not (self._in_two and message.position < client.came)

    cdef NoResult _give_up(self, Message message, bint by_all) except NoResult.FAILED:
        """A message is kept no longer for those who are still away, or by all, also by those who are here and wait."""
        if message.kind != DIRECT or not message.receipt or message.frame is None or message.sender == self.system \
                or self._mute_from <= message.position < self._mute_until:
            return NoResult.DONE
        for receiver in message.receivers:
            if receiver != message.sender and not self._was_answered(message, receiver) \
                    and (self._is_owed(message, receiver) or by_all and self._waits_for(message, receiver)):
                self._on_receipt(message, receiver, self.elsewhere is not None and receiver in self.elsewhere)
        return NoResult.DONE

    cdef NoResult _replay(self, Client client) except NoResult.FAILED:
        """Deliver what has waited for a client, in order."""
        cdef:
            Message message
            list parts = self._window.parts(client)
            list messages
            Py_ssize_t place
            long long until
        while parts:
            _, messages, place = heapq.heappop(parts)
            until = <long long>parts[0][0] if parts else LLONG_MAX
            while place < len(messages):
                message = messages[place]
                if message.position > until:
                    heapq.heappush(parts, (message.position, messages, place))
                    break
                self._replay_one(client, message)
                place += 1
        for message in self._window.recent:
            if message.position < client.since:
                continue
            if message.kind == DIRECT:
                for receiver in message.receivers:
                    if receiver == client.id:
                        self._replay_one(client, message)
            elif message.kind == CHANNEL:
                if message.members is not None or message.channel in client.channels:
                    self._replay_one(client, message)
            elif message.kind == BROADCAST or (<list>message.receivers)[0] == client.id:
                self._replay_one(client, message)
        return NoResult.DONE

    cdef NoResult _replay_one(self, Client client, Message message) except NoResult.FAILED:
        """Deliver a message that has waited, and is for this client, for a channel of it or for all."""
        cdef long long before = self.deliveries
        if message.kind == DIRECT:
            if self._in_two and message.position < client.came:
                self._deliver(client, message)  # its receipt was answered when it came
            else:
                self._deliver_direct(client, message)
        elif message.kind == FORCE_OFFLINE:
            if message.position >= client.came:
                client.since = message.position + 1  # so far everything has reached it
                self._on_force_offline(client)
        elif message.members is None or client.id in message.members:
            self._deliver(client, message)
        if self.deliveries != before:
            self.replayed += self.deliveries - before
            self.delivered += (self.deliveries - before) * PyBytes_GET_SIZE(message.frame)
        return NoResult.DONE

    cdef NoResult _route(self, Message message) except NoResult.FAILED:
        cdef:
            Client client
            Channel channel
            dict clients = self.clients
        if message.kind == DIRECT:
            self._to_receivers(message, message.receivers)
        elif message.kind == CHANNEL:
            if message.members is not None:
                for member in message.members:
                    client = clients.get(member)
                    if client is not None and not client.pending:
                        self._deliver(client, message)
            else:
                channel = self._channels.get(message.channel)
                if channel is not None:
                    self._spread(channel.members, message)
        elif message.kind == BROADCAST:
            self._spread(clients, message)
        else:
            client = clients.get((<list>message.receivers)[0])
            if client is not None and not client.pending:
                self._on_force_offline(client)
        return NoResult.DONE

    cdef NoResult _spread(self, dict clients, Message message) except NoResult.FAILED:
        """Deliver to all of these, or to as many as one slice is enough for; the rest is left to `_go_on`."""
        cdef:
            Client client
            PyObject* value
            Py_ssize_t at = 0
            int done = 0
            double end = 0
        while PyDict_Next(clients, &at, NULL, &value):
            client = <Client>value
            if not client.pending:
                self._deliver(client, message)
            done += 1
            if done == self._look:
                done = 0
                if end == 0:
                    end = _now() + self._slice
                if _now() >= end:
                    break
        else:
            return NoResult.DONE
        # The tables change before the others have their turn, so who they are is written down.
        rest = []
        while PyDict_Next(clients, &at, NULL, &value):
            rest.append(<Client>value)
        if rest:
            self._rest = rest
            self._last = message
        return NoResult.DONE

    cdef NoResult _to_receivers(self, Message message, list receivers) except NoResult.FAILED:
        """Deliver to all of these in order, or to as many as one slice is enough for."""
        cdef:
            Client client
            Py_ssize_t number = 0
            double end = 0
        for receiver in receivers:
            client = self.clients.get(receiver)
            if client is None or client.since > message.position:  # not here, or only since then
                self._receipt(message, receiver, False)
            elif self._is_due(client, message):
                self._deliver_direct(client, message)
            number += 1
            if number % self._look == 0:
                if end == 0:
                    end = _now() + self._slice
                if _now() >= end:
                    break
        if number < len(receivers):
            self._rest = receivers[number:]
            self._last = message
        return NoResult.DONE

    cdef bint _is_due(self, Client client, Message message) noexcept:
        """Whether a client is to get a message in a slice: who waited when it came gets it when the waiting ends."""
        return not client.pending and client.settled <= message.position

    def _go_on(self):
        """Deliver the last message to more of those who are left; as `take`, return what goes on with it."""
        cdef:
            Client client
            Message message = self._last
            list rest = self._rest
            int done = 0
            double end
            long long before = self.deliveries
        if rest is None:
            return None
        if message.kind == DIRECT:
            self._rest = None
            self._to_receivers(message, rest)
        else:
            end = _now() + self._slice
            while rest:
                client = rest.pop()
                if self._is_due(client, message):
                    self._deliver(client, message)
                done += 1
                if done == self._look:
                    done = 0
                    if _now() >= end:
                        break
            if not rest:
                self._rest = None
        self._reached += self.deliveries - before
        if self._rest is None:
            self._last = None
            self._count(message)
            return None
        return self._go_on

    cdef inline bint _is_only_here(self, Client client) except -1:
        return self.elsewhere is None or client.id not in self.elsewhere

    cdef NoResult _deliver(self, Client client, Message message) except NoResult.FAILED:
        """Push a message to a client; its own sender gets it only with another connection, here or elsewhere."""
        cdef Connection connection
        if message.frame is None:
            return NoResult.DONE
        if unlikely(client.log is not None):
            return self._deliver_and_log(client, message)
        if client.id == message.sender and len(client.connections) <= 1 and self._is_only_here(client):
            return NoResult.DONE
        for connection in client.connections:
            connection.push(message.frame)
            self.deliveries += 1
        return NoResult.DONE

    cdef NoResult _deliver_and_log(self, Client client, Message message) except NoResult.FAILED:
        """As `_deliver`, for a client that may come back: connections that are away count as the living ones do."""
        cdef Connection connection
        if client.id == message.sender and len(client.connections) + client.log.away <= 1 \
                and self._is_only_here(client):
            return NoResult.DONE
        for connection in client.connections:
            connection.push(message.frame)
            self.deliveries += 1
        return client.log.append(message.frame)

    cdef NoResult _deliver_direct(self, Client client, Message message) except NoResult.FAILED:
        cdef bint here = len(client.connections) > 0
        cdef bint kept = not here and _has_log(client)
        self._deliver(client, message)
        self._receipt(message, client.id, here or kept)
        if kept and message.receipt and self._grace is not None:
            self._answered[client.id] = message.position
        return NoResult.DONE

    cdef NoResult _receipt(self, Message message, bytes receiver, bint delivered) except NoResult.FAILED:
        if message.receipt and message.frame is not None and message.sender != self.system \
                and receiver != message.sender and not self._mute_from <= message.position < self._mute_until:
            if self.elsewhere is not None:
                delivered = delivered or receiver in self.elsewhere
            if self._answered and self._was_answered(message, receiver):
                return NoResult.DONE
            if self._grace is not None and not delivered and not self._in_two:
                return NoResult.DONE  # it may come back for it
            self._on_receipt(message, receiver, delivered)
        return NoResult.DONE
