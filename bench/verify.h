/* What arrives is checked here: the form of a payload, its place in its stream, and how long it took.

   A payload is JSON text: "STREAM SEQUENCE TIME TO xxx…", four decimal numbers and as many x as its size asks for.
   Sequence numbers begin at 1 in each stream of each connection; TIME is in ns of CLOCK_MONOTONIC; TO is the client
   that alone may get it, or 0. The receipt for a message tells its sender of it, and holds it; receipts are a stream of
   their own. */

#ifndef BENCH_VERIFY_H
#define BENCH_VERIFY_H

#include <stdbool.h>

#include "common.h"

struct stream {
    uint32_t id;
    uint32_t next; /* the sequence number that comes next if nothing goes wrong */
    uint64_t seen; /* bit N: the number next - 1 - N has come. Only so far back can late ones be told from doubles */
};

struct streams {
    struct stream *all;
    uint32_t count, room;
};

static struct {
    uint64_t frames, bytes, lost, duplicates, reordered, misdelivered, bad_frames, bad_payloads, pings, cut,
        receipts;
    uint64_t last; /* when the last message came */
} tally;

/* ---- latencies: a log-linear histogram, 64 buckets for each power of two, so within 1.6 % of the truth */

#define SUB_BITS 6
#define BUCKETS (64 << SUB_BITS)

static uint64_t histogram[BUCKETS], slowest;

static inline void record(uint64_t value) {
    uint64_t bucket = value;
    if (value >= 1u << SUB_BITS) {
        int shift = 63 - __builtin_clzll(value) - SUB_BITS;
        bucket = ((uint64_t)(shift + 1) << SUB_BITS) + (value >> shift) - (1u << SUB_BITS);
    }
    histogram[bucket]++;
    if (value > slowest) slowest = value;
}

static inline void print_histogram(void) {
    const char *comma = "";
    printf("\"slowest_ns\":%llu,\"histogram\":[", (unsigned long long)slowest);
    for (int i = 0; i < BUCKETS; i++)
        if (histogram[i]) {
            printf("%s[%d,%llu]", comma, i, (unsigned long long)histogram[i]);
            comma = ",";
        }
    putchar(']');
}

static inline void forget_all(void) {
    memset(&tally, 0, sizeof tally);
    memset(histogram, 0, sizeof histogram);
    slowest = 0;
}

/* ---- streams */

static inline struct stream *find_stream(struct streams *streams, uint32_t id) {
    for (uint32_t i = 0; i < streams->count; i++)
        if (streams->all[i].id == id) return &streams->all[i];
    return NULL;
}

static inline struct stream *get_stream(struct streams *streams, uint32_t id) {
    struct stream *stream = find_stream(streams, id);
    if (stream != NULL) return stream;
    if (streams->count == streams->room) {
        streams->room = streams->room ? 2 * streams->room : 1;
        streams->all = must(realloc(streams->all, streams->room * sizeof *streams->all));
    }
    stream = &streams->all[streams->count++];
    *stream = (struct stream){.id = id, .next = 1, .seen = 0};
    return stream;
}

/* A gap counts as lost at once; what comes into a gap later was reordered, not lost. */
static inline void place(struct stream *stream, uint32_t sequence) {
    if (sequence >= stream->next) {
        uint32_t step = sequence - stream->next + 1;
        tally.lost += step - 1;
        stream->seen = step < 64 ? stream->seen << step | 1 : 1;
        stream->next = sequence + 1;
        return;
    }
    uint32_t back = stream->next - 1 - sequence;
    if (sequence == 0 || back > 63 || stream->seen >> back & 1) {
        tally.duplicates++;
        return;
    }
    stream->seen |= (uint64_t)1 << back;
    tally.reordered++;
    tally.lost--;
}

/* ---- payloads */

/* Read a decimal number and the space behind it; NULL where there is none, or where it does not fit. */
static inline const char *read_number(const char *at, const char *end, uint64_t *value) {
    const char *start = at;
    for (*value = 0; at < end && *at >= '0' && *at <= '9'; at++) *value = *value * 10 + (uint64_t)(*at - '0');
    if (at == start || at - start > 19 || at == end || *at != ' ') return NULL;
    return at + 1;
}

