#define _GNU_SOURCE
#include "fuzz_world.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "harness.h"

#define HEAP_BYTES (1u << 14)
#define MOST_KEYS 12 /* of one call of a worker */
#define LOCKER 9    /* a worker slot that nobody has, as layout.h counts them in locked entries */

static int64_t plenty(void) { return INT64_MAX; }

/* ---- life */

static void open_member(struct world *w, uint32_t node, const adapm_lane_config *config) {
    struct member *m = &w->members[node];
    const adapm_spec spec = {.node = node, .nnodes = w->nnodes, .nworkers = w->nworkers, .nlanes = 1, .ntables = w->ntables, .heap_bytes = HEAP_BYTES,
                             .rows = w->rows, .capacity = w->capacity, .row_len = w->row_len};
    int err;
    m->fd = memfd_create("adapm-fuzz", MFD_CLOEXEC);
    MUST(m->fd >= 0, "memfd_create: %d", errno);
    m->segment = adapm_segment_create(m->fd, &spec, &err);
    MUST(m->segment, "segment: %d", err);
    m->node_fd = harness_eventfd();
    for (uint32_t i = 0; i < w->nworkers; i++) m->worker_fds[i] = harness_eventfd();
    m->lane = adapm_lane_new(m->segment, m->fd, config, m->worker_fds, &err);
    MUST(m->lane, "lane: %d", err);
    for (uint32_t i = 0; i < w->nworkers; i++) m->workers[i] = harness_worker(m->segment, i, m->node_fd, m->worker_fds[i]);
    for (uint32_t t = 0; t < w->ntables; t++) MUST(adapm_lane_populate(m->lane, t) >= 0, "populate");
}

void world_open(struct world *w, uint64_t seed) {
    memset(w, 0, sizeof *w);
    w->life = seed;
    w->nnodes = 2 + below(&w->life, MOST_NODES - 1);
    w->nworkers = 1 + below(&w->life, MOST_WORKERS);
    w->ntables = 1 + below(&w->life, MOST_TABLES);
    for (uint32_t t = 0; t < w->ntables; t++) {
        w->rows[t] = 1 + below(&w->life, 24);
        w->row_len[t] = 1 + below(&w->life, 8);
        w->capacity[t] = w->rows[t];
    }
    static const uint32_t bytes[] = {4, 64, 1 << 20}, keys[] = {1, 3, 1 << 16};
    const adapm_lane_config config = {.tick_keys = keys[below(&w->life, 3)], .round_bytes = bytes[below(&w->life, 3)], .available = plenty, .timer_start = 10,
                                      .timer_decay = 0.1, .timer_quantile = 0.9999, .tick_us = 1000};
    for (uint32_t n = 0; n < w->nnodes; n++) open_member(w, n, &config);
}

static void close_member(struct world *w, struct member *m) {
    for (uint32_t i = 0; i < w->nworkers; i++) {
        adapm_worker_detach(m->workers[i]);
        close(m->worker_fds[i]);
    }
    adapm_lane_free(m->lane);
    adapm_segment_close(m->segment);
    close(m->node_fd);
    close(m->fd);
}

void world_close(struct world *w) {
    for (uint32_t n = 0; n < w->nnodes; n++) close_member(w, &w->members[n]);
    for (uint32_t a = 0; a < w->nnodes; a++)
        for (uint32_t b = 0; b < w->nnodes; b++)
            while (w->links[a][b].n) link_drop(&w->links[a][b]);
}

uint64_t world_total_rows(const struct world *w) {
    uint64_t sum = 0;
    for (uint32_t t = 0; t < w->ntables; t++) sum += w->rows[t];
    return sum;
}

/* ---- links */

struct frame *link_first(struct link *l) { return l->n ? &l->frames[l->head] : NULL; }

void link_drop(struct link *l) {
    free(l->frames[l->head].data);
    l->head = (l->head + 1) % LINK_FRAMES;
    l->n--;
    l->done = 0;
}

