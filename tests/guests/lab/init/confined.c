/* Processes that may do less than others, or live in a world of their own: credentials, namespaces, cgroups. */
#define _GNU_SOURCE
#include "confined.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <linux/securebits.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "population.h"

#define UNIFIED "/sys/fs/cgroup"
#define PIDS "/run/cgroup/pids"
#define NAMED "/run/cgroup/named"
#define CONTAINER "4711f00dcafe4711f00dcafe4711f00dcafe4711f00dcafe4711f00dcafe4711"
#define POD "kubepods-burstable-pod0a1b2c3d_4e5f_6071_8293_a4b5c6d7e8f9"
#define MANY_GROUPS 1500 /* so many that they are more than a page */
#define STACK_SIZE (64 << 10)
#ifndef CLONE_NEWTIME
#define CLONE_NEWTIME 0x80
#endif

static void must(int result) {
    if (result < 0) {
        perror("confined");
        _exit(1);
    }
}

static _Noreturn void wait_for_ever(void) {
    for (;;)
        pause();
}

static _Noreturn void rest_for_ever(void) {
    at_rest();
    wait_for_ever();
}

static void write_all(const char *path, const char *text) {
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    must(fd);
    must((int)write(fd, text, strlen(text)));
    close(fd);
}

/* --- credentials ---------------------------------------------------------------------------------------------- */

static void set_capabilities(unsigned long long permitted, unsigned long long effective,
                             unsigned long long inheritable) {
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2];
    for (int half = 0; half < 2; half++) {
        data[half].permitted = (unsigned)(permitted >> 32 * half);
        data[half].effective = (unsigned)(effective >> 32 * half);
        data[half].inheritable = (unsigned)(inheritable >> 32 * half);
    }
    must((int)syscall(SYS_capset, &header, data));
}

#define BIT(capability) (1ULL << (capability))

static void body_fewer_capabilities(void) {
    must(prctl(PR_CAPBSET_DROP, CAP_SYS_MODULE));
    must(prctl(PR_CAPBSET_DROP, CAP_SYS_RAWIO));
    must(prctl(PR_SET_SECUREBITS, SECBIT_NOROOT | SECBIT_NOROOT_LOCKED));
    set_capabilities(BIT(CAP_NET_ADMIN) | BIT(CAP_CHOWN) | BIT(CAP_BPF), BIT(CAP_NET_ADMIN),
                     BIT(CAP_CHOWN) | BIT(CAP_CHECKPOINT_RESTORE));
    rest_for_ever();
}

static void body_ambient(void) {
    unsigned long long kept = BIT(CAP_NET_BIND_SERVICE) | BIT(CAP_NET_RAW);
    must(prctl(PR_SET_KEEPCAPS, 1));
    must(setresgid(1000, 1000, 1000));
    must(setresuid(1000, 1000, 1000));
    set_capabilities(kept, kept, kept);
    must(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_NET_RAW, 0, 0));
    rest_for_ever();
}

/* Each of its four users and four groups is another one. */
static void body_eight_ids(void) {
    must(setresgid(2001, 2002, 2003));
    must(setresuid(1001, 0, 1003));
    syscall(SYS_setfsgid, 2004); /* these tell the former id, whether they succeed or not */
    syscall(SYS_setfsuid, 1004);
    rest_for_ever();
}

static void body_many_groups(void) {
    static gid_t groups[MANY_GROUPS];
    for (unsigned i = 0; i < MANY_GROUPS; i++)
        groups[i] = 4294967294U - 7 * i;
    must(setgroups(MANY_GROUPS, groups));
    rest_for_ever();
}

static void body_no_new_privileges(void) {
    must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    rest_for_ever();
}

static void body_seccomp_filter(void) {
    struct sock_filter allow[] = {BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
    struct sock_fprog program = {.len = 1, .filter = allow};
    must(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program));
    rest_for_ever();
}

/* May only read and write from then on: it says so on a pipe, and reads from it for ever. */
static void body_seccomp_strict(void) {
    int ends[2];
    char byte;
    must(pipe(ends));
    must(prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT));
    say_at_rest();
    for (;;)
        (void)!read(ends[0], &byte, 1);
}

/* --- namespaces ----------------------------------------------------------------------------------------------- */

static int inner_first(void *unused) {
    (void)unused;
    prctl(PR_SET_NAME, "box-inner");
    rest_for_ever();
}

static int box_first(void *map_written) {
    static char stack[STACK_SIZE];
    char byte;
    prctl(PR_SET_NAME, "box-init");
    must((int)read(*(int *)map_written, &byte, 1));
    must(setresgid(7, 7, 7));
    must(setresuid(5, 5, 5));
    must(sethostname("box \x1b[31m[b]<i>", 15));
    (void)!unshare(CLONE_NEWTIME); /* of children, where the kernel has it */
    must(clone(inner_first, stack + sizeof stack, CLONE_NEWPID | SIGCHLD, NULL));
    wait_for_ever();
}

