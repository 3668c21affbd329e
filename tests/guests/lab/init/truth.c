/* What the guest's own kernel says of itself, read raw from /proc and reported without interpretation. */
#define _GNU_SOURCE
#include "truth.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#include "sha256.h"

#define PF_KTHREAD 0x00200000 /* include/linux/sched.h: unchanged from 5.10 to 7.x */
#define PATH_SIZE 96
#define FILE_SIZE 8192 /* stat, status, comm and links of one task are far smaller */

/* Files whose every line is reported: the reader on the host takes the columns apart. */
static const char *const LINE_FILES[] = {
    "/proc/modules",     "/proc/mounts",       "/proc/self/mountinfo", "/proc/net/tcp",
    "/proc/net/tcp6",    "/proc/net/udp",      "/proc/net/udp6",       "/proc/net/raw",
    "/proc/net/unix",    "/proc/net/netlink",  "/proc/net/packet",     "/proc/iomem",
    "/proc/net/raw6",
};

/* Addresses a test compares with what it found from outside. */
static const char *const SYMBOLS[] = {
    "_text",       "_stext",       "_end",         "init_task",        "init_pid_ns",   "linux_banner",
    "__start_BTF", "__stop_BTF",   "modules",      "swapper_pg_dir",   "init_top_pgt",  "page_offset_base",
    "saved_command_line", "init_uts_ns", "idt_table", "jiffies_64", "btf_modules", "kallsyms_num_syms",
};

/* Reads a whole small file; the length, or -1 when it is not there. Always ends in NUL. */
static ssize_t read_file(const char *path, char *buffer, size_t size) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    size_t used = 0;
    ssize_t got;
    while (used < size - 1 && (got = read(fd, buffer + used, size - 1 - used)) > 0)
        used += (size_t)got;
    close(fd);
    buffer[used] = 0;
    return (ssize_t)used;
}

static void report_file(struct report *report, const char *key, const char *path) {
    static char text[FILE_SIZE];
    ssize_t length = read_file(path, text, sizeof text);
    if (length > 0 && text[length - 1] == '\n')
        length--;
    report_bytes(report, key, text, length < 0 ? 0 : (size_t)length);
}

static void report_link(struct report *report, const char *key, const char *path) {
    char target[512];
    ssize_t length = readlink(path, target, sizeof target);
    report_bytes(report, key, target, length < 0 ? 0 : (size_t)length);
}

/* The four ids of a "Uid:" or "Gid:" line of /proc/PID/status: real, effective, saved, file system. */
static void report_ids(struct report *report, const char *key, const char *status, const char *label) {
    unsigned ids[4] = {0};
    const char *line = strstr(status, label);
    if (line)
        sscanf(line + strlen(label), "%u %u %u %u", &ids[0], &ids[1], &ids[2], &ids[3]);
    report_numbers(report, key, ids, 4);
}

struct task_stat {
    char state;
    int ppid;
    unsigned flags;
    unsigned long long start_ticks;
};

/* proc(5): fields 3, 4, 9 and 22. The name may hold anything, so the fields start after the last ')'. */
static int parse_stat(const char *text, struct task_stat *stat) {
    const char *fields = strrchr(text, ')');
    return fields && sscanf(fields + 1,
                            " %c %d %*d %*d %*d %*d %u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %llu",
                            &stat->state, &stat->ppid, &stat->flags, &stat->start_ticks) == 4;
}

static void report_namespaces(struct report *report, const char *task) {
    static const char *const KINDS[] = {"pid", "mnt", "net", "uts", "ipc", "user"};
    for (size_t i = 0; i < sizeof KINDS / sizeof *KINDS; i++) {
        char path[PATH_SIZE + 16], key[16];
        snprintf(path, sizeof path, "%s/ns/%s", task, KINDS[i]);
        snprintf(key, sizeof key, "ns_%s", KINDS[i]);
        report_link(report, key, path);
    }
}

/* Words of a process rather than of a thread: what it runs, how it was called, where it is. */
static void report_process(struct report *report, const char *task) {
    char path[PATH_SIZE + 16];
    snprintf(path, sizeof path, "%s/cmdline", task);
    report_file(report, "cmdline", path);
    snprintf(path, sizeof path, "%s/exe", task);
    report_link(report, "exe", path);
    snprintf(path, sizeof path, "%s/cwd", task);
    report_link(report, "cwd", path);
    report_namespaces(report, task);
}

