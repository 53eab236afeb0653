/* The lane as a value: its life, its ticks, what it is handed and what it returns. */
#define _GNU_SOURCE
#include "lane.h"

#include <errno.h>
#include <limits.h>
#include <math.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "pace.h"
#include "profile.h"
#include "rings.h"
#include "simd.h"
#include "trace.h"

/* ---- rows */

int lane_lock(struct adapm_lane *l, adapm_entry *e, uint64_t *word) {
    for (int tries = 0; tries < 256; tries++) {
        *word = atomic_load_explicit(e, memory_order_relaxed);
        if (!(*word & ADAPM_LOCK) && adapm_lock(e, *word, ADAPM_LOCKER_LANE + l->id)) return 0;
        if (tries < 240) adapm_pause();
        else sched_yield(); /* its worker may have lost this very core to us */
    }
    return -EBUSY; /* a stopped worker must not stop the node: the row is left for later */
}

int row_read(struct lane_table *t, uint64_t row, uint32_t col_off, uint32_t col_len, float *out) {
    adapm_entry *e = row_entry(t, row);
    for (int tries = 0; tries < 256; tries++) {
        uint64_t word = atomic_load_explicit(e, memory_order_acquire);
        if (!(word & ADAPM_READ)) return -ENOENT;
        if (!(word & ADAPM_LOCK)) {
            adapm_row_copy(out, slot_row(t, adapm_slot(word)) + col_off, col_len);
            adapm_read_fence();
            if (atomic_load_explicit(e, memory_order_relaxed) == word) return 0;
        }
        if (tries < 240) adapm_pause();
        else sched_yield();
    }
    return -EBUSY;
}

void row_vanish(struct lane_table *t, struct row_meta *m, adapm_entry *e, uint64_t word) {
    if (m->state != ROW_OWNED) pool_give(&t->bases, m->base);
    m->state = ROW_ABSENT;
    adapm_unlock(e, (uint64_t)m->hint << ADAPM_SLOT_SHIFT | (word & ADAPM_SEQ));
    pool_give(&t->slots, adapm_slot(word));
}

/* A hint is (owner, counter). 32 bits of it are with the row: owner + 1, and the lower bits of the counter; 0 is (home, 0). */
#define HINT_OWNER_BITS 12
#define HINT_COUNTER_BITS 20
_Static_assert(HINT_COUNTER_BITS + 32 == COUNTER_BITS && HINT_OWNER_BITS + HINT_COUNTER_BITS == 32 && ADAPM_MAX_NODES < 1 << HINT_OWNER_BITS, "hints fit in their place");

static uint32_t hint_of(struct lane_table *t, uint64_t row) {
    uint64_t word = atomic_load_explicit(row_entry(t, row), memory_order_relaxed);
    return word & ADAPM_WRITE ? t->meta[adapm_slot(word)].hint : adapm_slot(word);
}

uint32_t row_hint_owner(struct adapm_lane *l, uint32_t table, uint64_t row) {
    uint32_t hint = hint_of(&l->tables[table], row);
    return hint ? (hint & ((1u << HINT_OWNER_BITS) - 1)) - 1 : adapm_home(table, row, l->nnodes);
}

uint64_t row_hint_counter(struct adapm_lane *l, uint32_t table, uint64_t row) {
    return (uint64_t)map_get(&l->far_hints, row_ref(table, row)) << HINT_COUNTER_BITS | hint_of(&l->tables[table], row) >> HINT_OWNER_BITS;
}

void row_set_hint(struct adapm_lane *l, uint32_t table, uint64_t row, uint32_t owner, uint64_t counter) {
    struct lane_table *t = &l->tables[table];
    adapm_entry *e = row_entry(t, row);
    uint64_t word = atomic_load_explicit(e, memory_order_relaxed);
    uint32_t hint = (uint32_t)(counter << HINT_OWNER_BITS) | (owner + 1), far = (uint32_t)(counter >> HINT_COUNTER_BITS);
    if (word & ADAPM_WRITE) t->meta[adapm_slot(word)].hint = hint;
    else atomic_store_explicit(e, (uint64_t)hint << ADAPM_SLOT_SHIFT | (uint32_t)word, memory_order_relaxed); /* workers look at an absent row's flags only */
    if (far || l->far_hints.used) map_put(&l->far_hints, row_ref(table, row), far);
}

