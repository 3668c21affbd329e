/* Writes JSON lines to a serial port, every byte of the guest kept: bytes outside printable ASCII become \u00XX. */
#ifndef REPORT_H
#define REPORT_H

#include <stddef.h>

struct report {
    int fd;
    unsigned long id; /* the request this answers; 0 for what is said unasked */
    size_t used;
    char buffer[4096];
};

void report_open(struct report *report, int fd, unsigned long id);
/* One line: begin, any number of fields, end. */
void report_begin(struct report *report, const char *kind);
void report_number(struct report *report, const char *key, unsigned long long value);
void report_flag(struct report *report, const char *key, int value);
void report_bytes(struct report *report, const char *key, const char *bytes, size_t length);
void report_text(struct report *report, const char *key, const char *text);
void report_numbers(struct report *report, const char *key, const unsigned *values, size_t count);
void report_end(struct report *report);
/* Lines leave in blocks: a write of each by itself costs more than the bytes do. */
void report_send(struct report *report);
/* The last line of an answer; error is NULL when all went well. */
void report_finish(struct report *report, const char *error);

#endif
