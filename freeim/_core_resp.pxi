# Stage 1: the stream of one Redis connection. Replies go to whoever waits, in order; pushes go to the bus.


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
    """

    NOTHING = object()

    def __init__(self, reader, push_type, on_message, on_invalidate, on_push, double slice_ms=2.0,
                 on_error=None):
        self._reader = reader
        self._push_type = push_type
        self._waiting = deque()
        self._on_message = on_message
        self._on_invalidate = on_invalidate
        self._on_push = on_push
        self._on_error = on_error
        self._rest = None
        self._slice = slice_ms / 1000

    @property
    def waiting(self):
        """The callbacks of commands that have not been answered yet, oldest first."""
        return self._waiting

    def receive(self, data):
        """Take in bytes from Redis and hand on what is complete, for at most one slice of time.

        Returns:
            False where the slice was over before all was handed on: `receive` with no more bytes goes on.

        Raises:
            hiredis.ProtocolError: The bytes are not RESP; the connection is of no use any more.
            BadStream: They are, but make no sense.
        """
        cdef:
            object nothing = RespStream.NOTHING
            object gets = self._reader.gets
            object push_type = self._push_type
            object item
            object head
            Py_ssize_t size
            double end = _now() + self._slice
        self._reader.feed(data)
        if self._rest is not None and (self._go_on() or _now() >= end):
            return False
        while True:
            try:
                item = gets()
            except (MemoryError, TypeError) as error:
                # What hiredis makes of an array of a billion elements, or of a map whose keys are maps.
                raise BadStream(f"a reply that cannot be read: {error!r}") from error
            if item is nothing:
                return True
            if type(item) is push_type:
                size = len(<list>item)
                head = (<list>item)[0] if size else None
                if head == b"message" and size == 3 and type((<list>item)[2]) is bytes:
                    self._rest = self._on_message((<list>item)[2])
                    if self._rest is not None:
                        return False
                elif head == b"invalidate" and size == 2 and isinstance((<list>item)[1], (list, type(None))):
                    self._on_invalidate((<list>item)[1])
                else:
                    self._on_push(item)
            elif self._waiting:
                if isinstance(item, Exception) and self._on_error is not None:
                    self._on_error(item)
                self._rest = self._waiting.popleft()(item)
                if self._rest is not None:
                    return False
            else:
                raise BadStream("a reply that nobody asked for")
            if _now() >= end:
                return False

    def finish(self):
        """Go on with the last message until everything is done: nothing will be received any more."""
        while self._rest is not None:
            self._go_on()

    cdef bint _go_on(self) except -1:
        """Return whether there is still more to do."""
        rest, self._rest = self._rest, None
        self._rest = rest()
        return self._rest is not None
