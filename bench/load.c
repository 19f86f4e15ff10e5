/* The load generator: holds many WebSocket connections, and checks every frame that arrives on them.

   It is steered by lines on stdin and answers each with a line of JSON:

   connect HOST PORT PATH IN_FLIGHT COUNT    open connections; COUNT lines "TOKEN CLIENT" follow. ?token=TOKEN is
                                             appended to PATH, or TOKEN alone where PATH ends in =
   envelope HEAD TAIL                        messages are wrapped from now on: HEAD stands before the payload, TAIL behind
                                             it up to the end of the frame; text frames without HEAD are not looked at
   begin SIZE PAUSE                          forget all that was counted; payloads have SIZE bytes from now on (0: any);
                                             rest for PAUSE µs before each look at what has come
   wait FRAMES SECONDS                       answer once so many messages have come, or the time is over
   sip BYTES MILLISECONDS                    from now on read so many bytes of each connection so often; 0 bytes: nothing
                                             at all, 0 ms: as usual again
   tail STREAM SEQUENCE                      how many connections have got all of a stream up to this number
   close CODE SECONDS                        close all connections, and wait for the end of each

   One thread and one epoll; commands are looked at between two turns. */

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>

#include "connection.h"

#define SOURCES 250 /* connections come from 127.0.0.1 to 127.0.0.250, in turn */
#define EVENTS 512

static struct connection **connections;
static uint32_t connection_count, connection_room;
static int poll_fd;
static uint64_t began, wait_frames, wait_until;
static double cpu_before;
static unsigned pause_us, sip_ms;
static uint64_t sips_began, sips; /* since when connections are read slowly, and how many reads that were */

/* ---- commands */

/* One connection after the other, spread evenly: all at once they would keep the core from whoever is measured. */
static void take_sips(void) {
    uint64_t due = (now_ns() - sips_began) * connection_count / (sip_ms * 1000000ull);
    for (uint32_t room = connection_count; sip && sips < due && room > 0; sips++, room--) {
        struct connection *c = connections[sips % connection_count];
        if (c->state != ENDED) receive(c);
    }
    sips = due; /* what was missed for long is not made up for */
}

static void turn(int milliseconds) {
    struct epoll_event events[EVENTS];
    if (sip_ms) {
        take_sips();
        milliseconds = sip ? 1 : 10;
    }
    int count = epoll_wait(poll_fd, events, EVENTS, milliseconds);
    if (count > 0 && count < EVENTS && pause_us) {
        /* To wake up for every frame would cost as much as to send it: let some come together. */
        usleep(pause_us);
        count = epoll_wait(poll_fd, events, EVENTS, 0);
    }
    for (int i = 0; i < count; i++) {
        if (events[i].data.ptr == NULL) read_commands();
        else receive(events[i].data.ptr);
    }
}

static void print_state(void) {
    const char *comma = "";
    /* While nothing is waited for any longer the generator idles: only the time until the last message counts. */
    uint64_t until = tally.last > began ? tally.last : now_ns();
    printf("{\"frames\":%llu,\"bytes\":%llu,\"lost\":%llu,\"duplicates\":%llu,\"reordered\":%llu,\"misdelivered\":%llu,"
           "\"bad_frames\":%llu,\"bad_payloads\":%llu,\"pings\":%llu,\"receipts\":%llu,\"cut\":%llu,\"living\":%u,\"unreachable\":%u,",
           (unsigned long long)tally.frames, (unsigned long long)tally.bytes, (unsigned long long)tally.lost,
           (unsigned long long)tally.duplicates, (unsigned long long)tally.reordered,
           (unsigned long long)tally.misdelivered, (unsigned long long)tally.bad_frames,
           (unsigned long long)tally.bad_payloads, (unsigned long long)tally.pings, (unsigned long long)tally.receipts,
           (unsigned long long)tally.cut,
           living, unreachable);
    printf("\"refused\":{");
    for (int i = 0; i < 1000; i++)
        if (refused[i]) printf("%s\"%d\":%u", comma, i, refused[i]), comma = ",";
    printf("},\"closes\":{");
    comma = "";
    for (int i = 0; i < CODES; i++)
        if (closes[i]) printf("%s\"%d\":%u", comma, i, closes[i]), comma = ",";
    printf("},\"cpu_s\":%.6f,\"wall_s\":%.6f,", cpu_seconds() - cpu_before, (double)(until - began) / 1e9);
    print_histogram();
    reply("}");
}

static void forget(void) {
    forget_all();
    for (uint32_t i = 0; i < connection_count; i++) connections[i]->streams.count = 0;
    memset(refused, 0, sizeof refused);
    memset(closes, 0, sizeof closes);
    unreachable = 0;
    began = now_ns();
    cpu_before = cpu_seconds();
}