/* Processes of users, pids, a host name and clocks of their own; one of them in a pid namespace within. */
static void body_box(void) {
    static char stack[STACK_SIZE];
    static int map_written[2];
    char path[64];
    must(pipe(map_written));
    int flags = CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWUTS | CLONE_NEWCGROUP | SIGCHLD;
    int pid = clone(box_first, stack + sizeof stack, flags, &map_written[0]);
    must(pid);
    static const char *const MAPS[] = {"uid_map", "gid_map"};
    for (size_t i = 0; i < sizeof MAPS / sizeof *MAPS; i++) {
        snprintf(path, sizeof path, "/proc/%d/%s", pid, MAPS[i]);
        write_all(path, "0 100000 1000\n");
    }
    must((int)write(map_written[1], "", 1));
    wait_for_ever();
}

/* --- cgroups -------------------------------------------------------------------------------------------------- */

/* Makes a folder and those above it, below a mounted hierarchy. */
static void make_cgroup(const char *hierarchy, const char *path) {
    char whole[512];
    size_t at = (size_t)snprintf(whole, sizeof whole, "%s/%s", hierarchy, path);
    for (char *slash = whole + strlen(hierarchy) + 1; (slash = strchr(slash, '/')); slash++) {
        *slash = 0;
        (void)mkdir(whole, 0755);
        *slash = '/';
    }
    if (at >= sizeof whole || (mkdir(whole, 0755) < 0 && errno != EEXIST))
        must(-1);
}

static void enter_cgroup(const char *hierarchy, const char *path) {
    char file[512];
    make_cgroup(hierarchy, path);
    snprintf(file, sizeof file, "%s/%s/cgroup.procs", hierarchy, path);
    write_all(file, "0");
}

static void body_in_docker(void) {
    enter_cgroup(UNIFIED, "docker/" CONTAINER);
    enter_cgroup(PIDS, "docker/" CONTAINER "/inner");
    enter_cgroup(NAMED, "lxc.payload.web");
    rest_for_ever();
}

static void body_in_pod(void) {
    enter_cgroup(UNIFIED, "kubepods.slice/kubepods-burstable.slice/" POD ".slice/cri-containerd-" CONTAINER ".scope");
    must(unshare(CLONE_NEWCGROUP));
    rest_for_ever();
}

static void body_in_odd_cgroup(void) {
    enter_cgroup(UNIFIED, "odd \x1b[31m[b]<i>\xff/machine-a\\x2db.scope");
    rest_for_ever();
}

/* Its child is dead, and so is the cgroup that it was in; of old hierarchies a dead process is in the root. */
static void body_in_dead_cgroup(void) {
    siginfo_t info;
    make_cgroup(UNIFIED, "gone");
    int pid = fork();
    must(pid);
    if (pid == 0) {
        prctl(PR_SET_NAME, "dead-in-cgroup");
        enter_cgroup(UNIFIED, "gone");
        enter_cgroup(PIDS, "stays");
        _exit(0);
    }
    must(waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT));
    while (rmdir(UNIFIED "/gone") < 0 && errno == EBUSY)
        sched_yield(); /* newer kernels take a dead process off its cgroup a moment later */
    rest_for_ever();
}

static void body_labelled(void) {
    int fd = open("/proc/self/attr/current", O_WRONLY | O_CLOEXEC);
    static const char WORDS[] = "changeprofile :qvmi-box://unconfined";
    (void)!write(fd, WORDS, sizeof WORDS - 1); /* where the kernel has AppArmor */
    close(fd);
    rest_for_ever();
}

void prepare_confinement(void) {
    (void)mount("securityfs", "/sys/kernel/security", "securityfs", 0, NULL);
    (void)mkdir("/sys/kernel/security/apparmor/policy/namespaces/qvmi-box", 0755);
    (void)mount("cgroup2", UNIFIED, "cgroup2", 0, NULL);
    (void)mkdir("/run/cgroup", 0755);
    (void)mkdir(PIDS, 0755);
    (void)mkdir(NAMED, 0755);
    (void)mount("cgroup", PIDS, "cgroup", 0, "pids");
    (void)mount("cgroup", NAMED, "cgroup", 0, "none,name=qvmi");
}

static const struct {
    const char *comm;
    void (*body)(void);
} RESIDENTS[] = {
    {"fewer-caps", body_fewer_capabilities},
    {"ambient-caps", body_ambient},
    {"eight-ids", body_eight_ids},
    {"many-groups", body_many_groups},
    {"no-new-privs", body_no_new_privileges},
    {"seccomp-filter", body_seccomp_filter},
    {"seccomp-strict", body_seccomp_strict},
    {"box", body_box},
    {"in-docker", body_in_docker},
    {"in-pod", body_in_pod},
    {"in-odd-cgroup", body_in_odd_cgroup},
    {"in-dead-cgroup", body_in_dead_cgroup},
    {"labelled", body_labelled},
};

void start_confined(void) {
    for (size_t i = 0; i < sizeof RESIDENTS / sizeof *RESIDENTS; i++)
        start_resident(RESIDENTS[i].comm, RESIDENTS[i].body);
}
