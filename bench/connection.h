/* One connection of the load generator: the answer to its upgrade request, and then frame after frame. */

#ifndef BENCH_CONNECTION_H
#define BENCH_CONNECTION_H

#include <sys/socket.h>

#include "verify.h"

#define LARGEST_FRAME (16u << 20)
#define CODES 5000

enum state { CONNECTING, OPEN, CLOSING, ENDED };

struct connection {
    int fd;
    enum state state;
    uint32_t number, rest_size;
    uint64_t client, began;
    struct streams streams;
    char *rest; /* the beginning of a frame or head whose end has not come */
};

static uint32_t living, opening;
static uint32_t refused[1000], unreachable, closes[CODES];
static size_t payload_size;
static char envelope_head[64], envelope_tail[64]; /* what other servers put around a message; empty: nothing */
static char input[1 << 18];
static size_t sip; /* bytes of one read at most; 0: as many as there is room for */
static uint64_t mask_state = 88172645463325252u;

/* ---- frames that we send: clients mask (RFC 6455, 5.3) */

static void send_control(struct connection *c, unsigned char opcode, const char *payload, size_t size) {
    unsigned char frame[6 + 125] = {0x80 | opcode, 0x80 | (unsigned char)size};
    uint64_t mask = random_bits(&mask_state);
    memcpy(frame + 2, &mask, 4);
    for (size_t i = 0; i < size; i++) frame[6 + i] = (unsigned char)payload[i] ^ frame[2 + i % 4];
    if (send(c->fd, frame, 6 + size, MSG_NOSIGNAL) < 0 && errno != EPIPE && errno != ECONNRESET)
        fail("a pong or Close of %zu bytes cannot be sent: %s", size, strerror(errno));
}

static void end(struct connection *c) {
    if (c->state == OPEN) tally.cut++;
    if (c->state == CONNECTING) opening--;
    else living--;
    close(c->fd);
    free(c->rest);
    free(c->streams.all);
    c->streams = (struct streams){0};
    c->rest = NULL;
    c->rest_size = 0;
    c->state = ENDED;
}

/* ---- frames that we get */

static void take_close(struct connection *c, const char *payload, size_t size) {
    uint32_t code = size >= 2 ? (uint32_t)(unsigned char)payload[0] << 8 | (unsigned char)payload[1] : 1005;
    closes[code < CODES ? code : 0]++;
    if (c->state == OPEN) send_control(c, 8, payload, size >= 2 ? 2 : 0);
    c->state = CLOSING;
}

/* Check a text frame, without its envelope if there is one. Such servers greet, too: what has no head is no message. */
static void take_text(struct connection *c, const char *data, size_t size, uint64_t now) {
    size_t head = strlen(envelope_head), tail = strlen(envelope_tail);
    if (head) {
        const char *at = memmem(data, size, envelope_head, head);
        if (at == NULL) return;
        size -= (size_t)(at + head - data);
        data = at + head;
        /* What does not end as it shall keeps its tail, and so is no payload. */
        if (size > tail && memcmp(data + size - tail, envelope_tail, tail) == 0) size -= tail;
    }
    verify(&c->streams, c->client, data, size, payload_size, now);
}

