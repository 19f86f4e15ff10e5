# Stage 4: frames wait in each connection's outbox, and one walk over the connections that have some writes them.
# All that arrived in one read from Redis leaves in one send(2) per connection.


# Bytes of scratch that are kept between two walks: a burst of big messages must not keep its memory for good.
cdef enum:
    KEPT_SCRATCH = 1048576

# Bytes of an outbox that waits until the smaller ones have been written: the kernel copies it longer than it sends a
# short message. Those whose transport has bytes queued wait as well: they are slow, and some are about to be cut.
cdef enum:
    BULK = 16384

# The part of a slice that these get in each walk, however much is short: nobody starves, and what is short waits for
# no more than that: 0.15 ms, which is some five sends of 64 KiB.
cdef double BULK_SHARE = 0.03

# The same of who is cut for the node's limit: a little more, for it is to be below that soon.
cdef double RELIEF_SHARE = 0.1

# Seconds: a burst of a hundred to 10,000 is handled in less, and leaves in one write for each; pings wait as long.
cdef double LONGEST_HOLD = 0.2


cdef class Connection:
    """One WebSocket connection, from the moment its opening begins. Its fields are explained in _core.pxd."""

    def __init__(self, Fanout fanout not None, long long number, str token_json not None, owner):
        self.fanout = fanout
        self.number = number
        self.token_json = token_json
        self.owner = owner
        self.fd = -1
        self.held = True

    def attach_transport(self, transport, int fd):
        """The 101 has been written: frames may flow.

        Args:
            transport: The asyncio transport. Its write buffer's high-water mark must be 0, so that the owner calls
                `set_blocked` as soon as bytes are queued.
            fd: The descriptor for direct sends, or -1 where everything must go through the transport (TLS).
        """
        self.transport = transport
        self.fd = fd
        self.held = False
        self.blocked = transport.get_write_buffer_size() > 0
        self.copies = not isinstance(transport, Socket)
        if not self.copies:
            (<Socket>transport).connection = self
        self.count()
        if self.first is not None:
            self.fanout.add(self)

    def put_first(self, list frames not None):
        """Before the 101: let frames go out before all that waits."""
        if not frames:
            return
        if self.first is not None:
            frames = [*frames, self.first]
            if self.more is not None:
                frames += self.more
        self.first = frames[0]
        self.more = frames[1:] or None

    def detach_transport(self):
        """The transport is about to close its descriptor; from here on nothing may be sent on it."""
        self.transport = None
        self.fd = -1
        self.blocked = False
        self.count()
        self.closing = True
        self.first = None
        self.more = None

    def set_blocked(self, bint blocked):
        """The transport has bytes queued, or has sent them all."""
        self.blocked = blocked
        if not blocked:
            self.count()  # else whoever has just written counts, when it is done

    def send_control(self, bytes frame not None):
        """Queue a ping or a pong behind what is queued already."""
        self.push(frame)

    def begin_close(self, bytes frame not None, int code):
        """Queue the Close frame, the last that this connection sends; False if there is one already."""
        if self.closing:
            return False
        self.push(frame)
        self.closing = True
        self.close_code = code
        return True

    def flush_now(self):
        """Write this connection's outbox without waiting for the walk."""
        cdef bint before = self.fanout.at_once
        self.fanout.at_once = True
        try:
            self.flush()
        finally:
            self.fanout.at_once = before

    cdef NoResult push(self, bytes frame) except NoResult.FAILED:
        if self.closing:
            return NoResult.DONE
        if self.first is None:
            self.first = frame
            if not self.held:
                self.fanout.add(self)
        elif self.more is None:
            self.more = [frame]
        else:
            self.more.append(frame)
        return NoResult.DONE

    cdef NoResult flush(self) except NoResult.FAILED:
        cdef:
            bytes frame
            const char* data
            char* out
            Py_ssize_t size
            ssize_t sent
        if self.first is None or self.transport is None:
            return NoResult.DONE
        size = PyBytes_GET_SIZE(self.first)
        if self.more is not None:
            for frame in self.more:
                size += PyBytes_GET_SIZE(frame)
        if (size >= BULK or self.blocked or self.fd < 0) and self._wait(size):
            return NoResult.DONE
        if self.more is None:
            data = PyBytes_AS_STRING(self.first)
        else:
            out = self.fanout.scratch(size)
            data = out
            memcpy(out, PyBytes_AS_STRING(self.first), PyBytes_GET_SIZE(self.first))
            out += PyBytes_GET_SIZE(self.first)
            for frame in self.more:
                memcpy(out, PyBytes_AS_STRING(frame), PyBytes_GET_SIZE(frame))
                out += PyBytes_GET_SIZE(frame)
        self.fanout.writes += 1
        sent = c_send(self.fd, data, size, MSG_NOSIGNAL | MSG_DONTWAIT)
        if sent < 0:
            if errno == EAGAIN or errno == EINTR:
                sent = 0
            else:
                self._cut()
                return NoResult.DONE
        if sent == size:
            self.first = None
            self.more = None
            return NoResult.DONE
        # An empty queue takes what is left, whatever its size; from here on the transport is asked first.
        if not self.copies:
            (<Socket>self.transport).queue_frames(self.first, self.more, sent)
        else:
            self.transport.write(PyBytes_FromStringAndSize(data + sent, size - sent))
        self.first = None
        self.more = None
        return self.count()  # behind the outbox: where this cuts us, a Close frame is put there

    cdef bint _wait(self, Py_ssize_t size) except -1:
        """Let the outbox wait where it is, or with the transport; return whether it does."""
        if (size >= BULK or self.blocked) and not self.fanout.at_once:
            self.fanout.add_bulk(self)
            return True
        if self.blocked or self.fd < 0:
            self._queue(size)
            return True
        return False

    cdef _queue(self, Py_ssize_t size):
        """Hand the outbox to the transport, within the limit for one receiver."""
        cdef Py_ssize_t queued = self.transport.get_write_buffer_size()
        first, more = self.first, self.more
        self.first = None
        self.more = None
        if queued and queued + size > self.fanout.queue_limit and not self.closing:
            self.fanout.dropped += size
            self.fanout._too_slow(self, queued, False)
            return
        if not self.copies:
            (<Socket>self.transport).queue_frames(first, more, 0)
        else:
            self.transport.write(first if more is None else b"".join([first, *more]))
        self.count()

    cdef NoResult count(self) except NoResult.FAILED:
        """Tell the fan-out how much the transport has queued now."""
        return self.fanout.count(self, self.transport.get_write_buffer_size() if self.blocked else 0)

    cdef _drop(self):
        """Forget all frames of which nothing has been sent; transports of asyncio cannot, and keep theirs."""
        cdef Py_ssize_t waiting
        if self.first is not None:
            self.fanout.dropped += PyBytes_GET_SIZE(self.first)
        for frame in self.more or ():
            self.fanout.dropped += PyBytes_GET_SIZE(<bytes>frame)
        self.first = None
        self.more = None
        if not self.copies and self.transport is not None:
            waiting = self.transport.get_write_buffer_size()
            (<Socket>self.transport).drop()
            self.fanout.dropped += waiting - <Py_ssize_t>self.transport.get_write_buffer_size()
            self.count()

    cdef _cut(self):
        """End the connection at once: the transport closes, and its owner hears of it."""
        self.first = None
        self.more = None
        self.fd = -1
        self.transport.abort()
        self.blocked = False
        self.count()


