/* Writes JSON lines to a serial port, every byte of the guest kept: bytes outside printable ASCII become \u00XX. */
#include "report.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

void report_send(struct report *report) {
    size_t sent = 0;
    while (sent < report->used) {
        ssize_t written = write(report->fd, report->buffer + sent, report->used - sent);
        if (written <= 0)
            break; /* a port nobody reads: nothing is owed to it */
        sent += (size_t)written;
    }
    report->used = 0;
}

static void put(struct report *report, const char *bytes, size_t length) {
    for (size_t i = 0; i < length; i++) {
        if (report->used == sizeof report->buffer)
            report_send(report);
        report->buffer[report->used++] = bytes[i];
    }
}

static void put_text(struct report *report, const char *text) { put(report, text, strlen(text)); }

static void put_key(struct report *report, const char *key) {
    put_text(report, ",\"");
    put_text(report, key);
    put_text(report, "\":");
}

static void put_quoted(struct report *report, const char *bytes, size_t length) {
    put_text(report, "\"");
    for (size_t i = 0; i < length; i++) {
        unsigned char byte = (unsigned char)bytes[i];
        if (byte < 0x20 || byte > 0x7e || byte == '"' || byte == '\\') {
            char escaped[8];
            snprintf(escaped, sizeof escaped, "\\u%04x", byte);
            put_text(report, escaped);
        } else {
            put(report, bytes + i, 1);
        }
    }
    put_text(report, "\"");
}

void report_open(struct report *report, int fd, unsigned long id) {
    report->fd = fd;
    report->id = id;
    report->used = 0;
}

void report_begin(struct report *report, const char *kind) {
    char head[48];
    snprintf(head, sizeof head, "{\"id\":%lu", report->id);
    put_text(report, head);
    report_text(report, "kind", kind);
}

void report_number(struct report *report, const char *key, unsigned long long value) {
    char digits[24];
    snprintf(digits, sizeof digits, "%llu", value);
    put_key(report, key);
    put_text(report, digits);
}

void report_flag(struct report *report, const char *key, int value) {
    put_key(report, key);
    put_text(report, value ? "true" : "false");
}

void report_bytes(struct report *report, const char *key, const char *bytes, size_t length) {
    put_key(report, key);
    put_quoted(report, bytes, length);
}

void report_text(struct report *report, const char *key, const char *text) {
    report_bytes(report, key, text, strlen(text));
}

void report_numbers(struct report *report, const char *key, const unsigned *values, size_t count) {
    put_key(report, key);
    put_text(report, "[");
    for (size_t i = 0; i < count; i++) {
        char digits[16];
        snprintf(digits, sizeof digits, "%s%u", i ? "," : "", values[i]);
        put_text(report, digits);
    }
    put_text(report, "]");
}

void report_end(struct report *report) {
    put_text(report, "}\n");
}

void report_finish(struct report *report, const char *error) {
    report_begin(report, "end");
    report_flag(report, "ok", error == NULL);
    if (error)
        report_text(report, "error", error);
    report_end(report);
    report_send(report);
}
