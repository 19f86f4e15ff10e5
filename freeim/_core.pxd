# The core's data: what each stage owns and the invariants that hold between calls.
#
#   RespStream ──► decode ──► Router ──► Connection.push ──► Fanout.flush ──► send(2)
#
# Decoding and routing touch no socket; fan-out touches no Redis. Everything runs on the thread of the event loop.

cimport cython
from libc.stdint cimport uint32_t

# Side-effect-only helpers return this instead of None: the caller checks a C int, and no reference is counted.
cdef enum NoResult:
    FAILED = -1
    DONE = 0

cdef enum Kind:
    DIRECT = 1
    CHANNEL = 2
    BROADCAST = 3
    FORCE_OFFLINE = 4


cdef enum:
    KINDS = 5                         # one more than the last Kind
    AGES = 32                         # in which a log tells how old its messages are
    SIZE_CLASSES = 11                 # of fan-out: 0, up to 1, 4, 16, 64, ... 65,536 connections, and more


@cython.final
cdef class Message:
    cdef:
        readonly Kind kind
        readonly bytes sender         # canonical text of the id; b"0" or the empty GUID is the system
        readonly list receivers       # DIRECT: canonical ids, duplicates kept; FORCE_OFFLINE: the one id
        readonly bytes channel        # CHANNEL only
        readonly bytes frame          # the whole WebSocket frame, header included; None where Item3 was null
        readonly Py_ssize_t header    # bytes of the frame before its payload
        readonly bint receipt
        public object members         # CHANNEL without tracking: ids that Redis named, else None
        long long position            # in the stream of messages of this node


@cython.final
cdef class Client:
    cdef:
        readonly bytes id
        readonly list connections     # those that may still be sent to; held ones included
        readonly int attached         # all whose presence is not taken out yet: connections, and those closing
        dict channels                 # name -> Channel; the membership as last read
        readonly bint reading         # an HKEYS of its channels is under way
        readonly bint pending         # messages wait in the window: from `since` on, until settle()
        readonly bint established     # at least one connection's opening has been confirmed
        readonly bint tracked         # its Client hash was read at least once, so Redis may track the key
        long long since               # position of the first message that waits
        long long came                # position at which it came: orders to go that are older are not for it
        long long settled             # position at which it last stopped waiting: what is before it has been replayed
        long long ordered             # position behind the last order to go that was kept for it in a full window
        public Log log                # what it may come back for; None where no connection of it can be resumed


@cython.final
cdef class Channel:
    cdef:
        bytes name
        dict members                  # Client -> itself: only clients of this node, each with `self` in its channels


@cython.final
cdef class Connection:
    cdef:
        readonly long long number     # never reused within an epoch
        readonly Client client
        public str token_json         # the token's JSON, for the Share and the events
        public object owner           # whoever holds the socket: the handshake, then the terminal
        readonly object transport     # asyncio transport, from attach() to detach()
        readonly int fd               # >= 0 only while send(2) on it is allowed: plain TCP, transport open
        readonly bint held            # before its 101: frames are kept, nothing is sent
        readonly bint blocked         # the transport has bytes queued: send(2) would overtake them
        readonly bint closing         # a Close frame is in the queue or beyond; nothing may follow it
        bint copies                   # the transport is asyncio's, whose queue has a copy of what it is given
        public bint awaiting_pong
        public int close_code         # of the Close frame that this node decided on; 0 = none yet
        bint dirty                    # in one of Fanout's two lists of connections to flush
        bytes first                   # outbox: the first frame, inline since there rarely is another
        list more                     # outbox: the frames after it
        Fanout fanout

    cdef NoResult push(self, bytes frame) except NoResult.FAILED
    cdef NoResult flush(self) except NoResult.FAILED
    cdef bint _wait(self, Py_ssize_t size) except -1
    cdef _queue(self, Py_ssize_t size)
    cdef NoResult count(self) except NoResult.FAILED
    cdef _drop(self)
    cdef _cut(self)