static void report_task(struct report *report, int tgid, int tid) {
    static char status[FILE_SIZE], text[FILE_SIZE];
    char task[PATH_SIZE], path[PATH_SIZE + 16];
    struct task_stat stat;
    snprintf(task, sizeof task, "/proc/%d/task/%d", tgid, tid);
    snprintf(path, sizeof path, "%s/stat", task);
    if (read_file(path, text, sizeof text) < 0 || !parse_stat(text, &stat))
        return; /* it ended while the list was read */
    snprintf(path, sizeof path, "%s/status", task);
    if (read_file(path, status, sizeof status) < 0)
        return;
    report_begin(report, "task");
    report_number(report, "pid", (unsigned long long)tid);
    report_number(report, "tgid", (unsigned long long)tgid);
    report_number(report, "ppid", (unsigned long long)stat.ppid);
    report_bytes(report, "state", &stat.state, 1);
    report_number(report, "flags", stat.flags);
    report_flag(report, "kernel_thread", (stat.flags & PF_KTHREAD) != 0);
    report_number(report, "start_ticks", stat.start_ticks);
    report_ids(report, "uids", status, "\nUid:");
    report_ids(report, "gids", status, "\nGid:");
    snprintf(path, sizeof path, "%s/comm", task);
    report_file(report, "comm", path);
    if (tid == tgid && !(stat.flags & PF_KTHREAD))
        report_process(report, task);
    report_end(report);
}

static int is_number(const char *text) {
    return isdigit((unsigned char)*text) != 0;
}

static void each_task(int tgid, void (*visit)(void *context, int tgid, int tid), void *context) {
    char path[PATH_SIZE];
    snprintf(path, sizeof path, "/proc/%d/task", tgid);
    DIR *tasks = opendir(path);
    for (struct dirent *entry; tasks && (entry = readdir(tasks));)
        if (is_number(entry->d_name))
            visit(context, tgid, atoi(entry->d_name));
    if (tasks)
        closedir(tasks);
}

static void each_process(void (*visit)(void *context, int tgid), void *context) {
    DIR *processes = opendir("/proc");
    for (struct dirent *entry; processes && (entry = readdir(processes));)
        if (is_number(entry->d_name))
            visit(context, atoi(entry->d_name));
    if (processes)
        closedir(processes);
}

static void visit_task(void *context, int tgid, int tid) { report_task(context, tgid, tid); }

static void visit_process(void *context, int tgid) { each_task(tgid, visit_task, context); }

static void report_lines(struct report *report, const char *path) {
    char *line = NULL;
    size_t size = 0;
    ssize_t length;
    FILE *file = fopen(path, "re");
    while (file && (length = getline(&line, &size, file)) > 0) {
        report_begin(report, "line");
        report_text(report, "file", path);
        report_bytes(report, "text", line, (size_t)length - (line[length - 1] == '\n'));
        report_end(report);
    }
    free(line);
    if (file)
        fclose(file);
}

void report_truth(struct report *report) {
    report_begin(report, "guest");
    report_number(report, "reporter", (unsigned long long)getpid());
    report_number(report, "clock_ticks", (unsigned long long)sysconf(_SC_CLK_TCK));
    report_number(report, "cpus", (unsigned long long)sysconf(_SC_NPROCESSORS_ONLN));
    report_file(report, "version", "/proc/version");
    report_file(report, "release", "/proc/sys/kernel/osrelease");
    report_file(report, "cmdline", "/proc/cmdline");
    report_file(report, "uptime", "/proc/uptime");
    report_file(report, "boot_id", "/proc/sys/kernel/random/boot_id");
    report_end(report);
    each_process(visit_process, report);
    for (size_t i = 0; i < sizeof LINE_FILES / sizeof *LINE_FILES; i++)
        report_lines(report, LINE_FILES[i]);
}

#define MODULE_COUNT 128 /* far more than the initramfs carries */

struct module_count {
    char name[64];
    unsigned symbols;
};

static void count_module_symbol(struct module_count *counts, const char *name) {
    for (size_t i = 0; i < MODULE_COUNT; i++) {
        if (!counts[i].name[0])
            snprintf(counts[i].name, sizeof counts[i].name, "%s", name);
        if (strcmp(counts[i].name, name) == 0) {
            counts[i].symbols++;
            return;
        }
    }
}

static void report_symbol(struct report *report, const char *name, const char *address) {
    for (size_t i = 0; i < sizeof SYMBOLS / sizeof *SYMBOLS; i++) {
        if (strcmp(name, SYMBOLS[i]) == 0) {
            report_begin(report, "symbol");
            report_text(report, "name", name);
            report_text(report, "address", address);
            report_end(report);
        }
    }
}

static void report_digest(struct report *report, struct sha256 *hash, unsigned count) {
    char hex[SHA256_HEX_SIZE];
    sha256_hex(hash, hex);
    report_begin(report, "kallsyms");
    report_number(report, "count", count);
    report_text(report, "sha256", hex);
    report_end(report);
}

