# Stage 2: one payload becomes one Message. What our helper and FreeIM's write is read here, byte by byte, without
# building objects that nobody keeps; anything else returns None and is left to the tolerant decoder in Python.


cdef bytes _CHAN_HEAD = b"__FreeIM__(ChanMessage)"
cdef bytes _ITEM1 = b'{"Item1":'
cdef bytes _ITEM2 = b',"Item2":'
cdef bytes _ITEM3 = b',"Item3":'
cdef bytes _ITEM4 = b',"Item4":'


cdef struct Cursor:
    const char* at
    const char* end


cdef inline bint _skip(Cursor* c, bytes literal) noexcept:
    cdef Py_ssize_t size = PyBytes_GET_SIZE(literal)
    if c.end - c.at < size or memcmp(c.at, PyBytes_AS_STRING(literal), size) != 0:
        return False
    c.at += size
    return True


cdef inline bint _is_hex(char ch) noexcept:
    return c'0' <= ch <= c'9' or c'a' <= ch <= c'f'


cdef bytes _read_int(Cursor* c):
    """Read an int64 of up to 18 digits in canonical form; the rest (longer, "-0", leading zeros) is not ours."""
    cdef const char* start = c.at
    cdef const char* at = c.at
    cdef Py_ssize_t digits
    if at < c.end and at[0] == c'-':
        at += 1
    cdef const char* first = at
    while at < c.end and c'0' <= at[0] <= c'9':
        at += 1
    digits = at - first
    if digits == 0 or digits > 18:
        return None
    if first[0] == c'0' and (digits > 1 or first != start):
        return None
    c.at = at
    return PyBytes_FromStringAndSize(start, at - start)


cdef bytes _read_guid(Cursor* c):
    """Read a quoted GUID in lower case with hyphens."""
    cdef const char* at = c.at
    cdef int i
    if c.end - at < 38 or at[0] != c'"' or at[37] != c'"':
        return None
    at += 1
    for i in range(36):
        if i == 8 or i == 13 or i == 18 or i == 23:
            if at[i] != c'-':
                return None
        elif not _is_hex(at[i]):
            return None
    c.at += 38
    return PyBytes_FromStringAndSize(at, 36)


cdef inline bytes _read_id(Cursor* c, bint guid):
    return _read_guid(c) if guid else _read_int(c)


cdef inline int _hex_value(char ch) noexcept:
    if c'0' <= ch <= c'9':
        return ch - c'0'
    if c'a' <= ch <= c'f':
        return ch - c'a' + 10
    if c'A' <= ch <= c'F':
        return ch - c'A' + 10
    return -1


cdef int _read_unicode(const char* at, const char* end) noexcept:
    """Return the code unit that four hex digits at `at` spell, -1 where they do not."""
    cdef int value = 0, digit, i
    if end - at < 4:
        return -1
    for i in range(4):
        digit = _hex_value(at[i])
        if digit < 0:
            return -1
        value = value * 16 + digit
    return value


cdef inline char* _write_utf8(char* out, int point) noexcept:
    if point < 0x80:
        out[0] = <char>point
        return out + 1
    if point < 0x800:
        out[0] = <char>(0xC0 | (point >> 6))
        out[1] = <char>(0x80 | (point & 0x3F))
        return out + 2
    if point < 0x10000:
        out[0] = <char>(0xE0 | (point >> 12))
        out[1] = <char>(0x80 | ((point >> 6) & 0x3F))
        out[2] = <char>(0x80 | (point & 0x3F))
        return out + 3
    out[0] = <char>(0xF0 | (point >> 18))
    out[1] = <char>(0x80 | ((point >> 12) & 0x3F))
    out[2] = <char>(0x80 | ((point >> 6) & 0x3F))
    out[3] = <char>(0x80 | (point & 0x3F))
    return out + 4


cdef inline uint64_t _bytes_below(uint64_t block, uint64_t limit) noexcept:
    """Return 0 exactly if none of the eight bytes of a block is less than `limit`, which is 128 at most.

    Source: "Bit Twiddling Hacks", Sean Eron Anderson, "Determine if a word has a byte less than n".
    """
    return (block - limit * 0x0101010101010101ULL) & ~block & 0x8080808080808080ULL


