/* The worker's half of everything that goes through the node: intents, clock, requests, completions, and waiting for them. */
#define _GNU_SOURCE
#include "worker.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include "rings.h"
#include "simd.h"

#define REQUEST_KEYS 65536u /* of one request, at most */
#define INTENT_KEYS 16384u  /* of one intent record: the ring is handed over and given back in pieces */
#define WAIT_SPINS 1000u    /* some 20 us: a wake-up by the kernel costs more than twice that */

/* ---- the handle */

static uint32_t processors(void) {
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) ? 2 : (uint32_t)CPU_COUNT(&set);
}

/* Neither reading an eventfd nobody wrote nor writing one nobody reads may block. */
static int make_nonblocking(int fd) {
    int flags = fcntl(fd, F_GETFL);
    return flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 ? -errno : 0;
}

static int claim(adapm_segment *s, uint32_t slot) {
    if (slot >= adapm_seg_header(s)->nworkers) return -EINVAL;
    uint32_t expected = ADAPM_FREE;
    return atomic_compare_exchange_strong(&adapm_seg_worker(s, slot)->state, &expected, ADAPM_RUNNING) ? 0 : -EBUSY;
}

static int check_attach(adapm_segment *s, uint32_t slot, int node_fd, int worker_fd) {
    int rc = adapm_seg_failed(s);
    if (!rc) rc = make_nonblocking(node_fd);
    if (!rc) rc = make_nonblocking(worker_fd);
    return rc ? rc : claim(s, slot);
}

static adapm_worker *handle(adapm_segment *s, uint32_t slot, int node_fd, int worker_fd) {
    adapm_worker *w = calloc(1, sizeof *w);
    uint32_t ages = adapm_seg_header(s)->technique.ages;
    uint64_t *began = calloc(ages ? ages : 1, sizeof *began); /* clock 0 has no beginning */
    if (!w || !began) {
        free(began);
        free(w);
        return NULL;
    }
    w->ages = ages;
    w->began = began;
    w->segment = s;
    w->shared = adapm_seg_worker(s, slot);
    w->lane = adapm_seg_lane(s, 0);
    w->slot = slot;
    w->node_fd = node_fd;
    w->worker_fd = worker_fd;
    w->spins = processors() > 1 ? WAIT_SPINS : 0;
    while (w->nfree < ADAPM_OPS) {
        w->free_ops[w->nfree] = ADAPM_OPS - 1 - w->nfree;
        w->nfree++;
    }
    heap_open(&w->heap, w->shared->off_heap, w->shared->heap_bytes);
    return w;
}

adapm_worker *adapm_worker_attach(adapm_segment *s, uint32_t slot, int node_fd, int worker_fd, int *err) {
    *err = check_attach(s, slot, node_fd, worker_fd);
    if (*err) return NULL;
    adapm_worker *w = handle(s, slot, node_fd, worker_fd);
    if (!w) *err = -ENOMEM;
    return w;
}

void adapm_worker_detach(adapm_worker *w) {
    free(w->began);
    free(w);
}

void adapm_worker_yield_with(adapm_worker *w, adapm_turn turn, void *with) {
    w->turn = turn;
    w->turn_with = with;
}

static void read_counters(const struct adapm_counters *c, uint64_t *out) {
    const _Atomic uint64_t *all[] = {&c->pull_keys, &c->pull_local, &c->push_keys, &c->push_local, &c->set_keys, &c->intent_keys, &c->waits, &c->retries,
                                     &c->room_ns, &c->pull_ns, &c->push_ns, &c->set_ns, &c->sync_ns, &c->barrier_ns};
    _Static_assert(sizeof *c == sizeof all && sizeof all == ADAPM_COUNTERS * sizeof *all, "all are read");
    for (int i = 0; i < ADAPM_COUNTERS; i++) out[i] = atomic_load_explicit(all[i], memory_order_relaxed);
}

void adapm_worker_counters(adapm_worker *w, uint64_t *out) { read_counters(&w->shared->counters, out); }

void adapm_segment_counters(adapm_segment *s, uint32_t worker, uint64_t *out) { read_counters(&adapm_seg_worker(s, worker)->counters, out); }

