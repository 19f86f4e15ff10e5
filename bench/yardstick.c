/* The yardstick: accepts connections, answers each with a 101, and sends one frame to each by one send(2). No server
   that sends with system calls can do less for a frame of its own; what a node spends is quoted as a ratio to this.

   It prints {"port":N}, and is then steered by lines on stdin, each answered with a line of JSON:

   begin SIZE                                    payloads have SIZE bytes from now on, and sequence numbers begin anew
   count                                         how many connections there are
   rounds ROUNDS FIRST COUNT STREAM              ROUNDS frames to each of COUNT connections, round after round
   random SENDS STREAM SEED                      frames to connections at random
   paced RATE SECONDS COUNT STREAM SEED          RATE times a second COUNT connections at random (or all, if COUNT is
                                                 their number), at times that do not wait for what is late
   command WORDS, then a line for each word      a command for the Redis that the command line names (see dial.h), a
                                                 SUBSCRIBE for one: from then on each direct message that is published
                                                 is sent to its client, with as little work as that can be done with

   Payloads are those of verify.h. What clients send after the handshake (pongs, a Close) is read and dropped. */

#include <arpa/inet.h>
#include <poll.h>
#include <sys/epoll.h>

#include "dial.h"

#define EVENTS 512
#define LARGEST 65000
#define HEAD 4 /* of a frame of 126 to 65535 bytes */

struct peer {
    int fd;
    unsigned open, place, sequence;
    unsigned long long client;
};

static struct peer *peers[1 << 16]; /* by descriptor */
static struct peer *order[1 << 16]; /* as they came */
static struct peer *clients[1 << 21]; /* by number: over all servers of a run, so more than are here */
static unsigned peer_count, size = 128;
static int poll_fd, listener, redis = -1;
static uint64_t answered; /* commands that Redis has answered */
static char frame[HEAD + LARGEST + 1];
static size_t frame_size;

/* Begin a frame, and return where its payload goes. */
static char *begin_frame(size_t length) {
    size_t head = length < 126 ? 2 : 4;
    frame[0] = (char)0x81;
    if (head == 2) frame[1] = (char)length;
    else frame[1] = 126, frame[2] = (char)(length >> 8), frame[3] = (char)length;
    frame_size = head + length;
    return frame + head;
}

static void build(unsigned stream, unsigned sequence, uint64_t sent, unsigned long long to) {
    char text[100], *payload = begin_frame(size);
    int length = snprintf(text, sizeof text, "\"%u %u %llu %llu ", stream, sequence, (unsigned long long)sent, to);
    if ((unsigned)length + 1 > size) fail("payloads of %u bytes are too small", size);
    memcpy(payload, text, (size_t)length);
    memset(payload + length, 'x', size - (size_t)length - 1);
    payload[size - 1] = '"';
}

static void send_frame(const struct peer *peer) {
    for (size_t at = 0; at < frame_size;) {
        ssize_t sent = send(peer->fd, frame + at, frame_size - at, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent >= 0) at += (size_t)sent;
        else if (errno == EAGAIN) poll(&(struct pollfd){.fd = peer->fd, .events = POLLOUT}, 1, -1);
        else return; /* the generator misses it and says so */
    }
}

/* ---- Redis */

/* Send a direct message of publish.c: the text in Item3 to the client in Item2. */
static void pass_on(const char *message, size_t length) {
    static const char to[] = "\"Item2\":[", from[] = "\"Item3\":\"\\\"", until[] = "\\\"";
    const char *client = memmem(message, length, to, sizeof to - 1);
    const char *text = memmem(message, length, from, sizeof from - 1);
    if (client == NULL || text == NULL) fail("no direct message: %.*s", (int)length, message);
    text += sizeof from - 1;
    const char *end = memmem(text, (size_t)(message + length - text), until, sizeof until - 1);
    unsigned long long number = strtoull(client + sizeof to - 1, NULL, 10);
    struct peer *peer = number < sizeof clients / sizeof *clients ? clients[number] : NULL;
    if (end == NULL || end - text + 2 > LARGEST || peer == NULL) fail("no direct message to a client that is here");
    size_t text_size = (size_t)(end - text);
    char *payload = begin_frame(text_size + 2);
    payload[0] = payload[text_size + 1] = '"';
    memcpy(payload + 1, text, text_size);
    send_frame(peer);
}

