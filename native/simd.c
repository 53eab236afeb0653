/* Row arithmetic.  These loops are the only code that touches rows while another process may read them.
 *
 * The vectorised build reads and writes shared floats as plain floats.  C11 calls that a data race; it is the one exception
 * this project makes.  It is sound on every processor we build for, because aligned 4-byte accesses are not torn there and
 * because a reader throws its copy away unless the entry word proves that nobody wrote meanwhile (README.md).
 * With ADAPM_STRICT the same loops use relaxed atomics, conform to the letter, and pass the same tests, only slower. */
#include "simd.h"

#include <stdatomic.h>

#ifdef ADAPM_STRICT
static inline float get(const float *p) { return atomic_load_explicit((_Atomic float *)p, memory_order_relaxed); }
static inline void put(float *p, float x) { atomic_store_explicit((_Atomic float *)p, x, memory_order_relaxed); }
#else
static inline float get(const float *p) { return *p; }
static inline void put(float *p, float x) { *p = x; }
#endif

/* One body per loop, compiled for several instruction sets; the dynamic linker picks one at load time (ifunc).  Sanitizers
 * are not up yet at that moment, atomics do not vectorise, and musl's linker cannot do it. */
#if defined(__x86_64__) && defined(__GLIBC__) && !defined(ADAPM_STRICT) && !defined(ADAPM_SANITIZED) && (__GNUC__ >= 11 || __clang_major__ >= 14)
#define DISPATCHED __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define DISPATCHED
#endif

DISPATCHED void adapm_row_copy(float *restrict dst, const float *restrict src, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) put(dst + i, get(src + i));
}

DISPATCHED void adapm_row_add(float *restrict dst, const float *restrict src, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) put(dst + i, get(dst + i) + get(src + i));
}

DISPATCHED void adapm_row_diff(float *dst, const float *a, const float *b, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) put(dst + i, get(a + i) - get(b + i));
}

DISPATCHED void adapm_row_rebase(float *restrict val, float *restrict base, const float *restrict state, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) {
        float s = get(state + i);
        put(val + i, s + (get(val + i) - get(base + i)));
        put(base + i, s);
    }
}
