/* The known processes of the guest: started once, in order, and then at rest for ever. */
#define _GNU_SOURCE
#include "population.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "network.h"

#define THREAD_COUNT 8
#define STACK_SIZE (64 << 10)
#define SELF "/proc/self/exe"

/* Where a resident says that it is at rest: one byte, or the end of the pipe when it execs. */
static int rest_fd = -1;

void say_at_rest(void) {
    if (write(rest_fd, "", 1) != 1)
        _exit(1);
}

void at_rest(void) {
    say_at_rest();
    close(rest_fd);
}

static _Noreturn void wait_for_ever(void) {
    for (;;)
        pause();
}

static _Noreturn void rest_for_ever(void) {
    at_rest();
    wait_for_ever();
}

static void must(int result) {
    if (result < 0) {
        perror("population");
        _exit(1);
    }
}

int start_resident(const char *comm, void (*body)(void)) {
    int ends[2];
    char byte;
    must(pipe2(ends, O_CLOEXEC));
    int pid = fork();
    must(pid);
    if (pid == 0) {
        close(ends[0]);
        rest_fd = ends[1];
        prctl(PR_SET_NAME, comm);
        body();
        _exit(1);
    }
    close(ends[1]);
    if (read(ends[0], &byte, 1) < 0)
        must(-1);
    close(ends[0]);
    return pid;
}

/* --- names and arguments ------------------------------------------------------------------------------------- */

/* Each is at most 15 bytes, what task_struct.comm holds. */
static const char *const HOSTILE_NAMES[] = {
    "a (b)[c] d) S 1",               /* everything that a parser of /proc/PID/stat may trip on */
    "\x1b[31mred\x1b[0m",            /* a terminal's colour */
    "\x1b]0;title\x07\x1b[2J",       /* sets a title, clears the screen */
    "[bold red]x[/]",                /* rich markup */
    "[/]",                           /* rich markup that closes what was never opened */
    "<b>&amp;<script",               /* HTML */
    "\xff\xfe\x80" "caf\xe9",        /* no UTF-8 */
    "\xe2\x80\xae" "gnp.exe",        /* UTF-8 that turns the reading direction round */
    "line1\nline2",                  /* a row that looks like two */
    "tab\tback\\x41\r",              /* column and escape characters */
    "",                              /* no name at all */
    "[kthreadd]",                    /* a user process dressed as a kernel thread */
    "kworker/0:0",                   /* and as another */
    "qvmi/v1/+/#",                   /* wildcards of an MQTT topic */
};

static void body_rest(void) { rest_for_ever(); }

static void exec_resident(const char *path, char *const arguments[], const char *comm) {
    char fd_text[16];
    snprintf(fd_text, sizeof fd_text, "%d", rest_fd);
    fcntl(rest_fd, F_SETFD, 0);
    setenv("QVMI_RESIDENT_FD", fd_text, 1);
    setenv("QVMI_RESIDENT_COMM", comm, 1);
    setenv("SECRET", "secret-marker-4711", 1);
    execv(path, arguments);
}

void live_as_resident(const char *comm, const char *fd_text) {
    rest_fd = atoi(fd_text);
    prctl(PR_SET_NAME, comm);
    if (strcmp(comm, "title") == 0) /* as setproctitle(3) does: the title goes on where the environment was */
        for (char *byte = environ[0] - 1; byte > environ[0] - 4; byte--)
            *byte = *byte ? *byte : '_';
    rest_for_ever();
}

static void body_hostile_arguments(void) {
    char *arguments[] = {"hostile args", "\x1b[31mred\x1b[0m", "[bold red]x[/]", "<script>alert(1)</script>",
                         "\xff\xfe", "two\nlines", "", "--flag=a b", NULL};
    exec_resident(SELF, arguments, "hostile-args");
}

