/* What the load generator and the yardstick share: the clock, commands by line, and the handshake's accept key. */

#ifndef BENCH_COMMON_H
#define BENCH_COMMON_H

#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define ACCEPT_SIZE 28 /* base64 of a SHA-1 */

static inline void fail(const char *format, ...) {
    va_list args;
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    exit(1);
}

static inline void *must(void *memory) {
    if (memory == NULL) fail("out of memory");
    return memory;
}

/* Python's time.monotonic_ns() reads the same clock: a time in a payload can be compared across processes. */
static inline uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* ---- sending at a steady rate */

#define GRAIN_NS 100000u /* senders wake up no more often: else waking up is what they spend a core on */

/* Sleep until a message is due that is one of many, STEP ns apart since START; where they are closer than a grain,
   until the end of the grain that it is in, with all others of that grain. */
static inline void sleep_until_due(uint64_t start, uint64_t due, double step) {
    if (step < GRAIN_NS) due = start + (due - start + GRAIN_NS - 1) / GRAIN_NS * GRAIN_NS;
    if (now_ns() >= due) return;
    struct timespec t = {.tv_sec = (time_t)(due / 1000000000u), .tv_nsec = (long)(due % 1000000000u)};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR) continue;
}

static inline double cpu_seconds(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

static inline uint64_t random_bits(uint64_t *state) { /* xorshift64 */
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static inline void reply(const char *format, ...) {
    va_list args;
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    putchar('\n');
    fflush(stdout);
}

/* ---- commands: lines on stdin. The buffer is ours, since epoll cannot see what stdio holds. */

static char line_buffer[65536];
static size_t line_start, line_end;

/* Return the next line if all of it is here, else NULL. */
static inline char *buffered_line(void) {
    char *from = line_buffer + line_start;
    char *newline = memchr(from, '\n', line_end - line_start);
    if (newline == NULL) return NULL;
    *newline = 0;
    line_start = (size_t)(newline - line_buffer) + 1;
    return from;
}

/* Read what stdin has, and wait for it if it has nothing. The end of stdin is the end of the program. */
static inline void read_commands(void) {
    memmove(line_buffer, line_buffer + line_start, line_end - line_start);
    line_end -= line_start;
    line_start = 0;
    if (line_end == sizeof line_buffer) fail("a command is too long");
    ssize_t got = read(STDIN_FILENO, line_buffer + line_end, sizeof line_buffer - line_end);
    if (got <= 0) exit(0);
    line_end += (size_t)got;
}

static inline char *next_line(void) {
    char *line;
    while ((line = buffered_line()) == NULL) read_commands();
    return line;
}

/* ---- the accept key of a WebSocket handshake (RFC 6455, 4.2.2): base64(SHA-1(key + GUID)) */

static inline uint32_t rotate(uint32_t value, int bits) { return value << bits | value >> (32 - bits); }

static inline void sha1_block(uint32_t state[5], const unsigned char *block) {
    uint32_t w[80], a = state[0], b = state[1], c = state[2], d = state[3], e = state[4];
    for (int i = 0; i < 16; i++)
        w[i] = (uint32_t)block[4 * i] << 24 | (uint32_t)block[4 * i + 1] << 16 | (uint32_t)block[4 * i + 2] << 8 |
               (uint32_t)block[4 * i + 3];
    for (int i = 16; i < 80; i++) w[i] = rotate(w[i - 3] ^ w[i - 8] ^ w[i - 14] ^ w[i - 16], 1);
    for (int i = 0; i < 80; i++) {
        uint32_t mix, constant;
        if (i < 20) mix = (b & c) | (~b & d), constant = 0x5A827999;
        else if (i < 40) mix = b ^ c ^ d, constant = 0x6ED9EBA1;
        else if (i < 60) mix = (b & c) | (b & d) | (c & d), constant = 0x8F1BBCDC;
        else mix = b ^ c ^ d, constant = 0xCA62C1D6;
        uint32_t next = rotate(a, 5) + mix + e + constant + w[i];
        e = d, d = c, c = rotate(b, 30), b = a, a = next;
    }
    state[0] += a, state[1] += b, state[2] += c, state[3] += d, state[4] += e;
}

static inline void base64(const unsigned char *data, size_t size, char *out) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (size_t i = 0; i < size; i += 3) {
        uint32_t group = (uint32_t)data[i] << 16 | (i + 1 < size ? (uint32_t)data[i + 1] << 8 : 0) |
                         (i + 2 < size ? (uint32_t)data[i + 2] : 0);
        *out++ = digits[group >> 18];
        *out++ = digits[group >> 12 & 63];
        *out++ = i + 1 < size ? digits[group >> 6 & 63] : '=';
        *out++ = i + 2 < size ? digits[group & 63] : '=';
    }
    *out = 0;
}

/* key: the 24 characters of a Sec-WebSocket-Key; accept: room for ACCEPT_SIZE + 1. */
static inline void accept_key(const char *key, char *accept) {
    unsigned char text[128] = {0}, digest[20];
    uint32_t state[5] = {0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476, 0xC3D2E1F0};
    memcpy(text, key, 24);
    memcpy(text + 24, "258EAFA5-E914-47DA-95CA-C5AB0DC85B11", 36);
    text[60] = 0x80; /* 60 bytes, the bit that ends them, and their length in bits: two blocks */
    text[126] = 480 >> 8;
    text[127] = 480 & 255;
    sha1_block(state, text);
    sha1_block(state, text + 64);
    for (int i = 0; i < 20; i++) digest[i] = (unsigned char)(state[i / 4] >> (24 - 8 * (i % 4)));
    base64(digest, sizeof digest, accept);
}

#endif
