/* What a minibatch needs beside its tables, on plain arrays: distinct keys, rows by index, and the steps of optimizers.
 * Whoever calls has checked that indices are in range. */
#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "kernel.h"
#include "simd.h"

#define LINES_AHEAD 128 /* cache lines of rows that are on their way while one row is treated, about */
#define MOST_AHEAD 64   /* rows, at most */
#define ROW_LINES 16    /* of long rows only the beginning is fetched: the processor sees the rest coming */
#define WIDE_DIGIT 11   /* bits by which keys are sorted at once, */
#define NARROW_DIGIT 6  /* and when there are so few that clearing the counters would take longer */
#define FEW_KEYS 512

/* ---- distinct keys */

struct item {
    uint64_t key; /* above the smallest */
    int64_t at;   /* where it stood */
};

/* Items from and to are in order of the digits below; makes them in order of this one too. */
static void sort_digit(const struct item *from, struct item *to, int64_t n, unsigned shift, unsigned bits) {
    const uint64_t mask = (1ULL << bits) - 1;
    int64_t ends[1 << WIDE_DIGIT] = {0}, begin = 0;
    for (int64_t i = 0; i < n; i++) ends[from[i].key >> shift & mask]++;
    for (uint64_t d = 0; d <= mask; d++) {
        int64_t count = ends[d];
        ends[d] = begin;
        begin += count;
    }
    for (int64_t i = 0; i < n; i++) to[ends[from[i].key >> shift & mask]++] = from[i];
}

static int64_t smallest(const int64_t *keys, int64_t n) {
    int64_t least = keys[0];
    for (int64_t i = 1; i < n; i++) least = keys[i] < least ? keys[i] : least;
    return least;
}

/* Sorts the keys, less the smallest, into one of the two halves of items; returns which. */
static struct item *sort_keys(const int64_t *keys, int64_t n, int64_t least, struct item *items) {
    const unsigned bits = n < FEW_KEYS ? NARROW_DIGIT : WIDE_DIGIT;
    struct item *from = items, *to = items + n;
    uint64_t used = 0;
    for (int64_t i = 0; i < n; i++) {
        from[i] = (struct item){(uint64_t)keys[i] - (uint64_t)least, i};
        used |= from[i].key;
    }
    for (unsigned shift = 0; shift < 64 && used >> shift; shift += bits) {
        sort_digit(from, to, n, shift, bits);
        struct item *sorted = to;
        to = from;
        from = sorted;
    }
    return from;
}

int64_t adapm_unique(const int64_t *keys, int64_t n, int64_t *distinct, int64_t *inverse) {
    if (n == 0) return 0;
    struct item *items = malloc(2 * (size_t)n * sizeof *items);
    if (!items) return -ENOMEM;
    int64_t least = smallest(keys, n), count = 0;
    const struct item *sorted = sort_keys(keys, n, least, items);
    for (int64_t i = 0; i < n; i++) {
        if (i == 0 || sorted[i].key != sorted[i - 1].key) distinct[count++] = (int64_t)(sorted[i].key + (uint64_t)least);
        inverse[sorted[i].at] = count - 1;
    }
    free(items);
    return count;
}

/* ---- rows by index */

/* How many rows of so many floats to fetch ahead. */
PART_OF_LOOP int64_t rows_ahead(uint32_t len) {
    uint32_t rows = LINES_AHEAD * LINE_FLOATS / len;
    return rows < 1 ? 1 : rows < MOST_AHEAD ? rows : MOST_AHEAD;
}

PART_OF_LOOP void fetch(const float *row, uint32_t len) {
    for (uint32_t i = 0; i < len && i < ROW_LINES * LINE_FLOATS; i += LINE_FLOATS) __builtin_prefetch(row + i, 0, 2);
}

PART_OF_LOOP void gather(const float *rows, uint32_t len, const int64_t *index, int64_t n, float *out) {
    const int64_t ahead = rows_ahead(len);
    for (int64_t i = 0; i < n; i++) {
        if (i + ahead < n) fetch(rows + index[i + ahead] * len, len);
        adapm_copy_floats(out + i * len, rows + index[i] * len, len);
    }
}

DISPATCHED void adapm_gather(const float *rows, uint32_t len, const int64_t *index, int64_t n, float *out) {
    switch (len) {
    case 16: gather(rows, 16, index, n, out); break;
    case 32: gather(rows, 32, index, n, out); break;
    case 64: gather(rows, 64, index, n, out); break;
    case 128: gather(rows, 128, index, n, out); break;
    default: gather(rows, len, index, n, out);
    }
}

/* Rows of `rows` begin every stride floats, len of them are added to. */
PART_OF_LOOP void scatter(float *rows, uint32_t stride, uint32_t len, const int64_t *index, int64_t n, const float *vals) {
    const int64_t ahead = rows_ahead(len);
    for (int64_t i = 0; i < n; i++) {
        if (i + ahead < n) fetch(rows + index[i + ahead] * stride, len);
        adapm_add_floats(rows + index[i] * stride, vals + i * len, len);
    }
}

