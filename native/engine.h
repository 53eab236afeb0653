/* A lane of the kernel as transports see it that drive one without being linked with the kernel: six addresses (adapm/transport.py, Engine). */
#ifndef ADAPM_ENGINE_H
#define ADAPM_ENGINE_H
#include <stdbool.h>
#include <stdint.h>

#include "kernel.h"

#define ENGINES 1 /* first byte of a frame that is for the engine */

struct engine {
    adapm_lane *lane;
    __typeof__(&adapm_lane_receive) receive;
    __typeof__(&adapm_lane_take) take;
    __typeof__(&adapm_buffer_data) data;
    __typeof__(&adapm_buffer_len) length;
    __typeof__(&adapm_buffer_free) free;
};

static inline struct engine engine_at(const uint64_t *addresses) {
    return (struct engine){
        .lane = (adapm_lane *)addresses[0],
        .receive = (__typeof__(&adapm_lane_receive))addresses[1],
        .take = (__typeof__(&adapm_lane_take))addresses[2],
        .data = (__typeof__(&adapm_buffer_data))addresses[3],
        .length = (__typeof__(&adapm_buffer_len))addresses[4],
        .free = (__typeof__(&adapm_buffer_free))addresses[5],
    };
}

/* What has left since the caller was told. */
struct departed {
    int64_t bytes;
    int64_t missing; /* a peer that nothing leads to and that some of it was for, or -1 */
};

static inline int64_t departed_tell(struct departed *d, int64_t *missing) {
    int64_t bytes = d->bytes;
    *missing = d->missing;
    *d = (struct departed){0, -1};
    return bytes;
}

static inline bool engine_wants(const void *frame, uint64_t length) { return length && *(const uint8_t *)frame == ENGINES; }

#endif
