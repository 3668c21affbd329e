/* Load on demand: a storm of short-lived tasks, each accounted for, and processes that spin in user mode. */
#define _GNU_SOURCE
#include "storm.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "population.h"

#define STORM_LIMIT 262144 /* forks one storm may account for; it ends itself there */
#define WIDTH_LIMIT 256    /* children alive at once: well below the guest's thread limit */
#define SPIN_LIMIT 64
#define REPORT_ROWS 256 /* tasks per line of the report */

/* What each fork of the storm made, written before the parent goes on: kind is serial % KINDS. */
struct storm {
    atomic_int stopping;
    atomic_int count;
    struct {
        atomic_int pid;
        atomic_int second; /* the thread or grandchild it started; 0 for none */
    } tasks[STORM_LIMIT];
};

enum { PLAIN, SLEEPS, THREAD, EXECS, ORPHANS, KINDS };

static struct storm *storm;
static int storm_pid, storm_width, spin_pids[SPIN_LIMIT], spin_count;

static void *storm_thread(void *serial) {
    atomic_store(&storm->tasks[(long)serial].second, (int)syscall(SYS_gettid));
    usleep(1000);
    return NULL;
}

static void live_with_thread(int serial) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, storm_thread, (void *)(long)serial) == 0)
        pthread_join(thread, NULL);
}

static void leave_orphan(int serial) {
    int orphan = fork();
    if (orphan == 0) {
        usleep(2000);
        _exit(0);
    }
    /* Said here, since nobody waits for the orphan itself. */
    atomic_store(&storm->tasks[serial].second, orphan < 0 ? 0 : orphan);
}

static void storm_child(int serial) {
    char name[16];
    snprintf(name, sizeof name, "storm-%d", serial);
    prctl(PR_SET_NAME, name);
    switch (serial % KINDS) {
    case SLEEPS: usleep(3000); break;
    case THREAD: live_with_thread(serial); break;
    case EXECS: execl("/bin/true", "true", NULL); break;
    case ORPHANS: leave_orphan(serial); break;
    default: break;
    }
    _exit(0);
}

/* Keeps `storm_width` children alive until it is told to stop, then waits for the last of them. */
static void storm_parent(void) {
    int alive = 0;
    at_rest();
    while (!atomic_load(&storm->stopping) && atomic_load(&storm->count) < STORM_LIMIT) {
        int serial = atomic_load(&storm->count), pid = fork();
        if (pid == 0)
            storm_child(serial);
        if (pid < 0)
            break;
        atomic_store(&storm->tasks[serial].pid, pid);
        atomic_store(&storm->count, serial + 1);
        if (++alive >= storm_width && wait(NULL) > 0)
            alive--;
    }
    while (wait(NULL) > 0)
        ;
    _exit(0);
}

const char *storm_start(int width) {
    if (storm_pid)
        return "a storm is already on";
    if (width < 1 || width > WIDTH_LIMIT)
        return "storm width is out of range";
    storm = mmap(NULL, sizeof *storm, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (storm == MAP_FAILED)
        return "no memory for the storm's log";
    storm_width = width;
    storm_pid = start_resident("storm-parent", storm_parent);
    return NULL;
}

static void report_storm(struct report *report, int count) {
    unsigned pids[REPORT_ROWS], seconds[REPORT_ROWS];
    for (int first = 0; first < count; first += REPORT_ROWS) {
        int rows = count - first < REPORT_ROWS ? count - first : REPORT_ROWS;
        for (int i = 0; i < rows; i++) {
            pids[i] = (unsigned)atomic_load(&storm->tasks[first + i].pid);
            seconds[i] = (unsigned)atomic_load(&storm->tasks[first + i].second);
        }
        report_begin(report, "storm");
        report_number(report, "first", (unsigned long long)first);
        report_numbers(report, "pids", pids, (size_t)rows);
        report_numbers(report, "seconds", seconds, (size_t)rows);
        report_end(report);
    }
}

const char *storm_stop(struct report *report) {
    if (!storm_pid)
        return "no storm is on";
    atomic_store(&storm->stopping, 1);
    waitpid(storm_pid, NULL, 0);
    int count = atomic_load(&storm->count);
    report_begin(report, "storm_total");
    report_number(report, "parent", (unsigned long long)storm_pid);
    report_number(report, "count", (unsigned long long)count);
    report_end(report);
    report_storm(report, count);
    munmap(storm, sizeof *storm);
    storm = NULL;
    storm_pid = 0;
    return NULL;
}

static void spin(void) {
    at_rest();
    for (volatile unsigned long turns = 0;; turns++)
        ;
}

const char *spin_start(int count) {
    if (count < 1 || spin_count + count > SPIN_LIMIT)
        return "spin count is out of range";
    for (int i = 0; i < count; i++) {
        char name[16];
        snprintf(name, sizeof name, "spin-%d", spin_count);
        spin_pids[spin_count++] = start_resident(name, spin);
    }
    return NULL;
}

const char *spin_stop(void) {
    while (spin_count > 0) {
        int pid = spin_pids[--spin_count];
        kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
    }
    return NULL;
}
