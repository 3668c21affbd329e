/* What no descriptor leads to, made when a test asks for it: sockets, a network, eBPF programs. */
#define _GNU_SOURCE
#include "exotic.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/if_packet.h>
#include <linux/netlink.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "bpf.h"
#include "network.h"
#include "population.h"

#define CLIENT_PORT 35000 /* added to a listener's port */
#define DEFER_S 3600      /* how long a connection without data stays a request */
#define NETWORK_FD 99
#define PORT_ID 4711

static int exotic;

static int must(int result) {
    if (result < 0) {
        perror("exotic");
        _exit(1);
    }
    return result;
}

static struct sockaddr_in loopback(unsigned port) {
    return (struct sockaddr_in){
        .sin_family = AF_INET, .sin_port = htons((unsigned short)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
}

static int bound(int type, unsigned port) {
    struct sockaddr_in address = loopback(port);
    int fd = socket(AF_INET, type | SOCK_CLOEXEC, 0), yes = 1;
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes) < 0 ||
        bind(fd, (void *)&address, sizeof address) < 0)
        return -1;
    return fd;
}

static int connected(unsigned short port) {
    struct sockaddr_in address = loopback(port);
    int fd = bound(SOCK_STREAM, port + CLIENT_PORT);
    return fd < 0 || connect(fd, (void *)&address, sizeof address) < 0 ? -1 : fd;
}

const char *leave_in_time_wait(unsigned short port) {
    char byte;
    int listener = bound(SOCK_STREAM, port);
    if (listener < 0 || listen(listener, 1) < 0)
        return "no listener";
    int near = connected(port), far = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    close(listener);
    if (near < 0 || far < 0)
        return "no connection";
    shutdown(near, SHUT_WR); /* who ends first waits */
    if (read(far, &byte, 1) != 0 || close(far) < 0 || read(near, &byte, 1) != 0 || close(near) < 0)
        return "it did not end";
    return NULL;
}

/* A connection that waits to be accepted: the listener's side of it is nobody's. */
static void leave_unaccepted(unsigned short port) {
    int listener = must(bound(SOCK_STREAM, port));
    must(listen(listener, 3));
    must(connected(port));
}

/* One that is a mere request until its first byte comes. */
static void leave_requested(unsigned short port) {
    int listener = must(bound(SOCK_STREAM, port)), seconds = DEFER_S;
    must(setsockopt(listener, IPPROTO_TCP, TCP_DEFER_ACCEPT, &seconds, sizeof seconds));
    must(listen(listener, 3));
    must(connected(port));
}

/* A socket whose only descriptor is in a message that nobody has taken. */
static void leave_in_flight(unsigned short port) {
    int pair[2], fd = must(bound(SOCK_DGRAM, port));
    char byte = 0, room[CMSG_SPACE(sizeof fd)] = {0};
    struct iovec data = {&byte, 1};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room};
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    head->cmsg_level = SOL_SOCKET;
    head->cmsg_type = SCM_RIGHTS;
    head->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(head), &fd, sizeof fd);
    must(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair));
    must((int)sendmsg(pair[0], &message, 0));
    close(fd);
}

static void leave_unix_unaccepted(void) {
    struct sockaddr_un path = {.sun_family = AF_UNIX, .sun_path = "/run/unaccepted.sock"};
    int listener = must(socket(AF_UNIX, SOCK_STREAM, 0));
    must(bind(listener, (void *)&path, sizeof path));
    must(listen(listener, 3));
    must(connect(must(socket(AF_UNIX, SOCK_STREAM, 0)), (void *)&path, sizeof path));
}

static void open_packets(void) {
    struct sockaddr_ll lo = {.sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL), .sll_ifindex = 1};
    must(bind(must(socket(AF_PACKET, SOCK_RAW, 0)), (void *)&lo, sizeof lo));
    must(socket(AF_PACKET, SOCK_DGRAM, htons(ETH_P_IP)));
}

static void open_netlinks(void) {
    struct sockaddr_nl route = {.nl_family = AF_NETLINK, .nl_pid = PORT_ID};
    struct sockaddr_nl events = {.nl_family = AF_NETLINK, .nl_groups = 1};
    must(bind(must(socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE)), (void *)&route, sizeof route));
    must(bind(must(socket(AF_NETLINK, SOCK_DGRAM, NETLINK_KOBJECT_UEVENT)), (void *)&events, sizeof events));
}

static void open_raws(void) {
    struct sockaddr_in near = loopback(0);
    int raw = must(socket(AF_INET, SOCK_RAW, IPPROTO_UDP));
    must(bind(raw, (void *)&near, sizeof near));
    must(socket(AF_INET6, SOCK_RAW, IPPROTO_ICMPV6));
}

/* A network that no process is in: a descriptor and its sockets keep it. */
static void leave_a_network(void) {
    int own = must(open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC));
    must(unshare(CLONE_NEWNET));
    raise_loopback();
    must(bound(SOCK_DGRAM, 5301));
    leave_unaccepted(5302);
    leave_in_flight(5303);
    must(socket(AF_PACKET, SOCK_DGRAM, htons(ETH_P_IP)));
    int other = must(open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC));
    must(dup2(other, NETWORK_FD));
    must(setns(own, CLONE_NEWNET));
    close(other);
    close(own);
}

static _Noreturn void body(void) {
    leave_unaccepted(5201);
    leave_requested(5202);
    leave_in_flight(5203);
    leave_unix_unaccepted();
    open_packets();
    open_netlinks();
    open_raws();
    leave_a_network();
    bpf_load_all();
    at_rest();
    for (;;)
        pause();
}

static void start_body(void) { body(); }

const char *exotic_start(int *pid) {
    if (exotic > 0)
        return "it is there already";
    *pid = exotic = start_resident("exotic", start_body);
    return kill(exotic, 0) < 0 ? "it died" : NULL;
}