void report_kallsyms(struct report *report) {
    static struct module_count counts[MODULE_COUNT];
    char *line = NULL, address[32], name[512], module[64];
    size_t size = 0;
    ssize_t length;
    unsigned count = 0;
    struct sha256 hash;
    memset(counts, 0, sizeof counts);
    sha256_start(&hash);
    FILE *file = fopen("/proc/kallsyms", "re");
    while (file && (length = getline(&line, &size, file)) > 0) {
        int fields = sscanf(line, "%31s %*c %511s [%63[^]]", address, name, module);
        if (fields == 3) {
            count_module_symbol(counts, module);
            continue;
        }
        sha256_add(&hash, line, (size_t)length);
        count++;
        report_symbol(report, name, address);
    }
    free(line);
    if (file)
        fclose(file);
    report_digest(report, &hash, count);
    for (size_t i = 0; i < MODULE_COUNT && counts[i].name[0]; i++) {
        report_begin(report, "module_symbols");
        report_text(report, "module", counts[i].name);
        report_number(report, "count", counts[i].symbols);
        report_end(report);
    }
}

static void visit_files(void *context, int tgid) {
    char path[PATH_SIZE], link[PATH_SIZE + 16];
    snprintf(path, sizeof path, "/proc/%d/fd", tgid);
    DIR *descriptors = opendir(path);
    for (struct dirent *entry; descriptors && (entry = readdir(descriptors));) {
        if (!is_number(entry->d_name))
            continue;
        snprintf(link, sizeof link, "/proc/%d/fd/%.10s", tgid, entry->d_name);
        report_begin(context, "file");
        report_number(context, "pid", (unsigned long long)tgid);
        report_number(context, "fd", (unsigned long long)atoi(entry->d_name));
        report_link(context, "target", link);
        snprintf(link, sizeof link, "/proc/%d/fdinfo/%.10s", tgid, entry->d_name);
        report_file(context, "info", link);
        report_end(context);
    }
    if (descriptors)
        closedir(descriptors);
}

void report_files(struct report *report) { each_process(visit_files, report); }

/* A file of any length, read until its end; the caller frees it. */
static char *read_whole(const char *path, size_t *length) {
    size_t size = 0;
    ssize_t got;
    char *text = NULL;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    *length = 0;
    do {
        if (size - *length < FILE_SIZE)
            text = realloc(text, size += 2 * FILE_SIZE);
        got = fd < 0 || !text ? -1 : read(fd, text + *length, size - *length);
        *length += got > 0 ? (size_t)got : 0;
    } while (got > 0);
    if (fd >= 0)
        close(fd);
    return text;
}

struct each_file {
    struct report *report;
    const char *name;
};

static void visit_file(void *context, int tgid) {
    const struct each_file *file = context;
    char path[PATH_SIZE];
    size_t length;
    snprintf(path, sizeof path, "/proc/%d/%.32s", tgid, file->name);
    char *text = read_whole(path, &length);
    report_begin(file->report, "proc");
    report_number(file->report, "pid", (unsigned long long)tgid);
    report_bytes(file->report, "text", text ? text : "", length);
    report_end(file->report);
    free(text);
}

void report_of_each_process(struct report *report, const char *name) {
    struct each_file file = {report, name};
    each_process(visit_file, &file);
}

/* Each read of /dev/kmsg is one record of the kernel's log; it fails with EAGAIN behind the last one. */
void report_log(struct report *report) {
    static char record[FILE_SIZE];
    ssize_t length;
    int fd = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    while (fd >= 0 && ((length = read(fd, record, sizeof record)) > 0 || errno == EPIPE)) {
        if (length <= 0)
            continue; /* the record was overwritten: the next read gives the oldest that is left */
        report_begin(report, "record");
        report_bytes(report, "text", record, (size_t)length);
        report_end(report);
    }
    if (fd >= 0)
        close(fd);
}

static void visit_state(void *running, int tgid, int tid) {
    static char text[FILE_SIZE];
    char path[PATH_SIZE];
    struct task_stat stat;
    snprintf(path, sizeof path, "/proc/%d/task/%d/stat", tgid, tid);
    if (read_file(path, text, sizeof text) < 0 || !parse_stat(text, &stat))
        return;
    if (stat.state == 'R' && tid != getpid() && !(stat.flags & PF_KTHREAD))
        ++*(int *)running;
}

static void visit_states(void *running, int tgid) { each_task(tgid, visit_state, running); }

int everyone_rests(void) {
    int running = 0;
    each_process(visit_states, &running);
    return running == 0;
}
