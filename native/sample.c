/* Keys drawn for samples: by a table's distribution, distinct or not, of rows that are here or of all rows.
 *
 *   stream   xoshiro256** (Blackman and Vigna), one per worker and table; the same seed gives the same keys
 *   cells    of a table with weights: an alias table (Walker), built by the node in the segment, read by all its workers
 *
 * Keys are drawn in blocks, so that the cache misses of their cells and entries overlap.  Every loop is bounded: what is not found in
 * so many tries is drawn in another way. */
#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>

#include "mix.h"
#include "segment.h"

#define BLOCK 256
#define TRIES 32           /* draws per key that is wanted, before the search for local or distinct ones ends */
#define FULL (1ULL << 32)  /* units of probability in a cell: a weight is a whole number of them */

/* ---- streams */

static inline uint64_t rotated(uint64_t x, int bits) { return x << bits | x >> (64 - bits); }

static inline uint64_t next(adapm_stream *s) {
    uint64_t *x = s->state, result = rotated(x[1] * 5, 7) * 9, shifted = x[1] << 17;
    x[2] ^= x[0];
    x[3] ^= x[1];
    x[1] ^= x[2];
    x[0] ^= x[3];
    x[2] ^= shifted;
    x[3] = rotated(x[3], 45);
    return result;
}

/* One of 2^53 equidistant values in [0, 1). */
static inline double next_unit(adapm_stream *s) { return (double)(next(s) >> 11) * 0x1p-53; }

/* n * random / 2^64: its whole part is one of n numbers, each as likely as the others but for 2^-32 of that (n < 2^32), and its fraction, in
 * units of 2^-32, goes to *fraction. */
static inline int64_t scaled(uint64_t random, uint64_t n, uint32_t *fraction) {
    __uint128_t product = (__uint128_t)random * n;
    *fraction = (uint32_t)(product >> 32);
    return (int64_t)(product >> 64);
}

void adapm_stream_seed(adapm_stream *stream, uint64_t seed, uint32_t node, uint32_t worker, uint32_t table) {
    uint64_t x = adapm_mix(seed + ADAPM_GOLDEN);
    x = adapm_mix(x + ((uint64_t)node << 32 | worker) + ADAPM_GOLDEN);
    x = adapm_mix(x + table + ADAPM_GOLDEN);
    for (int i = 0; i < 4; i++) stream->state[i] = adapm_mix(x += ADAPM_GOLDEN);
}

void adapm_shuffle(adapm_stream *stream, int64_t *keys, int64_t n) {
    uint32_t fraction;
    for (int64_t left = n; left > 1; left--) {
        int64_t at = scaled(next(stream), (uint64_t)left, &fraction), last = keys[left - 1];
        keys[left - 1] = keys[at];
        keys[at] = last;
    }
}

/* ---- the alias table
 *
 * Weights become whole units, of which there are rows * FULL together and FULL in each cell.  So the sweep that fills the cells comes out exactly even, no row
 * without weight is ever drawn, and none with weight is lost. */

struct weights {
    const double *of; /* [rows] */
    uint64_t rows, heaviest;
    uint64_t rounding; /* units, modulo 2^64, that the heaviest row gets beside its own, so that the sum is exact */
    double largest, scale;
};

static uint64_t units_alone(const struct weights *w, uint64_t row) {
    if (!(w->of[row] > 0)) return 0;
    double exact = w->of[row] / w->largest * w->scale;
    return exact < 1 ? 1 : (uint64_t)(exact + 0.5);
}

static uint64_t units_of(const struct weights *w, uint64_t row) { return units_alone(w, row) + (row == w->heaviest ? w->rounding : 0); }

static struct weights weigh(const double *of, uint64_t rows) {
    struct weights w = {.of = of, .rows = rows};
    double sum = 0;
    for (uint64_t row = 1; row < rows; row++) w.heaviest = of[row] > of[w.heaviest] ? row : w.heaviest;
    w.largest = of[w.heaviest];
    for (uint64_t row = 0; row < rows; row++) sum += of[row] / w.largest;
    w.scale = (double)rows * (double)FULL / sum;
    w.rounding = rows * FULL;
    for (uint64_t row = 0; row < rows; row++) w.rounding -= units_alone(&w, row);
    return w;
}

/* The first row from this one on that overfills its cell, or that does not. */
static uint64_t next_row(const struct weights *w, uint64_t row, bool heavy) {
    while (row < w->rows && (units_of(w, row) > FULL) != heavy) row++;
    return row;
}

/* A cell with so many units of its own row, the rest of the other's. */
static struct adapm_cell cell_of(uint64_t row, uint64_t units, uint64_t other) {
    return units == FULL ? (struct adapm_cell){0, (uint32_t)row} : (struct adapm_cell){(uint32_t)units, (uint32_t)other};
}

