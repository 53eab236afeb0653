/* Local access: one C call per batch, no lock that is shared between rows, no system call.  README.md walks through it. */
#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <unistd.h>

#include "rings.h"
#include "simd.h"
#include "worker.h"

#define ENTRIES_AHEAD 16 /* entry words are fetched this many keys ahead, */
#define ROWS_AHEAD 8     /* rows, whose place the entry tells, this many, */
#define ROW_LINES 16     /* of long rows only the beginning: the processor sees the rest coming */
#define TRIES 16         /* copies of a row that keeps changing before its lock is taken */
#define SPINS 128        /* pauses before the processor is given away */

/* The part of a table that one call addresses. */
struct view {
    const struct adapm_table *shape;
    adapm_entry *entries;
    float *arena;
    uint32_t table, col_off, col_len;
};

static struct view view_of(const adapm_worker *w, uint32_t table, uint32_t col_off, uint32_t col_len) {
    return (struct view){.shape = adapm_seg_table(w->segment, table),
                         .entries = adapm_seg_entries(w->segment, table),
                         .arena = adapm_seg_row(w->segment, table, 0),
                         .table = table,
                         .col_off = col_off,
                         .col_len = col_len};
}

static inline adapm_entry *entry_of(const struct view *v, int64_t key) { return v->entries + adapm_position(v->shape, (uint64_t)key); }

static inline float *row_of(const struct view *v, uint64_t word) { return v->arena + (uint64_t)adapm_slot(word) * v->shape->stride; }

static inline float *columns_of(const struct view *v, uint64_t word) { return row_of(v, word) + v->col_off; }

/* ---- prefetching: cache misses of different keys overlap, which is most of the speed */

static inline void prefetch_row(const struct view *v, int64_t key) {
    uint64_t word = atomic_load_explicit(entry_of(v, key), memory_order_relaxed);
    const float *row = columns_of(v, word);
    const uint32_t step = ADAPM_LINE / sizeof(float);
    uint32_t len = v->col_len < ROW_LINES * step ? v->col_len : ROW_LINES * step;
    for (uint32_t i = 0; i < len; i += step) __builtin_prefetch(row + i);
}

static void prefetch_first(const struct view *v, const int64_t *keys, int64_t n) {
    for (int64_t i = 0; i < n && i < ENTRIES_AHEAD; i++) __builtin_prefetch(entry_of(v, keys[i]));
    for (int64_t i = 0; i < n && i < ROWS_AHEAD; i++) prefetch_row(v, keys[i]);
}

static inline void prefetch_next(const struct view *v, const int64_t *keys, int64_t i, int64_t n) {
    if (i + ENTRIES_AHEAD < n) __builtin_prefetch(entry_of(v, keys[i + ENTRIES_AHEAD]));
    if (i + ROWS_AHEAD < n) prefetch_row(v, keys[i + ROWS_AHEAD]);
}

/* ---- locking */

/* One turn of waiting for something that another process does.  A negative errno once the node has given up. */
static int relax(const adapm_worker *w, uint32_t *turns) {
    if ((*turns)++ < SPINS) {
        adapm_pause();
        return 0;
    }
    sched_yield();
    return adapm_seg_failed(w->segment);
}

static int wait_unlocked(const adapm_worker *w, adapm_entry *e) {
    int rc = 0;
    for (uint32_t turns = 0; !rc && atomic_load_explicit(e, memory_order_relaxed) & ADAPM_LOCK;) rc = relax(w, &turns);
    return rc;
}

/* The dirty ring is full: the node empties it at its next tick.  No lock is held here, or that tick could not come to an end. */
static int wait_dirty_room(adapm_worker *w) {
    int rc = 0;
    adapm_count(&w->shared->counters.waits, 1);
    adapm_kick_asleep(w);
    for (uint32_t turns = 0; !rc && !adapm_ring_room(&w->shared->mailbox.dirty);) rc = relax(w, &turns);
    return rc;
}

static void die_at(const adapm_worker *w, int step) {
    if (__builtin_expect(w->die_at == step, 0)) kill(getpid(), SIGKILL);
}

