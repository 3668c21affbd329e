/* What no descriptor leads to, made when a test asks for it: sockets, a network, eBPF programs. */
#ifndef EXOTIC_H
#define EXOTIC_H

/* Starts the process that has them and puts its pid there; NULL, or what went wrong. */
const char *exotic_start(int *pid);

/* Leaves one connection to that port of 127.0.0.1 in TIME_WAIT, which lasts a minute. */
const char *leave_in_time_wait(unsigned short port);

#endif
