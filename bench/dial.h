/* Connections to Redis, by unix socket or by TCP. */

#ifndef BENCH_DIAL_H
#define BENCH_DIAL_H

#include <netdb.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "common.h"

static inline int dial_unix(const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path) fail("the path of the socket is too long: %s", path);
    strcpy(address.sun_path, path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0) fail("%s: %s", path, strerror(errno));
    return fd;
}

static inline int dial_tcp(const char *host, const char *port) {
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found;
    int problem = getaddrinfo(host, port, &hints, &found), on = 1;
    if (problem) fail("%s: %s", host, gai_strerror(problem));
    int fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connect(fd, found->ai_addr, found->ai_addrlen) < 0) fail("%s:%s: %s", host, port, strerror(errno));
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    freeaddrinfo(found);
    return fd;
}

/* Connect to what the command line names: unix PATH, or tcp HOST PORT. */
static inline int dial(int count, char **words) {
    if (count == 2 && strcmp(words[0], "unix") == 0) return dial_unix(words[1]);
    if (count == 3 && strcmp(words[0], "tcp") == 0) return dial_tcp(words[1], words[2]);
    fail("name Redis by unix PATH, or by tcp HOST PORT");
    return -1;
}

#endif
