/* What the stress programs share: a segment of their own, worker handles, random numbers. */
#ifndef ADAPM_HARNESS_H
#define ADAPM_HARNESS_H

#include <stdint.h>

#include "kernel.h"
#include "segment.h"

#define MUST(condition, ...) \
    do { \
        if (!(condition)) harness_fail(__FILE__, __LINE__, #condition, __VA_ARGS__); \
    } while (0)

/* Prints what is wrong and ends the process with status 1. */
_Noreturn void harness_fail(const char *file, int line, const char *condition, const char *format, ...) __attribute__((format(printf, 4, 5)));

/* A segment with one table and this many worker slots. */
adapm_segment *harness_segment(uint64_t rows, uint32_t row_len, uint64_t capacity, uint32_t workers);

int harness_eventfd(void);
adapm_worker *harness_worker(adapm_segment *s, uint32_t slot, int node_fd, int worker_fd);

/* xorshift; *state is not 0. */
uint64_t harness_random(uint64_t *state);
double harness_duration(int argc, char **argv); /* the program's argument in seconds, default 1 */

#endif