/* Says which row is about to be locked, so that the node can repair it should this process die meanwhile. */
static void hold(adapm_worker *w, const struct view *v, int64_t key, uint64_t word) {
    struct adapm_worker_shared *b = w->shared;
    b->hold_undo = 0;
    adapm_hold_fence();
    b->hold_table = v->table;
    b->hold_row = (uint64_t)key;
    b->hold_old = word;
    adapm_hold_fence();
}

static inline bool becomes_dirty(uint64_t word) { return (word & (ADAPM_TRACK | ADAPM_DIRTY)) == ADAPM_TRACK; }

/* Locks the row if its state bits under mask are these.  1 and the word before, 0: they are not, or a negative errno.
 * A locked word keeps its state bits, so rows in another state are recognised without waiting. */
static int take_row(adapm_worker *w, const struct view *v, int64_t key, uint64_t mask, uint64_t state, uint64_t *old) {
    adapm_entry *e = entry_of(v, key);
    for (int rc = 0;;) {
        uint64_t word = atomic_load_explicit(e, memory_order_relaxed);
        if ((word & mask) != state) return 0;
        if (word & ADAPM_LOCK)
            rc = wait_unlocked(w, e);
        else if (mask & ADAPM_WRITE && becomes_dirty(word) && !adapm_ring_room(&w->shared->mailbox.dirty))
            rc = wait_dirty_room(w);
        else {
            hold(w, v, key, word);
            die_at(w, 1);
            *old = word;
            if (adapm_lock(e, word, w->slot)) return 1;
        }
        if (rc) return rc;
    }
}

/* Saves the locked row.  The whole row: the hold does not say which columns are written. */
static void save_row(adapm_worker *w, const struct view *v, const float *row) {
    adapm_row_copy(adapm_at(w->segment, w->shared->off_undo), row, v->shape->row_len);
    adapm_hold_fence();
    w->shared->hold_undo = 1;
    adapm_hold_fence();
}

static void append_dirty(adapm_worker *w, const struct view *v, int64_t key) {
    struct adapm_ring *ring = &w->shared->mailbox.dirty;
    uint64_t *records = adapm_seg_ring(w->segment, ring);
    records[atomic_load_explicit(&ring->head, memory_order_relaxed) & ring->mask] = (uint64_t)v->table << 32 | (uint64_t)key;
    adapm_ring_publish(ring, 1);
}

/* ---- one row: 1 done, 0 not local, or a negative errno */

static int pull_locked(adapm_worker *w, const struct view *v, int64_t key, float *out) {
    uint64_t word;
    int rc = take_row(w, v, key, ADAPM_READ, ADAPM_READ, &word);
    if (rc <= 0) return rc;
    adapm_row_copy(out, columns_of(v, word), v->col_len);
    adapm_unlock(entry_of(v, key), word);
    return 1;
}

static inline int pull_row(adapm_worker *w, const struct view *v, int64_t key, float *out) {
    adapm_entry *e = entry_of(v, key);
    for (int tries = 0; tries < TRIES; tries++) {
        uint64_t word = atomic_load_explicit(e, memory_order_acquire); /* pairs with the release in adapm_unlock */
        if (!(word & ADAPM_READ)) return 0;
        if (word & ADAPM_LOCK) {
            int rc = wait_unlocked(w, e);
            if (rc) return rc;
            continue;
        }
        adapm_row_copy(out, columns_of(v, word), v->col_len);
        adapm_read_fence(); /* pairs with the write fence in adapm_lock */
        if (atomic_load_explicit(e, memory_order_relaxed) == word) return 1;
        adapm_count(&w->shared->counters.retries, 1);
    }
    return pull_locked(w, v, key, out);
}

/* *dirty is set when the row became dirty. */
static inline int push_row(adapm_worker *w, const struct view *v, int64_t key, const float *vals, bool *dirty) {
    uint64_t word;
    int rc = take_row(w, v, key, ADAPM_WRITE, ADAPM_WRITE, &word);
    if (rc <= 0) return rc;
    die_at(w, 2);
    save_row(w, v, row_of(v, word));
    die_at(w, 3);
    if (__builtin_expect(w->die_at == 4, 0)) adapm_row_add(columns_of(v, word), vals, v->col_len / 2);
    die_at(w, 4);
    adapm_row_add(columns_of(v, word), vals, v->col_len);
    if (becomes_dirty(word)) {
        append_dirty(w, v, key);
        die_at(w, 5);
        word |= ADAPM_DIRTY;
        *dirty = true;
    }
    adapm_unlock(entry_of(v, key), word);
    return 1;
}