@cython.final
cdef class Fanout:
    cdef:
        object _call_soon
        list _dirty                   # connections with an outbox, in the order they got it
        Py_ssize_t _next              # the first one that this walk has not flushed
        object _bulk                  # deque of those that the walk has passed over: they wait for what is short
        bint _has_bulk                # there are some
        bint at_once                  # who is flushed now does not wait any more
        bint _scheduled
        bint _spent                   # this turn of the loop has had its slice already
        double _held_until            # when a read that is half handled has kept the walk for long enough; 0: not yet
        public int hurry              # slices are so many times shorter, as much waits on the bus; 1: as usual
        public bint midread           # a read from Redis is half handled: its rest is to leave in the same writes
        double _slice                 # seconds
        public Py_ssize_t queue_limit     # bytes that may wait for one slow receiver
        public Py_ssize_t node_queue_limit  # bytes of memory that may be in all queues together
        readonly Py_ssize_t waiting   # bytes that wait: the sum of `_slow`
        dict _slow                    # Connection -> bytes that its transport has queued; only blocked ones
        readonly Backlog backlog      # the memory of the queues that hold references
        Py_ssize_t _copied            # and of those that hold copies
        bint _relieving               # a further slice of cutting connections is due
        list _relief                  # heap of those that may be cut, between two slices
        char* _scratch                # frames of one connection are joined here for one send(2)
        Py_ssize_t _scratch_size
        object _on_too_slow
        readonly long long writes     # calls of send(2)
        readonly long long too_slow   # connections closed because one of the two limits was passed
        readonly long long dropped    # bytes that waited for them, and were not sent any more

    cdef NoResult add(self, Connection connection) except NoResult.FAILED
    cdef NoResult add_bulk(self, Connection connection) except NoResult.FAILED
    cdef NoResult _schedule(self) except NoResult.FAILED
    cdef bint _walk(self) except -1
    cdef NoResult _walk_bulk(self) except NoResult.FAILED
    cdef bint _is_held(self) noexcept
    cdef Py_ssize_t _memory(self) noexcept
    cdef tuple _relief_of(self, Connection connection)
    cdef NoResult count(self, Connection connection, Py_ssize_t size) except NoResult.FAILED
    cdef _too_slow(self, Connection connection, Py_ssize_t waiting, bint of_node)
    cdef char* scratch(self, Py_ssize_t size) except NULL


@cython.final
cdef class Track:
    cdef:
        list messages                 # Message; None for each that is gone
        Py_ssize_t gone               # so many of the first


@cython.final
cdef class Window:
    cdef:
        Py_ssize_t _newest
        object recent                 # deque of Message: the newest, as many as that
        object indexed                # deque of Message: all before them
        dict _of_id                   # receiver -> Track of the indexed that name it, or the only one
        dict _of_channel              # name -> likewise, of its messages
        Track _of_all                 # those that may concern anybody
        long long _last_indexed       # position of the last of `indexed`, where there is one
        Py_ssize_t _recent_bytes      # what `recent` weighs
        Py_ssize_t _indexed_bytes     # and `indexed`, with the index

    cdef NoResult _begin_index(self) except NoResult.FAILED
    cdef Py_ssize_t memory(self) noexcept
    cdef Py_ssize_t size(self) except -1
    cdef NoResult add(self, Message message) except NoResult.FAILED
    cdef Message take(self)
    cdef NoResult forget(self, long long position) except NoResult.FAILED
    cdef NoResult _enter(self, Message message) except NoResult.FAILED
    cdef NoResult _leave(self, Message message) except NoResult.FAILED
    cdef NoResult _put(self, dict index, bytes name, Message message) except NoResult.FAILED
    cdef NoResult _drop(self, dict index, bytes name) except NoResult.FAILED
    cdef NoResult _drop_first(self, Track track) except NoResult.FAILED
    cdef list parts(self, Client client)
    cdef NoResult _add_part(self, list result, Client client, found) except NoResult.FAILED


