# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, auto_pickle=False
"""The compiled core of a node, in flow order: parse, decode, route, fan out. See _core.pxd for the data."""

import heapq
import os
import socket
from collections import OrderedDict, deque
from itertools import islice

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_Next
from cpython.object cimport PyObject
from libc.errno cimport EAGAIN, EINTR, errno
from libc.limits cimport LLONG_MAX
from libc.stdint cimport uint8_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, memset
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

cdef extern from "<sys/socket.h>" nogil:
    ssize_t c_send "send"(int fd, const void* data, size_t size, int flags)
    int MSG_DONTWAIT

cdef extern from *:
    """
    /* macOS has no MSG_NOSIGNAL; CPython ignores SIGPIPE in any case. */
    #ifndef MSG_NOSIGNAL
    #define MSG_NOSIGNAL 0
    #endif
    """
    int MSG_NOSIGNAL

cdef extern from "<unistd.h>" nogil:
    int close_fd "close"(int fd)

cdef extern from "<sys/socket.h>" nogil:
    ssize_t recv(int fd, void* data, size_t size, int flags)
    int shutdown(int fd, int how)
    int SHUT_WR
    cdef struct iovec:
        void* iov_base
        size_t iov_len
    cdef struct msghdr:
        iovec* msg_iov
        size_t msg_iovlen
    ssize_t sendmsg(int fd, const msghdr* message, int flags)

cdef extern from *:
    """
    #ifdef __linux__
    #include <sys/epoll.h>
    #define FREEIM_HAVE_EPOLL 1
    static int freeim_accept(int listener) { return accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC); }
    #else
    /* Only so that it compiles: where HAVE_EPOLL is 0, nobody makes a Poller. */
    #define FREEIM_HAVE_EPOLL 0
    typedef union { int fd; } epoll_data_t;
    struct epoll_event { uint32_t events; epoll_data_t data; };
    enum { EPOLLIN = 1, EPOLLOUT = 4, EPOLL_CLOEXEC = 0, EPOLL_CTL_ADD = 1, EPOLL_CTL_DEL = 2, EPOLL_CTL_MOD = 3 };
    static int epoll_create1(int flags) { return -1; }
    static int epoll_ctl(int fd, int operation, int of, struct epoll_event* event) { return -1; }
    static int epoll_wait(int fd, struct epoll_event* events, int count, int timeout) { return -1; }
    static int freeim_accept(int listener) { return -1; }
    #endif
    """
    ctypedef union epoll_data_t:
        int fd
    cdef struct epoll_event:
        uint32_t events
        epoll_data_t data
    int FREEIM_HAVE_EPOLL, EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD
    uint32_t EPOLLIN, EPOLLOUT
    int epoll_create1(int flags) nogil
    int epoll_ctl(int fd, int operation, int of, epoll_event* event) nogil
    int epoll_wait(int fd, epoll_event* events, int count, int timeout) nogil
    int freeim_accept(int listener) nogil

cdef extern from *:
    bint unlikely(bint condition) noexcept  # of Cython's own preamble: what follows stays out of the way of the rest

HAVE_EPOLL = bool(FREEIM_HAVE_EPOLL)

include "_core_resp.pxi"
include "_core_decode.pxi"
include "_core_window.pxi"
include "_core_route.pxi"
include "_core_fanout.pxi"
include "_core_socket.pxi"
include "_core_log.pxi"
include "_core_inbound.pxi"