/* Exactly as large as the frame: a sanitizer sees the first byte that is read behind it. */
static struct frame frame_of(const uint8_t *data, int64_t len) {
    struct frame f = {malloc((size_t)len), len};
    MUST(f.data || !len, "memory");
    if (len) memcpy(f.data, data, (size_t)len);
    return f;
}

void link_put_first(struct link *l, const uint8_t *data, int64_t len) {
    if (l->n == LINK_FRAMES) link_drop(l);
    l->head = (l->head + LINK_FRAMES - 1) % LINK_FRAMES;
    l->frames[l->head] = frame_of(data, len);
    l->n++;
    l->done = 0;
}

static void link_put_last(struct link *l, const uint8_t *data, int64_t len) {
    if (l->n == LINK_FRAMES) return;
    l->frames[(l->head + l->n) % LINK_FRAMES] = frame_of(data, len);
    l->n++;
}

int64_t world_collect(struct world *w, uint32_t node) {
    int64_t bytes = 0;
    uint32_t peer;
    for (adapm_buffer *b; (b = adapm_lane_take(w->members[node].lane, &peer)); adapm_buffer_free(b)) {
        const struct frame f = {(uint8_t *)adapm_buffer_data(b), adapm_buffer_len(b)};
        MUST(peer < w->nnodes && peer != node, "node %u sends to node %u", node, peer);
        MUST(f.len <= adapm_lane_frame_limit(w->members[node].lane), "a frame of %lld bytes", (long long)f.len);
        link_put_last(&w->links[node][peer], f.data, f.len);
        if (w->sent) w->sent(&f);
        bytes += f.len;
    }
    return bytes;
}

static void completions(struct member *m, uint32_t nworkers) {
    uint32_t op;
    int32_t status;
    uint64_t detail;
    for (uint32_t i = 0; i < nworkers; i++)
        while (adapm_completed(m->workers[i], &op, &status, &detail)) adapm_collect(m->workers[i], op, NULL, NULL);
}

int64_t world_deliver(struct world *w, uint32_t from, uint32_t to) {
    struct link *l = &w->links[from][to];
    const struct frame *f = link_first(l);
    uint8_t *askew = below(&w->life, 8) ? NULL : malloc((size_t)f->len + 1); /* as behind a frame of odd length */
    if (askew && f->len) memcpy(askew + 1, f->data, (size_t)f->len);
    int64_t handled = adapm_lane_receive(w->members[to].lane, from, askew ? askew + 1 : f->data, f->len, l->done);
    free(askew);
    MUST(handled == -EPROTO || (handled >= 0 && handled <= f->len - l->done), "%lld bytes of %lld were handled", (long long)handled, (long long)f->len);
    if (handled < 0 || l->done + handled == f->len) link_drop(l);
    else l->done += handled;
    return handled;
}

/* ---- steps */

static void worker_step(struct world *w, struct member *m, adapm_worker *worker) {
    uint32_t table = below(&w->life, w->ntables), n = 1 + below(&w->life, MOST_KEYS), miss[MOST_KEYS], op;
    float rows[MOST_KEYS * 8];
    int64_t keys[MOST_KEYS], clock = adapm_clock(worker), missed;
    uint32_t len = w->row_len[table], off = below(&w->life, len), some = 1 + below(&w->life, len - off);
    for (uint32_t i = 0; i < n; i++) keys[i] = below(&w->life, (uint32_t)w->rows[table]);
    for (uint32_t i = 0; i < MOST_KEYS * 8; i++) rows[i] = 1;
    switch (below(&w->life, m->locked ? 3 : 6)) { /* nobody else waits for a row that a stopped worker holds */
    case 0: adapm_intent(worker, table, keys, n, clock + below(&w->life, 5), clock + 5 + below(&w->life, 8)); break;
    case 1: adapm_advance_clock(worker); break;
    case 2: adapm_post(worker, 1 + below(&w->life, 4), table, off, some, keys, NULL, n, rows, &op); break;
    case 3: adapm_push(worker, table, off, some, keys, n, rows, miss); break;
    case 4: adapm_set(worker, table, off, some, keys, n, rows, miss); break;
    default:
        missed = adapm_pull(worker, table, off, some, keys, n, rows, miss);
        if (missed > 0) adapm_post(worker, ADAPM_PULL, table, off, some, keys, miss, missed, NULL, &op);
    }
}