void row_learn(struct adapm_lane *l, uint32_t table, uint64_t row, uint32_t owner, uint64_t counter) {
    struct lane_table *t = &l->tables[table];
    struct row_meta *m = row_lookup(t, row);
    if ((m && m->state == ROW_OWNED) || owner == l->node || counter <= row_hint_counter(l, table, row)) return;
    row_set_hint(l, table, row, owner, counter);
}

uint32_t row_destination(struct adapm_lane *l, uint32_t table, uint64_t row) {
    struct row_meta *m = row_lookup(&l->tables[table], row);
    return m && m->state == ROW_REPLICA ? m->source : row_hint_owner(l, table, row);
}

/* ---- frames and events out */

void peer_activate(struct adapm_lane *l, struct peer *p) {
    if (p->in_active) return;
    p->in_active = true;
    *FIFO_PUSH(&l->active, uint32_t) = p->id;
}

/* What is in p's outbox leaves as soon as frames are taken. */
static void peer_ready(struct adapm_lane *l, struct peer *p) {
    if (p->in_ready) return;
    p->in_ready = true;
    *FIFO_PUSH(&l->ready, uint32_t) = p->id;
}

uint8_t *lane_item(struct adapm_lane *l, uint32_t peer, const struct message *head, uint32_t item_bytes) {
    peer_ready(l, &l->peers[peer]);
    return outbox_item(&l->peers[peer].out, (uint8_t)l->id, head, item_bytes);
}

uint8_t *lane_item_later(struct adapm_lane *l, uint32_t peer, const struct message *head, uint32_t item_bytes) {
    peer_activate(l, &l->peers[peer]);
    return outbox_item(&l->peers[peer].out, (uint8_t)l->id, head, item_bytes);
}

int lane_refuse(struct adapm_lane *l, const char *why) {
    l->refusal.why = why;
    return -EPROTO;
}

void lane_message(struct adapm_lane *l, uint32_t peer, uint8_t type, uint8_t flags) {
    struct message head = {.type = type, .flags = flags};
    lane_item(l, peer, &head, 0);
}

/* What the messages of a frame that leaves are for. What only keeps rounds going is the rest of bytes_out. */
static void count_bytes(adapm_lane_stats *stats, const struct adapm_buffer *b) {
    uint32_t bytes;
    for (int64_t at = FRAME_HEAD; at < b->len; at += bytes) {
        bytes = load32(b->data + at + offsetof(struct message, bytes));
        switch (b->data[at + (int64_t)offsetof(struct message, type)]) {
        case MSG_DELTA:
        case MSG_SET_ROW: stats->update_bytes += bytes; break;
        case MSG_STATE: stats->state_bytes += bytes; break;
        case MSG_GRANT:
        case MSG_GRANT_CURRENT: stats->grant_bytes += bytes; break;
        case MSG_PULL:
        case MSG_PUSH:
        case MSG_SET:
        case MSG_ANSWER:
        case MSG_ACK: stats->access_bytes += bytes; break;
        default: break;
        }
    }
    stats->frames_out++;
    stats->bytes_out += (uint64_t)b->len;
}

adapm_buffer *adapm_lane_take(adapm_lane *l, uint32_t *peer) {
    if (l->taken_at) profile_lap(&l->stats->send_ns, &l->taken_at); /* between two calls, the node sends */
    l->taken_at = 0;
    while (fifo_len(&l->ready)) {
        *peer = FIFO_AT(&l->ready, uint32_t, 0);
        struct peer *p = &l->peers[*peer];
        struct adapm_buffer *b = outbox_take(&p->out);
        if (outbox_empty(&p->out)) {
            (void)FIFO_POP(&l->ready, uint32_t);
            p->in_ready = false;
        }
        if (b && !p->lost) {
            count_bytes(l->stats, b);
            l->taken_at = profile_now();
            return b;
        }
        adapm_buffer_free(b);
    }
    return NULL;
}