void adapm_worker_waited(adapm_worker *w, int kind, uint64_t ns) {
    struct adapm_counters *c = &w->shared->counters;
    _Atomic uint64_t *all[] = {&c->room_ns, &c->pull_ns, &c->push_ns, &c->set_ns, &c->sync_ns, &c->barrier_ns};
    adapm_count(all[kind], ns);
}

static void signal_at(adapm_worker *w, int step, int after, int signal) {
    w->die_at = step;
    w->die_after = after;
    w->die_of = signal;
}

void adapm_die_at(adapm_worker *w, int step, int after) { signal_at(w, step, after, SIGKILL); }

void adapm_stop_at(adapm_worker *w, int step, int after) { signal_at(w, step, after, SIGSTOP); }

/* ---- waking the node */

/* Writes the eventfd unless it is written already.  The exchange publishes the caller's record: if it finds 1, the node's
 * exchange back to 0 comes later, acquires it, and the node looks at the rings after that. */
static void kick(adapm_worker *w) {
    const uint64_t one = 1;
    if (atomic_exchange_explicit(&w->lane->kicked, 1, memory_order_acq_rel)) return;
    while (write(w->node_fd, &one, sizeof one) < 0 && errno == EINTR) {}
}

void adapm_kick_asleep(adapm_worker *w) {
    adapm_wake_fence(); /* pairs with the one between asleep = 1 and the node's last look */
    if (atomic_load_explicit(&w->lane->asleep, memory_order_relaxed)) kick(w);
}

/* ---- clock and intents */

int64_t adapm_clock(adapm_worker *w) { return atomic_load_explicit(&w->shared->clock, memory_order_relaxed); }

/* A clock begins: copies are too old that were not asked for since the beginning of the first of the clocks in which a copy is read. */
static void age_copies(adapm_worker *w, int64_t now) {
    w->began[now % w->ages] = atomic_load_explicit(&w->lane->moment, memory_order_acquire); /* pairs with the release in adapm_lane_tick */
    int64_t first = now - (w->ages - 1);
    atomic_store_explicit(&w->shared->oldest, first > 0 ? w->began[first % w->ages] : 0, memory_order_relaxed);
}

int64_t adapm_advance_clock(adapm_worker *w) {
    int64_t now = adapm_clock(w) + 1;
    if (w->ages) age_copies(w, now);
    atomic_store_explicit(&w->shared->clock, now, memory_order_release);
    adapm_wake_fence(); /* pairs with the one behind the node's store of wake_clock */
    if (now >= atomic_load_explicit(&w->shared->wake_clock, memory_order_relaxed)) kick(w);
    return now;
}

/* Room for a record of up to n keys at the ring's head: how many fit there (0: none now).  Skips the ring's end when it is
 * too short for any record. */
static uint64_t intent_room(adapm_worker *w, struct adapm_ring *ring, uint64_t n) {
    const uint64_t least = sizeof(struct adapm_intent_record) + 2 * sizeof(uint32_t);
    uint64_t head = atomic_load_explicit(&ring->head, memory_order_relaxed), room = adapm_ring_room(ring);
    uint64_t rest = ring->mask + 1 - (head & ring->mask);
    if (rest < least && room > rest) {
        *(uint32_t *)((uint8_t *)adapm_seg_ring(w->segment, ring) + (head & ring->mask)) = ADAPM_SKIP;
        adapm_ring_publish(ring, rest);
        room -= rest;
        rest = ring->mask + 1;
    }
    uint64_t bytes = room < rest ? room : rest;
    if (bytes < least) return 0;
    uint64_t fit = (bytes - sizeof(struct adapm_intent_record)) / sizeof(uint32_t);
    fit = fit < n ? fit : n;
    return fit < INTENT_KEYS ? fit : INTENT_KEYS;
}

static void write_intent(adapm_worker *w, struct adapm_ring *ring, struct adapm_intent_record head, const int64_t *keys) {
    uint64_t at = atomic_load_explicit(&ring->head, memory_order_relaxed) & ring->mask;
    struct adapm_intent_record *record = (struct adapm_intent_record *)((uint8_t *)adapm_seg_ring(w->segment, ring) + at);
    uint32_t *dst = (uint32_t *)(record + 1);
    *record = head;
    adapm_keys_narrow(dst, keys, head.n);
    adapm_ring_publish(ring, sizeof head + (head.n + (head.n & 1ULL)) * sizeof *dst);
}

