/* Row arithmetic: n floats, rows 64-byte aligned in arenas, anything elsewhere. Dispatched at run time (simd.c). */
#ifndef ADAPM_SIMD_H
#define ADAPM_SIMD_H
#include <stdint.h>

void adapm_row_copy(float *dst, const float *src, uint32_t n);
void adapm_row_add(float *dst, const float *src, uint32_t n);                        /* dst += src */
void adapm_row_diff(float *dst, const float *a, const float *b, uint32_t n);         /* dst = a - b */
void adapm_row_rebase(float *val, float *base, const float *state, uint32_t n);      /* val = state + (val - base); base = state */

#endif
