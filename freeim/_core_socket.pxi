# The sockets of terminals. A transport of the event loop costs kilobytes and a dozen objects for each connection, so
# they have an epoll of their own, which the loop watches as if it were one reader. Linux only; see HAVE_EPOLL.


cdef enum:
    EVENTS_PER_TURN = 32      # sockets that are looked at before the loop does anything else
    EVENTS_PER_LOOK = 4       # of these, between two looks at the clock
    INBOUND_BUFFER = 65536    # terminals send next to nothing, so all of them share one
    FRAMES_PER_SEND = 256     # of a queue, offered to the kernel in one call; it takes 1,024 at most (IOV_MAX)
    FRAME_COST = 150          # bytes of memory that a frame takes besides its own, its place in the backlog included
    REFERENCE_COST = 16       # and that its place in a queue takes; both rather too many than too few

# Seconds after which a turn looks at no further sockets (those that are slow and can be sent to again cost most), and
# tells no further protocol that its connection has ended.
cdef double LONGEST_TURN = 0.0002


cdef class Backlog:
    """The memory that all queues together keep from being freed. A frame counts once, however many queues it is in."""

    def __cinit__(self):
        self._holders = {}

    cdef NoResult hold(self, Queue queue, bytes frame) except NoResult.FAILED:
        cdef Py_ssize_t size = FRAME_COST + PyBytes_GET_SIZE(frame)
        key = <uintptr_t><PyObject*>frame
        holder = self._holders.get(key)
        self.size += REFERENCE_COST
        if holder is None:
            self._holders[key] = queue
            self.size += size
            queue.own += size
        elif type(holder) is int:
            self._holders[key] = holder + 1
        else:
            (<Queue>holder).own -= size
            self._holders[key] = 2
        return NoResult.DONE

    cdef NoResult release(self, bytes frame) except NoResult.FAILED:
        cdef Py_ssize_t size = FRAME_COST + PyBytes_GET_SIZE(frame)
        key = <uintptr_t><PyObject*>frame
        holder = self._holders[key]
        self.size -= REFERENCE_COST
        if type(holder) is int and holder > 1:
            self._holders[key] = holder - 1
            return NoResult.DONE
        del self._holders[key]
        self.size -= size
        if type(holder) is not int:
            (<Queue>holder).own -= size
        return NoResult.DONE


cdef class Queue:
    """What the kernel has not taken yet: references to frames, of which the first may have been sent in part.

    Args:
        backlog: Where the frames are counted.
    """

    def __cinit__(self, Backlog backlog not None):
        self._backlog = backlog
        self._frames = deque()

    def __len__(self):
        return self.size

    def __bytes__(self):
        return b"".join(self._frames)[self.sent:]

    def add(self, bytes frame not None):
        """Append a whole frame, or an answer to a request."""
        if PyBytes_GET_SIZE(frame) == 0:
            return
        self._frames.append(frame)
        self._backlog.hold(self, frame)
        self.size += PyBytes_GET_SIZE(frame)

    def take(self, Py_ssize_t size):
        """Remove what the kernel has taken."""
        if not 0 <= size <= self.size:
            raise ValueError("so much is not in the queue")
        self.size -= size
        self.sent += size
        while self._frames and self.sent >= PyBytes_GET_SIZE(<bytes>self._frames[0]):
            self.sent -= PyBytes_GET_SIZE(<bytes>self._frames[0])
            self._backlog.release(self._frames.popleft())
            self.answer = False

    def drop(self):
        """Remove all frames of which nothing has been sent, but not an answer to a request."""
        while len(self._frames) > (1 if self.sent or self.answer else 0):
            frame = self._frames.pop()
            self.size -= PyBytes_GET_SIZE(<bytes>frame)
            self._backlog.release(frame)

    def clear(self):
        """Remove everything: the connection has ended."""
        while self._frames:
            self._backlog.release(self._frames.pop())
        self.size = self.sent = 0

    cdef ssize_t send(self, int fd) except? -1:
        """Offer the kernel as many frames as fit into one call; return what sendmsg(2) does. There must be one."""
        cdef:
            iovec parts[FRAMES_PER_SEND]
            msghdr message
            int count = 0
        for frame in self._frames:
            parts[count].iov_base = PyBytes_AS_STRING(<bytes>frame)
            parts[count].iov_len = PyBytes_GET_SIZE(<bytes>frame)
            count += 1
            if count == FRAMES_PER_SEND:
                break
        parts[0].iov_base = <char*>parts[0].iov_base + self.sent
        parts[0].iov_len -= self.sent
        memset(&message, 0, sizeof(message))
        message.msg_iov = parts
        message.msg_iovlen = count
        return sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT)


