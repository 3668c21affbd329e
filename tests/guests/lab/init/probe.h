/* Attempts to reach others over a network: connects, datagrams, and frames made by whoever asks. */
#ifndef PROBE_H
#define PROBE_H

#include "report.h"

/* "ADDRESS FIRST LAST MILLISECONDS": connects to each TCP port, and tells which are open and what came of the
   others: refused, unreachable, or silent until the time was over. */
const char *probe_tcp(struct report *report, const char *rest);

/* "ADDRESS FIRST LAST TEXT": sends a datagram to each UDP port, and tells how many left. */
const char *probe_udp(struct report *report, const char *rest);

/* "INTERFACE HEX…": sends each as a frame, whatever is in it, and tells how many left. */
const char *probe_frames(struct report *report, const char *rest);

#endif
