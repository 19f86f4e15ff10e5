/* The paced publisher: sends direct messages through Redis at a steady rate, at times that do not wait for what is
   late. A sender in Python would be what is slow at most rates.

       publish unix PATH
       publish tcp HOST PORT

   It is steered by lines on stdin and answers each with a line of JSON:

   command WORDS                             send one command, of so many words, a line each, that Redis answers with +
   nodes COUNT                               COUNT lines follow: the Redis channel of each node, in the nodes' order
   paced RATE SECONDS FIRST COUNT STREAM SEED SIZE
                                             RATE times a second a message of SIZE bytes to one of the clients FIRST to
                                             FIRST + COUNT - 1, at random; answered when Redis has answered all

   Payloads are those of verify.h; the time in each is the one at which it was due. The histogram of the answer is of
   how late messages were written. */

#include <poll.h>

#include "dial.h"
#include "verify.h"

#define NODES 64
#define LARGEST 65000
#define WAIT_MS 30000 /* for Redis to take or to answer anything */

static int redis;
static char *channels[NODES];
static unsigned node_count;
static char out[1 << 18], in[1 << 16], line[256];
static size_t out_size, line_size;
static uint64_t answered, unheard;

/* ---- Redis */

/* Read what Redis has answered, without waiting. */
static void read_answers(void) {
    for (ssize_t got; (got = recv(redis, in, sizeof in, MSG_DONTWAIT)) != 0;) {
        if (got < 0) {
            if (errno == EAGAIN) return;
            fail("Redis: %s", strerror(errno));
        }
        for (ssize_t i = 0; i < got; i++) {
            if (in[i] != '\n') {
                if (line_size < sizeof line - 1) line[line_size++] = in[i];
                continue;
            }
            line[line_size] = 0;
            if (line[0] == '-') fail("Redis: %s", line + 1);
            if (line[0] == ':' && line[1] == '0') unheard++;
            answered++;
            line_size = 0;
        }
    }
    fail("Redis closed the connection");
}

static void wait_for(short events) {
    struct pollfd state = {.fd = redis, .events = events};
    if (poll(&state, 1, WAIT_MS) == 0) fail("Redis does not answer");
    if (state.revents & (POLLIN | POLLHUP)) read_answers();
}

static void flush_out(void) {
    for (size_t at = 0; at < out_size;) {
        ssize_t sent = send(redis, out + at, out_size - at, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent >= 0) at += (size_t)sent;
        else if (errno == EAGAIN) wait_for(POLLIN | POLLOUT);
        else fail("Redis: %s", strerror(errno));
    }
    out_size = 0;
}

static void command(unsigned words) {
    uint64_t before = answered;
    out_size = (size_t)sprintf(out, "*%u\r\n", words);
    while (words--) {
        const char *word = next_line();
        if (strlen(word) > LARGEST) fail("a word of %zu bytes is too long", strlen(word));
        if (out_size + strlen(word) + 32 > sizeof out) flush_out();
        out_size += (size_t)sprintf(out + out_size, "$%zu\r\n%s\r\n", strlen(word), word);
    }
    flush_out();
    while (answered == before) wait_for(POLLIN);
    reply("{}");
}

/* ---- messages */

static void append(unsigned stream, unsigned sequence, uint64_t due, unsigned long long client, size_t size) {
    char head[128], start[128];
    int head_size = snprintf(head, sizeof head, "%u %u %llu %llu ", stream, sequence, (unsigned long long)due, client);
    if ((size_t)head_size + 2 > size) fail("messages of %zu bytes are too small", size);
    int start_size = snprintf(start, sizeof start, "{\"Item1\":0,\"Item2\":[%llu],\"Item3\":\"\\\"", client);
    static const char stop[] = "\\\"\",\"Item4\":false}";
    const char *channel = channels[client % node_count];
    size_t rest = size - 2 - (size_t)head_size, length = (size_t)start_size + size - 2 + sizeof stop - 1;
    char *at = out + out_size;
    at += sprintf(at, "*3\r\n$7\r\nPUBLISH\r\n$%zu\r\n%s\r\n$%zu\r\n%s%s", strlen(channel), channel, length, start, head);
    memset(at, 'x', rest);
    at = mempcpy(at + rest, stop, sizeof stop - 1);
    at = mempcpy(at, "\r\n", 2);
    out_size = (size_t)(at - out);
}

static void paced(double rate, double seconds, unsigned long long first, unsigned count, unsigned stream, uint64_t seed,
                  size_t size) {
    if (!node_count || !count || size > LARGEST) fail("no nodes, no clients, or too large");
    uint32_t *sequences = must(calloc(count, sizeof *sequences));
    uint64_t total = (uint64_t)(rate * seconds);
    double before = cpu_seconds(), step = 1e9 / rate;
    forget_all();
    answered = unheard = 0;
    uint64_t start = now_ns(), written = start;
    for (uint64_t i = 0; i < total;) {
        uint64_t due = start + (uint64_t)((double)i * step);
        sleep_until_due(start, due, step);
        /* All that is due by now goes out in one write. */
        uint64_t from = i, now = now_ns();
        for (; i < total && (due = start + (uint64_t)((double)i * step)) <= now; i++) {
            if (out_size + size + 1024 > sizeof out) break;
            uint32_t place = (uint32_t)(random_bits(&seed) % count);
            append(stream, ++sequences[place], due, first + place, size);
        }
        flush_out();
        written = now_ns();
        for (; from < i; from++) record(written - (start + (uint64_t)((double)from * step)));
        read_answers();
    }
    double cpu = cpu_seconds() - before;
    while (answered < total) wait_for(POLLIN);
    free(sequences);
    printf("{\"sent\":%llu,\"unheard\":%llu,\"cpu_s\":%.6f,\"wall_s\":%.6f,", (unsigned long long)total,
           (unsigned long long)unheard, cpu, (double)(written - start) / 1e9);
    print_histogram();
    reply("}");
}

static void obey(const char *order) {
    double rate, seconds;
    unsigned count, stream;
    unsigned long long first, seed;
    size_t size;
    if (sscanf(order, "command %u", &count) == 1) command(count);
    else if (sscanf(order, "nodes %u", &count) == 1 && count <= NODES) {
        for (unsigned i = 0; i < count; i++) {
            free(channels[i]);
            channels[i] = must(strdup(next_line()));
            if (strlen(channels[i]) > 512) fail("a channel's name is too long: %s", channels[i]);
        }
        node_count = count;
        reply("{}");
    } else if (sscanf(order, "paced %lf %lf %llu %u %u %llu %zu", &rate, &seconds, &first, &count, &stream, &seed,
                      &size) == 7)
        paced(rate, seconds, first, count, stream, seed * 2 + 1, size);
    else fail("not understood: %s", order);
}

int main(int argc, char **argv) {
    redis = dial(argc - 1, argv + 1);
    /* Where cores are few the sender would wait for one, and its delay would look like the node's. Not all may ask. */
    if (setpriority(PRIO_PROCESS, 0, -10) < 0) errno = 0;
    for (;;) obey(next_line());
}