cdef class Socket:
    """The transport of one TCP connection: what of `asyncio.Transport` a node uses, and nothing more.

    Each byte that the kernel does not take at once is reported: `pause_writing` when the queue is no longer empty,
    `resume_writing` when it is again. The descriptor is closed only after `connection_lost` has returned.
    """

    def __init__(self):
        raise TypeError("a Socket is made by Poller.accept")

    def fileno(self):
        """Return the descriptor."""
        return self.fd

    def get_extra_info(self, name, default=None):
        """Return ``socket``, something that has a ``fileno``, or ``peername``."""
        if name == "socket":
            return self
        if name != "peername":
            return default
        sock = socket.socket(fileno=self.fd)
        try:
            return sock.getpeername()
        except OSError:
            return default
        finally:
            sock.detach()

    def set_protocol(self, protocol):
        """Hand the connection to another protocol."""
        self.protocol = protocol

    def set_write_buffer_limits(self, high=None, low=None):
        """Ignored: every queued byte is reported."""

    def get_write_buffer_size(self):
        """Return how many bytes wait for the kernel."""
        return 0 if self.queue is None else len(self.queue)

    def is_closing(self):
        """Whether `close` or `abort` has been called, or the peer has gone."""
        return self.closing

    def can_write_eof(self):
        """Return True."""
        return True

    def pause_reading(self):
        """Read nothing until `resume_reading`."""
        self.watch(self.events & ~EPOLLIN)

    def resume_reading(self):
        """Read on."""
        if not self.closing:
            self.watch(self.events | EPOLLIN)

    def write(self, data):
        """Send, or queue what the kernel does not take."""
        cdef const uint8_t[::1] view = data
        cdef Py_ssize_t size = view.shape[0]
        cdef ssize_t sent
        cdef Queue queue
        if self.closing or size == 0:
            return
        if self.queue is not None:
            self.queue.add(bytes(data))
            return
        sent = c_send(self.fd, &view[0], size, MSG_NOSIGNAL | MSG_DONTWAIT)
        if sent < 0:
            if errno != EAGAIN and errno != EINTR:
                self.lose(errno)
                return
            sent = 0
        if sent < size:
            queue = Queue(self.poller.backlog)
            queue.add(bytes(data))
            queue.take(sent)
            queue.answer = True  # no frame: whoever closes the connection must not drop it, begun or not
            self.start(queue)

    cdef NoResult queue_frames(self, bytes first, list more, Py_ssize_t sent) except NoResult.FAILED:
        """Queue frames, of which the kernel took so many bytes where the queue was empty."""
        cdef Queue queue = self.queue
        cdef bytes frame
        if self.closing:
            return NoResult.DONE
        if queue is None:
            queue = Queue(self.poller.backlog)
        queue.add(first)
        if more is not None:
            for frame in more:
                queue.add(frame)
        if self.queue is not None:
            return NoResult.DONE
        queue.take(sent)
        return self.start(queue)

    cdef NoResult drop(self) except NoResult.FAILED:
        """Forget the frames of which nothing has been sent."""
        if self.queue is not None:
            self.queue.drop()
        return NoResult.DONE

    cdef NoResult start(self, Queue queue) except NoResult.FAILED:
        self.queue = queue
        self.watch(self.events | EPOLLOUT)
        self.protocol.pause_writing()
        return NoResult.DONE

    def write_eof(self):
        """End our side of the connection behind what is queued.

        Raises:
            OSError: The peer has gone.
        """
        if self.queue is not None:
            self.ending = True
        elif shutdown(self.fd, SHUT_WR) < 0:
            raise OSError(errno, os.strerror(errno))

    def close(self):
        """Close the connection behind what is queued."""
        if self.closing:
            return
        self.closing = True
        if self.queue is None:
            self.lose(0)
        else:
            self.watch(EPOLLOUT)

    def abort(self):
        """Close the connection now."""
        self.lose(0)

    cdef NoResult watch(self, uint32_t events) except NoResult.FAILED:
        cdef epoll_event event
        if self.lost or events == self.events:
            return NoResult.DONE
        self.events = event.events = events
        event.data.fd = self.fd
        epoll_ctl(self.poller.fd, EPOLL_CTL_MOD, self.fd, &event)
        return NoResult.DONE

    cdef NoResult lose(self, int error) except NoResult.FAILED:
        """The connection ends: nothing is sent or read any more; its protocol hears of it soon."""
        if self.lost:
            return NoResult.DONE
        self.lost = self.closing = True
        if self.queue is not None:
            self.queue.clear()
            self.queue = None
        if self.connection is not None:
            self.connection.count()
        epoll_ctl(self.poller.fd, EPOLL_CTL_DEL, self.fd, NULL)
        self.poller.end(self, error)
        return NoResult.DONE

    cdef _finish(self, int error):
        protocol, self.protocol = self.protocol, None
        try:
            if protocol is not None:  # else the poller was closed meanwhile
                protocol.connection_lost(OSError(error, os.strerror(error)) if error else None)
        finally:
            self.poller.forget(self)

    cdef NoResult writable(self) except NoResult.FAILED:
        cdef ssize_t sent
        if self.queue is None:
            return NoResult.DONE
        sent = self.queue.send(self.fd) if self.queue.size else 0  # nothing is left of one that was dropped
        if sent < 0:
            if errno != EAGAIN and errno != EINTR:
                self.lose(errno)
            return NoResult.DONE
        self.queue.take(sent)
        if self.queue.size:
            if self.connection is not None:
                self.connection.count()
            return NoResult.DONE
        self.queue = None
        if self.closing:
            self.lose(0)
            return NoResult.DONE
        self.watch(self.events & ~EPOLLOUT)
        if self.ending:
            shutdown(self.fd, SHUT_WR)
        self.protocol.resume_writing()
        return NoResult.DONE

    cdef NoResult readable(self, char* buffer) except NoResult.FAILED:
        cdef ssize_t got
        if not self.events & EPOLLIN:
            # Nothing is to be read, so this is a reset, or both sides have ended.
            self.lose(0)
            return NoResult.DONE
        got = recv(self.fd, buffer, INBOUND_BUFFER, MSG_DONTWAIT)
        if got > 0:
            self.protocol.data_received(PyBytes_FromStringAndSize(buffer, got))
        elif got < 0:
            if errno != EAGAIN and errno != EINTR:
                self.lose(errno)
        elif self.protocol.eof_received():
            self.watch(self.events & ~EPOLLIN)
        else:
            self.close()
        return NoResult.DONE


