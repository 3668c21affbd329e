/* A process whose mappings, files and mounts change all the time, in a known way. */
#define _GNU_SOURCE
#include "churn.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096
#define PAGES 64 /* every other one of other rights: that many mappings */
#define FIRST_FD 40
#define FDS 8
#define MOUNT_EVERY 4 /* rounds: a mount costs more than all the rest */
#define FOLDER "/run/churn"

static int churning;

static void change_mappings(int file) {
    char *area = mmap(NULL, PAGES * PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    void *shared = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, file, 0);
    for (int i = 0; area != MAP_FAILED && i < PAGES; i += 2)
        mprotect(area + i * PAGE, PAGE, PROT_READ | PROT_WRITE);
    if (shared != MAP_FAILED)
        munmap(shared, PAGE);
    if (area != MAP_FAILED)
        munmap(area, PAGES * PAGE);
}

static void change_mounts(void) {
    if (mount("churn", FOLDER "/mount", "tmpfs", 0, "size=4k") == 0)
        umount(FOLDER "/mount");
}

static _Noreturn void churn_for_ever(void) {
    prctl(PR_SET_NAME, "churn");
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    mkdir(FOLDER, 0755);
    mkdir(FOLDER "/mount", 0755);
    for (unsigned round = 0;; round++) {
        int file = open(FOLDER "/one", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        for (int i = 0; i < FDS; i++)
            dup2(file, FIRST_FD + i);
        if (ftruncate(file, PAGE) == 0)
            change_mappings(file);
        rename(FOLDER "/one", FOLDER "/two");
        unlink(FOLDER "/two");
        for (int i = 0; i < FDS; i++)
            close(FIRST_FD + i);
        close(file);
        if (round % MOUNT_EVERY == 0)
            change_mounts();
    }
}

const char *churn_start(int *pid) {
    if (churning)
        return "it churns already";
    churning = fork();
    if (churning == 0)
        churn_for_ever();
    *pid = churning;
    return churning < 0 ? "no process" : NULL;
}

const char *churn_stop(void) {
    if (churning <= 0)
        return "nothing churns";
    kill(churning, SIGKILL);
    waitpid(churning, NULL, 0);
    churning = 0;
    umount(FOLDER "/mount");
    return NULL;
}