static void body_long_name(void) {
    char *arguments[] = {"/run/a program (with) [long] name", "--serve", NULL};
    must(symlink("/init", arguments[0]));
    exec_resident(arguments[0], arguments, "a program (with) [long] name");
}

static void copy_self(int to) {
    char block[1 << 16];
    ssize_t got;
    int from = open(SELF, O_RDONLY | O_CLOEXEC);
    must(from);
    while ((got = read(from, block, sizeof block)) > 0)
        if (write(to, block, (size_t)got) != got)
            must(-1);
    close(from);
}

static void body_deleted_executable(void) {
    char *arguments[] = {"/run/deleted-exe", NULL};
    int copy = open(arguments[0], O_WRONLY | O_CREAT | O_CLOEXEC, 0755);
    must(copy);
    copy_self(copy);
    close(copy);
    /* The path must be gone by the time the program rests: it is opened first and run by descriptor. */
    int program = open(arguments[0], O_RDONLY | O_CLOEXEC);
    must(program);
    must(unlink(arguments[0]));
    char path[32];
    snprintf(path, sizeof path, "/proc/self/fd/%d", program);
    exec_resident(path, arguments, "deleted-exe");
}

static void body_memfd_executable(void) {
    char *arguments[] = {"memfd-exe", NULL};
    int program = memfd_create("hidden program", MFD_CLOEXEC);
    must(program);
    copy_self(program);
    char path[32];
    snprintf(path, sizeof path, "/proc/self/fd/%d", program);
    exec_resident(path, arguments, "memfd-exe");
}

/* --- threads -------------------------------------------------------------------------------------------------- */

static pthread_barrier_t threads_named;

static void *thread_rests(void *number) {
    char name[16];
    snprintf(name, sizeof name, "thr-%d", (int)(long)number);
    pthread_setname_np(pthread_self(), number ? name : "\x1b[1mthr[/]");
    pthread_barrier_wait(&threads_named);
    wait_for_ever();
}

static void body_threads(void) {
    pthread_t thread;
    pthread_barrier_init(&threads_named, NULL, THREAD_COUNT + 1);
    for (long i = 0; i < THREAD_COUNT; i++)
        must(-pthread_create(&thread, NULL, thread_rests, (void *)i));
    pthread_barrier_wait(&threads_named);
    rest_for_ever();
}

/* A process whose first thread has ended: a zombie leader with a live thread behind it. */
static void *thread_outlives_leader(void *unused) {
    char path[48], text[256], state = 0;
    (void)unused;
    pthread_setname_np(pthread_self(), "outlives-leader");
    snprintf(path, sizeof path, "/proc/%d/stat", getpid());
    while (state != 'Z') {
        FILE *file = fopen(path, "re");
        size_t got = file ? fread(text, 1, sizeof text - 1, file) : 0;
        text[got] = 0;
        if (file)
            fclose(file);
        const char *fields = strrchr(text, ')');
        state = fields ? fields[2] : 0;
        sched_yield();
    }
    rest_for_ever();
}

static void body_dead_leader(void) {
    pthread_t thread;
    must(-pthread_create(&thread, NULL, thread_outlives_leader, NULL));
    syscall(SYS_exit, 0);
}

/* --- users ---------------------------------------------------------------------------------------------------- */

static void become(unsigned real_uid, unsigned effective_uid, unsigned real_gid, unsigned effective_gid) {
    gid_t groups[] = {real_gid, 4, 24, 27};
    must(setgroups(sizeof groups / sizeof *groups, groups));
    must(setresgid(real_gid, effective_gid, effective_gid));
    must(setresuid(real_uid, effective_uid, 0));
}

static void body_user(void) { become(1000, 1000, 1000, 1000); rest_for_ever(); }
static void body_nobody(void) { become(65534, 65534, 65534, 65534); rest_for_ever(); }
static void body_large_ids(void) { become(4000000000U, 4000000000U, 3000000001U, 3000000001U); rest_for_ever(); }
static void body_raised(void) { become(1001, 0, 1002, 0); rest_for_ever(); }
static void body_lowered(void) { become(0, 1003, 0, 1004); rest_for_ever(); }