cdef class Poller:
    """Accepts connections and watches their sockets.

    Args:
        loop: The event loop.
        backlog: Where what waits for the kernel is counted.
    """

    def __init__(self, loop, Backlog backlog not None):
        self._loop = loop
        self.backlog = backlog
        self._sockets = []
        self._ends = deque()
        self._buffer = <char*>malloc(INBOUND_BUFFER)
        if self._buffer == NULL:
            raise MemoryError()
        self.fd = epoll_create1(EPOLL_CLOEXEC)
        if self.fd < 0:
            raise OSError(errno, os.strerror(errno))
        loop.add_reader(self.fd, self._turn)

    def __cinit__(self):
        self.fd = -1
        self._buffer = NULL

    def __dealloc__(self):
        free(self._buffer)
        if self.fd >= 0:
            close_fd(self.fd)

    def accept(self, int listener, protocol):
        """Accept a connection.

        Args:
            listener: The descriptor of a listening socket that does not block.
            protocol: Makes the connection's protocol.

        Raises:
            OSError: As of ``socket.accept``.
        """
        cdef:
            Socket sock = Socket.__new__(Socket)
            epoll_event event
            int fd = freeim_accept(listener)
        if fd < 0:
            raise OSError(errno, os.strerror(errno))
        sock.fd = fd
        sock.poller = self
        sock.events = event.events = EPOLLIN
        event.data.fd = fd
        if epoll_ctl(self.fd, EPOLL_CTL_ADD, fd, &event) < 0:
            error = errno
            close_fd(fd)
            raise OSError(error, os.strerror(error))
        while fd >= len(self._sockets):
            self._sockets.append(None)
        self._sockets[fd] = sock
        sock.protocol = protocol()
        sock.protocol.connection_made(sock)

    def close(self):
        """Stop watching, and close what is still open."""
        cdef Socket sock
        if self.fd < 0:
            return
        self._loop.remove_reader(self.fd)
        for sock in self._sockets:
            if sock is not None:
                sock.lost = sock.closing = True
                if sock.connection is not None:
                    sock.connection.fd = -1  # the number may soon be another's
                sock.protocol = sock.connection = None
                if sock.queue is not None:
                    sock.queue.clear()
                close_fd(sock.fd)
        self._sockets.clear()
        self._ends.clear()
        close_fd(self.fd)
        self.fd = -1

    cdef NoResult end(self, Socket sock, int error) except NoResult.FAILED:
        # A walk over the connections of a proxy that died finds thousands of them broken.
        self._ends.append((sock, error))
        if not self._ending:
            self._ending = True
            self._loop.call_soon(self._end_some)
        return NoResult.DONE

    def _end_some(self):
        cdef:
            Socket sock
            int error
            double end = _now() + LONGEST_TURN
        while self._ends and _now() < end:
            sock, error = self._ends.popleft()
            try:
                sock._finish(error)
            except Exception as problem:
                self._loop.call_exception_handler(
                    {"message": "internal error at the end of a connection", "exception": problem}
                )
        self._ending = bool(self._ends)
        if self._ending:
            self._loop.call_soon(self._end_some)

    cdef NoResult forget(self, Socket sock) except NoResult.FAILED:
        if self.fd >= 0:
            self._sockets[sock.fd] = None
            close_fd(sock.fd)
        return NoResult.DONE

    def _turn(self):
        cdef:
            double end = _now() + LONGEST_TURN
            int looked = 0
        # epoll names those that are ready in turns, so whoever is left out comes first when the loop is here again.
        while self._look() == EVENTS_PER_LOOK:
            looked += EVENTS_PER_LOOK
            if looked == EVENTS_PER_TURN or _now() > end:
                break

    cdef int _look(self) except -1:
        """Do what some sockets are ready for; return how many."""
        cdef:
            epoll_event events[EVENTS_PER_LOOK]
            Socket sock
            int count = epoll_wait(self.fd, events, EVENTS_PER_LOOK, 0)
            int i
        for i in range(count):
            # One that was closed and opened anew since is asked for nothing: its recv says that there is nothing.
            sock = <Socket>self._sockets[events[i].data.fd]
            if sock is None or sock.lost:
                continue
            try:
                if events[i].events & EPOLLOUT:
                    sock.writable()
                if events[i].events & ~<uint32_t>EPOLLOUT and not sock.lost:
                    sock.readable(self._buffer)
            except Exception as error:
                self._loop.call_exception_handler(
                    {"message": "internal error: a connection is cut", "exception": error, "protocol": sock.protocol}
                )
                sock.lose(0)
        return max(count, 0)
