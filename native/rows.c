/* Local access: one C call per batch, no lock that is shared between rows, no system call.  README.md walks through it. */
#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <unistd.h>

#include "rings.h"
#include "simd.h"
#include "worker.h"

#define LINES_AHEAD 128  /* cache lines of rows that are on their way while one row is copied, about */
#define MOST_AHEAD 64    /* rows, at most: a power of two */
#define LEAST_AHEAD 4    /* rows, at least */
#define ENTRIES_AHEAD 64 /* entry words are fetched this many keys before they are read */
#define ROW_LINES 16     /* of long rows only the beginning is fetched: the processor sees the rest coming */
#define BURST 32         /* rows, at most, that are asked for at once before so many are copied ... */
#define BURST_LINES 256  /* ... and lines, about */
#define TRIES 16         /* copies of a row that keeps changing before its lock is taken */
#define SPINS 128        /* pauses before the processor is given away */

/* The part of a table that one call addresses.  It is handed on by value, and copies what the segment says of the table: what
 * is reached through a pointer would be loaded again behind every fence. */
struct view {
    adapm_entry *entries;
    float *arena;
    uint64_t eighth;
    int64_t rows;
    uint32_t table, row_len, stride, col_off, col_len;
};

static struct view view_of(const adapm_worker *w, uint32_t table, uint32_t col_off, uint32_t col_len) {
    const struct adapm_table *shape = adapm_seg_table(w->segment, table);
    return (struct view){.entries = adapm_seg_entries(w->segment, table),
                         .arena = adapm_seg_row(w->segment, table, 0),
                         .eighth = shape->eighth,
                         .rows = (int64_t)shape->rows,
                         .table = table,
                         .row_len = shape->row_len,
                         .stride = shape->stride,
                         .col_off = col_off,
                         .col_len = col_len};
}

PART_OF_LOOP adapm_entry *entry_of(struct view v, int64_t key) { return v.entries + adapm_spread(v.eighth, (uint64_t)key); }

PART_OF_LOOP float *row_of(struct view v, uint64_t word) { return v.arena + (uint64_t)adapm_slot(word) * v.stride; }

PART_OF_LOOP float *columns_of(struct view v, uint64_t word) { return row_of(v, word) + v.col_off; }

/* ---- looking ahead: cache misses of different keys overlap, which is most of the speed
 *
 *   key i + rows + ENTRIES_AHEAD    its entry is being fetched
 *   key i + rows                    its entry is read, and its row is being fetched
 *   key i                           its row is there
 *
 * The word that told where the row is serves for the access too: it is compared with the entry there in any case. */
struct ahead {
    uint32_t rows;              /* a power of two */
    uint32_t off, lines;        /* what is fetched of a row: so many lines from this float on */
    uint64_t words[MOST_AHEAD]; /* of the keys i .. i + rows - 1, each at its index modulo rows */
};

/* How many rows of n floats to fetch ahead. */
PART_OF_LOOP uint32_t rows_ahead(uint32_t n) {
    uint32_t rows = MOST_AHEAD;
    while (rows > LEAST_AHEAD && rows * n > LINES_AHEAD * LINE_FLOATS) rows /= 2;
    return rows;
}

/* How many rows of n floats to ask for at once: memory is given more to choose from than when every copy waits for its turn. */
PART_OF_LOOP uint32_t rows_at_once(uint32_t n) {
    uint32_t rows = BURST;
    while (rows > LEAST_AHEAD && rows * n > BURST_LINES * LINE_FLOATS) rows /= 2;
    return rows;
}

PART_OF_LOOP uint64_t fetch_row(struct view v, int64_t key, uint32_t off, uint32_t lines) {
    uint64_t word = atomic_load_explicit(entry_of(v, key), memory_order_acquire); /* pairs with the release in adapm_unlock */
    const float *row = row_of(v, word) + off;
    for (uint32_t i = 0; i < lines; i++) __builtin_prefetch(row + i * LINE_FLOATS, 0, 2);
    return word;
}

