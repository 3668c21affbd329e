/* Programs for the kernel's own virtual machine (eBPF), loaded on request and kept for as long as the guest lives. */
#ifndef QVMI_PLANTED_BPF_H
#define QVMI_PLANTED_BPF_H

/* Each loads one and puts its descriptor in process 1 there; NULL, or what went wrong. */
const char *bpf_load_filter(int *fd);
/* This one is run by a performance counter of ours, which is off. */
const char *bpf_load_counter(int *fd);

#endif