/* --- life and death ------------------------------------------------------------------------------------------- */

static void body_zombie_parent(void) {
    siginfo_t info;
    int pid = fork();
    must(pid);
    if (pid == 0) {
        prctl(PR_SET_NAME, "zombie-child");
        _exit(3);
    }
    must(waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT));
    rest_for_ever();
}

static void body_stopped_parent(void) {
    siginfo_t info;
    int pid = fork();
    must(pid);
    if (pid == 0) {
        prctl(PR_SET_NAME, "stopped");
        raise(SIGSTOP);
        _exit(1);
    }
    must(waitid(P_PID, (id_t)pid, &info, WSTOPPED | WNOWAIT));
    rest_for_ever();
}

static void body_tracer(void) {
    int pid = fork();
    must(pid);
    if (pid == 0) {
        prctl(PR_SET_NAME, "traced");
        must((int)ptrace(PTRACE_TRACEME, 0, NULL, NULL));
        raise(SIGSTOP);
        _exit(1);
    }
    must(waitpid(pid, NULL, WUNTRACED));
    rest_for_ever();
}

/* The parent of a vfork sleeps uninterruptibly (state D) until the child lets go of its memory. */
static void body_vfork_parent(void) {
    if (vfork() == 0) {
        prctl(PR_SET_NAME, "vfork-child");
        rest_for_ever();
    }
}

/* tree-1 is the parent of tree-2, and so on; the last says that all of them are at rest. */
static void body_tree(void) {
    static const char *const NAMES[] = {"tree-1", "tree-2", "tree-3", "tree-4"};
    for (size_t level = 0; level < sizeof NAMES / sizeof *NAMES; level++) {
        int pid = level ? fork() : 0;
        must(pid);
        if (pid > 0)
            wait_for_ever();
        prctl(PR_SET_NAME, NAMES[level]);
    }
    rest_for_ever();
}

/* The child outlives its parent, so that pid 1 inherits it. */
static void body_orphan(void) {
    int parent = getpid(), pid = fork();
    must(pid);
    if (pid > 0)
        _exit(0);
    must(setsid());
    while (getppid() == parent)
        sched_yield();
    rest_for_ever();
}

/* --- a world of its own --------------------------------------------------------------------------------------- */

