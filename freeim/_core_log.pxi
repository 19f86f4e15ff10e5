# What clients may come back for: the last messages of each client with a connection that can be resumed. A log holds
# references to the frames that all receivers share. While --resume-window is 0 no client has one.


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
        while self.cost() > self.logs.log_limit:
            self.forget(self.forgotten + 1)
        if self.logs.memory_now() > self.logs.limit:
            self.logs.relieve()
        return NoResult.DONE

    cdef NoResult forget(self, long long number) except NoResult.FAILED:
        """Forget what comes up to a number."""
        while self.forgotten < number:
            self.forgotten += 1
            self.queue.take(PyBytes_GET_SIZE(<bytes>self.queue._frames[0]))
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
        return self.forget_older(AGES)

    cdef NoResult forget_older(self, long long ages) except NoResult.FAILED:
        """Forget all but the messages of the last so many ages, at most `AGES`."""
        return self.forget(self.before[(self.age - ages + 1) % AGES])

    cdef long long ages(self) noexcept:
        """Return in how many ages, up to the last look, what is here has come; 1 where nothing is here."""
        cdef long long count = 1
        while count < AGES and self.before[(self.age - count + 1) % AGES] > self.forgotten:
            count += 1
        return count


cdef class Logs:
    """All logs of a node, and the memory that they take together.

    Args:
        log_limit: Bytes of memory that one log may take.
        limit: Bytes of memory that all may take, a frame that is in many logs counted once, with `others`.
    """

    def __init__(self, Py_ssize_t log_limit, Py_ssize_t limit):
        self.log_limit = log_limit
        self.limit = limit
        self.backlog = Backlog()
        self.age = self._cut = self._cut_age = AGES
        self._turns = deque()

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

    cdef Py_ssize_t memory_now(self) noexcept:
        return self.backlog.size + self.others

    cdef NoResult relieve(self) except NoResult.FAILED:
        """Forget the oldest messages of all logs, far enough below the limit that this is rarely needed."""
        cdef:
            Log log
            Py_ssize_t enough = self.limit - self.limit // 16
            # What is older was forgotten last time: no need to walk over all logs once for each of those ages.
            long long done = min(<long long>AGES, self._cut + self.age - self._cut_age)
            long long ages = done
            Py_ssize_t before
        while self.memory_now() > enough and self.backlog.size:
            self._cut = max(done, 1)
            self._cut_age = self.age
            ages -= 1
            before = self.backlog.size
            for log in self._turns:
                if self.memory_now() <= enough:
                    break
                log.grow_older()
                if ages > 0:
                    log.forget_older(ages)
                else:  # all is of the youngest age: an eighth
                    log.forget(log.forgotten + (log.last - log.forgotten + 7) // 8)
            done = ages
            if self.backlog.size == before and ages > 1:  # nothing is so old: all may be young, in many logs
                ages = 1
                for log in self._turns:
                    ages = max(ages, log.ages())
                done = ages
        return NoResult.DONE