int64_t adapm_intent(adapm_worker *w, uint32_t table, const int64_t *keys, int64_t n, int64_t start, int64_t end) {
    struct adapm_ring *ring = &w->shared->mailbox.intent;
    int64_t done = 0;
    if (adapm_keys_bad(keys, n, (int64_t)adapm_seg_table(w->segment, table)->rows) >= 0) return -ERANGE;
    if (adapm_seg_header(w->segment)->technique.ignores_intents) {
        adapm_count(&w->shared->counters.intent_keys, (uint64_t)n);
        return n;
    }
    w->intent_full_tail = atomic_load_explicit(&ring->tail, memory_order_relaxed);
    while (done < n) {
        uint64_t fit = intent_room(w, ring, (uint64_t)(n - done));
        if (!fit) break;
        write_intent(w, ring, (struct adapm_intent_record){.table = table, .n = (uint32_t)fit, .start = start, .end = end}, keys + done);
        done += (int64_t)fit;
    }
    w->intent_full = done < n;
    if (done) adapm_kick_asleep(w);
    adapm_count(&w->shared->counters.intent_keys, (uint64_t)done);
    adapm_count(&w->shared->counters.waits, n > 0 && !done);
    return done;
}

/* ---- requests */

static uint64_t padded(uint64_t bytes) { return (bytes + ADAPM_LINE - 1) & ~((uint64_t)ADAPM_LINE - 1); }

static uint64_t buffer_bytes(uint64_t n, uint32_t col_len) { return padded(n * sizeof(uint32_t)) + padded(n * col_len * sizeof(float)); }

/* The most keys of one request: a quarter of the heap, so that several are under way at once. */
static int64_t request_keys(const adapm_worker *w, uint32_t col_len) {
    uint64_t per_key = sizeof(uint32_t) + (uint64_t)col_len * sizeof(float);
    uint64_t fit = (w->shared->heap_bytes / 4 - 2 * ADAPM_LINE) / per_key;
    return (int64_t)(fit < REQUEST_KEYS ? fit : REQUEST_KEYS);
}

static float *buffer_rows(const adapm_worker *w, const struct open_op *o) {
    return adapm_at(w->segment, o->off + padded(o->n * sizeof(uint32_t)));
}

static void fill_buffer(const adapm_worker *w, const struct open_op *o, const int64_t *keys, const uint32_t *idx, const float *vals) {
    uint32_t *dst = adapm_at(w->segment, o->off);
    float *rows = buffer_rows(w, o);
    for (uint64_t i = 0; i < o->n; i++) {
        uint64_t from = idx ? idx[i] : i;
        dst[i] = (uint32_t)keys[from];
        if (vals) adapm_row_copy(rows + i * o->col_len, vals + from * o->col_len, o->col_len);
    }
}

static uint32_t open_request(adapm_worker *w, struct open_op o) {
    uint32_t op = w->free_ops[--w->nfree];
    w->ops[op] = o;
    return op;
}

/* The request ring has as many records as there are ops: an op that is free has its record free. */
static void send_request(adapm_worker *w, struct adapm_request request) {
    struct adapm_ring *ring = &w->shared->mailbox.request;
    struct adapm_request *records = adapm_seg_ring(w->segment, ring);
    records[atomic_load_explicit(&ring->head, memory_order_relaxed) & ring->mask] = request;
    adapm_ring_publish(ring, 1);
    kick(w);
}