/* A worker is stopped while it holds a row, or goes on. */
static void lock_step(struct world *w, struct member *m) {
    if (m->locked) {
        atomic_store(m->locked, (m->word & ~ADAPM_SEQ) | ((m->word + 1) & ADAPM_SEQ));
        m->locked = NULL;
        return;
    }
    struct lane_table *t = &m->lane->tables[below(&w->life, w->ntables)];
    adapm_entry *e = row_entry(t, below(&w->life, (uint32_t)t->shape->rows));
    m->word = atomic_load(e);
    if (!(m->word & ADAPM_WRITE)) return;
    atomic_store(e, (m->word & ~ADAPM_SEQ) | ADAPM_LOCK | LOCKER);
    m->locked = e;
}

static void lane_step(struct world *w, struct member *m) {
    uint32_t worker, op;
    if (below(&w->life, 2)) adapm_lane_tick(m->lane, 1.0);
    else adapm_lane_serve(m->lane);
    while (adapm_lane_event(m->lane, &worker, &op)) {}
    if (!below(&w->life, 40)) adapm_lane_fresh(m->lane);
}

void world_step(struct world *w) {
    uint32_t node = below(&w->life, w->nnodes), what = below(&w->life, 20);
    struct member *m = &w->members[node];
    if (what < 8) {
        worker_step(w, m, m->workers[below(&w->life, w->nworkers)]);
    } else if (what < 13) {
        lane_step(w, m);
    } else if (what == 13 && (m->locked || !below(&w->life, 2))) {
        lock_step(w, m);
    } else {
        uint32_t from = below(&w->life, w->nnodes);
        if (link_first(&w->links[from][node])) world_deliver(w, from, node);
    }
    world_collect(w, node);
    completions(m, w->nworkers);
}

/* ---- what must hold */

static uint64_t queued(const struct fifo *f, uint64_t size) { return f->cap * size; }

static uint64_t map_bytes(const struct map *m) { return m->keys ? (m->mask + 1) * 12 : 0; }

/* Memory that grows with what others say. */
static uint64_t footprint(const struct adapm_lane *l) {
    uint64_t sum = l->holders_cap * sizeof *l->holders + l->parked_cap * sizeof *l->parked;
    sum += map_bytes(&l->in_flight) + map_bytes(&l->active_more) + map_bytes(&l->far_hints) + map_bytes(&l->parked_of);
    sum += queued(&l->pending, 8) + queued(&l->dirty, 8) + queued(&l->locked_sets, sizeof(struct set_item)) + queued(&l->active, 4) + queued(&l->ready, 4);
    for (uint32_t i = 0; i < l->nnodes; i++) {
        const struct peer *p = &l->peers[i];
        sum += queued(&p->wants, 8) + queued(&p->deltas, 8) + queued(&p->drops, 8) + queued(&p->grants, 8) + queued(&p->out.frames, sizeof(void *));
        sum += queued(&p->sets, sizeof(struct set_item)) + queued(&p->sets_sent, sizeof(struct set_item));
    }
    return sum;
}

void world_check(const struct world *w, uint32_t node) {
    char why[256];
    const struct member *m = &w->members[node];
    if (!m->locked) MUST(!adapm_lane_validate(m->lane, why, sizeof why), "node %u: %s", node, why);
    uint64_t limit = (64u << 10) + 256 * world_total_rows(w) * w->nnodes;
    MUST(footprint(m->lane) <= limit, "node %u uses %llu bytes of memory, more than %llu", node, (unsigned long long)footprint(m->lane), (unsigned long long)limit);
}