/* Take what Redis has sent: simple replies, and arrays of three of which the last is a message, or a number. */
static void receive_published(void) {
    static char in[1 << 20];
    static size_t have;
    ssize_t got = recv(redis, in + have, sizeof in - have, MSG_DONTWAIT);
    if (got <= 0) fail("Redis closed the connection");
    have += (size_t)got;
    const char *at = in, *end = in + have, *words[3];
    for (;;) {
        long sizes[3] = {0};
        const char *next = memchr(at, '\n', (size_t)(end - at));
        if (next == NULL) break;
        if (*at == '-') fail("Redis: %.*s", (int)(next - at), at + 1);
        int count = *at == '*' ? atoi(at + 1) : 0, done = 0;
        if (count > 3) fail("Redis sent what is no message");
        for (next++; done < count; done++) {
            const char *line = next;
            if ((next = memchr(line, '\n', (size_t)(end - line))) == NULL) break;
            words[done] = ++next;
            if (*line != '$') continue;
            sizes[done] = atol(line + 1);
            if (end - next < sizes[done] + 2) break;
            next += sizes[done] + 2;
        }
        if (done < count) break;
        if (count == 3 && sizes[0] == 7 && memcmp(words[0], "message", 7) == 0) pass_on(words[2], (size_t)sizes[2]);
        else answered++;
        at = next;
    }
    have = (size_t)(end - at);
    if (have == sizeof in) fail("a message is too long");
    memmove(in, at, have);
}

static void command(unsigned words) {
    if (redis < 0) fail("the command line names no Redis");
    uint64_t before = answered;
    dprintf(redis, "*%u\r\n", words);
    while (words--) {
        const char *word = next_line();
        dprintf(redis, "$%zu\r\n%s\r\n", strlen(word), word);
    }
    while (answered == before) {
        if (poll(&(struct pollfd){.fd = redis, .events = POLLIN}, 1, 10000) == 0) fail("Redis does not answer");
        receive_published();
    }
    reply("{}");
}

/* ---- commands */

static void rounds(unsigned count, unsigned first, unsigned members, unsigned stream) {
    if (first + members > peer_count) fail("there are %u connections", peer_count);
    for (unsigned round = 0; round < count; round++) {
        build(stream, ++order[first]->sequence, now_ns(), 0);
        for (unsigned i = first; i < first + members; i++) {
            order[i]->sequence = order[first]->sequence;
            send_frame(order[i]);
        }
    }
}

static void send_random(unsigned stream, uint64_t sent, uint64_t *seed) {
    struct peer *peer = order[random_bits(seed) % peer_count];
    build(stream, ++peer->sequence, sent, peer->client);
    send_frame(peer);
}

static void paced(double rate, double seconds, unsigned count, unsigned stream, uint64_t seed) {
    double step = 1e9 / rate;
    uint64_t start = now_ns(), total = (uint64_t)(rate * seconds);
    for (uint64_t i = 0; i < total; i++) {
        /* The time in the payload is the one at which it was due: a sender that lags may not hide it. */
        uint64_t due = start + (uint64_t)((double)i * step);
        sleep_until_due(start, due, step);
        if (count != peer_count) {
            for (unsigned k = 0; k < count; k++) send_random(stream, due, &seed);
            continue;
        }
        build(stream, (unsigned)i + 1, due, 0);
        for (unsigned k = 0; k < count; k++) send_frame(order[k]);
    }
}