static void open_one(const struct sockaddr_in *target, const char *path, const char *line) {
    struct connection *c = must(calloc(1, sizeof *c));
    char token[512], key[25], request[2048];
    unsigned long long client;
    if (sscanf(line, "%500s %llu", token, &client) != 2) fail("no token and client: %s", line);
    c->number = connection_count;
    c->client = client;
    c->began = now_ns();
    if (connection_count == connection_room) {
        connection_room = connection_room ? 2 * connection_room : 1024;
        connections = must(realloc(connections, connection_room * sizeof *connections));
    }
    connections[connection_count++] = c;
    opening++;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (c->fd < 0) fail("connection %u: %s", c->number, strerror(errno));
    int on = 1;
    struct sockaddr_in source = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(0x7F000001 + c->number % SOURCES)};
    /* The port is chosen when the target is known: each source address has all of them for each target. */
    setsockopt(c->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    make_key(c, key);
    const char *parameter = path[strlen(path) - 1] == '=' ? "" : "?token=";
    int size = snprintf(request, sizeof request,
                        "GET %s%s%s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %s\r\n\r\n",
                        path, parameter, token, ntohs(target->sin_port), key);
    if ((bind(c->fd, (struct sockaddr *)&source, sizeof source) < 0 && errno != EADDRNOTAVAIL) ||
        connect(c->fd, (const struct sockaddr *)target, sizeof *target) < 0 ||
        send(c->fd, request, (size_t)size, MSG_NOSIGNAL) != size) {
        unreachable++;
        end(c);
        return;
    }
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    epoll_ctl(poll_fd, EPOLL_CTL_ADD, c->fd, &event);
}

static void open_all(const char *line) {
    char host[64], path[256];
    unsigned port, in_flight, count;
    struct sockaddr_in target = {.sin_family = AF_INET};
    if (sscanf(line, "connect %63s %u %255s %u %u", host, &port, path, &in_flight, &count) != 5 ||
        inet_pton(AF_INET, host, &target.sin_addr) != 1)
        fail("not understood: %s", line);
    target.sin_port = htons((uint16_t)port);
    char **lines = must(calloc(count + 1, sizeof *lines)); /* all are read first: the time shall not hold the pipe's */
    for (uint32_t i = 0; i < count; i++) lines[i] = must(strdup(next_line()));
    forget();
    for (uint32_t i = 0; i < count || opening;) {
        while (i < count && opening < in_flight) open_one(&target, path, lines[i++]);
        if (opening) turn(100);
    }
    tally.last = now_ns();
    for (uint32_t i = 0; i < count; i++) free(lines[i]);
    free(lines);
    print_state();
}

static void close_all(int code, double seconds) {
    char payload[2] = {(char)(code >> 8), (char)code};
    uint64_t until = now_ns() + (uint64_t)(seconds * 1e9);
    for (uint32_t i = 0; i < connection_count; i++)
        if (connections[i]->state == OPEN) {
            connections[i]->state = CLOSING;
            send_control(connections[i], 8, payload, 2);
        }
    while (living && now_ns() < until) turn(10);
    tally.last = now_ns();
    print_state();
    for (uint32_t i = 0; i < connection_count; i++) {
        if (connections[i]->state != ENDED) end(connections[i]);
        free(connections[i]);
    }
    connection_count = 0;
}

/* Whoever sips is not watched: its reads have times of their own. */
static void begin_sips(size_t bytes, unsigned milliseconds) {
    bool sipped = sip_ms != 0;
    sip = milliseconds ? bytes : 0;
    sip_ms = milliseconds;
    sips_began = now_ns();
    sips = 0;
    for (uint32_t i = 0; i < connection_count && sipped != (milliseconds != 0); i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = connections[i]};
        if (connections[i]->state != ENDED)
            epoll_ctl(poll_fd, sipped ? EPOLL_CTL_ADD : EPOLL_CTL_DEL, connections[i]->fd, &event);
    }
    reply("{}");
}

static void tail(uint32_t id, uint32_t sequence) {
    uint32_t complete = 0;
    for (uint32_t i = 0; i < connection_count; i++) {
        struct stream *stream = find_stream(&connections[i]->streams, id);
        if (stream != NULL && stream->next == sequence + 1) complete++;
    }
    reply("{\"complete\":%u}", complete);
}

static void obey(const char *line) {
    unsigned long long number;
    unsigned id, sequence;
    int code;
    double seconds;
    if (strncmp(line, "connect ", 8) == 0) {
        pause_us = 0;
        open_all(line);
    } else if (sscanf(line, "begin %llu %u", &number, &id) == 2) {
        payload_size = number;
        pause_us = id;
        forget();
        reply("{}");
    } else if (sscanf(line, "envelope %63s %63s", envelope_head, envelope_tail) == 2) reply("{}");
    else if (sscanf(line, "wait %llu %lf", &number, &seconds) == 2) {
        wait_frames = number;
        wait_until = now_ns() + (uint64_t)(seconds * 1e9);
    } else if (sscanf(line, "sip %llu %u", &number, &id) == 2) begin_sips(number, id);
    else if (sscanf(line, "tail %u %u", &id, &sequence) == 2) tail(id, sequence);
    else if (sscanf(line, "close %d %lf", &code, &seconds) == 2) close_all(code, seconds);
    else fail("not understood: %s", line);
}

int main(void) {
    struct epoll_event commands = {.events = EPOLLIN, .data.ptr = NULL};
    poll_fd = epoll_create1(EPOLL_CLOEXEC);
    epoll_ctl(poll_fd, EPOLL_CTL_ADD, STDIN_FILENO, &commands);
    for (forget();;) {
        char *line = NULL;
        if (wait_until == 0 && (line = buffered_line()) != NULL) obey(line);
        else turn(wait_until == 0 ? -1 : 10);
        if (wait_until != 0 && (tally.frames >= wait_frames || now_ns() >= wait_until)) {
            wait_until = 0;
            print_state();
        }
    }
}
