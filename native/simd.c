#include "simd.h"

DISPATCHED void adapm_keys_narrow(uint32_t *restrict dst, const int64_t *restrict keys, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) dst[i] = (uint32_t)keys[i];
}

DISPATCHED void adapm_row_copy(float *restrict dst, const float *restrict src, uint32_t n) { adapm_copy_floats(dst, src, n); }

DISPATCHED void adapm_row_add(float *restrict dst, const float *restrict src, uint32_t n) { adapm_add_floats(dst, src, n); }

DISPATCHED void adapm_row_diff(float *dst, const float *a, const float *b, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) adapm_put(dst + i, adapm_get(a + i) - adapm_get(b + i));
}

DISPATCHED void adapm_row_rebase(float *restrict val, float *restrict base, const float *restrict state, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) {
        float s = adapm_get(state + i);
        adapm_put(val + i, s + (adapm_get(val + i) - adapm_get(base + i)));
        adapm_put(base + i, s);
    }
}