void lane_post_event(struct adapm_lane *l, uint32_t kind, uint32_t worker, uint32_t op) {
    *FIFO_PUSH(&l->events, struct lane_event) = (struct lane_event){kind, worker, op};
}

int adapm_lane_event(adapm_lane *l, uint32_t *worker, uint32_t *op) {
    if (!fifo_len(&l->events)) return ADAPM_EVENT_NONE;
    struct lane_event e = FIFO_POP(&l->events, struct lane_event);
    *worker = e.worker;
    *op = e.op;
    return (int)e.kind;
}

void lane_wake_workers(struct adapm_lane *l) {
    for (uint32_t i = 0; i < l->nworkers; i++) {
        struct lane_worker *w = &l->workers[i];
        if (!w->posted) continue;
        w->posted = false;
        adapm_wake_fence(); /* pairs with the one after waiting = 1 in adapm_arm and adapm_wait */
        if (!atomic_load_explicit(&w->shared->waiting, memory_order_relaxed)) continue;
        uint64_t one = 1;
        ssize_t ignored = write(w->fd, &one, sizeof one); /* EAGAIN: it is awake already */
        (void)ignored;
    }
}

/* Workers that wait because a ring was full are told that there is room. */
static void wake_for_room(struct lane_worker *w) { w->posted = true; }

void adapm_lane_complete(adapm_lane *l, uint32_t worker, uint32_t op, int32_t status, uint64_t detail) {
    remote_complete(l, worker, op, status, detail);
    lane_wake_workers(l);
}

/* ---- life */

/* Whether it matters which rows will be wanted soon: not where they are kept or given away whatever comes. */
static bool foresees(const struct adapm_lane *l) {
    return l->nnodes > 1 && l->config.sight > 0 && !l->technique.at_once && !l->technique.ignores_intents && l->technique.on_want != ADAPM_RELOCATE;
}

static int open_table(struct adapm_lane *l, uint32_t i) {
    struct lane_table *t = &l->tables[i];
    const struct adapm_table *shape = t->shape = adapm_seg_table(l->segment, i);
    t->entries = adapm_seg_entries(l->segment, i);
    t->arena = adapm_seg_row(l->segment, i, 0);
    t->stamps = shape->off_stamps ? adapm_at(l->segment, shape->off_stamps) : NULL;
    uint64_t bytes = 4ull * shape->stride;
    t->meta = lazy_map(shape->capacity * sizeof *t->meta);
    if (!t->meta) return -ENOMEM;
    t->active = lazy_map(shape->rows * sizeof *t->active);
    if (!t->active) return -ENOMEM;
    if (l->foresees) {
        t->foreseen = lazy_map(shape->rows * sizeof *t->foreseen);
        if (!t->foreseen) return -ENOMEM;
    }
    struct pool_limit limit = {l->config.available, l->config.reserve_bytes};
    int err = pool_open(&t->slots, (uint8_t *)t->arena, bytes, shape->capacity, l->fd, shape->off_arena, limit);
    return err ? err : pool_open(&t->bases, NULL, bytes, shape->capacity, -1, 0, limit);
}

static void close_table(struct lane_table *t) {
    if (!t->shape) return;
    lazy_unmap(t->meta, t->shape->capacity * sizeof *t->meta);
    if (t->active) lazy_unmap(t->active, t->shape->rows * sizeof *t->active);
    if (t->foreseen) lazy_unmap(t->foreseen, t->shape->rows * sizeof *t->foreseen);
    if (t->slots.slot_bytes) pool_close(&t->slots);
    if (t->bases.slot_bytes) pool_close(&t->bases);
}