PART_OF_LOOP void scatter_by_length(float *rows, uint32_t stride, uint32_t len, const int64_t *index, int64_t n, const float *vals) {
    switch (len) {
    case 16: scatter(rows, stride, 16, index, n, vals); break;
    case 32: scatter(rows, stride, 32, index, n, vals); break;
    case 64: scatter(rows, stride, 64, index, n, vals); break;
    case 128: scatter(rows, stride, 128, index, n, vals); break;
    default: scatter(rows, stride, len, index, n, vals);
    }
}

DISPATCHED void adapm_scatter_add(float *rows, uint32_t len, const int64_t *index, int64_t n, const float *vals) {
    scatter_by_length(rows, len, len, index, n, vals);
}

/* ---- steps of optimizers: what to add to rows, from the sums of their gradients */

/* The sum of each row's gradients, in the first len floats of every stride. */
PART_OF_LOOP void sum_gradients(float *sums, int64_t rows, uint32_t stride, uint32_t len, const int64_t *inverse, int64_t n, const float *grads) {
    for (int64_t r = 0; r < rows; r++) memset(sums + r * stride, 0, len * sizeof *sums);
    scatter_by_length(sums, stride, len, inverse, n, grads);
}

PART_OF_LOOP void adagrad_step(float *restrict step, float *restrict growth, const float *restrict sums, uint32_t len, float lr, float eps) {
    for (uint32_t j = 0; j < len; j++) {
        float g = step[j], squared = g * g;
        growth[j] = squared;
        step[j] = -lr * g / (sqrtf(sums[j] + squared) + eps);
    }
}

DISPATCHED void adapm_adagrad(const float *rows, int64_t nrows, uint32_t len, const int64_t *inverse, int64_t n, const float *grads, float lr, float eps, float *out) {
    sum_gradients(out, nrows, 2 * len, len, inverse, n, grads);
    for (int64_t r = 0; r < nrows; r++) {
        float *step = out + 2 * r * len;
        adagrad_step(step, step + len, rows + (2 * r + 1) * len, len, lr, eps);
    }
}

/* The mean of so many squares, added up in the same order whatever the processor. */
PART_OF_LOOP float mean_square(const float *g, uint32_t len) {
    float part[LINE_FLOATS] = {0}, sum = 0;
    uint32_t i = 0;
    for (; i + LINE_FLOATS <= len; i += LINE_FLOATS)
        for (uint32_t j = 0; j < LINE_FLOATS; j++) part[j] += g[i + j] * g[i + j];
    for (; i < len; i++) part[i % LINE_FLOATS] += g[i] * g[i];
    for (uint32_t j = 0; j < LINE_FLOATS; j++) sum += part[j];
    return sum / (float)len;
}

DISPATCHED void adapm_rowwise_adagrad(const float *rows, int64_t nrows, uint32_t len, const int64_t *inverse, int64_t n, const float *grads, float lr, float eps, float *out) {
    const uint32_t stride = len + 1;
    sum_gradients(out, nrows, stride, len, inverse, n, grads);
    for (int64_t r = 0; r < nrows; r++) {
        float *step = out + r * stride, growth = mean_square(step, len), root = sqrtf(rows[r * stride + len] + growth) + eps;
        for (uint32_t j = 0; j < len; j++) step[j] = -lr * step[j] / root;
        step[len] = growth;
    }
}

/* Moments that several workers change at once need not be those of any sequence of gradients: each takes off its own share of
 * what it has read, so that what is left may be less than nothing.  No sequence makes moment 2 negative, or moment 1 larger than
 * sqrt(bound * moment 2); what exceeds that is ignored, so steps stay bounded, and moments that are left alone recover. */
PART_OF_LOOP void adam_row(float *restrict step, float *restrict change1, float *restrict change2, const float *restrict moment1,
                           const float *restrict moment2, uint32_t len, const adapm_adam_step *how) {
    for (uint32_t j = 0; j < len; j++) {
        float g = step[j], v = moment2[j] < 0 ? 0 : moment2[j];
        float most = sqrtf(how->bound * v), m = moment1[j];
        m = m > most ? most : m < -most ? -most : m;
        float dm = (g - m) * how->gain1, dv = (g * g - v) * how->gain2;
        change1[j] = dm;
        change2[j] = dv;
        step[j] = -how->lr * ((m + dm) / (sqrtf(v + dv) + how->eps));
    }
}

DISPATCHED void adapm_adam(const float *rows, int64_t nrows, uint32_t len, const int64_t *inverse, int64_t n, const float *grads, const adapm_adam_step *how, float *out) {
    const adapm_adam_step step = *how; /* a copy, which no row can be */
    sum_gradients(out, nrows, 3 * len, len, inverse, n, grads);
    for (int64_t r = 0; r < nrows; r++) {
        const float *row = rows + 3 * r * len;
        float *changes = out + 3 * r * len;
        adam_row(changes, changes + len, changes + 2 * len, row + len, row + 2 * len, len, &step);
    }
}

DISPATCHED void adapm_sgd(int64_t nrows, uint32_t len, const int64_t *inverse, int64_t n, const float *grads, float lr, float *out) {
    sum_gradients(out, nrows, len, len, inverse, n, grads);
    for (int64_t i = 0; i < nrows * len; i++) out[i] *= -lr;
}
