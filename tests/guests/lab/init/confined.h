/* Processes that may do less than others, or live in a world of their own: credentials, namespaces, cgroups. */
#ifndef CONFINED_H
#define CONFINED_H

/* Mounts the cgroup hierarchies, and makes a namespace of AppArmor's: for processes that are started later. */
void prepare_confinement(void);
/* Starts them and returns when each has come to rest. */
void start_confined(void);

#endif