PART_OF_LOOP struct ahead look_ahead(struct view v, uint32_t off, uint32_t len, const int64_t *keys, int64_t n) {
    uint32_t lines = (len + LINE_FLOATS - 1) / LINE_FLOATS;
    struct ahead a = {.rows = rows_ahead(len), .off = off, .lines = lines < ROW_LINES ? lines : ROW_LINES};
    for (int64_t i = 0; i < n && i < a.rows + ENTRIES_AHEAD; i++) __builtin_prefetch(entry_of(v, keys[i]), 0, 2);
    for (int64_t i = 0; i < n && i < a.rows; i++) a.words[i] = fetch_row(v, keys[i], a.off, a.lines);
    return a;
}

/* The word of key i as it was a little while ago. */
PART_OF_LOOP uint64_t next_word(struct view v, struct ahead *a, const int64_t *keys, int64_t i, int64_t n) {
    uint64_t *place = &a->words[i & (a->rows - 1)], word = *place;
    if (i + a->rows + ENTRIES_AHEAD < n) __builtin_prefetch(entry_of(v, keys[i + a->rows + ENTRIES_AHEAD]), 0, 2);
    if (i + a->rows < n) *place = fetch_row(v, keys[i + a->rows], a->off, a->lines);
    return word;
}

/* The words of the keys i .. end - 1. */
PART_OF_LOOP void next_words(struct view v, struct ahead *a, const int64_t *keys, int64_t i, int64_t end, int64_t n, uint64_t *words) {
    for (int64_t first = i; i < end; i++) words[i - first] = next_word(v, a, keys, i, n);
}

/* ---- locking */