static inline bool all_x(const char *at, size_t size) { /* each byte is as the one before it, and the first an x */
    return size == 0 || (*at == 'x' && memcmp(at, at + 1, size - 1) == 0);
}

#define KEPT 472 /* the longest payload that is kept */

struct message {
    uint64_t id, sequence, sent, to;
    size_t length;
    char payload[KEPT];
};

/* Read a payload into its numbers, and tell whether its form is right. */
static inline bool read_payload(const char *payload, size_t length, struct message *message) {
    const char *end = payload + length - 1, *at = payload + 1;
    return length > 2 && *payload == '"' && *end == '"' && (at = read_number(at, end, &message->id)) != NULL &&
           (at = read_number(at, end, &message->sequence)) != NULL &&
           (at = read_number(at, end, &message->sent)) != NULL && (at = read_number(at, end, &message->to)) != NULL &&
           message->id <= UINT32_MAX && message->sequence <= UINT32_MAX && all_x(at, (size_t)(end - at));
}

/* Most messages go to many. One that equals, byte for byte, one that was read a moment ago needs no second reading:
   the generator shall not be what is slow. All are kept by their sequence number; the next of a burst is tried first,
   then the one that came last. */
static inline const struct message *look_up(const char *payload, size_t length) {
    static struct message known[256], other;
    static unsigned cursor;
    for (unsigned ahead = 2; ahead-- > 0;) {
        const struct message *message = &known[(cursor + ahead) & 255];
        if (length && message->length == length && memcmp(message->payload, payload, length) == 0) {
            cursor += ahead;
            return message;
        }
    }
    if (!read_payload(payload, length, &other)) return NULL;
    if (other.to != 0 || length > KEPT) return &other;
    cursor = (unsigned)other.sequence;
    struct message *message = &known[cursor & 255];
    *message = (struct message){other.id, other.sequence, other.sent, other.to, length, {0}};
    memcpy(message->payload, payload, length);
    return message;
}

#define RECEIPT_HEAD "{\"content\":\"\\\"" /* what follows is the message without its quotes */
#define RECEIPT_TAIL "\\\"\",\"receipt\":\"发送成功\"}"
#define RECEIPT_STREAM 0x80000000u

/* Check the receipt for a message that arrived; false where it is none. */
static inline bool verify_receipt(struct streams *streams, const char *payload, size_t length, size_t size) {
    static char inner[1 << 17];
    const size_t head = sizeof RECEIPT_HEAD - 1, tail = sizeof RECEIPT_TAIL - 1;
    struct message message;
    if (length < head + tail || memcmp(payload, RECEIPT_HEAD, head) != 0 ||
        memcmp(payload + length - tail, RECEIPT_TAIL, tail) != 0)
        return false;
    size_t rest = length - head - tail;
    if (rest + 2 > sizeof inner || (size != 0 && rest + 2 != size)) return false;
    inner[0] = inner[rest + 1] = '"';
    memcpy(inner + 1, payload + head, rest);
    if (!read_payload(inner, rest + 2, &message)) return false;
    place(get_stream(streams, (uint32_t)message.id | RECEIPT_STREAM), (uint32_t)message.sequence);
    tally.receipts++;
    return true;
}

/* Check one message of a connection. size: what each payload shall have, or 0 for any; now: when it was read. */
static inline void verify(struct streams *streams, uint64_t client, const char *payload, size_t length, size_t size,
                          uint64_t now) {
    if (length && *payload == '{') {
        if (!verify_receipt(streams, payload, length, size)) tally.bad_payloads++;
        return;
    }
    const struct message *message = size == 0 || length == size ? look_up(payload, length) : NULL;
    if (message == NULL || message->sent > now) {
        tally.bad_payloads++;
        return;
    }
    if (message->to != 0 && message->to != client) {
        tally.misdelivered++;
        return;
    }
    place(get_stream(streams, (uint32_t)message->id), (uint32_t)message->sequence);
    record(now - message->sent);
    tally.frames++;
    tally.bytes += length;
    tally.last = now;
}

#endif
