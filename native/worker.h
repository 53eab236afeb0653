/* A worker's private handle, shared by worker.c (rings, waiting) and rows.c (local access). */
#ifndef ADAPM_WORKER_H
#define ADAPM_WORKER_H

#include <stdbool.h>
#include <stdint.h>

#include "heap.h"
#include "segment.h"

/* An open request, by its op. */
struct open_op {
    uint32_t kind; /* enum adapm_op; 0: not open */
    uint32_t n, col_len;
    uint64_t off, bytes; /* of its buffer; 0 bytes: none */
};

struct adapm_worker {
    adapm_segment *segment;
    struct adapm_worker_shared *shared;
    struct adapm_lane_shared *lane;
    uint32_t slot;
    int die_at, die_after, die_of; /* tests only: a step inside push, how many rows pass it, and the signal that comes then */
    int node_fd, worker_fd;
    adapm_turn turn; /* see adapm_worker_yield_with */
    void *turn_with;
    uint32_t spins;           /* turns of adapm_wait before it sleeps; 0 on a machine with one processor */
    bool intent_full;         /* the last intent found no room ... */
    uint64_t intent_full_tail; /* ... while the ring's tail was here */
    uint32_t ages;   /* of the technique */
    uint64_t *began; /* [ages] the moments in which so many clocks, up to this one, began: each at its clock modulo ages */
    uint32_t nfree;
    uint32_t free_ops[ADAPM_OPS];
    struct open_op ops[ADAPM_OPS];
    struct heap heap;
};

/* Counters have one writer, so adding needs no read-modify-write. */
static inline void adapm_count(_Atomic uint64_t *counter, uint64_t n) {
    atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + n, memory_order_relaxed);
}

/* Wakes the node if no tick is scheduled.  For records the next tick will find by itself: intents and dirty rows. */
void adapm_kick_asleep(adapm_worker *w);

#endif
