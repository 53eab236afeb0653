/* Workers pull and push while a node moves rows between slots, evicts them, lets them be pending, and gives their slots to other
 * rows.  Argument: seconds.  Exit status 1: a pull returned a row that was torn or of another key, a push was lost, doubled or
 * landed in another row, or a row stayed dirty.
 *
 * A row of key k: its even floats are k, its odd ones the number of pushes since it last came.  A pending row has zeros for both. */
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>

#include "harness.h"
#include "rings.h"
#include "simd.h"

enum { ROWS = 96, ROW_LEN = 37, SLOTS = 64, BATCH = 24, READERS = 2, WRITERS = 2, WORKERS = READERS + WRITERS };

struct totals {
    uint64_t done[ROWS], calls, keys;
};

static adapm_segment *segment;
static _Atomic bool stop;
static int node_fd;

static void random_keys(uint64_t *seed, int64_t *keys) {
    for (int i = 0; i < BATCH; i++) keys[i] = (int64_t)(harness_random(seed) % ROWS);
}

/* ---- workers */

static bool missed(const uint32_t *miss, int64_t n, uint32_t i, int64_t *at) {
    bool hit = *at < n && miss[*at] == i;
    *at += hit;
    return hit;
}

static void check_row(const float *row, int64_t key) {
    for (int j = 0; j < ROW_LEN; j++) {
        float expected = j % 2 ? row[1] : (float)key;
        MUST(row[j] == expected, "key %ld: float %d is %g, not %g", (long)key, j, row[j], expected);
    }
}

static void *reader(void *arg) {
    struct totals *t = arg;
    uint32_t slot = (uint32_t)t->calls, miss[BATCH];
    uint64_t seed = 0x1234567 + slot;
    int64_t keys[BATCH];
    float out[BATCH * ROW_LEN];
    adapm_worker *w = harness_worker(segment, slot, node_fd, harness_eventfd());
    for (t->calls = 0; !atomic_load(&stop); t->calls++) {
        random_keys(&seed, keys);
        int64_t at = 0, n = adapm_pull(w, 0, 0, ROW_LEN, keys, BATCH, out, miss);
        MUST(n >= 0, "pull: %ld", (long)n);
        for (uint32_t i = 0; i < BATCH; i++)
            if (!missed(miss, n, i, &at)) check_row(out + i * ROW_LEN, keys[i]);
        t->keys += (uint64_t)(BATCH - n);
    }
    adapm_worker_detach(w);
    return NULL;
}

static void *writer(void *arg) {
    struct totals *t = arg;
    uint32_t slot = (uint32_t)t->calls, miss[BATCH];
    uint64_t seed = 0x7654321 + slot;
    int64_t keys[BATCH];
    float vals[BATCH * ROW_LEN];
    for (int i = 0; i < BATCH * ROW_LEN; i++) vals[i] = (float)(i % ROW_LEN % 2);
    adapm_worker *w = harness_worker(segment, slot, node_fd, harness_eventfd());
    for (t->calls = 0; !atomic_load(&stop); t->calls++) {
        random_keys(&seed, keys);
        int64_t at = 0, n = adapm_push(w, 0, 0, ROW_LEN, keys, BATCH, vals, miss);
        MUST(n >= 0, "push: %ld", (long)n);
        for (uint32_t i = 0; i < BATCH; i++)
            if (!missed(miss, n, i, &at)) t->done[keys[i]]++;
        t->keys += (uint64_t)(BATCH - n);
    }
    adapm_worker_detach(w);
    return NULL;
}

/* ---- the node */

struct node {
    uint32_t free[SLOTS], nfree;
    uint64_t pushed[ROWS]; /* taken out of rows that were evicted */
    uint64_t moved, evicted, arrived;
};

static uint64_t lock_row(adapm_entry *e) {
    for (;;) {
        uint64_t word = atomic_load_explicit(e, memory_order_relaxed);
        if (!(word & ADAPM_LOCK) && adapm_lock(e, word, ADAPM_LOCKER_LANE)) return word;
        adapm_pause();
    }
}

static uint64_t with_slot(uint64_t word, uint32_t slot) { return (uint64_t)slot << ADAPM_SLOT_SHIFT | (uint32_t)word; }

static void fill(uint32_t slot, float even) {
    float row[ROW_LEN];
    for (int j = 0; j < ROW_LEN; j++) row[j] = j % 2 ? 0.0f : even;
    adapm_row_copy(adapm_seg_row(segment, 0, slot), row, ROW_LEN);
}

/* An absent row becomes pending, owned or a replica: the slot is filled first, one release-store shows it. */
static void arrive(struct node *n, adapm_entry *e, uint64_t word, uint64_t key, uint64_t kind) {
    static const uint64_t states[] = {ADAPM_WRITE | ADAPM_TRACK, ADAPM_READ | ADAPM_WRITE, ADAPM_READ | ADAPM_WRITE | ADAPM_TRACK};
    if (!n->nfree) return;
    uint32_t slot = n->free[--n->nfree];
    fill(slot, kind ? (float)key : 0.0f);
    adapm_unlock(e, with_slot((word & ADAPM_SEQ) | states[kind], slot));
    n->arrived++;
}