static int open_worker(struct adapm_lane *l, uint32_t i, int fd) {
    struct lane_worker *w = &l->workers[i];
    w->shared = adapm_seg_worker(l->segment, i);
    w->fd = fd;
    w->ops = calloc(ADAPM_OPS, sizeof *w->ops);
    wheel_open(&w->calendar.later);
    wheel_open(&w->calendar.starts);
    wheel_open(&w->calendar.ends);
    w->calendar.rate = l->config.timer_start;
    w->calendar.armed = INT64_MAX;
    atomic_store(&w->shared->wake_clock, INT64_MAX);
    return w->ops ? 0 : -ENOMEM;
}

static int open_parts(struct adapm_lane *l, const int *worker_fds) {
    uint32_t longest = 0;
    l->holders_cap = l->parked_cap = 64;
    l->holders_next = l->parked_next = 1; /* 0 ends lists */
    l->tables = calloc(l->ntables, sizeof *l->tables);
    l->workers = calloc(l->nworkers ? l->nworkers : 1, sizeof *l->workers);
    l->peers = calloc(l->nnodes, sizeof *l->peers);
    l->holders = calloc(l->holders_cap, sizeof *l->holders);
    l->parked = calloc(l->parked_cap, sizeof *l->parked);
    if (!l->tables || !l->workers || !l->peers || !l->holders || !l->parked) return -ENOMEM;
    for (uint32_t i = 0; i < l->nnodes; i++) l->peers[i].id = i;
    for (uint32_t i = 0; i < l->ntables; i++) {
        int err = open_table(l, i);
        if (err) return err;
        if (l->tables[i].shape->row_len > longest) longest = l->tables[i].shape->row_len;
    }
    for (uint32_t i = 0; i < l->nworkers; i++) {
        int err = open_worker(l, i, worker_fds[i]);
        if (err) return err;
    }
    l->scratch = calloc(longest, sizeof *l->scratch);
    l->frame_limit = FRAME_LIMIT + (int64_t)sizeof(struct message) + 12 + 4 * (int64_t)longest;
    return l->scratch ? 0 : -ENOMEM;
}

adapm_lane *adapm_lane_new(adapm_segment *s, int fd, const adapm_lane_config *config, const int *worker_fds, int *err) {
    const struct adapm_header *h = adapm_seg_header(s);
    struct adapm_lane *l = calloc(1, sizeof *l);
    *err = -ENOMEM;
    if (!l) return NULL;
    l->segment = s;
    l->fd = fd;
    l->id = config->lane;
    l->config = *config;
    l->technique = h->technique;
    l->node = h->node;
    l->nnodes = h->nnodes;
    l->foresees = foresees(l);
    l->nworkers = h->nworkers;
    l->ntables = h->ntables;
    l->shared = adapm_seg_lane(s, config->lane);
    l->stats = &l->shared->stats;
    l->answer = 1;
    *err = open_parts(l, worker_fds);
    if (!*err) return l;
    adapm_lane_free(l);
    return NULL;
}

void adapm_lane_free(adapm_lane *l) {
    if (!l) return;
    for (uint32_t i = 0; l->tables && i < l->ntables; i++) close_table(&l->tables[i]);
    for (uint32_t i = 0; l->workers && i < l->nworkers; i++) {
        wheel_close(&l->workers[i].calendar.later);
        wheel_close(&l->workers[i].calendar.starts);
        wheel_close(&l->workers[i].calendar.ends);
        free(l->workers[i].ops);
    }
    for (uint32_t i = 0; l->peers && i < l->nnodes; i++) {
        struct peer *p = &l->peers[i];
        struct fifo *queues[] = {&p->wants, &p->deltas, &p->drops, &p->sets, &p->sets_sent, &p->grants};
        for (size_t q = 0; q < sizeof queues / sizeof *queues; q++) fifo_free(queues[q]);
        outbox_close(&p->out);
    }
    struct fifo *queues[] = {&l->ready, &l->active, &l->pending, &l->asked, &l->dirty, &l->locked_sets, &l->events};
    for (size_t q = 0; q < sizeof queues / sizeof *queues; q++) fifo_free(queues[q]);
    for (uint32_t i = 0; i < l->nsyncs; i++) {
        free(l->syncs[i].rows);
        free(l->syncs[i].rounds);
    }
    trace_free(l->trace);
    map_free(&l->in_flight);
    map_free(&l->active_more);
    map_free(&l->foreseen_more);
    map_free(&l->far_hints);
    map_free(&l->parked_of);
    free(l->tables);
    free(l->workers);
    free(l->peers);
    free(l->holders);
    free(l->parked);
    free(l->syncs);
    free(l->scratch);
    free(l);
}

