/* What the guest's own kernel says of itself, read raw from /proc and reported without interpretation. */
#ifndef TRUTH_H
#define TRUTH_H

#include "report.h"

/* Every task, the mounts, sockets, modules and memory map. Starts nothing, so the answer is at rest. */
void report_truth(struct report *report);
/* Digest and count of the kernel's own /proc/kallsyms lines, symbols per module, and some addresses. */
void report_kallsyms(struct report *report);
/* Every open descriptor of every process, as /proc/PID/fd and fdinfo show it. */
void report_files(struct report *report);
/* One file of /proc/PID of every process, whole, such as maps or environ. */
void report_of_each_process(struct report *report, const char *name);
/* Every record of the kernel's log, as /dev/kmsg gives it. */
void report_log(struct report *report);
/* True when no user task but this one is running or runnable. */
int everyone_rests(void);

#endif