cdef class Fanout:
    """The walk over all connections that have something to send.

    Args:
        call_soon: The loop's ``call_soon``.
        on_too_slow: ``(connection, waiting, of_node)``, called with each that is to be closed because a limit was
            passed: its own, or the node's. So many bytes waited for it; what can be dropped of them is dropped already.
        queue_limit: Bytes that may wait for one receiver; an empty queue takes one outbox of any size.
        node_queue_limit: Bytes of memory that what waits for all receivers may take together.
        slice_ms: Longest time that one walk keeps the loop, in milliseconds. A little comes on top where there is bulk
            (`BULK_SHARE`): large outboxes, and those of receivers that are slow.
    """

    def __init__(self, call_soon, on_too_slow, Py_ssize_t queue_limit, Py_ssize_t node_queue_limit,
                 double slice_ms=5.0):
        self._call_soon = call_soon
        self._on_too_slow = on_too_slow
        self.queue_limit = queue_limit
        self.node_queue_limit = node_queue_limit
        self.backlog = Backlog()
        self._slow = {}
        self._slice = slice_ms / 1000
        self.hurry = 1
        self._dirty = []
        self._bulk = deque()
        self._scratch = NULL

    def __dealloc__(self):
        free(self._scratch)

    cdef char* scratch(self, Py_ssize_t size) except NULL:
        if size > self._scratch_size:
            free(self._scratch)
            self._scratch_size = 0
            self._scratch = <char*>malloc(size)
            if self._scratch == NULL:
                raise MemoryError()
            self._scratch_size = size
        return self._scratch

    cdef NoResult add(self, Connection connection) except NoResult.FAILED:
        if not connection.dirty:
            connection.dirty = True
            self._dirty.append(connection)
            self._schedule()
        return NoResult.DONE

    cdef NoResult add_bulk(self, Connection connection) except NoResult.FAILED:
        """Let a connection wait that the walk has reached; what it gets meanwhile joins its outbox."""
        connection.dirty = True
        self._bulk.append(connection)
        self._has_bulk = True
        return NoResult.DONE

    cdef NoResult _schedule(self) except NoResult.FAILED:
        if not self._scheduled:
            self._scheduled = True
            self._call_soon(self._scheduled_flush)
        return NoResult.DONE

    cdef Py_ssize_t _memory(self) noexcept:
        return self.backlog.size + self._copied

    @property
    def memory(self):
        """Bytes of memory that what waits takes; a frame that waits for many receivers counts once."""
        return self._memory()

    cdef NoResult count(self, Connection connection, Py_ssize_t size) except NoResult.FAILED:
        cdef Py_ssize_t before = self._slow.pop(connection, 0)
        if size:
            self._slow[connection] = size
        self.waiting += size - before
        if connection.copies:
            self._copied += size - before
        if size > before and self._memory() > self.node_queue_limit and not self._relieving:
            self._relieve()
        return NoResult.DONE

    def _relieve(self):
        """Cut the connections whose end frees most, far enough below the limit that this is rarely needed."""
        cdef:
            Connection connection
            Py_ssize_t enough = self.node_queue_limit - self.node_queue_limit // 4
            int looks = 0
            double end
        self._relieving = False
        heap, self._relief = self._relief, None
        if heap is None:
            # Where nobody has anything for himself, whoever has most goes first.
            heap = [self._relief_of(each) for each in self._slow]
            heapq.heapify(heap)
        end = _now() + self._slice * RELIEF_SHARE
        while heap and self._memory() > enough:
            if looks == 16:
                if _now() >= end:
                    self._relief = heap
                    self._relieving = True
                    self._call_soon(self._relieve)
                    return
                looks = 0
            looks += 1
            entry = heapq.heappop(heap)
            connection = entry[3]
            if connection not in self._slow:
                continue
            now = self._relief_of(connection)
            if now > entry:
                heapq.heappush(heap, now)  # less than when the heap was made
            elif connection.closing:
                # No other has more, although its Close frame is due: that is no reason to take it from the others.
                connection._cut()
            else:
                self._too_slow(connection, self._slow[connection], True)
                if connection in self._slow:
                    heapq.heappush(heap, self._relief_of(connection))

    cdef tuple _relief_of(self, Connection connection):
        """Return what a heap of those to be cut holds of one: bytes of its own and bytes that wait, most first."""
        cdef:
            Py_ssize_t waiting = self._slow[connection]
            Py_ssize_t own = waiting
            Socket sock
        if not connection.copies:
            sock = <Socket>connection.transport
            own = 0 if sock is None or sock.queue is None else sock.queue.own
        return -own, -waiting, connection.number, connection

    cdef _too_slow(self, Connection connection, Py_ssize_t waiting, bint of_node):
        connection._drop()
        self.too_slow += 1
        self._on_too_slow(connection, waiting, of_node)

    def _scheduled_flush(self):
        self._scheduled = False
        if self._spent or self._is_held():
            self._spent = False
            self._schedule()
        else:
            self._walk()

    cdef bint _is_held(self) noexcept:
        """Whether the rest of a read is to leave in the same writes: not for ever, it may be hundreds to everybody."""
        if not self.midread:
            self._held_until = 0
            return False
        if self._held_until == 0:
            self._held_until = _now() + LONGEST_HOLD
        return _now() < self._held_until

    def flush(self):
        """Write what is queued, for at most one slice of time; the rest follows after the loop has looked at Redis.

        A turn of the loop has one slice only, however often this is called in it. (On asyncio's own loop, which calls
        what is due soon without looking at sockets first, it may have two.)
        """
        self._held_until = 0
        if not self._spent:
            self._spent = not self._walk()

    cdef bint _walk(self) except -1:
        """Write what is short, then some of the bulk; return whether all is written."""
        cdef:
            Connection connection
            double end = _now() + self._slice / self.hurry
        while self._next < len(self._dirty):
            connection = <Connection>self._dirty[self._next]
            self._next += 1
            connection.dirty = False
            connection.flush()
            if (self._next % 16 == 0 or self.hurry > 1) and _now() > end:
                break
        if self._has_bulk:
            self._walk_bulk()
        if self._next == len(self._dirty):
            self._dirty.clear()
            self._next = 0
            if not self._has_bulk:
                if self._scratch_size > KEPT_SCRATCH:
                    free(self._scratch)
                    self._scratch = NULL
                    self._scratch_size = 0
                return True
        elif self._next > 4096:
            # Under steady load the list never empties: forget the part that is done.
            del self._dirty[:self._next]
            self._next = 0
        self._schedule()
        return False

    cdef NoResult _walk_bulk(self) except NoResult.FAILED:
        """Write the outboxes that have waited longest: one, or as many as there is time for."""
        cdef:
            Connection connection
            double end = _now() + min(self._slice / self.hurry, self._slice * BULK_SHARE)
            bint before = self.at_once
        self.at_once = True
        try:
            while self._bulk:
                connection = <Connection>self._bulk.popleft()
                connection.dirty = False
                connection.flush()
                if _now() > end:
                    break
        finally:
            self.at_once = before
            self._has_bulk = bool(self._bulk)
        return NoResult.DONE