/* Light rows are filled up from the heavy row, until what is left of that is light itself, and is filled up from the next heavy one. */
void adapm_alias_build(adapm_segment *s, uint32_t table, const double *weights) {
    const struct weights w = weigh(weights, adapm_seg_table(s, table)->rows);
    struct adapm_cell *cells = adapm_seg_cells(s, table);
    uint64_t light = next_row(&w, 0, false), heavy = next_row(&w, 0, true), left = heavy < w.rows ? units_of(&w, heavy) : 0;
    while (heavy < w.rows) {
        if (left > FULL) {
            uint64_t units = units_of(&w, light);
            cells[light] = cell_of(light, units, heavy);
            left -= FULL - units;
            light = next_row(&w, light + 1, false);
        } else {
            uint64_t following = next_row(&w, heavy + 1, true);
            cells[heavy] = cell_of(heavy, left, following);
            if (following < w.rows) left += units_of(&w, following) - FULL;
            heavy = following;
        }
    }
    for (; light < w.rows; light = next_row(&w, light + 1, false)) cells[light] = cell_of(light, FULL, light);
}

/* ---- drawing */

struct source {
    const struct adapm_cell *cells;
    adapm_entry *entries;
    uint64_t rows, eighth;
    uint32_t distribution;
    double log_rows; /* log(rows + 1) */
};

static struct source source_of(const adapm_segment *s, uint32_t table) {
    const struct adapm_table *t = adapm_seg_table(s, table);
    return (struct source){.cells = adapm_seg_cells(s, table),
                           .entries = adapm_seg_entries(s, table),
                           .rows = t->rows,
                           .eighth = t->eighth,
                           .distribution = t->distribution,
                           .log_rows = log((double)t->rows + 1)};
}

static void draw_uniform(const struct source *src, adapm_stream *stream, int64_t *keys, int64_t n) {
    uint32_t fraction;
    for (int64_t i = 0; i < n; i++) keys[i] = scaled(next(stream), src->rows, &fraction);
}

/* Key k with probability log((k + 2) / (k + 1)) / log(rows + 1): the whole part of (rows + 1)^u, which rounding may carry one too far. */
static void draw_log_uniform(const struct source *src, adapm_stream *stream, int64_t *keys, int64_t n) {
    const int64_t last = (int64_t)src->rows - 1;
    for (int64_t i = 0; i < n; i++) {
        int64_t key = (int64_t)exp(next_unit(stream) * src->log_rows) - 1;
        keys[i] = key < last ? key : last;
    }
}

static void draw_weighted(const struct source *src, adapm_stream *stream, int64_t *keys, int64_t n) {
    uint32_t fractions[BLOCK];
    for (int64_t i = 0; i < n; i++) {
        keys[i] = scaled(next(stream), src->rows, &fractions[i]);
        __builtin_prefetch(src->cells + keys[i]);
    }
    for (int64_t i = 0; i < n; i++) {
        struct adapm_cell cell = src->cells[keys[i]];
        keys[i] = fractions[i] < cell.own ? keys[i] : cell.other;
    }
}

/* At most BLOCK keys. */
static void draw_block(const struct source *src, adapm_stream *stream, int64_t *keys, int64_t n) {
    switch (src->distribution) {
    case ADAPM_WEIGHTED: draw_weighted(src, stream, keys, n); break;
    case ADAPM_LOG_UNIFORM: draw_log_uniform(src, stream, keys, n); break;
    default: draw_uniform(src, stream, keys, n);
    }
}

/* Moves the keys of rows that can be pulled from this node's memory to the front; their number. */
static int64_t keep_local(const struct source *src, int64_t *keys, int64_t n) {
    int64_t kept = 0;
    for (int64_t i = 0; i < n; i++) __builtin_prefetch(src->entries + adapm_spread(src->eighth, (uint64_t)keys[i]));
    for (int64_t i = 0; i < n; i++) {
        int64_t key = keys[i];
        uint64_t word = atomic_load_explicit(src->entries + adapm_spread(src->eighth, (uint64_t)key), memory_order_relaxed);
        keys[kept] = key;
        kept += (word & ADAPM_READ) != 0; /* only a guess: the pull looks again */
    }
    return kept;
}

/* ---- distinct keys: the set of those that a sample has already */

struct set {
    int64_t *places; /* key + 1; 0: empty */
    uint64_t mask;
};

/* Whether it was not there. */
static bool set_add(struct set *set, int64_t key) {
    uint64_t at = adapm_mix((uint64_t)key);
    while (set->places[at & set->mask] && set->places[at & set->mask] != key + 1) at++;
    bool added = !set->places[at & set->mask];
    set->places[at & set->mask] = key + 1;
    return added;
}

static bool set_has(const struct set *set, int64_t key) {
    uint64_t at = adapm_mix((uint64_t)key);
    while (set->places[at & set->mask] && set->places[at & set->mask] != key + 1) at++;
    return set->places[at & set->mask] != 0;
}