int64_t adapm_lane_populate(adapm_lane *l, uint32_t table) {
    struct lane_table *t = &l->tables[table];
    int64_t owned = 0;
    for (uint64_t row = 0; row < t->shape->rows; row++) {
        if (adapm_home(table, row, l->nnodes) != l->node) continue;
        uint32_t slot = pool_take(&t->slots);
        if (slot == POOL_NONE) return -ENOMEM;
        t->meta[slot] = (struct row_meta){.row = (uint32_t)row, .state = ROW_OWNED};
        stamp_row(t, slot, UINT64_MAX);
        adapm_unlock(row_entry(t, row), (uint64_t)slot << ADAPM_SLOT_SHIFT | ADAPM_READ | ADAPM_WRITE);
        owned++;
    }
    l->stats->rows_owned += (uint64_t)owned;
    return owned;
}

int adapm_lane_fill(adapm_lane *l, uint32_t table, uint32_t column, uint32_t col_off, uint32_t col_len, uint32_t kind, double a, double b, const float *array) {
    struct lane_table *t = &l->tables[table];
    uint64_t seed = adapm_seg_header(l->segment)->seed;
    for (uint64_t slot = 0; slot < t->slots.next; slot++) { /* before anyone is attached: no lock, and slots are rows in order */
        float *dst = slot_row(t, (uint32_t)slot) + col_off;
        uint32_t row = t->meta[slot].row;
        if (array) memcpy(dst, array + (uint64_t)row * col_len, 4ull * col_len);
        else if (adapm_fill_row(kind, a, b, seed, table, column, row, dst, col_len)) return -EINVAL;
    }
    return 0;
}

int64_t adapm_lane_keep(adapm_lane *l, uint32_t table, const int64_t *rows, int64_t n) {
    uint64_t before = l->stats->rows_pending;
    for (int64_t i = 0; i < n; i++)
        if (!holder_keep(l, table, (uint64_t)rows[i])) return -ENOMEM;
    l->copying |= l->stats->rows_pending != before;
    return (int64_t)(l->stats->rows_pending - before);
}

/* ---- what workers left for us */

static void drain_intents(struct adapm_lane *l, struct lane_worker *w) {
    struct adapm_ring *ring = &w->shared->mailbox.intent;
    const uint8_t *data = adapm_seg_ring(l->segment, ring);
    for (uint64_t used; (used = adapm_ring_used(ring));) {
        uint64_t at = atomic_load_explicit(&ring->tail, memory_order_relaxed) & ring->mask;
        const struct adapm_intent_record *r = (const void *)(data + at);
        uint64_t bytes = ring->mask + 1 - at; /* a skip fills the rest of the ring */
        if (r->table != ADAPM_SKIP) {
            bytes = sizeof *r + (r->n * 4ull + 7) / 8 * 8;
            struct intent *i = r->table < l->ntables && bytes <= used ? malloc(sizeof *i + 4ull * r->n) : NULL;
            if (!i) abort(); /* the ring is ours and its writer our own kernel: memory is gone, or overwritten */
            *i = (struct intent){.start = r->start, .end = r->end, .table = r->table, .n = r->n};
            memcpy(i->keys, r + 1, 4ull * r->n);
            if (TRACED(l)) trace_intent(l, (uint32_t)(w - l->workers), i);
            timer_lead(&w->calendar, (double)(i->start - atomic_load_explicit(&w->shared->clock, memory_order_relaxed)));
            if (w->gone) free(i);
            else wheel_add(l->foresees ? &w->calendar.later : &w->calendar.starts, i, i->start);
        }
        adapm_ring_release(ring, bytes);
        wake_for_room(w);
    }
}

