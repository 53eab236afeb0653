/* Where a node's time goes: a few readings of the clock per tick, frame and batch of requests, so that it is always on.
 * It never decides anything. */
#ifndef ADAPM_PROFILE_H
#define ADAPM_PROFILE_H

#include <stdint.h>
#include <time.h>

static inline uint64_t profile_clock(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static inline uint64_t profile_now(void) { return profile_clock(CLOCK_MONOTONIC); }

/* What has passed since goes to total; the next lap begins. */
static inline void profile_lap(uint64_t *total, uint64_t *since) {
    uint64_t now = profile_now();
    *total += now - *since;
    *since = now;
}

#endif
