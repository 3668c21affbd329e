/* The sockets of the population: one of each kind that a guest shows. */
#ifndef NETWORK_H
#define NETWORK_H

void raise_loopback(void);
void listen_tcp4(const char *address, unsigned short port);
void open_every_socket(void);

#endif