/* A row that got DIRTY: its holders, or its owner, are to learn of it. */
static void on_dirty(struct adapm_lane *l, uint64_t ref) {
    struct row_meta *m = row_lookup(&l->tables[ref_table(ref)], ref_row(ref));
    if (!m) return;                                                     /* dropped since, with its last delta */
    if (m->state == ROW_REPLICA) holder_queue_delta(l, ref_table(ref), m);
    if (m->state == ROW_OWNED) {
        if (!fifo_len(&l->dirty)) l->dirty_since = l->now;
        *FIFO_PUSH(&l->dirty, uint64_t) = ref;
    }
    /* pending: its deltas are queued when its state comes */
}

static void drain_dirty(struct adapm_lane *l, struct lane_worker *w) {
    struct adapm_ring *ring = &w->shared->mailbox.dirty;
    const uint64_t *refs = adapm_seg_ring(l->segment, ring);
    uint64_t n = adapm_ring_used(ring), tail = atomic_load_explicit(&ring->tail, memory_order_relaxed);
    for (uint64_t i = 0; i < n; i++) {
        uint64_t entry = refs[(tail + i + GLANCE_ENTRY) & ring->mask], meta = refs[(tail + i + GLANCE_META) & ring->mask];
        if (i + GLANCE_ENTRY < n) prefetch_entry(&l->tables[ref_table(entry)], ref_row(entry));
        if (i + GLANCE_META < n) prefetch_meta(&l->tables[ref_table(meta)], ref_row(meta));
        on_dirty(l, refs[(tail + i) & ring->mask]);
    }
    if (n) {
        adapm_ring_release(ring, n);
        wake_for_room(w);
    }
}

void lane_drain(struct adapm_lane *l, uint32_t worker) {
    drain_intents(l, &l->workers[worker]);
    drain_dirty(l, &l->workers[worker]);
}

int adapm_lane_serve(adapm_lane *l) {
    uint64_t since = profile_now();
    l->blocked = false;
    for (uint32_t i = 0; i < l->nworkers; i++) l->blocked |= remote_serve(l, i);
    lane_wake_workers(l);
    profile_lap(&l->stats->serve_ns, &since);
    return l->blocked;
}

/* ---- ticks */

void lane_prefetch_queue(struct adapm_lane *l, const struct fifo *refs, bool rows) {
    uint64_t n = fifo_len(refs);
    uint64_t entry = n > PREFETCH_ENTRY ? FIFO_AT(refs, uint64_t, PREFETCH_ENTRY) : 0, slot = n > PREFETCH_SLOT ? FIFO_AT(refs, uint64_t, PREFETCH_SLOT) : 0;
    if (n > PREFETCH_ENTRY) prefetch_entry(&l->tables[ref_table(entry)], ref_row(entry));
    if (n > PREFETCH_SLOT && rows) prefetch_slot(&l->tables[ref_table(slot)], ref_row(slot));
    if (n > PREFETCH_SLOT && !rows) prefetch_meta(&l->tables[ref_table(slot)], ref_row(slot));
    if (n <= PREFETCH_BASE) return;
    uint64_t base = FIFO_AT(refs, uint64_t, PREFETCH_BASE);
    prefetch_base(l, &l->tables[ref_table(base)], ref_row(base));
}

static void retry_sets(struct adapm_lane *l) {
    for (uint64_t n = fifo_len(&l->locked_sets); n; n--) {
        struct set_item s = FIFO_POP(&l->locked_sets, struct set_item);
        remote_set(l, &s);
    }
}

