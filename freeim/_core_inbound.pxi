# What terminals send. A node asks them for nothing but pongs, so the frames that are usual are told apart here, and
# everything else is picows's business (see freeim/node/terminal.py).


def small_frame(bytes data not None):
    """Look at what came in one read from a terminal.

    Returns:
        The opcode, where it is exactly one frame as a well-behaved terminal sends it: whole, final, masked, at most 125
        bytes, and text (1), binary (2), close (8), ping (9) or pong (10). Else 0.
    """
    cdef:
        const uint8_t* at = <const uint8_t*>PyBytes_AS_STRING(data)
        Py_ssize_t size = PyBytes_GET_SIZE(data)
        int opcode
    if size < 6 or size > 131 or at[1] != 0x80 + size - 6 or at[0] & 0xF0 != 0x80:
        return 0
    opcode = at[0] & 0x0F
    return opcode if opcode == 1 or opcode == 2 or 8 <= opcode <= 10 else 0


def unmask(bytes data not None):
    """Return the payload of a frame that `small_frame` knows."""
    cdef:
        Py_ssize_t size = PyBytes_GET_SIZE(data) - 6
        Py_ssize_t i
        const char* at = PyBytes_AS_STRING(data)
        bytes payload
        char* out
    if size < 0:
        raise ValueError("this is no masked frame")
    payload = PyBytes_FromStringAndSize(NULL, size)  # not a copy to be changed: bytes of size 1 are shared by all
    out = PyBytes_AS_STRING(payload)
    for i in range(size):
        out[i] = at[6 + i] ^ at[2 + (i & 3)]
    return payload