static int namespace_first(void *unused) {
    (void)unused;
    prctl(PR_SET_NAME, "ns-init");
    must(sethostname("inner-host", 10));
    must(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
    must(mount("inner-tmp", "/tmp", "tmpfs", 0, "size=1m"));
    must(mount("proc", "/proc", "proc", 0, NULL));
    raise_loopback();
    listen_tcp4("127.0.0.1", 5100);
    int pid = fork();
    must(pid);
    if (pid == 0) {
        prctl(PR_SET_NAME, "ns-child");
        rest_for_ever();
    }
    wait_for_ever();
}

static void body_namespaces(void) {
    static char stack[STACK_SIZE];
    int flags = CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWNET | CLONE_NEWIPC | SIGCHLD;
    must(clone(namespace_first, stack + sizeof stack, flags, NULL));
    wait_for_ever();
}

/* --- files, sockets, daemons ---------------------------------------------------------------------------------- */

static void body_sockets(void) { open_every_socket(); rest_for_ever(); }

/* What is shown in a way of its own, where the kernel has it. */
static void open_odd_files(void) {
    int log = open("/run/appended", O_WRONLY | O_CREAT | O_APPEND, 0600);
    must(log);
    must(write(log, "twelve bytes", 12) == 12 ? 0 : -1);
    must(open("/root", O_RDONLY | O_DIRECTORY));
    must(open("/root/marker.txt", O_PATH));
    must(open("/dev/null", O_RDWR));
    must(open("/proc/self/ns/net", O_RDONLY));
    must(open("/proc/1/stat", O_RDONLY));
    must(timerfd_create(CLOCK_MONOTONIC, 0));
    must(inotify_init1(0));
    syscall(SYS_pidfd_open, 1, 0);
    must(mkdir("/run/deleted-folder", 0700));
    must(open("/run/deleted-folder/file", O_RDWR | O_CREAT, 0600));
    must(open("/run/deleted-folder", O_RDONLY | O_DIRECTORY));
    must(unlink("/run/deleted-folder/file"));
    must(rmdir("/run/deleted-folder"));
    must(dup2(log, 200)); /* beyond the first table of descriptors */
}

static void body_files(void) {
    int ends[2];
    must(open("/root/marker.txt", O_RDONLY));
    must(open("/run/deleted-file", O_RDWR | O_CREAT, 0600));
    must(unlink("/run/deleted-file"));
    must(open("/run/name with \x1b[31mred\x1b[0m\n[b]<i>\xff", O_RDWR | O_CREAT, 0600));
    must(pipe(ends));
    must(eventfd(0, 0));
    must(epoll_create1(0));
    must(memfd_create("a memfd", 0));
    must(mkfifo("/run/fifo", 0600));
    must(open("/run/fifo", O_RDWR));
    open_odd_files();
    rest_for_ever();
}

/* --- mounts --------------------------------------------------------------------------------------------------- */

static void new_file(const char *path) {
    int fd = open(path, O_RDWR | O_CREAT, 0600);
    must(fd);
    close(fd);
}

/* In a mount namespace of its own: binds, one mount above another, propagation of each kind, a file
   whose mount is gone. The second process has another root. */
static void body_mounts(void) {
    must(unshare(CLONE_NEWNS));
    must(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
    must(mkdir("/run/m", 0755));
    must(mount("tmpfs", "/run/m", "tmpfs", MS_NOEXEC | MS_NOATIME, "size=1m"));
    static const char *const FOLDERS[] = {"bind", "over", "slave", "alone", "gone", "read only"};
    for (size_t i = 0; i < sizeof FOLDERS / sizeof *FOLDERS; i++) {
        char path[32];
        snprintf(path, sizeof path, "/run/m/%s", FOLDERS[i]);
        must(mkdir(path, 0755));
    }
    new_file("/run/m/file");
    must(mount("/root", "/run/m/bind", NULL, MS_BIND, NULL));
    must(mount("/root/marker.txt", "/run/m/file", NULL, MS_BIND, NULL));
    must(mount("below", "/run/m/over", "tmpfs", 0, "size=64k"));
    must(mount("above", "/run/m/over", "tmpfs", MS_NODIRATIME, "size=64k"));
    must(mount(NULL, "/run/m/over", NULL, MS_SHARED, NULL));
    must(mount("/run/m/over", "/run/m/slave", NULL, MS_BIND, NULL));
    must(mount(NULL, "/run/m/slave", NULL, MS_SLAVE, NULL));
    must(mount("alone", "/run/m/alone", "tmpfs", MS_SYNCHRONOUS, "size=64k"));
    must(mount(NULL, "/run/m/alone", NULL, MS_UNBINDABLE, NULL));
    must(mount("", "/run/m/read only", "tmpfs", MS_RDONLY, "size=64k"));
    must(mount("gone", "/run/m/gone", "tmpfs", 0, "size=64k"));
    must(open("/run/m/gone/still-open", O_RDWR | O_CREAT, 0600));
    must(umount2("/run/m/gone", MNT_DETACH));
    must(open("/run/m/bind/marker.txt", O_RDONLY));
    must(open("/run/m/file", O_RDONLY));
    int pid = fork();
    must(pid);
    if (pid > 0)
        wait_for_ever();
    prctl(PR_SET_NAME, "chrooted");
    must(chroot("/run/m"));
    must(chdir("/"));
    must(open("/over/inside", O_RDWR | O_CREAT, 0600));
    rest_for_ever();
}

/* --- memory --------------------------------------------------------------------------------------------------- */

#define PAGE 4096
#define MANY_MAPPINGS 400 /* so many that a tree of them has three levels */

static void *mapped(int fd, size_t size, int protection, int flags, off_t offset) {
    void *start = mmap(NULL, size, protection, flags, fd, offset);
    if (start == MAP_FAILED)
        must(-1);
    return start;
}

static int file_of(const char *path, size_t size) {
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    must(fd);
    must(ftruncate(fd, (off_t)size));
    return fd;
}

static void body_mappings(void) {
    int plain = file_of("/run/mapped \n\\ file", 8 * PAGE), deleted = file_of("/run/mapped-deleted", PAGE);
    int memory = memfd_create("mapped memfd", MFD_CLOEXEC);
    must(memory);
    must(ftruncate(memory, PAGE));
    must(unlink("/run/mapped-deleted"));
    mapped(plain, 2 * PAGE, PROT_READ, MAP_PRIVATE, 3 * PAGE);
    mapped(plain, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, 0);
    mapped(deleted, PAGE, PROT_READ | PROT_EXEC, MAP_PRIVATE, 0);
    mapped(memory, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, 0);
    mapped(-1, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, 0);
    mapped(-1, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, 0);
    mapped(-1, PAGE, PROT_READ, MAP_SHARED | MAP_ANONYMOUS, 0);
    void *named = mapped(-1, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, 0);
    prctl(0x53564d41, 0, named, PAGE, "a name"); /* PR_SET_VMA_ANON_NAME, where the kernel has it */
    char *many = mapped(-1, MANY_MAPPINGS * PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, 0);
    for (int i = 0; i < MANY_MAPPINGS; i += 2)
        must(mprotect(many + i * PAGE, PAGE, PROT_READ | PROT_WRITE));
    rest_for_ever();
}

static void body_title(void) {
    char *arguments[] = {"title", "x", NULL};
    exec_resident(SELF, arguments, "title");
}

static void body_sleep(void) { execl("/bin/sleep", "sleep", "100000000", NULL); }
static void body_httpd(void) { execl("/bin/httpd", "httpd", "-f", "-p", "8080", "-h", "/root", NULL); }
static void body_nc(void) { execl("/bin/nc", "nc", "-l", "-p", "4444", NULL); }

struct resident {
    const char *comm;
    void (*body)(void);
};

static const struct resident RESIDENTS[] = {
    {"sleep", body_sleep},
    {"httpd", body_httpd},
    {"nc", body_nc},
    {"sockets", body_sockets},
    {"files", body_files},
    {"threads", body_threads},
    {"dead-leader", body_dead_leader},
    {"user-1000", body_user},
    {"nobody", body_nobody},
    {"large-ids", body_large_ids},
    {"raised-uid", body_raised},
    {"lowered-uid", body_lowered},
    {"hostile-args", body_hostile_arguments},
    {"a program (with", body_long_name},
    {"deleted-exe", body_deleted_executable},
    {"memfd-exe", body_memfd_executable},
    {"zombie-parent", body_zombie_parent},
    {"stopped-parent", body_stopped_parent},
    {"tracer", body_tracer},
    {"vfork-parent", body_vfork_parent},
    {"tree-1", body_tree},
    {"orphan", body_orphan},
    {"namespaces", body_namespaces},
    {"mounts", body_mounts},
    {"mappings", body_mappings},
    {"title", body_title},
};

void populate(void) {
    for (size_t i = 0; i < sizeof RESIDENTS / sizeof *RESIDENTS; i++)
        start_resident(RESIDENTS[i].comm, RESIDENTS[i].body);
    for (size_t i = 0; i < sizeof HOSTILE_NAMES / sizeof *HOSTILE_NAMES; i++)
        start_resident(HOSTILE_NAMES[i], body_rest);
}
