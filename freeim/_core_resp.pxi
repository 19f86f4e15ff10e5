# Stage 1: the stream of one Redis connection. Replies go to whoever waits, in order; pushes go to the bus. What is read
# faster than it is handled waits here, as it came: Redis cuts a subscriber off that leaves too much waiting there.


cdef enum:
    READ_COST = 64  # bytes of memory that a read takes besides its own, its place in the queue included
    PIECE = 16384   # bytes that hiredis gets at once: after each item it moves all that is left of them


cdef double _now() noexcept:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return t.tv_sec + t.tv_nsec * 1e-9


class BadStream(Exception):
    """Redis sent what is well-formed but makes no sense here."""


cdef class RespStream:
    """Split the bytes of one Redis connection into replies and pushes.

    Args:
        reader: A ``hiredis.Reader`` whose ``notEnoughData`` is `RespStream.NOTHING`.
        push_type: The type of RESP3 pushes, ``hiredis.PushNotification``; or ``list`` on a RESP2 connection that only
            ever receives what it is subscribed to.
        on_message: Called with the payload of each published message. Where it could not do all at once, it returns
            what goes on with it, and that does the same.
        on_invalidate: Called with the list of invalidated keys, or None when Redis forgot what it tracked.
        on_push: Called with any other push.
        on_error: Called with each reply that is an error, before whoever waits for it.
        slice_ms: Longest time that one call of `receive` keeps the loop, in milliseconds, and one item more.
        queue_limit: Bytes of memory that may wait, beside one read of any size. Beyond it the oldest messages are
            dropped; replies and all other pushes are kept, in their order.
        on_dropped: Called whenever messages have been dropped, with the number of those that are lost by it.
        vital: Beginnings of the payloads of messages that are never dropped.
        stored: The same of those that can be read again, so that dropping them loses nothing: they are not counted.
    """

    NOTHING = object()

    def __init__(self, reader, push_type, on_message, on_invalidate, on_push, double slice_ms=2.0,
                 on_error=None, Py_ssize_t queue_limit=0x7FFFFFFFFFFFFFFF, on_dropped=None, tuple vital=(),
                 tuple stored=()):
        self._reader = reader
        self._push_type = push_type
        self._waiting = deque()
        self._on_message = on_message
        self._on_invalidate = on_invalidate
        self._on_push = on_push
        self._on_error = on_error
        self._rest = None
        self._slice = slice_ms / 1000
        self.hurry = 1
        self._queue = deque()
        self._kept = None
        self.queue_limit = queue_limit
        self._on_dropped = on_dropped
        self._vital = vital
        self._stored = stored

    @property
    def waiting(self):
        """The callbacks of commands that have not been answered yet, oldest first."""
        return self._waiting

    def receive(self, data):
        """Take in bytes from Redis and hand on what is complete, for at most one slice of time.

        Returns:
            False where the slice was over before all was handed on: `receive` with no more bytes goes on. `read_ended`
            then tells whether at least that much was handed on which came in one call.

        Raises:
            hiredis.ProtocolError: The bytes are not RESP; the connection is of no use any more.
            BadStream: They are, but make no sense.
        """
        cdef:
            object nothing = RespStream.NOTHING
            object gets = self._reader.gets
            object item
            double end = _now() + self._slice / self.hurry
        if data and (self.queued or len(data) > PIECE):
            self.queue(data)
        else:
            self._reader.feed(data)
        self.read_ended = False
        if self._rest is not None and (self._go_on() or _now() >= end):
            return False
        while self._kept is not None:
            item = self._kept.popleft()
            if not self._kept:
                self._kept = None
            if self._hand_on(item) or _now() >= end:
                return False
        while True:
            item = self._next(gets)
            if item is nothing:
                if self._fed == 0:
                    self.read_ended = True
                    if not self.queued:
                        return True
                self._feed()
            elif self._hand_on(item) or _now() >= end:
                return False

    def queue(self, data):
        """Take in bytes from Redis that are to be handed on later, by `receive`.

        Raises:
            hiredis.ProtocolError: As `receive`, where the queue is full.
            BadStream: The same.
        """
        if data:
            self._queue.append(data)
            self.queued += READ_COST + len(data)
        if self.queued > self.queue_limit:
            self._shed()

    cdef _feed(self):
        """Give the next piece of what waits to the parser."""
        cdef:
            object data = self._queue[0]
            Py_ssize_t size = min(PIECE, len(data) - self._fed)
        self._reader.feed(data, self._fed, size)
        self._fed += size
        if self._fed == len(data):
            self._queue.popleft()
            self.queued -= READ_COST + len(data)
            self._fed = 0

    cdef _shed(self):
        """Drop the oldest messages, a read at a time, until the rest is within the limit or is the latest read."""
        cdef:
            object gets = self._reader.gets
            object item
            bint dropped = False
            long long lost = 0
        while self.queued > self.queue_limit and len(self._queue) > 1:
            item = self._next(gets)
            if item is RespStream.NOTHING:
                self._feed()
            elif type(item) is self._push_type and self._is_message(item) \
                    and not (<list>item)[2].startswith(self._vital):
                dropped = True
                lost += not (<list>item)[2].startswith(self._stored)
            elif self._kept is None:
                self._kept = deque((item,))
            else:
                self._kept.append(item)
        if dropped and self._on_dropped is not None:
            self._on_dropped(lost)

    cdef _next(self, gets):
        """Return the next item that is complete, or NOTHING."""
        try:
            return gets()
        except (MemoryError, TypeError) as error:
            # What hiredis makes of an array of a billion elements, or of a map whose keys are maps.
            raise BadStream(f"a reply that cannot be read: {error!r}") from error

    cdef inline bint _is_message(self, item) except -1:
        """Whether a push is a message that was published."""
        return len(<list>item) == 3 and (<list>item)[0] == b"message" and type((<list>item)[2]) is bytes

    cdef bint _hand_on(self, item) except -1:
        """Give an item to whom it belongs; return whether there is more to do for it."""
        if type(item) is self._push_type:
            if self._is_message(item):
                self._rest = self._on_message((<list>item)[2])
                return self._rest is not None
            if len(<list>item) == 2 and (<list>item)[0] == b"invalidate" \
                    and isinstance((<list>item)[1], (list, type(None))):
                self._on_invalidate((<list>item)[1])
            else:
                self._on_push(item)
        elif self._waiting:
            if isinstance(item, Exception) and self._on_error is not None:
                self._on_error(item)
            self._rest = self._waiting.popleft()(item)
            return self._rest is not None
        else:
            raise BadStream("a reply that nobody asked for")
        return False

    def finish(self):
        """Go on with the last message until all is done for it. Nothing more will be received; what waits is lost."""
        self._queue.clear()
        self._kept = None
        self.queued = self._fed = 0
        while self._rest is not None:
            self._go_on()

    cdef bint _go_on(self) except -1:
        """Return whether there is still more to do."""
        rest, self._rest = self._rest, None
        self._rest = rest()
        return self._rest is not None