/* Takes the pushes out under the lock; the slot is free for another row at once. */
static void evict(struct node *n, adapm_entry *e, uint64_t key) {
    float row[ROW_LEN];
    uint64_t word = lock_row(e);
    adapm_row_copy(row, adapm_seg_row(segment, 0, adapm_slot(word)), ROW_LEN);
    n->pushed[key] += (uint64_t)row[1];
    adapm_unlock(e, word & ADAPM_SEQ);
    n->free[n->nfree++] = adapm_slot(word);
    n->evicted++;
}

static void move(struct node *n, adapm_entry *e) {
    if (!n->nfree) return;
    uint32_t to = n->free[--n->nfree];
    uint64_t word = lock_row(e);
    adapm_row_copy(adapm_seg_row(segment, 0, to), adapm_seg_row(segment, 0, adapm_slot(word)), ROW_LEN);
    adapm_unlock(e, with_slot(word, to));
    n->free[n->nfree++] = adapm_slot(word);
    n->moved++;
}

/* A pending row gets its state: what was accumulated is kept. */
static void settle(adapm_entry *e, uint64_t key) {
    uint64_t word = lock_row(e);
    float *row = adapm_seg_row(segment, 0, adapm_slot(word)), state[ROW_LEN];
    for (int j = 0; j < ROW_LEN; j++) state[j] = j % 2 ? 0.0f : (float)key;
    adapm_row_add(row, state, ROW_LEN);
    adapm_unlock(e, word | ADAPM_READ);
}

static void act(struct node *n, uint64_t random) {
    uint64_t key = random % ROWS, choice = random >> 40;
    adapm_entry *e = adapm_seg_entry(segment, 0, key);
    uint64_t word = atomic_load_explicit(e, memory_order_relaxed); /* only the node changes states */
    if (!(word & ADAPM_WRITE)) arrive(n, e, word, key, choice % 3);
    else if (!(word & ADAPM_READ)) settle(e, key);
    else if (choice % 2) move(n, e);
    else evict(n, e, key);
}

/* Every row that became dirty is in the ring of the worker that made it so. */
static void clean_dirty(uint32_t worker) {
    struct adapm_ring *ring = &adapm_seg_worker(segment, worker)->mailbox.dirty;
    const uint64_t *records = adapm_seg_ring(segment, ring);
    for (uint64_t n = adapm_ring_used(ring); n; n--) {
        adapm_entry *e = adapm_seg_entry(segment, 0, (uint32_t)records[atomic_load(&ring->tail) & ring->mask]);
        adapm_unlock(e, lock_row(e) & ~ADAPM_DIRTY);
        adapm_ring_release(ring, 1);
    }
}

static void *node(void *arg) {
    struct node *n = arg;
    uint64_t seed = 0xabcdef;
    for (uint32_t i = 0; i < SLOTS; i++) n->free[n->nfree++] = i;
    while (!atomic_load(&stop)) {
        for (int i = 0; i < 64; i++) act(n, harness_random(&seed));
        for (uint32_t w = 0; w < WORKERS; w++) clean_dirty(w);
    }
    return NULL;
}

/* ---- the end */

static void check_end(struct node *n, const struct totals *t) {
    for (uint32_t w = 0; w < WORKERS; w++) clean_dirty(w);
    for (uint64_t key = 0; key < ROWS; key++) {
        adapm_entry *e = adapm_seg_entry(segment, 0, key);
        uint64_t expected = 0, word = atomic_load(e);
        MUST(!(word & (ADAPM_LOCK | ADAPM_DIRTY)), "key %lu ends as %lx", (unsigned long)key, (unsigned long)word);
        if (word & ADAPM_WRITE) evict(n, e, key);
        for (int w = 0; w < WORKERS; w++) expected += t[w].done[key];
        MUST(n->pushed[key] == expected, "key %lu: %lu pushes of %lu", (unsigned long)key, (unsigned long)n->pushed[key], (unsigned long)expected);
    }
    MUST(n->nfree == SLOTS, "%u of %d slots are free", n->nfree, SLOTS);
}

static void run_for(double seconds, struct totals *t, struct node *n) {
    pthread_t threads[WORKERS + 1];
    pthread_create(&threads[WORKERS], NULL, node, n);
    for (uint32_t w = 0; w < WORKERS; w++) {
        t[w].calls = w; /* the thread's slot, until it counts */
        pthread_create(&threads[w], NULL, w < READERS ? reader : writer, &t[w]);
    }
    poll(NULL, 0, (int)(seconds * 1000));
    atomic_store(&stop, true);
    for (int i = 0; i <= WORKERS; i++) pthread_join(threads[i], NULL);
}

int main(int argc, char **argv) {
    static struct totals totals[WORKERS];
    static struct node n;
    uint64_t pulled = 0, pushed = 0, retries = 0;
    segment = harness_segment(ROWS, ROW_LEN, SLOTS, WORKERS);
    node_fd = harness_eventfd();
    run_for(harness_duration(argc, argv), totals, &n);
    check_end(&n, totals);
    for (uint32_t w = 0; w < WORKERS; w++) {
        *(w < READERS ? &pulled : &pushed) += totals[w].keys;
        retries += atomic_load(&adapm_seg_worker(segment, w)->counters.retries);
    }
    MUST(pulled && pushed && n.moved && n.evicted, "something did not run");
    printf("%lu rows pulled (%lu retries), %lu pushed, %lu arrivals, %lu moves, %lu evictions\n", (unsigned long)pulled, (unsigned long)retries,
           (unsigned long)pushed, (unsigned long)n.arrived, (unsigned long)n.moved, (unsigned long)n.evicted);
    adapm_segment_close(segment);
    return 0;
}