static void obey(const char *line) {
    unsigned a, b, c, d;
    unsigned long long seed;
    double rate, seconds, before = cpu_seconds();
    uint64_t start = now_ns();
    if (sscanf(line, "begin %u", &a) == 1) {
        size = a <= LARGEST ? a : LARGEST;
        for (unsigned i = 0; i < peer_count; i++) order[i]->sequence = 0;
    } else if (strcmp(line, "count") == 0) {
        reply("{\"count\":%u}", peer_count);
        return;
    } else if (sscanf(line, "command %u", &a) == 1) {
        command(a);
        return;
    } else if (sscanf(line, "rounds %u %u %u %u", &a, &b, &c, &d) == 4) rounds(a, b, c, d);
    else if (sscanf(line, "random %u %u %llu", &a, &b, &seed) == 3) {
        uint64_t state = seed * 2 + 1;
        for (unsigned i = 0; i < a; i++) send_random(b, now_ns(), &state);
    } else if (sscanf(line, "paced %lf %lf %u %u %llu", &rate, &seconds, &a, &b, &seed) == 5)
        paced(rate, seconds, a, b, seed * 2 + 1);
    else fail("not understood: %s", line);
    reply("{\"cpu_s\":%.6f,\"wall_s\":%.6f}", cpu_seconds() - before, (double)(now_ns() - start) / 1e9);
}

/* ---- connections */

static void drop(struct peer *peer) {
    if (peer->open) {
        order[peer->place] = order[--peer_count];
        order[peer->place]->place = peer->place;
        clients[peer->client] = NULL;
    }
    peers[peer->fd] = NULL;
    close(peer->fd);
    free(peer);
}

static void accept_one(void) {
    int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC), on = 1;
    if (fd < 0) return;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    struct peer *peer = peers[fd] = must(calloc(1, sizeof *peer));
    peer->fd = fd;
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    epoll_ctl(poll_fd, EPOLL_CTL_ADD, fd, &event);
}

static void receive(struct peer *peer) {
    char data[8192], accept[ACCEPT_SIZE + 1], answer[256];
    ssize_t got = recv(peer->fd, data, sizeof data - 1, 0);
    if (got <= 0) {
        drop(peer);
        return;
    }
    if (peer->open) {
        /* A masked Close: its answer is what the closing handshake asks for, then the connection ends. */
        if ((data[0] & 15) == 8 && send(peer->fd, "\x88\x02\x03\xe8", 4, MSG_NOSIGNAL) >= 0) drop(peer);
        return;
    }
    data[got] = 0;
    /* The generator sends its head at once, and loopback does not cut it: no other client is expected here. */
    const char *key = strcasestr(data, "\r\nsec-websocket-key: "), *token = strstr(data, "token=");
    if (strstr(data, "\r\n\r\n") == NULL || key == NULL || token == NULL || strlen(key) < 45) {
        drop(peer);
        return;
    }
    accept_key(key + 21, accept);
    /* Tokens for the yardstick are the client's number in 128 digits. */
    peer->client = strtoull(token + 6 + 108, NULL, 10);
    if (peer->client >= sizeof clients / sizeof *clients) fail("client %llu is beyond what fits", peer->client);
    int length = snprintf(answer, sizeof answer,
                          "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                          "Sec-WebSocket-Accept: %s\r\n\r\n", accept);
    send(peer->fd, answer, (size_t)length, MSG_NOSIGNAL);
    peer->open = 1;
    peer->place = peer_count;
    order[peer_count++] = clients[peer->client] = peer;
}

static void add(int fd) {
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    if (epoll_ctl(poll_fd, EPOLL_CTL_ADD, fd, &event) < 0) fail("epoll_ctl: %s", strerror(errno));
}

int main(int argc, char **argv) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) < 0 || listen(listener, 4096) < 0 ||
        getsockname(listener, (struct sockaddr *)&address, &length) < 0)
        fail("cannot listen: %s", strerror(errno));
    poll_fd = epoll_create1(EPOLL_CLOEXEC);
    add(listener);
    add(STDIN_FILENO);
    if (argc > 1) add(redis = dial(argc - 1, argv + 1));
    reply("{\"port\":%d}", ntohs(address.sin_port));
    for (;;) {
        struct epoll_event events[EVENTS];
        int count = epoll_wait(poll_fd, events, EVENTS, -1);
        for (int i = 0; i < count; i++) {
            int fd = events[i].data.fd;
            if (fd == STDIN_FILENO) read_commands();
            else if (fd == redis) receive_published();
            else if (fd == listener) accept_one();
            else if (peers[fd] != NULL) receive(peers[fd]);
        }
        for (char *line; (line = buffered_line()) != NULL;) obey(line);
    }
}