/* Take one frame; return its length, 0 where its end is missing, or -1 where nothing behind it can be understood. */
static ssize_t take_frame(struct connection *c, const char *data, size_t size, uint64_t now) {
    const unsigned char *head = (const unsigned char *)data;
    if (size < 2) return 0;
    unsigned char opcode = head[0] & 15;
    uint64_t length = head[1] & 127;
    size_t extra = length == 126 ? 2 : length == 127 ? 8 : 0, start = 2 + extra;
    if (size < start) return 0;
    if (extra) {
        length = 0;
        for (size_t i = 0; i < extra; i++) length = length << 8 | head[2 + i];
    }
    /* Masked frames, frames in pieces and reserved bits are nothing that a node sends; nor are needlessly long heads. */
    bool good = (head[0] & 0xF0) == 0x80 && !(head[1] & 0x80) && (opcode == 1 || opcode >= 8) && opcode <= 10;
    good = good && !(opcode >= 8 && length > 125) && !(extra == 2 && length < 126) && !(extra == 8 && length < 65536);
    if (head[1] & 0x80) start += 4;
    if (length > LARGEST_FRAME) {
        tally.bad_frames++;
        return -1;
    }
    if (size < start + length) return 0;
    if (!good) tally.bad_frames++;
    else if (opcode == 1) take_text(c, data + start, length, now);
    else if (opcode == 8) take_close(c, data + start, length);
    else if (opcode == 9) {
        tally.pings++;
        if (c->state == OPEN) send_control(c, 10, data + start, length);
    }
    return (ssize_t)(start + length);
}

/* ---- the handshake */

static void make_key(struct connection *c, char *key) { /* the same each time: it is needed again for the check */
    uint64_t seed[2] = {c->began, c->client + c->number};
    unsigned char bytes[16];
    memcpy(bytes, seed, sizeof bytes);
    base64(bytes, sizeof bytes, key);
}

static bool has_header(const char *head, const char *name, const char *value) {
    size_t size = strlen(name);
    for (const char *line = strstr(head, "\r\n"); line != NULL && line[2]; line = strstr(line + 2, "\r\n")) {
        if (strncasecmp(line + 2, name, size) != 0 || line[2 + size] != ':') continue;
        const char *at = line + 3 + size + strspn(line + 3 + size, " ");
        return strncasecmp(at, value, strlen(value)) == 0 && strncmp(at + strlen(value), "\r\n", 2) == 0;
    }
    return false;
}

/* Take the answer to the upgrade request; return its length, 0 where its end is missing, or -1. */
static ssize_t take_head(struct connection *c, char *data, size_t size) {
    char *stop = memmem(data, size, "\r\n\r\n", 4);
    if (stop == NULL) return size < 8192 ? 0 : -1;
    char key[25], accept[ACCEPT_SIZE + 1];
    make_key(c, key);
    accept_key(key, accept);
    stop[2] = 0; /* the head as a string; its last line keeps its end */
    int status = strncmp(data, "HTTP/1.1 ", 9) == 0 ? atoi(data + 9) : 0;
    bool good = status == 101 && has_header(data, "upgrade", "websocket") &&
                has_header(data, "connection", "upgrade") && has_header(data, "sec-websocket-accept", accept);
    if (!good) {
        refused[status != 101 && status > 0 && status < 1000 ? status : 0]++;
        return -1;
    }
    c->state = OPEN;
    opening--;
    living++;
    record(now_ns() - c->began);
    return stop + 4 - data;
}

static void receive(struct connection *c) {
    size_t size = c->rest_size;
    char *big = size > sizeof input / 2 ? must(malloc(size + sizeof input)) : NULL, *into = big ? big : input;
    if (size) memcpy(into, c->rest, size);
    size_t room = big ? sizeof input : sizeof input - size;
    ssize_t got = recv(c->fd, into + size, sip && sip < room ? sip : room, 0);
    if (got <= 0) {
        if (got == 0 || (errno != EAGAIN && errno != EINTR)) {
            unreachable += c->state == CONNECTING;
            end(c);
        }
        free(big);
        return;
    }
    size += (size_t)got;
    size_t at = 0;
    uint64_t now = now_ns();
    ssize_t taken = 1;
    while (at < size && (taken = c->state == CONNECTING ? take_head(c, into + at, size - at)
                                                        : take_frame(c, into + at, size - at, now)) > 0)
        at += (size_t)taken;
    if (taken < 0) end(c);
    else {
        char *rest = NULL;
        if (at < size) memcpy(rest = must(malloc(size - at)), into + at, size - at);
        free(c->rest);
        c->rest = rest;
        c->rest_size = (uint32_t)(size - at);
    }
    free(big);
}

#endif
