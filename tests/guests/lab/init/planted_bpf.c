/* Programs for the kernel's own virtual machine (eBPF), loaded on request and kept for as long as the guest lives. */
#include "planted_bpf.h"

#include <errno.h>
#include <linux/bpf.h>
#include <linux/perf_event.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

static int load(enum bpf_prog_type type, const char *name) {
    static const struct bpf_insn RETURN_0[] = {
        {.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = BPF_REG_0, .imm = 0},
        {.code = BPF_JMP | BPF_EXIT},
    };
    union bpf_attr attributes;
    memset(&attributes, 0, sizeof attributes);
    attributes.prog_type = type;
    attributes.insns = (uint64_t)(uintptr_t)RETURN_0;
    attributes.insn_cnt = sizeof RETURN_0 / sizeof *RETURN_0;
    attributes.license = (uint64_t)(uintptr_t) "GPL";
    snprintf(attributes.prog_name, sizeof attributes.prog_name, "%s", name);
    return (int)syscall(SYS_bpf, BPF_PROG_LOAD, &attributes, sizeof attributes);
}

const char *bpf_load_filter(int *fd) {
    *fd = load(BPF_PROG_TYPE_SOCKET_FILTER, "planted_filter");
    return *fd < 0 ? strerror(errno) : NULL;
}

const char *bpf_load_counter(int *fd) {
    struct perf_event_attr attributes = {
        .type = PERF_TYPE_SOFTWARE,
        .size = sizeof attributes,
        .config = PERF_COUNT_SW_PAGE_FAULTS,
        .sample_period = 1000000000,
        .disabled = 1,
    };
    *fd = load(BPF_PROG_TYPE_PERF_EVENT, "planted_count");
    int event = (int)syscall(SYS_perf_event_open, &attributes, 0, -1, -1, 0);
    if (*fd < 0 || event < 0 || ioctl(event, PERF_EVENT_IOC_SET_BPF, *fd) < 0)
        return strerror(errno);
    return NULL;
}