/* Rounds and nudges for the peers that something may be due to; one with work left and no round open is looked at again. */
static void tick_peers(struct adapm_lane *l) {
    for (uint64_t n = fifo_len(&l->active); n; n--) {
        struct peer *p = &l->peers[FIFO_POP(&l->active, uint32_t)];
        p->in_active = false;
        if (p->lost) continue;
        holder_round(l, p);
        owner_nudge(l, p);
        if (!outbox_empty(&p->out)) peer_ready(l, p); /* what could wait for company */
        if (holder_waits(l, p) || owner_waits(p)) peer_activate(l, p);
    }
}

/* Forgets rows that are no longer pending, before the list outgrows them. */
static void compact_pending(struct adapm_lane *l) {
    if (fifo_len(&l->pending) < 1024 + 2 * l->stats->rows_pending) return;
    for (uint64_t n = fifo_len(&l->pending); n; n--) {
        lane_prefetch_queue(l, &l->pending, false);
        uint64_t ref = FIFO_POP(&l->pending, uint64_t);
        struct row_meta *m = row_lookup(&l->tables[ref_table(ref)], ref_row(ref));
        if (m && m->state == ROW_PENDING) *FIFO_PUSH(&l->pending, uint64_t) = ref;
    }
}

/* The clock at which the worker's calendar has something to do. */
static int64_t due_clock(const struct lane_worker *w) {
    int64_t start = calendar_next(&w->calendar), end = wheel_next(&w->calendar.ends);
    if (start != INT64_MAX) start -= w->calendar.window;
    return start < end ? start : end;
}

static bool calendars_quiet(struct adapm_lane *l) {
    for (uint32_t i = 0; i < l->nworkers; i++)
        if (due_clock(&l->workers[i]) <= worker_clock(&l->workers[i])) return false;
    return true;
}

static bool syncs_wait_for_ticks(const struct adapm_lane *l) {
    for (uint32_t i = 0; i < l->nsyncs; i++)
        if (l->syncs[i].phase != SYNC_ROUNDS) return true;
    return false;
}

int adapm_lane_urgent(adapm_lane *l) { return l->urgent || l->blocked || fifo_len(&l->locked_sets) || syncs_wait_for_ticks(l); }

/* Ticks until the next: as few as someone who waits for it needs, or as many as the workers' clocks allow. */
static int gap(struct adapm_lane *l) {
    double ticks = INFINITY;
    if (l->refresh || fifo_len(&l->asked) || adapm_lane_urgent(l) || !calendars_quiet(l)) return 1;
    for (uint32_t i = 0; i < l->nworkers; i++) ticks = fmin(ticks, timer_gap(&l->workers[i].calendar));
    return (int)fmin(ticks + 0.5, INT_MAX);
}

int adapm_lane_tick(adapm_lane *l, double elapsed) {
    l->now += elapsed;
    l->urgent = false;
    atomic_store_explicit(&l->shared->moment, ++l->moment, memory_order_release); /* before anything is asked for in it */
    l->stats->ticks++;
    uint64_t since = profile_now();
    for (uint32_t i = 0; i < l->nworkers; i++) lane_drain(l, i);
    profile_lap(&l->stats->drain_ns, &since);
    intents_tick(l, elapsed);
    profile_lap(&l->stats->calendar_ns, &since);
    retry_sets(l);
    owner_serve_asked(l);
    pace_tick(l, elapsed);
    if (l->refresh) owner_drain_dirty(l);
    tick_peers(l);
    pace_tock(l);
    compact_pending(l);
    sync_progress(l);
    refresh_progress(l);
    l->slept = false;
    lane_wake_workers(l);
    profile_lap(&l->stats->extract_ns, &since);
    l->stats->cpu_ns = profile_clock(CLOCK_PROCESS_CPUTIME_ID);
    return fifo_len(&l->active) || fifo_len(&l->dirty) || fifo_len(&l->asked) ? gap(l) : 0;
}

/* ---- rest */

static bool rings_empty(struct adapm_lane *l) {
    for (uint32_t i = 0; i < l->nworkers; i++) {
        struct adapm_mailbox *m = &l->workers[i].shared->mailbox;
        if (adapm_ring_used(&m->intent) || adapm_ring_used(&m->dirty) || adapm_ring_used(&m->request)) return false;
    }
    return true;
}