/* One turn of waiting for something that another process does.  A negative errno once the node has given up. */
static int relax(const adapm_worker *w, uint32_t *turns) {
    if ((*turns)++ < SPINS) {
        adapm_pause();
        return 0;
    }
    if (w->turn)
        w->turn(w->turn_with);
    else
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

static inline void die_at(adapm_worker *w, int step) {
    if (__builtin_expect(w->die_at != step, 1) || w->die_after--) return;
    w->die_at = 0; /* who is only stopped goes on */
    kill(getpid(), w->die_of);
}

PART_OF_LOOP bool becomes_dirty(uint64_t word) { return (word & (ADAPM_TRACK | ADAPM_DIRTY)) == ADAPM_TRACK; }

/* ---- the hold
 *
 * Says which rows are locked and what they were, so that the node can repair them should this process die meanwhile. Nobody else
 * waits for a row with others in its hold: when one cannot be locked at once, the hold ends before it. */

/* Names the n rows that are about to be locked, with their entry words. */
PART_OF_LOOP void begin_hold(adapm_worker *w, struct view v, uint32_t n, const int64_t *keys, const uint64_t *words) {
    struct adapm_worker_shared *b = w->shared;
    b->hold_rows = 0;
    adapm_hold_fence();
    b->hold_saved = 0;
    b->hold_table = v.table;
    for (uint32_t i = 0; i < n; i++) b->held[i] = (struct adapm_held){.row = (uint64_t)keys[i], .old = words[i]};
    adapm_hold_fence();
    b->hold_rows = n;
    adapm_hold_fence();
}

/* One try at the lock of a row that the hold names. */
PART_OF_LOOP bool hold_row(adapm_worker *w, struct view v, int64_t key, uint64_t word) {
    die_at(w, 1);
    return adapm_lock(entry_of(v, key), word, w->slot);
}

PART_OF_LOOP float *saved_row(const adapm_worker *w, struct view v, uint32_t i) {
    return (float *)adapm_at(w->segment, w->shared->off_undo) + (uint64_t)i * v.stride;
}

/* Saves the n rows that are held.  The whole rows: the hold does not say which columns are written. */
PART_OF_LOOP void save_rows(adapm_worker *w, struct view v, uint32_t n, uint32_t row_len) {
    for (uint32_t i = 0; i < n; i++) {
        die_at(w, 2);
        adapm_copy_floats(saved_row(w, v, i), row_of(v, w->shared->held[i].old), row_len);
    }
    adapm_hold_fence();
    w->shared->hold_saved = n;
    adapm_hold_fence();
}

/* Locks the row if its state bits under mask are these.  1 and the word before, 0: they are not, or a negative errno.
 * A locked word keeps its state bits, so rows in another state are recognised without waiting. */
static int take_row(adapm_worker *w, struct view v, int64_t key, uint64_t mask, uint64_t state, uint64_t *old) {
    adapm_entry *e = entry_of(v, key);
    for (int rc = 0;;) {
        uint64_t word = *old = atomic_load_explicit(e, memory_order_relaxed);
        if ((word & mask) != state) return 0;
        if (word & ADAPM_LOCK)
            rc = wait_unlocked(w, e);
        else if (mask & ADAPM_WRITE && becomes_dirty(word) && !adapm_ring_room(&w->shared->mailbox.dirty))
            rc = wait_dirty_room(w);
        else {
            begin_hold(w, v, 1, &key, &word);
            if (hold_row(w, v, key, word)) return 1;
        }
        if (rc) return rc;
    }
}

static void append_dirty(adapm_worker *w, struct view v, int64_t key) {
    struct adapm_ring *ring = &w->shared->mailbox.dirty;
    uint64_t *records = adapm_seg_ring(w->segment, ring);
    records[atomic_load_explicit(&ring->head, memory_order_relaxed) & ring->mask] = (uint64_t)v.table << 32 | (uint64_t)key;
    adapm_ring_publish(ring, 1);
}

/* ---- one row: 1 done, 0 not local, or a negative errno */

static int pull_locked(adapm_worker *w, struct view v, int64_t key, float *out) {
    uint64_t word;
    int rc = take_row(w, v, key, ADAPM_READ, ADAPM_READ, &word);
    if (rc <= 0) return rc;
    adapm_row_copy(out, columns_of(v, word), v.col_len);
    adapm_unlock(entry_of(v, key), word);
    return 1;
}

/* The row as it is found: for rows that were being changed when they were looked at first. */
static int pull_again(adapm_worker *w, struct view v, int64_t key, float *out) {
    adapm_entry *e = entry_of(v, key);
    for (int tries = 0; tries < TRIES; tries++) {
        uint64_t word = atomic_load_explicit(e, memory_order_acquire); /* pairs with the release in adapm_unlock */
        if (!(word & ADAPM_READ)) return 0;
        if (word & ADAPM_LOCK) {
            int rc = wait_unlocked(w, e);
            if (rc) return rc;
            continue;
        }
        adapm_row_copy(out, columns_of(v, word), v.col_len);
        adapm_read_fence(); /* pairs with the write fence in adapm_lock */
        if (atomic_load_explicit(e, memory_order_relaxed) == word) return 1;
        adapm_count(&w->shared->counters.retries, 1);
    }
    return pull_locked(w, v, key, out);
}

PART_OF_LOOP int pull_row(adapm_worker *w, struct view v, int64_t key, uint64_t word, float *out, uint32_t len) {
    if (!(word & ADAPM_READ)) return 0;
    if (__builtin_expect(!(word & ADAPM_LOCK), 1)) {
        adapm_copy_floats(out, columns_of(v, word), len);
        adapm_read_fence(); /* pairs with the write fence in adapm_lock */
        if (__builtin_expect(atomic_load_explicit(entry_of(v, key), memory_order_relaxed) == word, 1)) return 1;
        adapm_count(&w->shared->counters.retries, 1);
    }
    return pull_again(w, v, key, out);
}

/* Adds to row i of the hold, which has been saved, and unlocks it.  1 if it became dirty. */
PART_OF_LOOP int add_held(adapm_worker *w, struct view v, uint32_t i, const float *vals, uint32_t len) {
    int64_t key = (int64_t)w->shared->held[i].row;
    uint64_t word = w->shared->held[i].old;
    float *columns = columns_of(v, word);
    bool dirty = becomes_dirty(word);
    die_at(w, 3);
    if (__builtin_expect(w->die_at == 4 && !w->die_after, 0) && w->die_of == SIGKILL) adapm_row_add(columns, vals, len / 2);
    die_at(w, 4);
    adapm_add_floats(columns, vals, len);
    if (__builtin_expect(dirty, 0)) {
        append_dirty(w, v, key);
        die_at(w, 5);
        word |= ADAPM_DIRTY;
    }
    adapm_unlock(entry_of(v, key), word);
    return dirty;
}

/* A row that could not be held at once. */
static int push_row(adapm_worker *w, struct view v, int64_t key, const float *vals, int *dirty) {
    uint64_t word;
    int rc = take_row(w, v, key, ADAPM_WRITE, ADAPM_WRITE, &word);
    if (rc <= 0) return rc;
    save_rows(w, v, 1, v.row_len);
    *dirty |= add_held(w, v, 0, vals, v.col_len);
    return 1;
}

static int set_row(adapm_worker *w, struct view v, int64_t key, const float *vals) {
    uint64_t word;
    int rc = take_row(w, v, key, ADAPM_READ | ADAPM_WRITE | ADAPM_TRACK, ADAPM_READ | ADAPM_WRITE, &word);
    if (rc <= 0) return rc;
    save_rows(w, v, 1, v.row_len);
    adapm_row_copy(columns_of(v, word), vals, v.col_len);
    adapm_unlock(entry_of(v, key), word);
    return 1;
}

/* ---- batches */

DISPATCHED int64_t adapm_keys_bad(const int64_t *keys, int64_t n, int64_t rows) {
    uint64_t bad = 0;
    for (int64_t i = 0; i < n; i++) bad |= (uint64_t)((uint64_t)keys[i] >= (uint64_t)rows);
    if (!bad) return -1;
    int64_t i = 0;
    while ((uint64_t)keys[i] < (uint64_t)rows) i++;
    return i;
}

PART_OF_LOOP int64_t pull_rows(adapm_worker *w, struct view v, const int64_t *keys, int64_t n, float *out, uint32_t *miss, uint32_t len) {
    struct ahead ahead = look_ahead(v, v.col_off, len, keys, n);
    const int64_t burst = rows_at_once(len);
    uint64_t words[BURST];
    int64_t misses = 0;
    for (int64_t first = 0, end; first < n; first = end) {
        end = first + burst < n ? first + burst : n;
        next_words(v, &ahead, keys, first, end, n, words);
        for (int64_t i = first; i < end; i++) {
            int rc = pull_row(w, v, keys[i], words[i - first], out + i * len, len);
            if (__builtin_expect(rc < 0, 0)) return rc;
            if (!rc) miss[misses++] = (uint32_t)i;
        }
    }
    adapm_count(&w->shared->counters.pull_keys, (uint64_t)n);
    adapm_count(&w->shared->counters.pull_local, (uint64_t)(n - misses));
    return misses;
}

/* ---- copies that get too old: only with a technique that says so */

#define LOOKED_AT 256 /* keys, at most, whose ages are looked at before their rows are read */

static bool too_old(const adapm_worker *w, struct view v, const adapm_stamp *stamps, int64_t key) {
    const uint64_t which = ~0ULL << ADAPM_SLOT_SHIFT | ADAPM_READ, oldest = atomic_load_explicit(&w->shared->oldest, memory_order_relaxed);
    uint64_t word = atomic_load_explicit(entry_of(v, key), memory_order_acquire), again; /* pairs with the release in adapm_unlock */
    for (;; word = again) {
        if (!(word & ADAPM_READ)) return false;
        uint64_t stamp = atomic_load_explicit(&stamps[adapm_slot(word)], memory_order_relaxed);
        adapm_read_fence(); /* pairs with the write fence in adapm_lock */
        again = atomic_load_explicit(entry_of(v, key), memory_order_acquire);
        if (!((word ^ again) & which)) return stamp <= oldest;
    }
}

/* The misses of both kinds, in order, of the keys from first on. */
static int64_t add_old(adapm_worker *w, int64_t first, int64_t n, const bool *old, const uint32_t *absent, int64_t nabsent, uint32_t *miss) {
    int64_t misses = 0;
    for (int64_t i = 0, next = 0; i < n; i++) {
        bool missed = next < nabsent && absent[next] == i;
        next += missed;
        if (missed || old[i]) miss[misses++] = (uint32_t)(first + i);
    }
    adapm_count(&w->shared->counters.pull_local, (uint64_t)(nabsent - misses)); /* those that were read in vain */
    return misses;
}

/* Looks at ages first: copies only get younger, so what is young enough then is so when it is read. */
static int64_t pull_young(adapm_worker *w, struct view v, const int64_t *keys, int64_t n, float *out, uint32_t *miss) {
    const adapm_stamp *stamps = adapm_at(w->segment, adapm_seg_table(w->segment, v.table)->off_stamps);
    uint32_t absent[LOOKED_AT];
    bool old[LOOKED_AT];
    int64_t misses = 0;
    for (int64_t first = 0; first < n; first += LOOKED_AT) {
        int64_t some = n - first < LOOKED_AT ? n - first : LOOKED_AT;
        for (int64_t i = 0; i < some; i++) __builtin_prefetch(entry_of(v, keys[first + i]));
        for (int64_t i = 0; i < some; i++) old[i] = too_old(w, v, stamps, keys[first + i]);
        int64_t nabsent = pull_rows(w, v, keys + first, some, out + first * v.col_len, absent, v.col_len);
        if (nabsent < 0) return nabsent;
        misses += add_old(w, first, some, old, absent, nabsent, miss + misses);
    }
    return misses;
}

DISPATCHED int64_t adapm_pull(adapm_worker *w, uint32_t table, uint32_t col_off, uint32_t col_len, const int64_t *keys, int64_t n, float *out, uint32_t *miss) {
    const struct view v = view_of(w, table, col_off, col_len);
    if (adapm_keys_bad(keys, n, v.rows) >= 0) return -ERANGE;
    if (__builtin_expect(w->ages && atomic_load_explicit(&w->shared->oldest, memory_order_relaxed), 0)) return pull_young(w, v, keys, n, out, miss);
    switch (col_len) {
    case 16: return pull_rows(w, v, keys, n, out, miss, 16);
    case 32: return pull_rows(w, v, keys, n, out, miss, 32);
    case 64: return pull_rows(w, v, keys, n, out, miss, 64);
    case 128: return pull_rows(w, v, keys, n, out, miss, 128);
    default: return pull_rows(w, v, keys, n, out, miss, col_len);
    }
}

/* Whether the row can be held now: it is here, nobody has locked it (a key that comes twice: this hold neither), and there is
 * room to say that it and those held before it have become dirty. */
PART_OF_LOOP bool can_be_held(const adapm_worker *w, uint64_t word, uint32_t held) {
    if ((word & (ADAPM_WRITE | ADAPM_LOCK)) != ADAPM_WRITE) return false;
    return __builtin_expect(!becomes_dirty(word), 1) || adapm_ring_room(&w->shared->mailbox.dirty) > held;
}

/* Adds to as many of the n rows as can be held together, from the first one on; returns how many. */
PART_OF_LOOP uint32_t push_held(adapm_worker *w, struct view v, const int64_t *keys, const uint64_t *words, uint32_t n, const float *vals, uint32_t len, uint32_t row_len, int *dirty) {
    uint32_t held = 0;
    begin_hold(w, v, n, keys, words);
    while (held < n && can_be_held(w, words[held], held) && hold_row(w, v, keys[held], words[held])) held++;
    save_rows(w, v, held, row_len);
    for (uint32_t i = 0; i < held; i++) *dirty |= add_held(w, v, i, vals + (uint64_t)i * len, len);
    return held;
}

PART_OF_LOOP int64_t push_rows(adapm_worker *w, struct view v, const int64_t *keys, int64_t n, const float *vals, uint32_t *miss, uint32_t len, uint32_t row_len) {
    struct ahead ahead = look_ahead(v, 0, row_len, keys, n); /* of all columns, because they are saved */
    const uint32_t most = adapm_held_together(v.stride);
    uint64_t words[ADAPM_HELD];
    int64_t misses = 0;
    int dirty = 0;
    for (int64_t first = 0, end; first < n; first = end) {
        end = first + most < n ? first + most : n;
        next_words(v, &ahead, keys, first, end, n, words);
        for (int64_t i = first; i < end; i++) {
            i += push_held(w, v, keys + i, words + (i - first), (uint32_t)(end - i), vals + i * len, len, row_len, &dirty);
            if (__builtin_expect(i == end, 1)) break;
            int rc = push_row(w, v, keys[i], vals + i * len, &dirty);
            if (__builtin_expect(rc < 0, 0)) return rc;
            if (!rc) miss[misses++] = (uint32_t)i;
        }
    }
    if (dirty) adapm_kick_asleep(w);
    adapm_count(&w->shared->counters.push_keys, (uint64_t)n);
    adapm_count(&w->shared->counters.push_local, (uint64_t)(n - misses));
    return misses;
}

DISPATCHED int64_t adapm_push(adapm_worker *w, uint32_t table, uint32_t col_off, uint32_t col_len, const int64_t *keys, int64_t n, const float *vals, uint32_t *miss) {
    const struct view v = view_of(w, table, col_off, col_len);
    if (adapm_keys_bad(keys, n, v.rows) >= 0) return -ERANGE;
    switch (col_len == v.row_len ? col_len : 0) {
    case 16: return push_rows(w, v, keys, n, vals, miss, 16, 16);
    case 32: return push_rows(w, v, keys, n, vals, miss, 32, 32);
    case 64: return push_rows(w, v, keys, n, vals, miss, 64, 64);
    case 128: return push_rows(w, v, keys, n, vals, miss, 128, 128);
    default: return push_rows(w, v, keys, n, vals, miss, col_len, v.row_len);
    }
}

int64_t adapm_set(adapm_worker *w, uint32_t table, uint32_t col_off, uint32_t col_len, const int64_t *keys, int64_t n, const float *vals, uint32_t *miss) {
    const struct view v = view_of(w, table, col_off, col_len);
    if (adapm_keys_bad(keys, n, v.rows) >= 0) return -ERANGE;
    int64_t misses = 0;
    for (int64_t i = 0; i < n; i++) {
        if (i + ENTRIES_AHEAD < n) __builtin_prefetch(entry_of(v, keys[i + ENTRIES_AHEAD]));
        int rc = set_row(w, v, keys[i], vals + i * col_len);
        if (rc < 0) return rc;
        if (!rc) miss[misses++] = (uint32_t)i;
    }
    adapm_count(&w->shared->counters.set_keys, (uint64_t)n);
    return misses;
}

int adapm_is_local(adapm_worker *w, uint32_t table, const int64_t *keys, int64_t n, uint8_t *out) {
    const struct view v = view_of(w, table, 0, 0);
    if (adapm_keys_bad(keys, n, v.rows) >= 0) return -ERANGE;
    for (int64_t i = 0; i < n; i++) {
        if (i + ENTRIES_AHEAD < n) __builtin_prefetch(entry_of(v, keys[i + ENTRIES_AHEAD]));
        out[i] = (atomic_load_explicit(entry_of(v, keys[i]), memory_order_relaxed) & ADAPM_READ) != 0;
    }
    return 0;
}