static int set_row(adapm_worker *w, const struct view *v, int64_t key, const float *vals) {
    uint64_t word;
    int rc = take_row(w, v, key, ADAPM_READ | ADAPM_WRITE | ADAPM_TRACK, ADAPM_READ | ADAPM_WRITE, &word);
    if (rc <= 0) return rc;
    save_row(w, v, row_of(v, word));
    adapm_row_copy(columns_of(v, word), vals, v->col_len);
    adapm_unlock(entry_of(v, key), word);
    return 1;
}

/* ---- batches */

int64_t adapm_keys_bad(const int64_t *keys, int64_t n, int64_t rows) {
    uint64_t bad = 0;
    for (int64_t i = 0; i < n; i++) bad |= (uint64_t)((uint64_t)keys[i] >= (uint64_t)rows);
    if (!bad) return -1;
    int64_t i = 0;
    while ((uint64_t)keys[i] < (uint64_t)rows) i++;
    return i;
}

int64_t adapm_pull(adapm_worker *w, uint32_t table, uint32_t col_off, uint32_t col_len, const int64_t *keys, int64_t n, float *out, uint32_t *miss) {
    const struct view v = view_of(w, table, col_off, col_len);
    int64_t misses = 0;
    prefetch_first(&v, keys, n);
    for (int64_t i = 0; i < n; i++) {
        prefetch_next(&v, keys, i, n);
        int rc = pull_row(w, &v, keys[i], out + i * col_len);
        if (rc < 0) return rc;
        if (!rc) miss[misses++] = (uint32_t)i;
    }
    adapm_count(&w->shared->counters.pull_keys, (uint64_t)n);
    adapm_count(&w->shared->counters.pull_local, (uint64_t)(n - misses));
    return misses;
}

int64_t adapm_push(adapm_worker *w, uint32_t table, uint32_t col_off, uint32_t col_len, const int64_t *keys, int64_t n, const float *vals, uint32_t *miss) {
    const struct view v = view_of(w, table, col_off, col_len);
    int64_t misses = 0;
    bool dirty = false;
    prefetch_first(&v, keys, n);
    for (int64_t i = 0; i < n; i++) {
        prefetch_next(&v, keys, i, n);
        int rc = push_row(w, &v, keys[i], vals + i * col_len, &dirty);
        if (rc < 0) return rc;
        if (!rc) miss[misses++] = (uint32_t)i;
    }
    if (dirty) adapm_kick_asleep(w);
    adapm_count(&w->shared->counters.push_keys, (uint64_t)n);
    adapm_count(&w->shared->counters.push_local, (uint64_t)(n - misses));
    return misses;
}

int64_t adapm_set(adapm_worker *w, uint32_t table, uint32_t col_off, uint32_t col_len, const int64_t *keys, int64_t n, const float *vals, uint32_t *miss) {
    const struct view v = view_of(w, table, col_off, col_len);
    int64_t misses = 0;
    prefetch_first(&v, keys, n);
    for (int64_t i = 0; i < n; i++) {
        prefetch_next(&v, keys, i, n);
        int rc = set_row(w, &v, keys[i], vals + i * col_len);
        if (rc < 0) return rc;
        if (!rc) miss[misses++] = (uint32_t)i;
    }
    adapm_count(&w->shared->counters.set_keys, (uint64_t)n);
    return misses;
}

void adapm_is_local(adapm_worker *w, uint32_t table, const int64_t *keys, int64_t n, uint8_t *out) {
    const struct view v = view_of(w, table, 0, 0);
    for (int64_t i = 0; i < n; i++) {
        if (i + ENTRIES_AHEAD < n) __builtin_prefetch(entry_of(&v, keys[i + ENTRIES_AHEAD]));
        out[i] = (atomic_load_explicit(entry_of(&v, keys[i]), memory_order_relaxed) & ADAPM_READ) != 0;
    }
}
