/* Attempts to reach others over a network: connects, datagrams, and frames made by whoever asks.
   References: packet(7); connect(2), EINPROGRESS. */
#define _GNU_SOURCE
#include "probe.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define BATCH 4096 /* sockets at a time: with all ports at once the kernel's memory would not do */
#define MAX_OPEN 64 /* ports told of one scan */
#define MAX_FRAME 1514

struct target {
    struct sockaddr_in address;
    unsigned first, last, milliseconds;
};

struct scan {
    unsigned open[MAX_OPEN];
    unsigned opened, refused, unreachable, silent;
};

static const char *read_target(struct target *target, const char *rest, int *used) {
    char text[INET_ADDRSTRLEN];
    memset(target, 0, sizeof *target);
    target->address.sin_family = AF_INET;
    if (sscanf(rest, "%15s %u %u%n", text, &target->first, &target->last, used) != 3)
        return "ADDRESS FIRST LAST are wanted";
    if (inet_pton(AF_INET, text, &target->address.sin_addr) != 1)
        return "no such address";
    return target->first <= target->last && target->last <= 65535 ? NULL : "no such ports";
}

static long long now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000LL + now.tv_nsec / 1000000;
}

static void note(struct scan *scan, unsigned port, int error) {
    if (error == 0 && scan->opened++ < MAX_OPEN)
        scan->open[scan->opened - 1] = port;
    else if (error == 0)
        return; /* counted, not told */
    else if (error == ECONNREFUSED)
        scan->refused++;
    else if (error == EINPROGRESS)
        scan->silent++;
    else
        scan->unreachable++;
}

/* Those that are still under way when the time is over stay in the list. */
static unsigned wait_for_all(struct pollfd *all, const unsigned short *ports, unsigned count, struct scan *scan,
                             unsigned milliseconds) {
    long long end = now_ms() + milliseconds, left;
    unsigned waiting = count;
    while (waiting && (left = end - now_ms()) > 0) {
        poll(all, count, (int)left);
        for (unsigned i = 0; i < count; i++) {
            int error = 0;
            socklen_t size = sizeof error;
            if (all[i].fd < 0 || !all[i].revents)
                continue;
            getsockopt(all[i].fd, SOL_SOCKET, SO_ERROR, &error, &size);
            note(scan, ports[i], error);
            close(all[i].fd);
            all[i].fd = -1;
            waiting--;
        }
    }
    return waiting;
}

static void scan_batch(const struct target *target, unsigned first, unsigned last, struct scan *scan) {
    static struct pollfd all[BATCH];
    static unsigned short ports[BATCH];
    struct sockaddr_in to = target->address;
    unsigned count = 0;
    for (unsigned port = first; port <= last; port++) {
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        to.sin_port = htons((unsigned short)port);
        int error = fd < 0 || connect(fd, (void *)&to, sizeof to) < 0 ? errno : 0;
        if (fd >= 0 && error == EINPROGRESS) {
            ports[count] = (unsigned short)port;
            all[count++] = (struct pollfd){.fd = fd, .events = POLLOUT};
            continue;
        }
        note(scan, port, error);
        if (fd >= 0)
            close(fd);
    }
    if (wait_for_all(all, ports, count, scan, target->milliseconds)) {
        for (unsigned i = 0; i < count; i++) {
            if (all[i].fd >= 0) {
                note(scan, ports[i], EINPROGRESS);
                close(all[i].fd);
            }
        }
    }
}

const char *probe_tcp(struct report *report, const char *rest) {
    struct rlimit many = {BATCH + 64, BATCH + 64};
    struct target target;
    struct scan scan = {0};
    int used = 0;
    const char *problem = read_target(&target, rest, &used);
    if (problem)
        return problem;
    if (sscanf(rest + used, " %u", &target.milliseconds) != 1)
        return "MILLISECONDS are wanted";
    setrlimit(RLIMIT_NOFILE, &many);
    for (unsigned port = target.first; port <= target.last; port += BATCH)
        scan_batch(&target, port, port + BATCH - 1 < target.last ? port + BATCH - 1 : target.last, &scan);
    report_begin(report, "scan");
    report_numbers(report, "open", scan.open, scan.opened < MAX_OPEN ? scan.opened : MAX_OPEN);
    report_number(report, "opened", scan.opened);
    report_number(report, "refused", scan.refused);
    report_number(report, "unreachable", scan.unreachable);
    report_number(report, "silent", scan.silent);
    report_end(report);
    return NULL;
}

static void tell_sent(struct report *report, unsigned sent) {
    report_begin(report, "sent");
    report_number(report, "count", sent);
    report_end(report);
}

const char *probe_udp(struct report *report, const char *rest) {
    struct target target;
    unsigned sent = 0;
    int used = 0;
    const char *problem = read_target(&target, rest, &used);
    if (problem)
        return problem;
    const char *text = rest + used + strspn(rest + used, " ");
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), yes = 1;
    setsockopt(fd, SOL_SOCKET, SO_BROADCAST, &yes, sizeof yes);
    for (unsigned port = target.first; port <= target.last; port++) {
        target.address.sin_port = htons((unsigned short)port);
        sent += sendto(fd, text, strlen(text), 0, (void *)&target.address, sizeof target.address) >= 0;
    }
    close(fd);
    tell_sent(report, sent);
    return NULL;
}

static size_t read_hex(const char *text, size_t length, unsigned char *bytes) {
    unsigned value;
    size_t count = 0;
    for (size_t i = 0; i + 1 < length && count < MAX_FRAME && sscanf(text + i, "%2x", &value) == 1; i += 2)
        bytes[count++] = (unsigned char)value;
    return count;
}

const char *probe_frames(struct report *report, const char *rest) {
    char name[IF_NAMESIZE];
    unsigned char frame[MAX_FRAME];
    unsigned sent = 0;
    int used = 0;
    if (sscanf(rest, "%15s%n", name, &used) != 1)
        return "INTERFACE is wanted";
    struct sockaddr_ll to = {.sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL)};
    to.sll_ifindex = (int)if_nametoindex(name);
    int fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
    for (const char *word = rest + used; *(word += strspn(word, " "));) {
        size_t length = strcspn(word, " "), size = read_hex(word, length, frame);
        sent += sendto(fd, frame, size, 0, (void *)&to, sizeof to) == (ssize_t)size;
        word += length;
    }
    close(fd);
    tell_sent(report, sent);
    return NULL;
}