cdef inline const char* _plain_end(const char* at, const char* end) noexcept:
    """Return where a run of characters ends that mean themselves in a JSON string; eight at a time while it can be."""
    cdef uint64_t block
    while end - at >= 8:
        memcpy(&block, at, 8)
        # The quotation mark and the backslash become zero by the exclusive or.
        if (_bytes_below(block, 0x20) | _bytes_below(block ^ 0x2222222222222222ULL, 1)
                | _bytes_below(block ^ 0x5C5C5C5C5C5C5C5CULL, 1)):
            break
        at += 8
    while at < end and at[0] != c'"' and at[0] != c'\\' and <uint8_t>at[0] >= 0x20:
        at += 1
    return at


cdef Py_ssize_t _unescape(Cursor* c, char* out) noexcept:
    """Read a JSON string into `out`, which holds at least as many bytes as are left; return its size, -1 if malformed.

    A half of a surrogate pair on its own becomes U+FFFD, as in .NET: a text frame must be valid UTF-8.
    """
    cdef:
        const char* at = c.at
        const char* end = c.end
        const char* run
        char* start = out
        char ch
        int point, low
    if at >= end or at[0] != c'"':
        return -1
    at += 1
    while True:
        run = at
        at = _plain_end(at, end)
        if at > run:
            memcpy(out, run, at - run)
            out += at - run
        if at >= end or <uint8_t>at[0] < 0x20:
            return -1
        if at[0] == c'"':
            c.at = at + 1
            return out - start
        if end - at < 2:
            return -1
        ch = at[1]
        at += 2
        if ch == c'"' or ch == c'\\' or ch == c'/':
            out[0] = ch
            out += 1
        elif ch == c'n':
            out[0] = 10
            out += 1
        elif ch == c't':
            out[0] = 9
            out += 1
        elif ch == c'r':
            out[0] = 13
            out += 1
        elif ch == c'b':
            out[0] = 8
            out += 1
        elif ch == c'f':
            out[0] = 12
            out += 1
        elif ch == c'u':
            point = _read_unicode(at, end)
            if point < 0:
                return -1
            at += 4
            if 0xD800 <= point < 0xDC00:
                low = -1
                if end - at >= 6 and at[0] == c'\\' and at[1] == c'u':
                    low = _read_unicode(at + 2, end)
                if 0xDC00 <= low < 0xE000:
                    point = 0x10000 + ((point - 0xD800) << 10) + (low - 0xDC00)
                    at += 6
                else:
                    point = 0xFFFD
            elif 0xDC00 <= point < 0xE000:
                point = 0xFFFD
            out = _write_utf8(out, point)
        else:
            return -1


cdef bint _is_utf8(const char* data, Py_ssize_t size) except -1:
    """Whether bytes are valid UTF-8. ASCII, the common case, is looked at eight bytes at a time."""
    cdef:
        Py_ssize_t i = 0
        uint64_t block
    while i + 8 <= size:
        memcpy(&block, data + i, 8)
        if block & 0x8080808080808080ULL:
            break
        i += 8
    else:
        while i < size and <uint8_t>data[i] < 0x80:
            i += 1
        if i == size:
            return True
    try:
        (<bytes>PyBytes_FromStringAndSize(data + i, size - i)).decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


cdef inline Py_ssize_t _header_size(Py_ssize_t size) noexcept:
    return 2 if size < 126 else 4 if size < 65536 else 10


cdef bytes _frame(uint8_t opcode, const char* payload, Py_ssize_t size):
    """Return one unmasked, final WebSocket frame (RFC 6455, section 5.2)."""
    cdef:
        Py_ssize_t header = _header_size(size)
        bytes frame = PyBytes_FromStringAndSize(NULL, header + size)
        uint8_t* out = <uint8_t*>PyBytes_AS_STRING(frame)
        int i
    out[0] = 0x80 | opcode
    if header == 2:
        out[1] = <uint8_t>size
    elif header == 4:
        out[1] = 126
        out[2] = <uint8_t>(size >> 8)
        out[3] = <uint8_t>(size & 0xFF)
    else:
        out[1] = 127
        for i in range(8):
            out[2 + i] = <uint8_t>((<uint64_t>size >> (56 - 8 * i)) & 0xFF)
    memcpy(out + header, payload, size)
    return frame


def control_frame(int opcode, bytes payload not None):
    """Return a control frame of a server (close 8, ping 9, pong 10), or a text frame (1)."""
    return _frame(<uint8_t>opcode, PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload))


cdef bint _read_item3(Cursor* c, Message message) except -1:
    """Read Item3, a JSON string that becomes the text frame, or null; False where it is neither."""
    cdef:
        char* out
        Py_ssize_t size
    if c.end - c.at >= 4 and memcmp(c.at, b"null", 4) == 0:
        c.at += 4
        return True
    # An escape never grows: \u00e9 is six bytes for two.
    out = <char*>malloc(c.end - c.at + 1)
    if out == NULL:
        raise MemoryError()
    try:
        size = _unescape(c, out)
        if size < 0 or not _is_utf8(out, size):
            return False
        message.frame = _frame(1, out, size)
        message.header = _header_size(size)
    finally:
        free(out)
    return True