@cython.final
cdef class Router:
    cdef:
        readonly dict clients         # id -> Client; every client with attached > 0 or reading
        dict _channels                # name -> Channel; only those with a member here
        object _pending               # OrderedDict: Client -> None, ordered by `since`
        public Py_ssize_t window_limit
        readonly long long dropped    # messages that a pending client missed because the window was full
        Client _grace                 # stands in `_pending`, first, for all who are still to come; None: no grace
        dict _away                    # in the grace: id -> position from which on one that has left is to get messages
        dict _answered                # id -> position of the last answered message that its log got in the grace
        bint _in_two                  # the grace, or the last one, is that of a hand-over: no receipt waits for it
        readonly long long forgotten  # messages that were kept for those until the window was full
        Window _window                # all messages from the oldest pending client's `since` on
        long long _position           # of the next message
        public bint open              # the node's name is taken; what comes before is not for this instance
        public bytes opener           # the payload at whose place in the stream it opens; None where Python opens it
        public dict elsewhere         # id -> connections at another instance of this node's name; None without one
        long long _mute_from          # receipts of messages from this position ...
        long long _mute_until         # ... up to this one are the other instance's to answer
        bint _guid
        bint _barrier                 # False only in the test that shows what the barrier is for
        readonly bint tracking        # membership by client and invalidation; else the channel's members per message
        readonly bytes system
        object _on_receipt            # (message, receiver, delivered)
        object _on_reread             # (client): send HKEYS for it, now
        object _on_force_offline      # (client)
        object _on_other              # (payload, message or None): what `take` leaves to Python
        double _slice                 # seconds
        int _look                     # clients between two looks at the clock
        list _rest                    # clients, or receivers, that `_last` has not reached yet; None if there are none
        Message _last                 # message, while `_rest` is something
        readonly long long deliveries  # messages put into an outbox
        readonly long long delivered  # bytes of their frames
        readonly long long replayed   # of these messages, those that had waited in the window
        readonly long long received   # bytes published on the node's channel
        long long _reached            # connections that got the last message so far, at once
        long long[KINDS] _messages    # how many of each kind
        long long[SIZE_CLASSES] _sizes  # messages by the connections that got them at once; see _size_class

    cdef _drop(self, Client client)
    cdef _settle(self, Client client)
    cdef _update_channels(self, Client client, names)
    cdef NoResult _begin_pending(self, Client client) except NoResult.FAILED
    cdef NoResult _take_in(self, Message message) except NoResult.FAILED
    cdef NoResult _overflow(self, Message message) except NoResult.FAILED
    cdef NoResult _await(self, Client client, bint fresh) except NoResult.FAILED
    cdef NoResult _trim(self) except NoResult.FAILED
    cdef bint _waits_here(self, bytes client_id) except -1
    cdef NoResult _force_offline_now(self, Message message) except NoResult.FAILED
    cdef bint _was_answered(self, Message message, bytes receiver) except -1
    cdef bint _waits_for(self, Message message, bytes receiver) except -1
    cdef NoResult _give_up(self, Message message, bint by_all) except NoResult.FAILED
    cdef bint _is_owed(self, Message message, bytes receiver) except -1
    cdef void _count(self, Message message) noexcept
    cdef NoResult _route(self, Message message) except NoResult.FAILED
    cdef NoResult _to_receivers(self, Message message, list receivers) except NoResult.FAILED
    cdef bint _is_due(self, Client client, Message message) noexcept
    cdef NoResult _spread(self, dict clients, Message message) except NoResult.FAILED
    cdef NoResult _replay(self, Client client) except NoResult.FAILED
    cdef NoResult _replay_one(self, Client client, Message message) except NoResult.FAILED
    cdef NoResult _deliver_direct(self, Client client, Message message) except NoResult.FAILED
    cdef bint _is_only_here(self, Client client) except -1
    cdef NoResult _deliver(self, Client client, Message message) except NoResult.FAILED
    cdef NoResult _deliver_and_log(self, Client client, Message message) except NoResult.FAILED
    cdef NoResult _receipt(self, Message message, bytes receiver, bint delivered) except NoResult.FAILED


@cython.final
cdef class RespStream:
    cdef:
        object _reader                # hiredis.Reader
        object _push_type             # RESP3: hiredis.PushNotification; RESP2: list
        object _waiting               # deque of callables, or Clients whose HKEYS is under way, in order of sending
        object _on_push
        object _on_message            # (payload) for what is published to `_channel`
        object _rest                  # goes on with what the last message asks for; None where nothing is left
        object _on_invalidate         # (list of keys, or None for all)
        object _on_error              # (reply that is an error), before whoever waits for it
        double _slice                 # seconds
        object _queue                 # deque of bytes that `_reader` has not been fed with: they are behind all else
        Py_ssize_t _fed               # bytes of the first of these that it has been fed with nevertheless
        object _kept                  # deque of items that dropping has left, before all of `_reader`'s; or None
        public Py_ssize_t queue_limit
        object _on_dropped            # (number of messages)
        tuple _vital
        tuple _stored
        readonly Py_ssize_t queued    # bytes of memory of `_queue`
        public int hurry              # slices are so many times shorter, as more comes than is handled; 1: as usual
        readonly bint read_ended      # the last `receive` has handed on all of a read at least

    cdef _feed(self)
    cdef _shed(self)
    cdef _next(self, gets)
    cdef bint _is_message(self, item) except -1
    cdef bint _hand_on(self, item) except -1
    cdef bint _go_on(self) except -1


