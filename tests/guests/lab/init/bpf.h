/* eBPF programs: some of many types are loaded, and what the kernel says of all there are is told. */
#ifndef QVMI_BPF_H
#define QVMI_BPF_H

#include "report.h"

/* Loads and keeps them; what this kernel refuses is told on the console. */
void bpf_load_all(void);

/* Every program, map and link, as BPF_OBJ_GET_INFO_BY_FD describes it. */
void report_bpf(struct report *report);

#endif
