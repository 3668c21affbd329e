/* Load on demand: a storm of short-lived tasks, each accounted for, and processes that spin in user mode. */
#ifndef STORM_H
#define STORM_H

#include "report.h"

/* Each returns NULL, or what was wrong with the request. */
const char *storm_start(int width);
const char *storm_stop(struct report *report);
const char *spin_start(int count);
const char *spin_stop(void);

#endif
