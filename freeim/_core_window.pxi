# The messages that wait for pending clients, in order; in the grace also for those who are still to come.
#
# A replay looks at the newest of them one by one. Those before are found by an index of whom they concern, so that it
# costs what concerns the client, however much waits. A message enters the index when it is one of the newest no more:
# where clients wait for milliseconds, as usual, nothing ever does.


cdef enum:
    MESSAGE_COST = 200   # bytes of memory that a message in the window takes besides its frame
    RECEIVER_COST = 64   # and that each id in its list of receivers takes
    NAME_COST = 80       # and that each name, by which something is found in the index, takes,
    TRACK_COST = 120     # with more than one message there
    PLACE_COST = 16      # and for each of these


cdef inline Py_ssize_t _weight(Message message) except -1:
    cdef Py_ssize_t weight = MESSAGE_COST
    if message.frame is not None:
        weight += PyBytes_GET_SIZE(message.frame)
    if message.receivers is not None:
        weight += RECEIVER_COST * len(message.receivers)
    return weight


cdef class Track:
    """Messages with something in common, in order. One that names a receiver twice is in there twice."""


cdef Track _new_track():
    cdef Track track = Track.__new__(Track)
    track.messages = []
    return track


cdef class Window:
    """The messages that wait.

    Args:
        newest: How many of the newest are looked at one by one.
    """

    def __init__(self, Py_ssize_t newest):
        self._newest = newest
        self.recent = deque()
        self._begin_index()

    cdef NoResult _begin_index(self) except NoResult.FAILED:
        self.indexed = deque()
        self._of_id = {}
        self._of_channel = {}
        self._of_all = _new_track()
        self._indexed_bytes = 0
        return NoResult.DONE

    cdef Py_ssize_t size(self) except -1:
        return len(self.indexed) + len(self.recent)

    cdef inline Py_ssize_t memory(self) noexcept:
        return self._recent_bytes + self._indexed_bytes

    cdef NoResult add(self, Message message) except NoResult.FAILED:
        cdef Py_ssize_t weight
        self.recent.append(message)
        self._recent_bytes += _weight(message)
        if unlikely(len(self.recent) > self._newest):
            message = self.recent.popleft()
            weight = _weight(message)
            self._recent_bytes -= weight
            self.indexed.append(message)
            self._indexed_bytes += weight
            self._last_indexed = message.position
            self._enter(message)
        return NoResult.DONE

    cdef Message take(self):
        """Remove the oldest message, and return it; None where there is none."""
        cdef Message message
        if self.indexed:
            message = self.indexed.popleft()
            self._indexed_bytes -= _weight(message)
            self._leave(message)
        elif self.recent:
            message = self.recent.popleft()
            self._recent_bytes -= _weight(message)
        else:
            return None
        return message

    cdef NoResult forget(self, long long position) except NoResult.FAILED:
        """Remove the messages before a position."""
        if self.indexed and self._last_indexed < position:
            self._begin_index()
        while self.indexed and (<Message>self.indexed[0]).position < position:
            self.take()
        if not self.indexed:
            while self.recent and (<Message>self.recent[0]).position < position:
                self._recent_bytes -= _weight(self.recent.popleft())
        return NoResult.DONE

    # ---- the index

    cdef NoResult _enter(self, Message message) except NoResult.FAILED:
        if message.kind == DIRECT or message.kind == FORCE_OFFLINE:
            for receiver in message.receivers:
                self._put(self._of_id, receiver, message)
        elif message.kind == CHANNEL and message.members is None:
            self._put(self._of_channel, message.channel, message)
        else:
            self._of_all.messages.append(message)
            self._indexed_bytes += PLACE_COST
        return NoResult.DONE

    cdef NoResult _leave(self, Message message) except NoResult.FAILED:
        if message.kind == DIRECT or message.kind == FORCE_OFFLINE:
            for receiver in message.receivers:
                self._drop(self._of_id, receiver)
        elif message.kind == CHANNEL and message.members is None:
            self._drop(self._of_channel, message.channel)
        else:
            self._drop_first(self._of_all)
        return NoResult.DONE

    cdef NoResult _put(self, dict index, bytes name, Message message) except NoResult.FAILED:
        cdef:
            object found = index.get(name)  # the only message with this name, or a Track
            Track track
        if found is None:
            index[name] = message
            self._indexed_bytes += NAME_COST
            return NoResult.DONE
        if type(found) is Track:
            track = <Track>found
        else:
            track = index[name] = _new_track()
            track.messages.append(found)
            self._indexed_bytes += TRACK_COST + PLACE_COST
        track.messages.append(message)
        self._indexed_bytes += PLACE_COST
        return NoResult.DONE

    cdef NoResult _drop(self, dict index, bytes name) except NoResult.FAILED:
        """The oldest message with a name is removed."""
        cdef object found = index[name]
        if type(found) is Track:
            self._drop_first(<Track>found)
            if (<Track>found).messages:
                return NoResult.DONE
            self._indexed_bytes -= TRACK_COST
        del index[name]
        self._indexed_bytes -= NAME_COST
        return NoResult.DONE

    cdef NoResult _drop_first(self, Track track) except NoResult.FAILED:
        # Only now and then is the list moved up: less than twice the work, and half of it unused at most.
        track.messages[track.gone] = None
        track.gone += 1
        if 2 * track.gone >= len(track.messages):
            del track.messages[:track.gone]
            track.gone = 0
        self._indexed_bytes -= PLACE_COST
        return NoResult.DONE

    cdef list parts(self, Client client):
        """Return what the index finds for a client: a heap of (position of the next message, messages, its place).

        None where nothing that waits for the client is in the index.
        """
        cdef list result
        if not self.indexed or self._last_indexed < client.since:
            return None
        result = []
        self._add_part(result, client, self._of_all)
        self._add_part(result, client, self._of_id.get(client.id))
        for name in client.channels:
            self._add_part(result, client, self._of_channel.get(name))
        heapq.heapify(result)
        return result

    cdef NoResult _add_part(self, list result, Client client, found) except NoResult.FAILED:
        cdef:
            list messages
            Py_ssize_t low = 0
            Py_ssize_t high, middle
        if found is None:
            return NoResult.DONE
        if type(found) is Track:
            messages = (<Track>found).messages
            low = (<Track>found).gone
        else:
            messages = [found]
        high = len(messages)
        while low < high:
            middle = (low + high) // 2
            if (<Message>messages[middle]).position < client.since:
                low = middle + 1
            else:
                high = middle
        if low < len(messages):
            result.append(((<Message>messages[low]).position, messages, low))
        return NoResult.DONE