cdef Message _decode_direct(Cursor* c, bint guid):
    cdef:
        Message message = Message.__new__(Message)
        bytes one
    message.kind = DIRECT
    message.receivers = []
    if not _skip(c, _ITEM1):
        return None
    message.sender = _read_id(c, guid)
    if message.sender is None or not _skip(c, _ITEM2) or c.end - c.at < 2 or c.at[0] != c'[':
        return None
    c.at += 1
    if c.at[0] == c']':
        c.at += 1
    else:
        while True:
            one = _read_id(c, guid)
            if one is None or c.at >= c.end:
                return None
            message.receivers.append(one)
            if c.at[0] == c',':
                c.at += 1
            elif c.at[0] == c']':
                c.at += 1
                break
            else:
                return None
    if not _skip(c, _ITEM3) or not _read_item3(c, message) or not _skip(c, _ITEM4):
        return None
    if _skip(c, b"true}"):
        message.receipt = True
    elif not _skip(c, b"false}"):
        return None
    return message if c.at == c.end else None


cdef Message _decode_channel(Cursor* c, bint guid):
    cdef:
        Message message = Message.__new__(Message)
        Py_ssize_t size
        bytes name
    if not _skip(c, _ITEM1):
        return None
    message.sender = _read_id(c, guid)
    if message.sender is None or not _skip(c, _ITEM2):
        return None
    if _skip(c, b"null"):
        message.kind = BROADCAST
    else:
        name = PyBytes_FromStringAndSize(NULL, c.end - c.at)
        size = _unescape(c, PyBytes_AS_STRING(name))
        if size < 0:
            return None
        name = name[:size]
        if not _is_utf8(PyBytes_AS_STRING(name), size):
            return None
        message.kind = CHANNEL if size else BROADCAST
        message.channel = name if size else None
    if not _skip(c, _ITEM3) or not _read_item3(c, message) or not _skip(c, b"}"):
        return None
    return message if c.at == c.end else None


def decode(bytes payload not None, bint guid=False):
    """Decode a payload in the exact form that FreeIM and this project's helper write.

    Args:
        payload: What was published on the node's channel.
        guid: Whether client ids are GUIDs.

    Returns:
        A `Message`, or None when the payload is of another form (see freeim/node/decode.py) or is no message.
    """
    return _decode(payload, guid)


cdef Message _decode(bytes payload, bint guid):
    cdef Cursor c
    c.at = PyBytes_AS_STRING(payload)
    c.end = c.at + PyBytes_GET_SIZE(payload)
    if c.at < c.end and c.at[0] == c'{':
        return _decode_direct(&c, guid)
    if _skip(&c, _CHAN_HEAD):
        return _decode_channel(&c, guid)
    return None


cdef class Message:
    """One decoded message; `freeim._core.decode` or the named constructors make it."""

    @staticmethod
    def direct(bytes sender not None, list receivers not None, text, bint receipt):
        """A message to clients; `text` is the frame's payload as bytes, or None."""
        cdef Message message = _message(DIRECT, sender, text)
        message.receivers = receivers
        message.receipt = receipt
        return message

    @staticmethod
    def channel_message(bytes sender not None, channel, text):
        """A message to a channel's members, or to everybody where `channel` is None or empty."""
        cdef Message message = _message(CHANNEL if channel else BROADCAST, sender, text)
        message.channel = channel or None
        return message

    @staticmethod
    def force_offline(bytes client_id not None):
        """An order to close all connections of a client."""
        cdef Message message = _message(FORCE_OFFLINE, b"", None)
        message.receivers = [client_id]
        return message

    @property
    def text(self):
        """The frame's payload (UTF-8 bytes), or None where Item3 was null."""
        return None if self.frame is None else self.frame[self.header:]

    @property
    def fields(self):
        """Everything that was decoded, as a tuple that compares."""
        return self.kind, self.sender, self.receivers, self.channel, self.text, self.receipt


cdef Message _message(Kind kind, bytes sender, text):
    cdef Message message = Message.__new__(Message)
    message.kind = kind
    message.sender = sender
    if text is not None:
        message.frame = _frame(1, PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text))
        message.header = _header_size(PyBytes_GET_SIZE(text))
    return message
