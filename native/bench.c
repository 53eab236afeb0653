/* The limits that `adapm bench local` holds pulls and pushes against: the same rows by their place, without a manager.
 * Nothing is looked up, locked or checked.  Rows are 64-byte aligned, and fetched ahead of their use. */
#include "kernel.h"

#define LINE_FLOATS 16
#define FETCHED_LINES 16 /* of long rows only the beginning: the processor sees the rest coming */

#if defined(__x86_64__) && defined(__GLIBC__) && !defined(ADAPM_SANITIZED) && (__GNUC__ >= 11 || __clang_major__ >= 14)
#define DISPATCHED __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define DISPATCHED
#endif
#define INLINE static inline __attribute__((always_inline))

INLINE void fetch(const float *row, uint32_t len) {
    uint32_t end = len < FETCHED_LINES * LINE_FLOATS ? len : FETCHED_LINES * LINE_FLOATS;
    if (len <= LINE_FLOATS) __builtin_prefetch(row);
    else /* into L2 only: more lines can be under way there than into L1, which is worth up to 1.7 */
        for (uint32_t i = 0; i < end; i += LINE_FLOATS) __builtin_prefetch(row + i, 0, 2);
}

INLINE void gather(const float *rows, uint32_t len, const int64_t *slots, int64_t n, uint32_t ahead, float *restrict out) {
    for (int64_t i = 0; i < n && i < ahead; i++) fetch(rows + slots[i] * len, len);
    for (int64_t i = 0; i < n; i++) {
        if (i + ahead < n) fetch(rows + slots[i + ahead] * len, len);
        const float *row = rows + slots[i] * len;
        for (uint32_t j = 0; j < len; j++) out[i * len + j] = row[j];
    }
}

INLINE void scatter_add(float *rows, uint32_t len, const int64_t *slots, int64_t n, uint32_t ahead, const float *restrict vals) {
    for (int64_t i = 0; i < n && i < ahead; i++) fetch(rows + slots[i] * len, len);
    for (int64_t i = 0; i < n; i++) {
        if (i + ahead < n) fetch(rows + slots[i + ahead] * len, len);
        float *row = rows + slots[i] * len;
        for (uint32_t j = 0; j < len; j++) row[j] += vals[i * len + j];
    }
}

/* Loops whose length the compiler knows have no remainders. */
DISPATCHED void adapm_bench_gather(const float *rows, uint32_t len, const int64_t *slots, int64_t n, uint32_t ahead, float *out) {
    switch (len) {
    case 16: gather(rows, 16, slots, n, ahead, out); break;
    case 64: gather(rows, 64, slots, n, ahead, out); break;
    case 128: gather(rows, 128, slots, n, ahead, out); break;
    default: gather(rows, len, slots, n, ahead, out);
    }
}

DISPATCHED void adapm_bench_scatter_add(float *rows, uint32_t len, const int64_t *slots, int64_t n, uint32_t ahead, const float *vals) {
    switch (len) {
    case 16: scatter_add(rows, 16, slots, n, ahead, vals); break;
    case 64: scatter_add(rows, 64, slots, n, ahead, vals); break;
    case 128: scatter_add(rows, 128, slots, n, ahead, vals); break;
    default: scatter_add(rows, len, slots, n, ahead, vals);
    }
}
