# What clients may come back for: the last messages of each client with a connection that can be resumed. A log holds
# references to the frames that all receivers share. While --resume-window is 0 no client has one.


cdef enum:
    NO_AGE = 0  # ages begin at AGES


cdef class Log:
    """The last messages of one client, numbered from 1 on; made by `Logs.add`."""

    def __init__(self):
        raise TypeError("a Log is made by Logs.add")

    def since(self, long long number, long long until):
        """Return the frames behind `number` up to `until`, a list; None where some of them are forgotten or not yet.

        Args:
            number: The last message that is not wanted; 0 is before the first.
            until: The last that is.
        """
        if self.ended or not self.forgotten <= number <= until <= self.last:
            return None
        return list(islice(self.queue._frames, number - self.forgotten, until - self.forgotten))

    def end(self):
        """Forget everything, for good."""
        self.forget(self.last)
        self.ended = True

    @property
    def memory(self):
        """Bytes of memory that count for the limit of one log: frames that others have too are counted in full."""
        return self.cost()

    cdef Py_ssize_t cost(self) noexcept:
        return self.queue.size + (self.last - self.forgotten) * (FRAME_COST + REFERENCE_COST)

    cdef NoResult append(self, bytes frame) except NoResult.FAILED:
        if self.ended:
            return NoResult.DONE
        self.grow_older()
        self.queue.add(frame)
        self.last += 1
        if self.oldest == NO_AGE:
            self.oldest = self.age
            self.logs.enter(self)
        while self.cost() > self.logs.log_limit:
            self.forget(self.forgotten + 1)
        if self.logs.memory_now() > self.logs.limit:
            self.logs.relieve()
        return NoResult.DONE

    cdef NoResult forget(self, long long number) except NoResult.FAILED:
        """Forget what comes up to a number."""
        cdef long long oldest
        if number <= self.forgotten:
            return NoResult.DONE
        while self.forgotten < number:
            self.forgotten += 1
            self.queue.take(PyBytes_GET_SIZE(<bytes>self.queue._frames[0]))
        if self.forgotten == self.last:
            oldest = NO_AGE
        else:
            oldest = max(self.oldest, self.age - AGES + 1)  # `before` knows no older ones
            while oldest < self.age and self.before[(oldest + 1) % AGES] <= self.forgotten:
                oldest += 1
        if oldest != self.oldest:
            self.logs.leave(self)
            self.oldest = oldest
            if oldest != NO_AGE:
                self.logs.enter(self)
        return NoResult.DONE

    cdef NoResult grow_older(self) except NoResult.FAILED:
        """Write down where the ages that have begun since the last look begin, and forget what is of the oldest."""
        cdef long long now = self.logs.age
        cdef long long age
        if now == self.age:
            return NoResult.DONE
        for age in range(max(self.age + 1, now - AGES + 1), now + 1):
            self.before[age % AGES] = self.last
        self.age = now
        return self.forget(self.before[(now + 1) % AGES])  # where the oldest of the last `AGES` ages began

    cdef NoResult forget_oldest(self) except NoResult.FAILED:
        """Forget the messages of the oldest age that something is here of; of the present age, an eighth."""
        cdef long long end = self.last
        if self.oldest < self.age:
            end = self.before[(self.oldest + 1) % AGES]
        elif self.oldest == self.logs.age:
            end = self.forgotten + (self.last - self.forgotten + 7) // 8
        return self.forget(end)


cdef class Logs:
    """All logs of a node, and the memory that they take together.

    Where it would be more than the limit, the oldest messages of all are forgotten at once, and no more of them than
    must be. So whatever asks for room pays for that room, and the memory is never above the limit.

    Args:
        log_limit: Bytes of memory that one log may take.
        limit: Bytes of memory that all may take, a frame that is in many logs counted once, with `others`.
    """

    def __init__(self, Py_ssize_t log_limit, Py_ssize_t limit):
        self.log_limit = log_limit
        self.limit = limit
        self.backlog = Backlog()
        self.age = AGES
        self._turns = deque()
        self._by_oldest = {}
        self._oldest = NO_AGE

    def add(self):
        """Return a new log."""
        cdef Log log = Log.__new__(Log)
        log.logs = self
        log.queue = Queue(self.backlog)
        log.age = self.age
        self._turns.append(log)
        return log

    def look(self, Py_ssize_t count):
        """Let so many logs forget what is too old, those that have waited longest for it."""
        cdef Log log
        for _ in range(min(count, len(self._turns))):
            log = self._turns.popleft()
            if not log.ended:
                log.grow_older()
                self._turns.append(log)

    @property
    def memory(self):
        """Bytes of memory that count for the limit of the node."""
        return self.memory_now()

    @property
    def others(self):
        """Bytes of memory that count for the limit besides the messages; messages make room for them."""
        return self._others

    @others.setter
    def others(self, Py_ssize_t size):
        self._others = size
        if self.memory_now() > self.limit:
            self.relieve()

    cdef Py_ssize_t memory_now(self) noexcept:
        return self.backlog.size + self._others

    cdef NoResult enter(self, Log log) except NoResult.FAILED:
        """A log has something, the oldest of which is of its age `oldest`."""
        logs = self._by_oldest.get(log.oldest)
        if logs is None:
            # Not a dict: taking the first of one again and again walks over the holes.
            logs = self._by_oldest[log.oldest] = OrderedDict()
        logs[log] = None
        return NoResult.DONE

    cdef NoResult leave(self, Log log) except NoResult.FAILED:
        """What was the oldest in a log is forgotten; to be called before `oldest` changes."""
        logs = self._by_oldest[log.oldest]
        del logs[log]
        if not logs:
            del self._by_oldest[log.oldest]
        return NoResult.DONE

    cdef NoResult relieve(self) except NoResult.FAILED:
        """Forget the oldest messages of all logs until there is room. Each step forgets one message at least."""
        cdef Log log
        while self._by_oldest and self.memory_now() > self.limit:
            # Ages are entered and left forwards only: as long as it is there, it is the oldest.
            if self._oldest not in self._by_oldest:
                self._oldest = min(self._by_oldest)
            logs = self._by_oldest[self._oldest]
            log = next(iter(logs))
            logs.move_to_end(log)  # each has its turn, where more of this age remains
            log.forget_oldest()
        return NoResult.DONE