int64_t adapm_post(adapm_worker *w, uint32_t kind, uint32_t table, uint32_t col_off, uint32_t col_len, const int64_t *keys, const uint32_t *idx, int64_t n,
                   const float *vals, uint32_t *op) {
    bool bare = kind == ADAPM_SYNC || kind == ADAPM_BARRIER;
    int64_t fit = bare ? 0 : n < request_keys(w, col_len) ? n : request_keys(w, col_len);
    if (fit <= 0 && !bare) return -EINVAL;
    struct open_op o = {.kind = kind, .n = (uint32_t)fit, .col_len = col_len, .bytes = bare ? 0 : buffer_bytes((uint64_t)fit, col_len)};
    if (w->nfree && o.bytes) o.off = heap_take(&w->heap, o.bytes);
    if (!w->nfree || o.off == HEAP_FULL) {
        adapm_count(&w->shared->counters.waits, 1);
        return 0;
    }
    if (o.bytes) fill_buffer(w, &o, keys, idx, vals);
    *op = open_request(w, o);
    send_request(w, (struct adapm_request){*op, kind, table, o.n, col_off, col_len, o.off});
    return bare ? 1 : fit;
}

int adapm_completed(adapm_worker *w, uint32_t *op, int32_t *status, uint64_t *detail) {
    struct adapm_ring *ring = &w->shared->mailbox.done;
    if (!adapm_ring_used(ring)) return 0;
    const struct adapm_completion *records = adapm_seg_ring(w->segment, ring);
    const struct adapm_completion *c = &records[atomic_load_explicit(&ring->tail, memory_order_relaxed) & ring->mask];
    *op = c->op;
    *status = c->status;
    *detail = c->detail;
    adapm_ring_release(ring, 1);
    return 1;
}

void adapm_collect(adapm_worker *w, uint32_t op, float *out, const uint32_t *idx) {
    struct open_op *o = &w->ops[op];
    if (!o->kind) return;
    if (out && o->kind == ADAPM_PULL) {
        const float *rows = buffer_rows(w, o);
        for (uint64_t i = 0; i < o->n; i++) adapm_row_copy(out + (idx ? idx[i] : i) * o->col_len, rows + i * o->col_len, o->col_len);
    }
    if (o->bytes) heap_give(&w->heap, o->off, o->bytes);
    o->kind = 0;
    w->free_ops[w->nfree++] = op;
}

/* ---- waiting */

/* 1: a completion is there; 0: none; < 0: none, and the node gave up. */
static int news(const adapm_worker *w) { return adapm_ring_used(&w->shared->mailbox.done) ? 1 : adapm_seg_failed(w->segment); }

/* Whether the node has taken anything from the intent ring since it was found full; says so once. */
static bool intent_room_came(adapm_worker *w) {
    uint64_t tail = atomic_load_explicit(&w->shared->mailbox.intent.tail, memory_order_relaxed);
    bool came = w->intent_full && tail != w->intent_full_tail;
    if (came) w->intent_full = false;
    return came;
}

static int news_or_room(adapm_worker *w) { return intent_room_came(w) ? 1 : news(w); }

static void disarm(adapm_worker *w) { atomic_store_explicit(&w->shared->waiting, 0, memory_order_relaxed); }

static void arm(adapm_worker *w) {
    atomic_store_explicit(&w->shared->waiting, 1, memory_order_relaxed);
    adapm_wake_fence(); /* pairs with the one between the node's post and its look at waiting */
}

int adapm_arm(adapm_worker *w) {
    arm(w);
    int rc = news(w);
    if (rc) disarm(w);
    return rc;
}

void adapm_drain_fd(adapm_worker *w) {
    uint64_t writes;
    disarm(w);
    while (read(w->worker_fd, &writes, sizeof writes) < 0 && errno == EINTR) {}
}

/* 1: somebody wrote the eventfd, or a signal came and the caller should look around; 0: neither in time. */
static int sleep_on_fd(adapm_worker *w, int timeout_ms) {
    struct pollfd fd = {.fd = w->worker_fd, .events = POLLIN};
    int woken = poll(&fd, 1, timeout_ms) != 0;
    adapm_drain_fd(w);
    return woken;
}

int adapm_wait(adapm_worker *w, int timeout_ms) {
    int rc = news_or_room(w);
    for (uint32_t i = 0; !rc && i < w->spins; i++) {
        adapm_pause();
        rc = news_or_room(w);
    }
    if (rc) return rc;
    arm(w);
    rc = news_or_room(w);
    int woken = sleep_on_fd(w, rc ? 0 : timeout_ms);
    if (!rc) rc = news_or_room(w);
    return rc ? rc : woken;
}
