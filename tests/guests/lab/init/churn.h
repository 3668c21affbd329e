/* A process whose mappings, files and mounts change all the time, in a known way. */
#ifndef CHURN_H
#define CHURN_H

/* Starts it and puts its pid there; NULL, or what went wrong. */
const char *churn_start(int *pid);
const char *churn_stop(void);

#endif
