/* eBPF programs: some of many types are loaded, and what the kernel says of all there are is told.
   References: bpf(2); include/uapi/linux/bpf.h; Documentation/bpf/btf.rst. */
#define _GNU_SOURCE
#include "bpf.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/btf.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SKB_MODE 2 /* XDP_FLAGS_SKB_MODE */
#define LOOPBACK 1
#define MAX_MAPS 16
#define MAX_FUNCTIONS 16
#define TRACED "security_path_rename" /* called by nobody here, and a function of its own on every kernel */
#define TRACEPOINT "task_rename"

/* One instruction: code, registers, offset, immediate. */
#define OP(c, dst, src, value) {.code = (c), .dst_reg = (dst), .src_reg = (src), .imm = (value)}
#define RETURN(value) OP(0xb7, 0, 0, value), OP(0x95, 0, 0, 0)

static int bpf(int command, union bpf_attr *attributes) {
    return (int)syscall(SYS_bpf, command, attributes, sizeof *attributes);
}

/* To an initialiser of one member the others are nothing; to the kernel they must be zero. */
static union bpf_attr nothing(void) {
    union bpf_attr attributes;
    memset(&attributes, 0, sizeof attributes);
    return attributes;
}

static int told(const char *what, int result) {
    if (result < 0)
        fprintf(stderr, "bpf: %s: %s\n", what, strerror(errno));
    return result;
}

static int new_map(const char *name, unsigned type) {
    union bpf_attr attributes = nothing();
    attributes.map_type = type;
    attributes.key_size = 4;
    attributes.value_size = 8;
    attributes.max_entries = 4;
    strcpy(attributes.map_name, name);
    return told(name, bpf(BPF_MAP_CREATE, &attributes));
}

struct program {
    const char *name;
    unsigned type, expected, function; /* function: BTF id of what is traced */
    const struct bpf_insn *code;
    unsigned count;
};

static int load(struct program program) {
    union bpf_attr attributes = nothing();
    attributes.prog_type = program.type;
    attributes.insns = (uintptr_t)program.code;
    attributes.insn_cnt = program.count;
    attributes.license = (uintptr_t)"GPL";
    attributes.expected_attach_type = program.expected;
    attributes.attach_btf_id = program.function;
    strcpy(attributes.prog_name, program.name);
    return told(program.name, bpf(BPF_PROG_LOAD, &attributes));
}

static void load_filter(void) {
    int first = new_map("qvmi_array", BPF_MAP_TYPE_ARRAY), second = new_map("qvmi_hash", BPF_MAP_TYPE_HASH);
    const struct bpf_insn code[] = {OP(0x18, 1, BPF_PSEUDO_MAP_FD, first), {0},
                                    OP(0x18, 2, BPF_PSEUDO_MAP_FD, second), {0}, RETURN(0)};
    int filter = load((struct program){"qvmi_filter", BPF_PROG_TYPE_SOCKET_FILTER, 0, 0, code, 6});
    int socket_fd = socket(AF_INET, SOCK_DGRAM, 0);
    told("attach", setsockopt(socket_fd, SOL_SOCKET, SO_ATTACH_BPF, &filter, sizeof filter));
    close(first);
    close(second);
    close(filter); /* the socket alone holds it from now on */
}

/* The only function of a name: its id in the kernel's BTF, 0 where it is not told. */
static unsigned id_of_function(const char *name) {
    static const unsigned char WORDS[] = {[BTF_KIND_INT] = 1, [BTF_KIND_ARRAY] = 3, [14 /* VAR */] = 1, [17 /* DECL_TAG */] = 1};
    static const unsigned char EACH[] = {[BTF_KIND_STRUCT] = 3, [BTF_KIND_UNION] = 3, [BTF_KIND_ENUM] = 2,
                                         [BTF_KIND_FUNC_PROTO] = 2, [15 /* DATASEC */] = 3, [19 /* ENUM64 */] = 3};
    struct stat its;
    int fd = open("/sys/kernel/btf/vmlinux", O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &its) < 0)
        return 0;
    unsigned char *data = malloc((size_t)its.st_size);
    size_t used = 0;
    for (ssize_t got; (got = read(fd, data + used, (size_t)its.st_size - used)) > 0;)
        used += (size_t)got;
    close(fd);
    struct btf_header head;
    memcpy(&head, data, sizeof head);
    const uint32_t *at = (void *)(data + head.hdr_len + head.type_off), *end = at + head.type_len / 4;
    const char *strings = (void *)(data + head.hdr_len + head.str_off);
    unsigned found = 0;
    for (unsigned id = 1; at < end && !found; id++) {
        unsigned kind = at[1] >> 24 & 0x1f, count = at[1] & 0xffff;
        if (kind == BTF_KIND_FUNC && strcmp(strings + at[0], name) == 0)
            found = id;
        at += 3 + (kind < sizeof WORDS ? WORDS[kind] : 0) + (kind < sizeof EACH ? EACH[kind] * count : 0);
    }
    free(data);
    return found;
}

