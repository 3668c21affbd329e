/* Process 1 of the test guest: makes the known population, then answers questions on the second serial port. */
#define _GNU_SOURCE
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include "bpf.h"
#include "churn.h"
#include "confined.h"
#include "exotic.h"
#include "network.h"
#include "planted_bpf.h"
#include "population.h"
#include "probe.h"
#include "report.h"
#include "storm.h"
#include "truth.h"

#define REQUEST_SIZE 4096
#define REST_ROUNDS 200 /* of 50 ms: ten seconds, even under emulation, are ample for a start-up to end */
#define REST_INTERVAL_NS 50000000L

static void write_text(const char *path, const char *text) {
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, text, strlen(text)) < 0)
        fprintf(stderr, "init: %s: %s\n", path, strerror(errno));
    if (fd >= 0)
        close(fd);
}

static void mount_everything(void) {
    mount("proc", "/proc", "proc", 0, NULL);
    mount("sysfs", "/sys", "sysfs", 0, NULL);
    mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
    mount("run", "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755");
    mount("tmp", "/tmp", "tmpfs", MS_NOSUID, NULL);
    mkdir("/tmp/mount \x1b[31m[b]<i>", 0755);
    mount("odd \xff source", "/tmp/mount \x1b[31m[b]<i>", "tmpfs", 0, "size=64k");
    write_text("/proc/sys/kernel/kptr_restrict", "0");
    write_text("/proc/sys/kernel/hotplug", "");
    write_text("/proc/sys/kernel/modprobe", "/nothing"); /* nobody loads a module behind our back */
    prepare_confinement();
    raise_loopback();
}

static const char *load_module(const char *path) {
    static char problem[128];
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    long result = fd < 0 ? -1 : syscall(SYS_finit_module, fd, "", 0);
    snprintf(problem, sizeof problem, "%s", result < 0 ? strerror(errno) : "");
    if (fd >= 0)
        close(fd);
    return result < 0 ? problem : NULL;
}

/* One path a line, in the order of their dependencies. */
static void load_modules(void) {
    char path[256];
    FILE *list = fopen("/modules/load", "re");
    while (list && fgets(path, sizeof path, list)) {
        path[strcspn(path, "\n")] = 0;
        const char *problem = load_module(path);
        if (problem)
            fprintf(stderr, "init: %s: %s\n", path, problem);
    }
    if (list)
        fclose(list);
}

static void speak_in_the_log(void) {
    static const char *const LINES[] = {
        "<5>qvmi-log: \x1b[31mred\x1b[0m \x1b]0;title\x07",
        "<5>qvmi-log: [bold red]markup[/] [/] <script>alert(1)</script> &amp;",
        "<5>qvmi-log: invalid \xff\xfe utf-8",
    };
    for (size_t i = 0; i < sizeof LINES / sizeof *LINES; i++)
        write_text("/dev/kmsg", LINES[i]);
}

