/* A proxy that makes Redis look far away: every byte goes on DELAY µs after it came, in each direction.

       delay DELAY unix PATH
       delay DELAY tcp HOST PORT

   It listens on 127.0.0.1, prints {"port":N}, and ends with its stdin. In C, since the timers of an event loop in
   Python count milliseconds. */

#include <arpa/inet.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>

#include "dial.h"

#define EVENTS 64

struct end {
    int fd; /* -1 once it is closed. Ends are never freed: chunks may point to them, and there are few */
    struct end *other;
};

struct chunk {
    struct chunk *next;
    struct end *to;
    uint64_t due;
    size_t size;
    char data[];
};

static struct chunk *oldest, **newest = &oldest; /* of all connections: the delay is one, so they fall due in order */
static struct end ears = {0}, watch = {0}, orders = {0};
static uint64_t delay_ns;
static int poll_fd, armed;
static char input[1 << 17];

static void add(struct end *end) {
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = end};
    if (epoll_ctl(poll_fd, EPOLL_CTL_ADD, end->fd, &event) < 0) fail("epoll_ctl: %s", strerror(errno));
}

static void close_both(struct end *end) {
    for (int i = 0; i < 2; i++, end = end->other)
        if (end->fd >= 0) {
            close(end->fd);
            end->fd = -1;
        }
}

static void accept_one(int count, char **words) {
    int fd = accept4(ears.fd, NULL, NULL, SOCK_CLOEXEC), on = 1;
    if (fd < 0) return;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    struct end *client = must(calloc(1, sizeof *client)), *server = must(calloc(1, sizeof *server));
    *client = (struct end){fd, server};
    *server = (struct end){dial(count, words), client};
    add(client);
    add(server);
}

static void keep(struct end *from) {
    ssize_t got = recv(from->fd, input, sizeof input, MSG_DONTWAIT);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) {
        close_both(from);
        return;
    }
    struct chunk *chunk = must(malloc(sizeof *chunk + (size_t)got));
    *chunk = (struct chunk){.to = from->other, .due = now_ns() + delay_ns, .size = (size_t)got};
    memcpy(chunk->data, input, (size_t)got);
    *newest = chunk;
    newest = &chunk->next;
}

static void hand_on(void) {
    for (uint64_t now = now_ns(); oldest != NULL && oldest->due <= now;) {
        struct chunk *chunk = oldest;
        for (size_t at = 0; at < chunk->size && chunk->to->fd >= 0;) {
            ssize_t sent = send(chunk->to->fd, chunk->data + at, chunk->size - at, MSG_NOSIGNAL | MSG_DONTWAIT);
            if (sent >= 0) at += (size_t)sent;
            else if (errno == EAGAIN) poll(&(struct pollfd){.fd = chunk->to->fd, .events = POLLOUT}, 1, 1000);
            else close_both(chunk->to);
        }
        if ((oldest = chunk->next) == NULL) newest = &oldest;
        free(chunk);
    }
    armed = oldest != NULL;
    if (!armed) return;
    struct itimerspec at = {.it_value = {(time_t)(oldest->due / 1000000000u), (long)(oldest->due % 1000000000u)}};
    timerfd_settime(watch.fd, TFD_TIMER_ABSTIME, &at, NULL);
}

int main(int argc, char **argv) {
    if (argc < 2) fail("delay DELAY unix PATH, or delay DELAY tcp HOST PORT");
    delay_ns = strtoull(argv[1], NULL, 10) * 1000;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    ears.fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (bind(ears.fd, (struct sockaddr *)&address, sizeof address) < 0 || listen(ears.fd, 64) < 0 ||
        getsockname(ears.fd, (struct sockaddr *)&address, &length) < 0)
        fail("cannot listen: %s", strerror(errno));
    poll_fd = epoll_create1(EPOLL_CLOEXEC);
    watch.fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    orders.fd = STDIN_FILENO;
    add(&ears);
    add(&watch);
    add(&orders);
    reply("{\"port\":%d}", ntohs(address.sin_port));
    for (;;) {
        struct epoll_event events[EVENTS];
        int count = epoll_wait(poll_fd, events, EVENTS, -1);
        for (int i = 0; i < count; i++) {
            struct end *end = events[i].data.ptr;
            uint64_t fired;
            if (end == &orders) return 0;
            if (end == &ears) accept_one(argc - 2, argv + 2);
            else if (end == &watch) armed = read(watch.fd, &fired, sizeof fired) < 0;
            else if (end->fd >= 0) keep(end);
        }
        if (!armed || (oldest != NULL && oldest->due <= now_ns())) hand_on();
    }
}
