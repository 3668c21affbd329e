/* The sockets of the population: one of each kind that a guest shows. */
#define _GNU_SOURCE
#include "network.h"

#include <arpa/inet.h>
#include <linux/netlink.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <netinet/in.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static int must(int result) {
    if (result < 0) {
        perror("network");
        _exit(1);
    }
    return result;
}

void raise_loopback(void) {
    struct ifreq request = {.ifr_name = "lo"};
    int fd = must(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    request.ifr_flags = IFF_UP | IFF_RUNNING;
    must(ioctl(fd, SIOCSIFFLAGS, &request));
    close(fd);
}

static struct sockaddr_in address4(const char *text, unsigned short port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    inet_pton(AF_INET, text, &address.sin_addr);
    return address;
}

static struct sockaddr_in6 address6(const char *text, unsigned short port) {
    struct sockaddr_in6 address = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
    inet_pton(AF_INET6, text, &address.sin6_addr);
    return address;
}

static int bound(int family, int type, const void *address, socklen_t size) {
    int fd = must(socket(family, type, 0));
    int yes = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    must(bind(fd, address, size));
    return fd;
}

void listen_tcp4(const char *text, unsigned short port) {
    struct sockaddr_in address = address4(text, port);
    must(listen(bound(AF_INET, SOCK_STREAM, &address, sizeof address), 7));
}

static void connect_tcp4(unsigned short port) {
    struct sockaddr_in address = address4("127.0.0.1", port);
    int listener = bound(AF_INET, SOCK_STREAM, &address, sizeof address);
    must(listen(listener, 7));
    struct sockaddr_in near = address4("127.0.0.1", 40001);
    must(connect(bound(AF_INET, SOCK_STREAM, &near, sizeof near), (void *)&address, sizeof address));
    must(accept(listener, NULL, NULL));
}

static void connect_tcp6(unsigned short port) {
    struct sockaddr_in6 address = address6("::1", port);
    int listener = bound(AF_INET6, SOCK_STREAM, &address, sizeof address);
    must(listen(listener, 7));
    struct sockaddr_in6 near = address6("::1", 40002);
    must(connect(bound(AF_INET6, SOCK_STREAM, &near, sizeof near), (void *)&address, sizeof address));
    must(accept(listener, NULL, NULL));
}

static void open_udp(void) {
    struct sockaddr_in any4 = address4("0.0.0.0", 5003), peer = address4("127.0.0.1", 5003);
    struct sockaddr_in near = address4("127.0.0.1", 40003);
    struct sockaddr_in6 any6 = address6("::1", 5004);
    bound(AF_INET, SOCK_DGRAM, &any4, sizeof any4);
    bound(AF_INET6, SOCK_DGRAM, &any6, sizeof any6);
    must(connect(bound(AF_INET, SOCK_DGRAM, &near, sizeof near), (void *)&peer, sizeof peer));
}

static void open_unix(void) {
    struct sockaddr_un path = {.sun_family = AF_UNIX, .sun_path = "/run/stream.sock"};
    struct sockaddr_un datagram = {.sun_family = AF_UNIX, .sun_path = "/run/dgram \x1b[31m[b]<i>.sock"};
    struct sockaddr_un abstract = {.sun_family = AF_UNIX, .sun_path = "\0abstract"};
    socklen_t abstract_size = offsetof(struct sockaddr_un, sun_path) + sizeof "\0abstract" - 1;
    int listener = bound(AF_UNIX, SOCK_STREAM, &path, sizeof path), pair[2];
    must(listen(listener, 3));
    must(connect(must(socket(AF_UNIX, SOCK_STREAM, 0)), (void *)&path, sizeof path));
    must(accept(listener, NULL, NULL));
    bound(AF_UNIX, SOCK_DGRAM, &datagram, sizeof datagram);
    must(listen(bound(AF_UNIX, SOCK_SEQPACKET, &abstract, abstract_size), 3));
    must(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
}

void open_every_socket(void) {
    struct sockaddr_in6 any6 = address6("::", 5006);
    listen_tcp4("0.0.0.0", 5001);
    connect_tcp4(5002);
    connect_tcp6(5005);
    must(listen(bound(AF_INET6, SOCK_STREAM, &any6, sizeof any6), 9));
    open_udp();
    open_unix();
    must(socket(AF_INET, SOCK_RAW, IPPROTO_ICMP));
    must(socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE));
}