struct digest {
    uint64_t sum;
};

static void add(struct digest *d, const void *data, uint64_t bytes) {
    const uint8_t *p = data;
    for (; bytes >= 8; bytes -= 8, p += 8) d->sum = (d->sum ^ load64(p)) * 0x9e3779b97f4a7c15ULL, d->sum ^= d->sum >> 29;
    for (; bytes; bytes--, p++) d->sum = (d->sum ^ *p) * 0x9e3779b97f4a7c15ULL;
}

static void add_queue(struct digest *d, const struct fifo *f, uint64_t size) {
    uint64_t n = fifo_len(f);
    add(d, &n, sizeof n);
    if (n) add(d, f->items + f->head * size, n * size);
}

static void add_table(struct digest *d, const struct lane_table *t) {
    add(d, t->entries, 8 * t->shape->eighth * sizeof *t->entries);
    add(d, t->meta, t->slots.next * sizeof *t->meta);
    add(d, t->arena, t->slots.next * t->slots.slot_bytes);
    add(d, t->bases.base, t->bases.next * t->bases.slot_bytes);
    const uint64_t pools[] = {t->slots.next, t->slots.nfree, t->bases.next, t->bases.nfree};
    add(d, pools, sizeof pools);
    add(d, t->active, t->shape->rows * sizeof *t->active);
}

static void add_peer(struct digest *d, const struct peer *p) {
    const uint64_t numbers[] = {p->round_open, p->nudged_us, p->fresh, p->rounds_sent, p->rounds_answered, p->replicas, p->nudged, p->stale_head, p->stale_tail,
                                p->stale_age.in, p->stale_age.out, p->deltas_age.in, p->deltas_age.out, p->out.items, (uint64_t)p->out.bytes, p->resume, p->lost};
    add(d, numbers, sizeof numbers);
    const struct fifo *refs[] = {&p->wants, &p->deltas, &p->drops, &p->grants};
    for (size_t i = 0; i < sizeof refs / sizeof *refs; i++) add_queue(d, refs[i], sizeof(uint64_t));
    add_queue(d, &p->sets, sizeof(struct set_item));
    add_queue(d, &p->sets_sent, sizeof(struct set_item));
}

static void add_worker(struct digest *d, const struct adapm_lane *l, const struct lane_worker *w) {
    add(d, w->ops, 32 * sizeof *w->ops); /* the first are taken first */
    add(d, adapm_at(l->segment, w->shared->off_heap), w->shared->heap_bytes / 8);
    uint64_t done = atomic_load(&w->shared->mailbox.done.head);
    add(d, &done, sizeof done);
}

uint64_t world_digest(const struct world *w, uint32_t node) {
    const struct adapm_lane *l = w->members[node].lane;
    struct digest d = {1};
    for (uint32_t t = 0; t < l->ntables; t++) add_table(&d, &l->tables[t]);
    for (uint32_t p = 0; p < l->nnodes; p++) add_peer(&d, &l->peers[p]);
    for (uint32_t i = 0; i < l->nworkers; i++) add_worker(&d, l, &l->workers[i]);
    add(&d, l->holders, l->holders_next * sizeof *l->holders);
    const uint64_t numbers[] = {l->holders_free, l->parked_next, l->parked_free, l->in_flight.used, l->active_more.used, l->far_hints.used, l->parked_of.used, l->nsyncs, l->epoch};
    add(&d, numbers, sizeof numbers);
    const struct fifo *refs[] = {&l->pending, &l->dirty};
    for (size_t i = 0; i < sizeof refs / sizeof *refs; i++) add_queue(&d, refs[i], sizeof(uint64_t));
    add_queue(&d, &l->events, sizeof(struct lane_event));
    return d.sum;
}
