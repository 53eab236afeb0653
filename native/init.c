/* Initial values: each float is a function of (seed, table, column group, key, position) and of nothing else, so that a row
 * is the same wherever and whenever it is filled.  A counter is hashed (splitmix64); no generator has a state. */
#include <errno.h>
#include <math.h>
#include <stdint.h>

#include "kernel.h"
#include "mix.h"

enum { INIT_ZEROS = 0, INIT_CONSTANT = 1, INIT_NORMAL = 2, INIT_UNIFORM = 3 }; /* as in adapm/tables.py */

/* The row's own stream: every part of its name is mixed in on its own, so that (table 1, key 2) is not (table 2, key 1). */
static uint64_t stream_of(uint64_t seed, uint32_t table, uint32_t column, uint64_t key) {
    uint64_t x = adapm_mix(seed + ADAPM_GOLDEN);
    x = adapm_mix(x + (((uint64_t)table << 32) | column) + ADAPM_GOLDEN);
    return adapm_mix(x + key + ADAPM_GOLDEN);
}

/* The i-th of 2^53 equidistant values in [0, 1). */
static double unit(uint64_t stream, uint64_t i) { return (double)(adapm_mix(stream + (i + 1) * ADAPM_GOLDEN) >> 11) * 0x1p-53; }

/* Box-Muller; pairs of values share two uniform ones.  1 - u keeps the logarithm's argument above zero. */
static void fill_normal(uint64_t stream, double mean, double std, float *dst, uint32_t n) {
    const double circle = 6.283185307179586476925;
    for (uint32_t i = 0; i < n; i += 2) {
        double radius = std * sqrt(-2.0 * log(1.0 - unit(stream, i))), angle = circle * unit(stream, i + 1ULL);
        dst[i] = (float)(mean + radius * cos(angle));
        if (i + 1 < n) dst[i + 1] = (float)(mean + radius * sin(angle));
    }
}

/* Rounding to float may reach high, which is not in the range. */
static void fill_uniform(uint64_t stream, double low, double high, float *dst, uint32_t n) {
    const float last = low < high ? nextafterf((float)high, (float)low) : (float)low;
    for (uint32_t i = 0; i < n; i++) dst[i] = fminf((float)(low + (high - low) * unit(stream, i)), last);
}

int adapm_fill_row(uint32_t kind, double a, double b, uint64_t seed, uint32_t table, uint32_t column, uint64_t key, float *dst, uint32_t n) {
    uint64_t stream = stream_of(seed, table, column, key);
    float same = kind == INIT_CONSTANT ? (float)a : 0.0f;
    switch (kind) {
    case INIT_ZEROS:
    case INIT_CONSTANT:
        for (uint32_t i = 0; i < n; i++) dst[i] = same;
        return 0;
    case INIT_NORMAL: fill_normal(stream, a, b, dst, n); return 0;
    case INIT_UNIFORM: fill_uniform(stream, a, b, dst, n); return 0;
    default: return -EINVAL;
    }
}
