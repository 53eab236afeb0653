#define _GNU_SOURCE
#include "harness.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

void harness_fail(const char *file, int line, const char *condition, const char *format, ...) {
    va_list args;
    fprintf(stderr, "%s:%d: not %s: ", file, line, condition);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    _exit(1);
}

adapm_segment *harness_segment(uint64_t rows, uint32_t row_len, uint64_t capacity, uint32_t workers) {
    const adapm_spec spec = {.node = 0, .nnodes = 1, .nworkers = workers, .nlanes = 1, .ntables = 1, .heap_bytes = 1 << 16,
                             .rows = &rows, .capacity = &capacity, .row_len = &row_len};
    int err, fd = memfd_create("adapm-stress", MFD_CLOEXEC);
    MUST(fd >= 0, "memfd_create");
    adapm_segment *s = adapm_segment_create(fd, &spec, &err);
    MUST(s, "create: %d", err);
    close(fd); /* the mapping keeps the file */
    return s;
}

int harness_eventfd(void) {
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    MUST(fd >= 0, "eventfd");
    return fd;
}

adapm_worker *harness_worker(adapm_segment *s, uint32_t slot, int node_fd, int worker_fd) {
    int err;
    adapm_worker *w = adapm_worker_attach(s, slot, node_fd, worker_fd, &err);
    MUST(w, "attach: %d", err);
    return w;
}

uint64_t harness_random(uint64_t *state) {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

double harness_duration(int argc, char **argv) { return argc > 1 ? atof(argv[1]) : 1.0; }