void bpf_load_all(void) {
    static const struct bpf_insn ONE[] = {RETURN(1)}, TWO[] = {RETURN(2)}, ZERO[] = {RETURN(0)};
    static const struct bpf_insn CALLS[] = {OP(0x85, 0, 1 /* BPF_PSEUDO_CALL */, 1), OP(0x95, 0, 0, 0), RETURN(0)};
    load_filter();
    load((struct program){"qvmi_calls", BPF_PROG_TYPE_SOCKET_FILTER, 0, 0, CALLS, 4});
    load((struct program){"qvmi_kprobe", BPF_PROG_TYPE_KPROBE, 0, 0, ZERO, 2});
    load((struct program){"qvmi_classifier", BPF_PROG_TYPE_SCHED_CLS, 0, 0, ZERO, 2});
    load((struct program){"qvmi_cgroup", BPF_PROG_TYPE_CGROUP_SKB, BPF_CGROUP_INET_INGRESS, 0, ONE, 2});
    load((struct program){"qvmi_fentry", BPF_PROG_TYPE_TRACING, BPF_TRACE_FENTRY, id_of_function(TRACED), ZERO, 2});
    int xdp = load((struct program){"qvmi_xdp", BPF_PROG_TYPE_XDP, 0, 0, TWO, 2}); /* 2: XDP_PASS */
    union bpf_attr link = nothing(), point = nothing();
    link.link_create.prog_fd = (unsigned)xdp;
    link.link_create.target_ifindex = LOOPBACK;
    link.link_create.attach_type = BPF_XDP;
    link.link_create.flags = SKB_MODE;
    told("xdp link", bpf(BPF_LINK_CREATE, &link));
    close(xdp); /* its link holds it */
    int raw = load((struct program){"qvmi_raw_tp", BPF_PROG_TYPE_RAW_TRACEPOINT, 0, 0, ZERO, 2});
    point.raw_tracepoint.name = (uintptr_t)TRACEPOINT;
    point.raw_tracepoint.prog_fd = (unsigned)raw;
    told("raw tracepoint", bpf(BPF_RAW_TRACEPOINT_OPEN, &point));
}

static int describe(int fd, void *info, unsigned size) {
    union bpf_attr attributes = nothing();
    attributes.info.bpf_fd = (unsigned)fd;
    attributes.info.info_len = size;
    attributes.info.info = (uintptr_t)info;
    return bpf(BPF_OBJ_GET_INFO_BY_FD, &attributes);
}

static void report_program(struct report *report, int fd) {
    unsigned maps[MAX_MAPS];
    uint64_t functions[MAX_FUNCTIONS] = {0};
    struct bpf_prog_info info = {.nr_map_ids = MAX_MAPS, .map_ids = (uintptr_t)maps,
                                 .nr_jited_ksyms = MAX_FUNCTIONS, .jited_ksyms = (uintptr_t)functions};
    if (describe(fd, &info, sizeof info) < 0)
        return;
    report_begin(report, "program");
    report_number(report, "number", info.id);
    report_number(report, "type", info.type);
    report_text(report, "name", info.name);
    report_bytes(report, "tag", (const char *)info.tag, sizeof info.tag);
    report_number(report, "load_time", info.load_time);
    report_number(report, "uid", info.created_by_uid);
    report_number(report, "instructions", info.xlated_prog_len / 8);
    report_number(report, "jited_size", info.jited_prog_len);
    report_number(report, "jited_at", functions[0]);
    report_numbers(report, "maps", maps, info.nr_map_ids);
    report_number(report, "attach_btf_id", info.attach_btf_id);
    report_end(report);
}

static void report_map(struct report *report, int fd) {
    struct bpf_map_info info;
    memset(&info, 0, sizeof info);
    if (describe(fd, &info, sizeof info) < 0)
        return;
    report_begin(report, "map");
    report_number(report, "number", info.id);
    report_number(report, "type", info.type);
    report_text(report, "name", info.name);
    report_end(report);
}

static void report_link(struct report *report, int fd) {
    char name[64] = "";
    struct bpf_link_info info;
    memset(&info, 0, sizeof info);
    info.raw_tracepoint.tp_name = (uintptr_t)name;
    info.raw_tracepoint.tp_name_len = sizeof name;
    if (describe(fd, &info, sizeof info) < 0) /* one without a name to tell refuses room for it */
        memset(&info, 0, sizeof info);
    report_begin(report, "link");
    report_number(report, "number", info.id);
    report_number(report, "type", info.type);
    report_number(report, "program", info.prog_id);
    report_text(report, "tracepoint", name);
    report_number(report, "interface", info.type == BPF_LINK_TYPE_XDP ? info.xdp.ifindex : 0);
    report_end(report);
}

static const struct {
    int next, open;
    void (*tell)(struct report *report, int fd);
} KINDS[] = {
    {BPF_PROG_GET_NEXT_ID, BPF_PROG_GET_FD_BY_ID, report_program},
    {BPF_MAP_GET_NEXT_ID, BPF_MAP_GET_FD_BY_ID, report_map},
    {BPF_LINK_GET_NEXT_ID, BPF_LINK_GET_FD_BY_ID, report_link},
};

void report_bpf(struct report *report) {
    for (size_t i = 0; i < sizeof KINDS / sizeof *KINDS; i++) {
        union bpf_attr attributes = nothing();
        while (bpf(KINDS[i].next, &attributes) == 0) {
            union bpf_attr wanted = nothing();
            unsigned id = wanted.prog_id = attributes.next_id;
            int fd = bpf(KINDS[i].open, &wanted);
            if (fd >= 0) {
                KINDS[i].tell(report, fd);
                close(fd);
            }
            attributes = nothing();
            attributes.start_id = id;
        }
    }
}
