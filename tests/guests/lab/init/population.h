/* The known processes of the guest: started once, in order, and then at rest for ever. */
#ifndef POPULATION_H
#define POPULATION_H

/* Starts everyone and returns when each has come to rest. */
void populate(void);
/* The program of a resident that was exec'ed rather than forked; never returns. */
void live_as_resident(const char *comm, const char *rest_fd);
/* Forks, names the child and runs its body there; returns its pid once it says that it is at rest. */
int start_resident(const char *comm, void (*body)(void));
/* Called in a resident when it is as it will stay. */
void at_rest(void);
/* The same for one that may only write any more. */
void say_at_rest(void);

#endif