@cython.final
cdef class Backlog:
    cdef:
        dict _holders                 # address of a frame -> the one queue that it is in, or the number of queues
        Py_ssize_t size               # bytes of memory

    cdef NoResult hold(self, Queue queue, bytes frame) except NoResult.FAILED
    cdef NoResult release(self, bytes frame) except NoResult.FAILED


@cython.final
cdef class Queue:
    cdef:
        Backlog _backlog
        object _frames                # deque
        Py_ssize_t size               # bytes that wait
        Py_ssize_t own                # bytes of memory of frames that are in no other queue, and never were
        Py_ssize_t sent               # bytes of the first frame that the kernel has
        bint answer                   # the first is not a frame but the answer to the request

    cdef ssize_t send(self, int fd) except? -1


@cython.final
cdef class Log:
    cdef:
        Logs logs
        Queue queue                   # the frames of the messages `forgotten` + 1 to `last`
        readonly long long last       # number of the newest message: so many were delivered to the client so far
        readonly long long forgotten  # number of the newest that is not here any more
        public int away               # connections that are lost and may be resumed, without those that have been
        readonly bint ended           # takes nothing more
        long long age                 # when it was looked at last, in `Logs.age`
        long long oldest              # age of the oldest message that is here, by which `Logs` finds it; NO_AGE: none
        long long[AGES] before        # age % AGES -> `last` when that age began, for the last AGES ages

    cdef Py_ssize_t cost(self) noexcept
    cdef NoResult append(self, bytes frame) except NoResult.FAILED
    cdef NoResult forget(self, long long number) except NoResult.FAILED
    cdef NoResult grow_older(self) except NoResult.FAILED
    cdef NoResult forget_oldest(self) except NoResult.FAILED


@cython.final
cdef class Logs:
    cdef:
        Backlog backlog               # the memory of all frames that are in some log
        Py_ssize_t _others            # bytes that count for the limit besides the frames
        readonly Py_ssize_t log_limit
        readonly Py_ssize_t limit
        public long long age          # of the node, from AGES on: messages are kept for AGES - 1 of these, at least
        object _turns                 # deque of Log: all that have not ended, and some that have
        dict _by_oldest               # age -> OrderedDict of Log: all that have something, by their `oldest`
        long long _oldest             # of these ages, the one that was the oldest at the last relief

    cdef Py_ssize_t memory_now(self) noexcept
    cdef NoResult enter(self, Log log) except NoResult.FAILED
    cdef NoResult leave(self, Log log) except NoResult.FAILED
    cdef NoResult relieve(self) except NoResult.FAILED


@cython.final
cdef class Socket:
    cdef:
        Poller poller
        object protocol               # an asyncio.Protocol; None once it was told that the connection is lost
        Connection connection         # that sends over it, from its 101 on: told when what is queued gets less
        Queue queue                   # what the kernel did not take yet; None where it took everything
        readonly int fd
        uint32_t events               # what epoll watches for
        bint closing                  # nothing more may be written
        bint ending                   # our side is to be ended behind the queue
        bint lost                     # out of the epoll; connection_lost follows or has been called

    cdef NoResult queue_frames(self, bytes first, list more, Py_ssize_t sent) except NoResult.FAILED
    cdef NoResult drop(self) except NoResult.FAILED
    cdef NoResult start(self, Queue queue) except NoResult.FAILED
    cdef NoResult watch(self, uint32_t events) except NoResult.FAILED
    cdef NoResult lose(self, int error) except NoResult.FAILED
    cdef NoResult writable(self) except NoResult.FAILED
    cdef _finish(self, int error)
    cdef NoResult readable(self, char* buffer) except NoResult.FAILED


@cython.final
cdef class Poller:
    cdef:
        Backlog backlog
        int fd                        # the epoll; -1 when closed
        object _loop
        list _sockets                 # descriptor -> Socket or None; each until its descriptor is closed
        object _ends                  # deque of (Socket, errno): lost, and their protocols have not heard of it yet
        bint _ending                  # they are told soon
        char* _buffer

    cdef NoResult end(self, Socket sock, int error) except NoResult.FAILED
    cdef NoResult forget(self, Socket sock) except NoResult.FAILED
    cdef int _look(self) except -1
