/* What the guest's own kernel says of itself, read raw from /proc and reported without interpretation. */
#ifndef TRUTH_H
#define TRUTH_H

#include "report.h"

/* Every task, the mounts, sockets, modules and memory map. Starts nothing, so the answer is at rest. */
void report_truth(struct report *report);
/* Digest and count of the kernel's own /proc/kallsyms lines, symbols per module, and some addresses. */
void report_kallsyms(struct report *report);
/* Every open descriptor of every process, as /proc/PID/fd names it. */
void report_files(struct report *report);
/* True when no user task but this one is running or runnable. */
int everyone_rests(void);

#endif