static void arm_clocks(struct adapm_lane *l) {
    for (uint32_t i = 0; i < l->nworkers; i++) {
        struct lane_worker *w = &l->workers[i];
        w->calendar.armed = due_clock(w);
        atomic_store_explicit(&w->shared->wake_clock, w->calendar.armed, memory_order_release);
    }
}

static void disarm(struct adapm_lane *l) {
    atomic_store_explicit(&l->shared->asleep, 0, memory_order_release);
    for (uint32_t i = 0; i < l->nworkers; i++) atomic_store_explicit(&l->workers[i].shared->wake_clock, INT64_MAX, memory_order_release);
}

int adapm_lane_rest(adapm_lane *l) {
    if (fifo_len(&l->active) || fifo_len(&l->dirty) || fifo_len(&l->asked) || fifo_len(&l->locked_sets) || fifo_len(&l->events) || l->blocked) return 0;
    if (syncs_wait_for_ticks(l) || !calendars_quiet(l)) return 0;
    atomic_store_explicit(&l->shared->asleep, 1, memory_order_release);
    arm_clocks(l);
    adapm_wake_fence(); /* pairs with the producers' fence between publishing and looking at asleep */
    if (!rings_empty(l) || !calendars_quiet(l)) {
        disarm(l);
        return 0;
    }
    l->slept = true;
    return 1;
}

void adapm_lane_kicked(adapm_lane *l) {
    disarm(l);
    atomic_exchange_explicit(&l->shared->kicked, 0, memory_order_seq_cst); /* before the rings are looked at: later records kick again */
}

/* ---- ends */

/* A row whose entry the dead worker has locked gets back what it was, if that was saved. */
static void release_held(struct lane_table *t, uint32_t worker, struct adapm_held held, const float *saved) {
    adapm_entry *e = row_entry(t, held.row);
    uint64_t word = atomic_load_explicit(e, memory_order_acquire);
    if (!(word & ADAPM_LOCK) || (word & ADAPM_SEQ) != worker + 1) return;
    if (saved) adapm_row_copy(slot_row(t, adapm_slot(word)), saved, t->shape->row_len);
    adapm_unlock(e, held.old);
}

/* Frees what the dead worker held.  Some of it may not have been locked yet, or be unlocked again. */
static void recover_hold(struct adapm_lane *l, uint32_t worker) {
    const struct adapm_worker_shared *w = l->workers[worker].shared;
    if (w->hold_table >= l->ntables) return;
    struct lane_table *t = &l->tables[w->hold_table];
    const float *undo = adapm_at(l->segment, w->off_undo);
    for (uint32_t i = 0; i < ADAPM_HELD && i < w->hold_rows; i++)
        if (w->held[i].row < t->shape->rows)
            release_held(t, worker, w->held[i], i < w->hold_saved ? undo + (uint64_t)i * t->shape->stride : NULL);
}

void adapm_lane_worker_gone(adapm_lane *l, uint32_t worker) {
    struct lane_worker *w = &l->workers[worker];
    if (w->gone) return;
    recover_hold(l, worker);
    lane_drain(l, worker);
    w->gone = true;
    atomic_store_explicit(&w->shared->state, ADAPM_FINISHED, memory_order_release);
    intents_gone(l, w);
}

void adapm_lane_links(adapm_lane *l, uint64_t shm, uint64_t tcp, uint64_t rdma) {
    l->stats->links_shm = shm;
    l->stats->links_tcp = tcp;
    l->stats->links_rdma = rdma;
}

void adapm_lane_peer_lost(adapm_lane *l, uint32_t peer) {
    if (peer >= l->nnodes) return; /* a transport may meet strangers */
    l->peers[peer].lost = true;
    remote_fail_all(l, peer);
    lane_wake_workers(l);
}

uint32_t adapm_home_of(uint32_t table, uint64_t row, uint32_t nnodes) { return adapm_home(table, row, nnodes); }