static int open_serial(const char *path) {
    struct termios settings;
    int fd = open(path, O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (fd >= 0 && tcgetattr(fd, &settings) == 0) {
        cfmakeraw(&settings);
        cfsetspeed(&settings, B115200);
        tcsetattr(fd, TCSANOW, &settings);
    }
    return fd;
}

static void reap_orphans(void) {
    while (waitpid(-1, NULL, WNOHANG) > 0)
        ;
}

static void wait_for_rest(void) {
    struct timespec interval = {.tv_nsec = REST_INTERVAL_NS};
    for (int round = 0; round < REST_ROUNDS && !everyone_rests(); round++)
        nanosleep(&interval, NULL);
    reap_orphans();
}

/* --- commands ------------------------------------------------------------------------------------------------- */

/* Everything a shell command printed on either stream, and how it ended. */
static const char *run(struct report *report, const char *command) {
    char block[1024];
    int ends[2], status = 0;
    ssize_t got;
    if (pipe2(ends, O_CLOEXEC) < 0)
        return "no pipe";
    int pid = fork();
    if (pid == 0) {
        dup2(ends[1], 1);
        dup2(ends[1], 2);
        execl("/bin/sh", "sh", "-c", command, NULL);
        _exit(127);
    }
    close(ends[1]);
    while ((got = read(ends[0], block, sizeof block)) > 0) {
        report_begin(report, "output");
        report_bytes(report, "text", block, (size_t)got);
        report_end(report);
    }
    close(ends[0]);
    waitpid(pid, &status, 0);
    report_begin(report, "exit");
    report_number(report, "status", (unsigned long long)(WIFEXITED(status) ? WEXITSTATUS(status) : 128));
    report_end(report);
    return NULL;
}

static const char *do_truth(struct report *report, const char *rest) {
    (void)rest;
    report_truth(report);
    return NULL;
}

static const char *do_kallsyms(struct report *report, const char *rest) {
    (void)rest;
    report_kallsyms(report);
    return NULL;
}

static const char *do_files(struct report *report, const char *rest) {
    (void)rest;
    report_files(report);
    return NULL;
}

static const char *do_proc(struct report *report, const char *rest) {
    report_of_each_process(report, rest);
    return NULL;
}

static const char *do_log(struct report *report, const char *rest) {
    (void)rest;
    report_log(report);
    return NULL;
}

static const char *do_storm_start(struct report *report, const char *rest) {
    (void)report;
    return storm_start(*rest ? atoi(rest) : 16);
}

static const char *do_storm_stop(struct report *report, const char *rest) {
    (void)rest;
    return storm_stop(report);
}

static const char *do_spin_start(struct report *report, const char *rest) {
    (void)report;
    return spin_start(*rest ? atoi(rest) : (int)sysconf(_SC_NPROCESSORS_ONLN));
}

static const char *do_spin_stop(struct report *report, const char *rest) {
    (void)report, (void)rest;
    return spin_stop();
}

static const char *do_churn_start(struct report *report, const char *rest) {
    int pid = 0;
    (void)rest;
    const char *problem = churn_start(&pid);
    report_begin(report, "churn");
    report_number(report, "pid", (unsigned long long)pid);
    report_end(report);
    return problem;
}

static const char *do_churn_stop(struct report *report, const char *rest) {
    (void)report, (void)rest;
    return churn_stop();
}

static const char *do_exotic(struct report *report, const char *rest) {
    int pid = 0;
    (void)rest;
    const char *problem = exotic_start(&pid);
    report_begin(report, "exotic");
    report_number(report, "pid", (unsigned long long)pid);
    report_end(report);
    return problem;
}

static const char *do_time_wait(struct report *report, const char *rest) {
    (void)report;
    return leave_in_time_wait((unsigned short)atoi(rest));
}

static const char *do_bpf(struct report *report, const char *rest) {
    (void)rest;
    report_bpf(report);
    return NULL;
}

static const char *tell_program(struct report *report, const char *problem, int fd) {
    report_begin(report, "program");
    report_number(report, "fd", (unsigned long long)fd);
    report_end(report);
    return problem;
}

static const char *do_bpf_filter(struct report *report, const char *rest) {
    int fd = 0;
    (void)rest;
    const char *problem = bpf_load_filter(&fd);
    return tell_program(report, problem, fd);
}

static const char *do_bpf_counter(struct report *report, const char *rest) {
    int fd = 0;
    (void)rest;
    const char *problem = bpf_load_counter(&fd);
    return tell_program(report, problem, fd);
}

static const char *do_load(struct report *report, const char *rest) {
    char path[256];
    (void)report;
    snprintf(path, sizeof path, "/modules/%.200s.ko", rest);
    return load_module(path);
}

static const char *do_unload(struct report *report, const char *rest) {
    (void)report;
    return syscall(SYS_delete_module, rest, O_NONBLOCK) < 0 ? strerror(errno) : NULL;
}

static const char *do_power(struct report *report, const char *rest) {
    static const struct { const char *word; int how; } WAYS[] = {
        {"off", RB_POWER_OFF}, {"reset", RB_AUTOBOOT}, {"halt", RB_HALT_SYSTEM}};
    for (size_t i = 0; i < sizeof WAYS / sizeof *WAYS; i++) {
        if (strcmp(rest, WAYS[i].word) == 0) {
            report_finish(report, NULL);
            tcdrain(report->fd); /* the answer must be out before the machine is off */
            reboot(WAYS[i].how);
        }
    }
    return "no such way";
}

static const struct {
    const char *words;
    const char *(*answer)(struct report *report, const char *rest);
} COMMANDS[] = {
    {"truth", do_truth},
    {"kallsyms", do_kallsyms},
    {"files", do_files},
    {"proc", do_proc},
    {"log", do_log},
    {"storm start", do_storm_start},
    {"storm stop", do_storm_stop},
    {"spin start", do_spin_start},
    {"spin stop", do_spin_stop},
    {"churn start", do_churn_start},
    {"churn stop", do_churn_stop},
    {"exotic", do_exotic},
    {"time wait", do_time_wait},
    {"bpf filter", do_bpf_filter},
    {"bpf counter", do_bpf_counter},
    {"bpf", do_bpf}, /* behind those that begin with it */
    {"load", do_load},
    {"unload", do_unload},
    {"probe tcp", probe_tcp},
    {"probe udp", probe_udp},
    {"probe frames", probe_frames},
    {"run", run},
    {"power", do_power},
};

/* A request is "NUMBER COMMAND [REST]"; every line of the answer carries the number. */
static void answer(int fd, char *request) {
    struct report report;
    char *words;
    report_open(&report, fd, strtoul(request, &words, 10));
    words += strspn(words, " ");
    for (size_t i = 0; i < sizeof COMMANDS / sizeof *COMMANDS; i++) {
        size_t length = strlen(COMMANDS[i].words);
        if (strncmp(words, COMMANDS[i].words, length) == 0 && (!words[length] || words[length] == ' ')) {
            const char *rest = words + length + strspn(words + length, " ");
            report_finish(&report, COMMANDS[i].answer(&report, rest));
            return;
        }
    }
    report_finish(&report, "no such command");
}

static void on_child(int signal) { (void)signal; }

/* Orphans come to pid 1 at any time. SIGCHLD stays blocked but for the wait itself, so that none is missed. */
static void wait_for_request(int fd) {
    struct pollfd port = {.fd = fd, .events = POLLIN};
    sigset_t child, none;
    sigemptyset(&none);
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    sigprocmask(SIG_BLOCK, &child, NULL);
    do
        reap_orphans();
    while (ppoll(&port, 1, NULL, &none) < 0);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

static _Noreturn void serve(int fd) {
    static char request[REQUEST_SIZE];
    struct sigaction action = {.sa_handler = on_child, .sa_flags = SA_RESTART};
    size_t used = 0;
    char byte;
    sigaction(SIGCHLD, &action, NULL);
    for (;;) {
        wait_for_request(fd);
        if (read(fd, &byte, 1) != 1)
            continue;
        if (byte == '\n' || used == sizeof request - 1) {
            request[used] = 0;
            used = 0;
            answer(fd, request);
        } else {
            request[used++] = byte;
        }
    }
}

/* The whole truth on the console once, for people and for whoever restores this guest later. */
static void report_ready(int console, int control) {
    struct report report;
    write_text("/proc/sys/kernel/printk", "1"); /* no kernel message inside our lines */
    report_open(&report, console, 0);
    report_truth(&report);
    report_kallsyms(&report);
    report_finish(&report, NULL);
    report_open(&report, control, 0);
    report_begin(&report, "ready");
    report_end(&report);
    report_send(&report);
}

int main(void) {
    const char *resident_fd = getenv("QVMI_RESIDENT_FD");
    if (resident_fd)
        live_as_resident(getenv("QVMI_RESIDENT_COMM"), resident_fd);
    if (getpid() != 1)
        return 1;
    mount_everything();
    int console = open_serial("/dev/ttyS0"), control = open_serial("/dev/ttyS1");
    load_modules();
    speak_in_the_log();
    populate();
    start_confined();
    wait_for_rest();
    report_ready(console, control);
    serve(control);
}
