/* Every ordering edge that is not written at a single atomic operation, and the two ways to wait. */
#ifndef ADAPM_BARRIER_H
#define ADAPM_BARRIER_H

#include <stdatomic.h>

/* Between a store that makes an entry unreadable (or locks it) and the plain stores that change its row:
 * a reader that saw any of the new bytes also sees the changed entry behind its adapm_read_fence. */
static inline void adapm_write_fence(void) { atomic_thread_fence(memory_order_release); }

/* Between a reader's copy of a row and its second look at the entry. Pairs with adapm_write_fence. */
static inline void adapm_read_fence(void) { atomic_thread_fence(memory_order_acquire); }

/* Store-then-load on both sides of a sleep/wake decision (asleep, waiting, wake_clock): the two full fences
 * make it impossible that the producer misses the flag and the sleeper misses the record. */
static inline void adapm_wake_fence(void) { atomic_thread_fence(memory_order_seq_cst); }

/* The hold record is read only after its writer's death, and a dead process's stores have all happened:
 * only the compiler must keep their order. */
static inline void adapm_hold_fence(void) { atomic_signal_fence(memory_order_seq_cst); }

static inline void adapm_pause(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

#endif
