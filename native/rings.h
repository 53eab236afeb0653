/* Single-producer single-consumer rings in the segment.
 *
 *        tail              head
 *         v                 v
 *   [....|xxxxxxxxxxxxxxxxx|.........]      tail <= head <= tail + mask + 1; both only grow
 *
 * The producer owns head, the consumer owns tail; each reads the other's with acquire, which pairs with the release below. */
#ifndef ADAPM_RINGS_H
#define ADAPM_RINGS_H

#include <stdatomic.h>
#include <stdint.h>

#include "layout.h"

/* Producer: room for how many more units. */
static inline uint64_t adapm_ring_room(const struct adapm_ring *r) {
    uint64_t head = atomic_load_explicit(&r->head, memory_order_relaxed);
    return r->mask + 1 - (head - atomic_load_explicit(&r->tail, memory_order_acquire));
}
/* Producer: publishes n units written behind head. */
static inline void adapm_ring_publish(struct adapm_ring *r, uint64_t n) {
    atomic_store_explicit(&r->head, atomic_load_explicit(&r->head, memory_order_relaxed) + n, memory_order_release);
}
/* Consumer: how many units wait. */
static inline uint64_t adapm_ring_used(const struct adapm_ring *r) {
    return atomic_load_explicit(&r->head, memory_order_acquire) - atomic_load_explicit(&r->tail, memory_order_relaxed);
}
/* Consumer: gives n units back. */
static inline void adapm_ring_release(struct adapm_ring *r, uint64_t n) {
    atomic_store_explicit(&r->tail, atomic_load_explicit(&r->tail, memory_order_relaxed) + n, memory_order_release);
}

#endif
