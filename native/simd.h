/* Row arithmetic: n floats, rows 64-byte aligned in arenas, anything elsewhere.
 *
 * These loops are the only code that touches rows while another process may read them.  The vectorised build reads and writes
 * shared floats as plain floats.  C11 calls that a data race; it is the one exception this project makes.  It is sound on
 * every processor we build for, because aligned 4-byte accesses are not torn there and because a reader throws its copy away
 * unless the entry word proves that nobody wrote meanwhile (README.md).  With ADAPM_STRICT the same loops use relaxed
 * atomics, conform to the letter, and pass the same tests, only slower. */
#ifndef ADAPM_SIMD_H
#define ADAPM_SIMD_H
#include <stdatomic.h>
#include <stdint.h>

/* One body compiled for several instruction sets; the dynamic linker picks one at load time (ifunc).  Sanitizers are not up
 * yet at that moment, atomics do not vectorise, and musl's linker cannot do it. */
#if defined(__x86_64__) && defined(__GLIBC__) && !defined(ADAPM_STRICT) && !defined(ADAPM_SANITIZED) && (__GNUC__ >= 11 || __clang_major__ >= 14)
#define DISPATCHED __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define DISPATCHED
#endif

/* What a dispatched loop calls per row must become part of it: a call would cost as much as the row, and be compiled for the
 * oldest processor. */
#define PART_OF_LOOP static inline __attribute__((always_inline))

#define LINE_FLOATS 16u /* in one cache line, and in the widest vector there is */

#ifdef ADAPM_STRICT
PART_OF_LOOP float adapm_get(const float *p) { return atomic_load_explicit((_Atomic float *)p, memory_order_relaxed); }
PART_OF_LOOP void adapm_put(float *p, float x) { atomic_store_explicit((_Atomic float *)p, x, memory_order_relaxed); }
PART_OF_LOOP void adapm_copy_line(float *dst, const float *src) {
    for (uint32_t i = 0; i < LINE_FLOATS; i++) adapm_put(dst + i, adapm_get(src + i));
}
PART_OF_LOOP void adapm_add_line(float *dst, const float *src) {
    for (uint32_t i = 0; i < LINE_FLOATS; i++) adapm_put(dst + i, adapm_get(dst + i) + adapm_get(src + i));
}
#else
typedef float adapm_line __attribute__((vector_size(LINE_FLOATS * sizeof(float)), aligned(sizeof(float)), may_alias));
PART_OF_LOOP float adapm_get(const float *p) { return *p; }
PART_OF_LOOP void adapm_put(float *p, float x) { *p = x; }
PART_OF_LOOP void adapm_copy_line(float *dst, const float *src) { *(adapm_line *)dst = *(const adapm_line *)src; }
PART_OF_LOOP void adapm_add_line(float *dst, const float *src) { *(adapm_line *)dst += *(const adapm_line *)src; }
#endif

/* For loops over rows: with a constant n they become a few instructions.  Written in vectors, because compilers make calls of
 * memcpy out of loops over floats. */
PART_OF_LOOP void adapm_copy_floats(float *restrict dst, const float *restrict src, uint32_t n) {
    uint32_t i = 0;
    for (; i + LINE_FLOATS <= n; i += LINE_FLOATS) adapm_copy_line(dst + i, src + i);
    for (; i < n; i++) adapm_put(dst + i, adapm_get(src + i));
}

PART_OF_LOOP void adapm_add_floats(float *restrict dst, const float *restrict src, uint32_t n) {
    uint32_t i = 0;
    for (; i + LINE_FLOATS <= n; i += LINE_FLOATS) adapm_add_line(dst + i, src + i);
    for (; i < n; i++) adapm_put(dst + i, adapm_get(dst + i) + adapm_get(src + i));
}

/* Keys as the rings carry them. */
void adapm_keys_narrow(uint32_t *dst, const int64_t *keys, uint32_t n);

/* For single rows. */
void adapm_row_copy(float *dst, const float *src, uint32_t n);
void adapm_row_add(float *dst, const float *src, uint32_t n);                        /* dst += src */
void adapm_row_diff(float *dst, const float *a, const float *b, uint32_t n);         /* dst = a - b */
void adapm_row_rebase(float *val, float *base, const float *state, uint32_t n);      /* val = state + (val - base); base = state */

#endif