/* A set of these n keys, with room for `room` in all. */
static bool set_open(struct set *set, const int64_t *keys, int64_t n, int64_t room) {
    uint64_t places = 16;
    while (places < 2 * (uint64_t)room) places *= 2;
    *set = (struct set){calloc(places, sizeof *set->places), places - 1};
    for (int64_t i = 0; set->places && i < n; i++) set_add(set, keys[i]);
    return set->places != NULL;
}

static int64_t keep_new(struct set *set, int64_t *keys, int64_t n) {
    int64_t kept = 0;
    for (int64_t i = 0; i < n; i++) {
        int64_t key = keys[i];
        if (set_add(set, key)) keys[kept++] = key;
    }
    return kept;
}

/* ---- the rest of a sample of distinct keys, when more draws would mostly repeat what there is
 *
 * Every row that is left gets an exponentially distributed time, of its weight as rate; the earliest are taken, in their order (Efraimidis and
 * Spirakis, 2006).  Their distribution is the same as if draws had gone on and repetitions had been thrown away. */

struct arrival {
    double time;
    int64_t key;
};

/* Puts an arrival into the heap in place of its top, the latest one. */
static void sink(struct arrival *heap, int64_t n, struct arrival a) {
    int64_t at = 0;
    for (int64_t child = 1; child < n; child = 2 * at + 1) {
        if (child + 1 < n && heap[child + 1].time > heap[child].time) child++;
        if (heap[child].time <= a.time) break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = a;
}

/* The units of each row, out of the cells. */
static void count_units(const struct source *src, uint64_t *units) {
    for (uint64_t row = 0; row < src->rows; row++) {
        units[row] += src->cells[row].own;
        units[src->cells[row].other] += FULL - src->cells[row].own;
    }
}

static double weight_of(const struct source *src, const uint64_t *units, uint64_t row) {
    switch (src->distribution) {
    case ADAPM_WEIGHTED: return (double)units[row];
    case ADAPM_LOG_UNIFORM: return log1p(1.0 / ((double)row + 1));
    default: return 1;
    }
}

/* Fills heap[n] with the earliest arrivals of rows that are not in the set; false: there are not so many. */
static bool await_arrivals(const struct source *src, adapm_stream *stream, const struct set *taken, const uint64_t *units, struct arrival *heap, int64_t n) {
    int64_t rows = 0;
    for (int64_t i = 0; i < n; i++) heap[i] = (struct arrival){INFINITY, -1};
    for (uint64_t row = 0; row < src->rows; row++) {
        double weight = weight_of(src, units, row);
        if (!(weight > 0) || set_has(taken, (int64_t)row)) continue;
        struct arrival a = {-log(1 - next_unit(stream)) / weight, (int64_t)row};
        if (a.time < heap[0].time) sink(heap, n, a);
        rows++;
    }
    return rows >= n;
}

static int draw_rest(const struct source *src, adapm_stream *stream, const struct set *taken, int64_t *keys, int64_t n) {
    struct arrival *heap = malloc((size_t)n * sizeof *heap);
    uint64_t *units = calloc(src->distribution == ADAPM_WEIGHTED ? src->rows : 1, sizeof *units);
    int rc = heap && units ? 0 : -ENOMEM;
    if (!rc && src->distribution == ADAPM_WEIGHTED) count_units(src, units);
    if (!rc && !await_arrivals(src, stream, taken, units, heap, n)) rc = -EDOM;
    for (int64_t left = n; !rc && left > 0; left--) { /* the latest first */
        keys[left - 1] = heap[0].key;
        sink(heap, left - 1, heap[left - 1]);
    }
    free(heap);
    free(units);
    return rc;
}

/* ---- samples */

/* Draws into keys[from .. to) as long as tries are left; how far it came. */
static int64_t draw_some(const struct source *src, adapm_stream *stream, uint32_t how, struct set *taken, int64_t *keys, int64_t from, int64_t to) {
    for (int64_t tries = TRIES * (to - from), n; from < to && tries > 0; tries -= n) {
        n = to - from < BLOCK ? to - from : BLOCK;
        draw_block(src, stream, keys + from, n);
        int64_t kept = how & ADAPM_LOCAL ? keep_local(src, keys + from, n) : n;
        from += how & ADAPM_DISTINCT ? keep_new(taken, keys + from, kept) : kept;
    }
    return from;
}

int adapm_draw(const adapm_segment *s, uint32_t table, adapm_stream *stream, uint32_t how, int64_t *keys, int64_t from, int64_t to) {
    const struct source src = source_of(s, table);
    struct set taken = {NULL, 0};
    if (how & ADAPM_DISTINCT && !set_open(&taken, keys, from, to)) return -ENOMEM;
    int64_t at = draw_some(&src, stream, how, &taken, keys, from, to);
    if (how & ADAPM_LOCAL) at = draw_some(&src, stream, how & ~ADAPM_LOCAL, &taken, keys, at, to); /* too few are here */
    int rc = at < to ? draw_rest(&src, stream, &taken, keys + at, to - at) : 0;
    free(taken.places);
    return rc;
}
