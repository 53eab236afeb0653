/* Locking and changing one entry word; see layout.h for its bits. */
#ifndef ADAPM_ENTRY_H
#define ADAPM_ENTRY_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "barrier.h"
#include "layout.h"

typedef _Atomic uint64_t adapm_entry;

static inline uint32_t adapm_slot(uint64_t word) { return (uint32_t)(word >> ADAPM_SLOT_SHIFT); }

/* word with the next sequence number. */
static inline uint64_t adapm_next(uint64_t word) { return (word & ~ADAPM_SEQ) | ((word + 1) & ADAPM_SEQ); }

/* One try at the lock for an unlocked old word; locker: worker slot, or ADAPM_LOCKER_LANE + lane. */
static inline bool adapm_lock(adapm_entry *e, uint64_t old, uint32_t locker) {
    uint64_t locked = (old & ~ADAPM_SEQ) | ADAPM_LOCK | (locker + 1);
    if (!atomic_compare_exchange_strong_explicit(e, &old, locked, memory_order_acquire, memory_order_relaxed)) return false;
    adapm_write_fence();
    return true;
}

/* Unlocks into word (with any state), whose sequence number moves on. Also publishes a row to readers. */
static inline void adapm_unlock(adapm_entry *e, uint64_t word) {
    atomic_store_explicit(e, adapm_next(word & ~ADAPM_LOCK), memory_order_release);
}

#endif
