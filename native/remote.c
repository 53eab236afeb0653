/* Access without intent: requests of our workers that the segment could not serve, and the same from other nodes. Only owners serve. */
#include <errno.h>
#include <string.h>

#include "lane.h"
#include "rings.h"
#include "simd.h"
#include "trace.h"

static struct operation *operation(struct adapm_lane *l, uint32_t worker, uint32_t op) { return &l->workers[worker].ops[op]; }

void remote_complete(struct adapm_lane *l, uint32_t worker, uint32_t op, int32_t status, uint64_t detail) {
    struct lane_worker *w = &l->workers[worker];
    struct adapm_ring *ring = &w->shared->mailbox.done;
    if (!w->ops[op].kind) return;
    w->ops[op].kind = 0;
    if (w->gone) return;
    struct adapm_completion *done = adapm_seg_ring(l->segment, ring);
    uint64_t head = atomic_load_explicit(&ring->head, memory_order_relaxed);
    done[head & ring->mask] = (struct adapm_completion){.op = op, .status = status, .detail = detail};
    adapm_ring_publish(ring, 1);
    w->posted = true;
}

void remote_settle(struct adapm_lane *l, uint32_t worker, uint32_t op) {
    struct operation *o = operation(l, worker, op);
    if (o->kind && !--o->remaining) remote_complete(l, worker, op, 0, 0);
}

void remote_fail_all(struct adapm_lane *l, uint32_t lost) {
    for (uint32_t w = 0; w < l->nworkers; w++)
        for (uint32_t op = 0; op < ADAPM_OPS; op++) remote_complete(l, w, op, -ECONNRESET, lost);
}

/* ---- one key of a request: 0 when it was settled or kept here, ASKED when another node is to answer it, or -EBUSY */

#define ASKED 1
#define NOT_ASKED 0xffffffffu /* in the place of an operation's key: no other node has an answer to give */

/* Another node's answer to the key at pos has been taken. There is only one: another would end the operation early. */
static void answered(struct adapm_lane *l, uint32_t worker, uint32_t op, uint32_t pos) {
    operation(l, worker, op)->keys[pos] = NOT_ASKED;
    remote_settle(l, worker, op);
}

static void park(struct adapm_lane *l, uint32_t table, struct row_meta *m, uint32_t worker, uint32_t op, uint32_t pos) {
    uint32_t i = l->parked_free;
    if (i) {
        l->parked_free = l->parked[i].next;
    } else {
        if (l->parked_next == l->parked_cap) {
            l->parked_cap *= 2;
            l->parked = realloc(l->parked, l->parked_cap * sizeof *l->parked);
            if (!l->parked) abort();
        }
        i = l->parked_next++;
    }
    uint64_t ref = row_ref(table, m->row);
    l->parked[i] = (struct parked){.worker = worker, .op = op, .pos = pos, .next = map_get(&l->parked_of, ref)};
    map_put(&l->parked_of, ref, i);
    m->flags |= META_PARKED;
    l->urgent |= !(m->flags & META_WANT_SENT);
    l->stats->parked++;
}

/* An item for the node that knows more about the row than we do. */
static uint8_t *send_on(struct adapm_lane *l, const struct message *head, uint32_t row, uint32_t pos, uint32_t value_bytes) {
    uint32_t to = row_destination(l, head->table, row);
    return store32(store32(lane_item(l, to, head, 8 + value_bytes), row), pos);
}

/* What an operation of our worker's asks of other nodes. */
static uint8_t access_type(const struct operation *o) { return o->kind == ADAPM_PULL ? MSG_PULL : o->kind == ADAPM_PUSH ? MSG_PUSH : MSG_SET; }

static struct message access_head(struct adapm_lane *l, uint32_t worker, uint32_t op) {
    const struct operation *o = operation(l, worker, op);
    return (struct message){.type = access_type(o), .origin = (uint16_t)l->node, .table = o->table, .worker = worker, .op = op, .col_off = o->col_off, .col_len = o->col_len};
}

static bool dirty_pending(struct lane_table *t, uint64_t row) {
    uint64_t word = atomic_load_explicit(row_entry(t, row), memory_order_acquire);
    return word & (ADAPM_DIRTY | ADAPM_LOCK) && word & ADAPM_WRITE; /* locked: a push is just being accumulated */
}

static int pull_one(struct adapm_lane *l, const struct message *ask, uint32_t pos) {
    uint32_t worker = ask->worker, op = ask->op;
    const struct operation *o = operation(l, worker, op);
    struct lane_table *t = &l->tables[o->table];
    uint32_t row = o->keys[pos];
    struct row_meta *m = row_lookup(t, row);
    if (m && m->state == ROW_REPLICA && stamp_too_old(t, m, o->oldest)) {
        trace_access(l, worker, o->kind, o->table, row, m);
        holder_renew(l, o->table, m, worker);
        park(l, o->table, m, worker, op, pos);
        return 0;
    }
    int err = row_read(t, row, o->col_off, o->col_len, o->rows + (uint64_t)pos * o->col_len);
    if (err == -EBUSY) return err;
    if (!err) {
        remote_settle(l, worker, op);
        return 0;
    }
    trace_access(l, worker, o->kind, o->table, row, m);
    if (!m && l->technique.copies) m = holder_copy(l, o->table, row, worker);
    if (m && (m->flags & META_WANT_SENT || l->technique.copies || dirty_pending(t, row))) {
        park(l, o->table, m, worker, op, pos); /* the row is on its way, and a pull's answer would lack what has accumulated here */
        return 0;
    }
    send_on(l, ask, row, pos, 0);
    l->stats->pull_remote++;
    return ASKED;
}

static int send_value(struct adapm_lane *l, const struct message *ask, uint32_t pos, uint32_t row) {
    const struct operation *o = operation(l, ask->worker, ask->op);
    uint32_t bytes = 4 * o->col_len;
    uint64_t ref = row_ref(o->table, row);
    trace_access(l, ask->worker, o->kind, o->table, row, NULL);
    memcpy(send_on(l, ask, row, pos, bytes), o->rows + (uint64_t)pos * o->col_len, bytes);
    map_put(&l->in_flight, ref, map_get(&l->in_flight, ref) + 1);
    l->stats->push_remote++;
    o->keys[pos] = row; /* a set that was kept here so far */
    return ASKED;
}

static int push_one(struct adapm_lane *l, const struct message *ask, uint32_t pos) {
    const struct operation *o = operation(l, ask->worker, ask->op);
    struct lane_table *t = &l->tables[o->table];
    uint32_t row = o->keys[pos];
    struct row_meta *m = row_lookup(t, row);
    if (!m) return send_value(l, ask, pos, row);
    adapm_entry *e = row_entry(t, row);
    uint64_t word;
    if (lane_lock(l, e, &word)) return -EBUSY;
    adapm_row_add(slot_row(t, adapm_slot(word)) + o->col_off, o->rows + (uint64_t)pos * o->col_len, o->col_len);
    adapm_unlock(e, m->state == ROW_OWNED ? word : word | ADAPM_DIRTY);
    if (m->state == ROW_OWNED) owner_changed(l, m, l->node, l->now);
    else if (m->state == ROW_REPLICA) holder_queue_delta(l, o->table, m);
    remote_settle(l, ask->worker, ask->op);
    return 0;
}

static int set_owned(struct adapm_lane *l, uint32_t table, struct row_meta *m, uint32_t col_off, uint32_t col_len, const float *value) {
    struct lane_table *t = &l->tables[table];
    adapm_entry *e = row_entry(t, m->row);
    uint64_t word;
    if (lane_lock(l, e, &word)) return -EBUSY;
    adapm_row_copy(slot_row(t, adapm_slot(word)) + col_off, value, col_len);
    adapm_unlock(e, word);
    owner_changed(l, m, l->node, l->now);
    return 0;
}

static int set_one(struct adapm_lane *l, const struct set_item *s) {
    const struct operation *o = operation(l, s->worker, s->op);
    struct row_meta *m = row_lookup(&l->tables[s->table], s->row);
    if (!m) {
        struct message ask = access_head(l, s->worker, s->op);
        return send_value(l, &ask, s->pos, s->row);
    }
    if (m->state == ROW_PENDING) {
        trace_access(l, s->worker, ADAPM_SET, s->table, s->row, m);
        park(l, s->table, m, s->worker, s->op, s->pos);
    } else if (m->state == ROW_REPLICA) {
        *FIFO_PUSH(&l->peers[m->source].sets, struct set_item) = *s;
        l->urgent = true;
        peer_activate(l, &l->peers[m->source]);
    } else {
        if (set_owned(l, s->table, m, o->col_off, o->col_len, o->rows + (uint64_t)s->pos * o->col_len)) return -EBUSY;
        remote_settle(l, s->worker, s->op);
    }
    return 0;
}

/* A set whose row is no longer the replica it was; one that meets a lock waits for the next tick. */
void remote_set(struct adapm_lane *l, const struct set_item *s) {
    if (set_one(l, s) < 0) *FIFO_PUSH(&l->locked_sets, struct set_item) = *s;
}

/* What is parked on the row, the first to come first: of several sets of one row the last one stays. */
static uint32_t take_parked(struct adapm_lane *l, uint64_t ref) {
    uint32_t last = map_get(&l->parked_of, ref), first = 0;
    map_put(&l->parked_of, ref, 0);
    for (uint32_t next; last; last = next) {
        next = l->parked[last].next;
        l->parked[last].next = first;
        first = last;
    }
    return first;
}

void remote_unpark(struct adapm_lane *l, uint32_t table, struct row_meta *m, float *val) {
    if (!(m->flags & META_PARKED)) return;
    m->flags &= (uint8_t)~META_PARKED;
    for (uint32_t i = take_parked(l, row_ref(table, m->row)), next; i; i = next) {
        struct parked p = l->parked[i];
        next = p.next;
        l->parked[i].next = l->parked_free;
        l->parked_free = i;
        l->stats->parked--;
        struct operation *o = operation(l, p.worker, p.op);
        float *rows = o->rows + (uint64_t)p.pos * o->col_len;
        if (o->kind == ADAPM_SET && m->state == ROW_REPLICA) {
            *FIFO_PUSH(&l->peers[m->source].sets, struct set_item) = (struct set_item){table, m->row, p.worker, p.op, p.pos};
            peer_activate(l, &l->peers[m->source]);
            continue;
        }
        if (o->kind == ADAPM_PULL && m->state == ROW_REPLICA && stamp_too_old(&l->tables[table], m, o->oldest)) {
            park(l, table, m, p.worker, p.op, p.pos); /* it was asked for before this pull, which needs a younger one */
            continue;
        }
        if (o->kind == ADAPM_SET) adapm_row_copy(val + o->col_off, rows, o->col_len);
        else if (o->kind == ADAPM_PULL) adapm_row_copy(rows, val + o->col_off, o->col_len);
        remote_settle(l, p.worker, p.op);
    }
}

/* Keys are asked for, and mostly answered, in order: the entry of one that is soon to come. */
static void prefetch_key(struct adapm_lane *l, const struct operation *o, uint32_t pos) {
    uint32_t row = pos + PREFETCH_ENTRY < o->n ? o->keys[pos + PREFETCH_ENTRY] : NOT_ASKED;
    if (row < l->tables[o->table].shape->rows) prefetch_entry(&l->tables[o->table], row);
}

/* ---- requests of our workers */

static int dispatch(struct adapm_lane *l, const struct message *ask, uint32_t pos) {
    const struct operation *o = operation(l, ask->worker, ask->op);
    switch (o->kind) {
    case ADAPM_PULL: return pull_one(l, ask, pos);
    case ADAPM_PUSH: return push_one(l, ask, pos);
    case ADAPM_SET: return set_one(l, &(struct set_item){o->table, o->keys[pos], ask->worker, ask->op, pos});
    default: return ASKED; /* failed meanwhile, as a node was lost: its buffer is no longer ours */
    }
}

/* Takes the request over, or refuses one that is not well-formed (a bug, or a worker gone astray). */
static bool open_operation(struct adapm_lane *l, uint32_t worker, const struct adapm_request *r) {
    struct lane_worker *w = &l->workers[worker];
    struct operation *o = &w->ops[r->op];
    *o = (struct operation){.kind = r->kind, .table = r->table, .n = r->n, .col_off = r->col_off, .col_len = r->col_len, .remaining = r->n + 1, .serial = ++l->serial,
                             .oldest = atomic_load_explicit(&w->shared->oldest, memory_order_relaxed)};
    if (r->kind == ADAPM_SYNC || r->kind == ADAPM_BARRIER) return true;
    uint64_t keys = (4ull * r->n + ADAPM_LINE - 1) / ADAPM_LINE * ADAPM_LINE, bytes = keys + 4ull * r->n * r->col_len;
    bool fits = r->table < l->ntables && r->col_off + (uint64_t)r->col_len <= l->tables[r->table].shape->row_len && r->kind <= ADAPM_SET &&
                r->off >= w->shared->off_heap && r->off + bytes <= w->shared->off_heap + w->shared->heap_bytes;
    o->keys = adapm_at(l->segment, r->off);
    o->rows = adapm_at(l->segment, r->off + keys);
    for (uint32_t i = 0; fits && i < r->n; i++) fits = o->keys[i] < l->tables[r->table].shape->rows;
    return fits;
}

bool remote_serve(struct adapm_lane *l, uint32_t worker) {
    struct lane_worker *w = &l->workers[worker];
    struct adapm_ring *ring = &w->shared->mailbox.request;
    const struct adapm_request *requests = adapm_seg_ring(l->segment, ring);
    while (adapm_ring_used(ring)) {
        struct adapm_request r = requests[atomic_load_explicit(&ring->tail, memory_order_relaxed) & ring->mask];
        if (r.op >= ADAPM_OPS) {
            adapm_ring_release(ring, 1);
            continue;
        }
        if (!w->cursor && !open_operation(l, worker, &r)) {
            adapm_ring_release(ring, 1);
            remote_complete(l, worker, r.op, -EINVAL, 0);
            continue;
        }
        struct message ask = access_head(l, worker, r.op);
        for (; w->cursor < r.n; w->cursor++) {
            prefetch_key(l, &w->ops[r.op], w->cursor);
            int rc = dispatch(l, &ask, w->cursor);
            if (rc < 0) {
                w->ops[r.op].asked = w->cursor;
                return true;
            }
            if (rc != ASKED) w->ops[r.op].keys[w->cursor] = NOT_ASKED;
        }
        w->cursor = 0;
        w->ops[r.op].asked = r.n;
        adapm_ring_release(ring, 1);
        if (r.kind == ADAPM_SYNC) sync_start(l, worker, r.op);
        else if (r.kind == ADAPM_BARRIER) lane_post_event(l, ADAPM_EVENT_BARRIER, worker, r.op);
        else remote_settle(l, worker, r.op);
    }
    return false;
}

/* ---- from other nodes */

static int on_ack(struct adapm_lane *l, uint32_t table, uint32_t row) {
    uint64_t ref = row_ref(table, row);
    uint32_t open = map_get(&l->in_flight, ref);
    if (!open) return lane_refuse(l, "no push or set of this row is under way");
    map_put(&l->in_flight, ref, open - 1);
    struct row_meta *m = open == 1 ? row_lookup(&l->tables[table], row) : NULL;
    if (m && m->state == ROW_PENDING && !(m->flags & META_WANT_SENT)) holder_queue_want(l, table, row);
    return 0;
}

/* The rows of a pull. A row that has come here meanwhile is read here: the answer may be newer than our replica, and whoever has seen it would then
 * see older values there. */
static int take_answer(struct adapm_lane *l, const struct operation *o, uint32_t row, uint32_t pos, const uint8_t *value) {
    float *dst = o->rows + (uint64_t)pos * o->col_len;
    int err = row_read(&l->tables[o->table], row, o->col_off, o->col_len, dst);
    if (err == -EBUSY) return err;
    if (err) memcpy(dst, value, 4ull * o->col_len);
    return 0;
}

int remote_on_answer(struct adapm_lane *l, struct peer *p, const struct message *m, const uint8_t *item) {
    if (m->worker >= l->nworkers || m->op >= ADAPM_OPS) return lane_refuse(l, "there is no such worker or operation");
    struct operation *o = operation(l, m->worker, m->op);
    if (!o->kind) return 0; /* it failed before */
    uint32_t pos = load32(item);
    bool pull = m->type == MSG_ANSWER;
    uint64_t counter = load64(item + 4);
    int err;
    if (pos >= o->asked || o->table != m->table || pull != (o->kind == ADAPM_PULL) || (pull && o->col_len != m->col_len))
        return lane_refuse(l, "the operation has not asked for that");
    uint32_t row = o->keys[pos];
    if (row >= l->tables[m->table].shape->rows) return lane_refuse(l, "this was not asked of another node, or is answered"); /* NOT_ASKED */
    if (counter > COUNTER_MOST) return lane_refuse(l, "no row moves so often");
    prefetch_key(l, o, pos);
    if (!pull && (err = on_ack(l, m->table, row))) return err;
    row_learn(l, m->table, row, p->id, counter);
    if (pull && (err = take_answer(l, o, row, pos, item + 12))) return err;
    answered(l, m->worker, m->op, pos);
    return 0;
}

static void acknowledge(struct adapm_lane *l, const struct message *m, uint32_t row, uint32_t pos) {
    if (m->origin == l->node) { /* our own, come home: the row is ours meanwhile */
        on_ack(l, m->table, row);
        if (operation(l, m->worker, m->op)->kind) answered(l, m->worker, m->op, pos);
        return;
    }
    struct message head = *m;
    head.type = MSG_ACK;
    store64(store32(lane_item(l, m->origin, &head, 12), pos), row_hint_counter(l, m->table, row));
}

/* answer: the head of what answers m. */
static int serve_pull(struct adapm_lane *l, const struct message *answer, uint32_t row, uint32_t pos) {
    struct lane_table *t = &l->tables[answer->table];
    int err = row_read(t, row, answer->col_off, answer->col_len, l->scratch);
    if (err) return -EBUSY;
    if (answer->origin == l->node) {
        struct operation *o = operation(l, answer->worker, answer->op);
        if (!o->kind) return 0;
        memcpy(o->rows + (uint64_t)pos * o->col_len, l->scratch, 4ull * o->col_len);
        answered(l, answer->worker, answer->op, pos);
        return 0;
    }
    uint8_t *item = lane_item(l, answer->origin, answer, 12 + 4 * answer->col_len);
    memcpy(store64(store32(item, pos), row_hint_counter(l, answer->table, row)), l->scratch, 4ull * answer->col_len);
    l->stats->pull_served++;
    trace(l, ADAPM_TRACE_SERVED, answer->table, row, answer->origin);
    return 0;
}

static int serve_value(struct adapm_lane *l, const struct message *m, struct row_meta *meta, uint32_t pos, const uint8_t *value) {
    struct lane_table *t = &l->tables[m->table];
    if (m->type == MSG_SET) {
        if (set_owned(l, m->table, meta, m->col_off, m->col_len, (const float *)value)) return -EBUSY;
    } else {
        adapm_entry *e = row_entry(t, meta->row);
        uint64_t word;
        if (lane_lock(l, e, &word)) return -EBUSY;
        adapm_row_add(slot_row(t, adapm_slot(word)) + m->col_off, (const float *)value, m->col_len);
        adapm_unlock(e, word);
        owner_changed(l, meta, l->node, l->now);
    }
    l->stats->push_served++;
    trace(l, ADAPM_TRACE_SERVED, m->table, meta->row, m->origin);
    acknowledge(l, m, meta->row, pos);
    return 0;
}

/* Whether what came back to us is what we asked, and still an open question. */
static bool is_ours(struct adapm_lane *l, const struct message *m, uint32_t row, uint32_t pos) {
    if (m->worker >= l->nworkers || m->op >= ADAPM_OPS) return false;
    const struct operation *o = operation(l, m->worker, m->op);
    if (!o->kind) return true; /* it failed before */
    return access_type(o) == m->type && o->table == m->table && o->col_off == m->col_off && o->col_len == m->col_len && pos < o->asked && o->keys[pos] == row;
}

static int on_access(struct adapm_lane *l, const struct message *m, const struct message *answer, const uint8_t *item) {
    struct lane_table *t = &l->tables[m->table];
    uint32_t row = load32(item), pos = load32(item + 4);
    if (m->origin == l->node && !is_ours(l, m, row, pos)) return lane_refuse(l, "this node has not asked for that");
    struct row_meta *meta = row_lookup(t, row);
    if (meta && meta->state == ROW_OWNED)
        return m->type == MSG_PULL ? serve_pull(l, answer, row, pos) : serve_value(l, m, meta, pos, item + 8);
    if (row_destination(l, m->table, row) == l->node) return lane_refuse(l, "nobody knows of the row");
    uint32_t bytes = m->type == MSG_PULL ? 0 : 4 * m->col_len;
    memcpy(send_on(l, m, row, pos, bytes), item + 8, bytes);
    l->stats->forwards++;
    return 0;
}

int remote_on_access(struct adapm_lane *l, const struct message *m, const uint8_t *item) { return on_access(l, m, NULL, item); }

/* Pulls copy what they find, so fetching it from memory is most of their work: bursts leave memory more to choose from than single rows, and go no further than
 * L2, which has room for more lines that are on their way. */
#define BURST 32

static void fetch_entries(struct lane_table *t, const uint8_t *items, uint64_t from, uint64_t to) {
    for (uint64_t i = from; i < to; i++) {
        uint32_t row = load32(items + i * PULL_BYTES);
        if (row < t->shape->rows) __builtin_prefetch(row_entry(t, row), 0, 2);
    }
}

static void fetch_rows(struct lane_table *t, const struct message *m, const uint8_t *items, uint64_t from, uint64_t to) {
    for (uint64_t i = from; i < to; i++) {
        uint32_t row = load32(items + i * PULL_BYTES);
        uint64_t word = row < t->shape->rows ? atomic_load_explicit(row_entry(t, row), memory_order_relaxed) : 0;
        if (!(word & ADAPM_WRITE)) continue;
        const float *first = slot_row(t, adapm_slot(word)) + m->col_off;
        __builtin_prefetch(&t->meta[adapm_slot(word)], 0, 2);
        for (uint32_t c = 0; c < m->col_len && c < 256; c += ADAPM_LINE / sizeof(float)) __builtin_prefetch(first + c, 0, 2);
    }
}

static uint64_t least(uint64_t a, uint64_t b) { return a < b ? a : b; }

/* Before item i of those from begin on: the entries of the burst after the next, the rows of the next one. */
static void fetch_burst(struct lane_table *t, const struct message *m, const uint8_t *items, uint64_t begin, uint64_t i) {
    uint64_t next = least(i + BURST, m->n), after = least(i + 2 * BURST, m->n);
    if (i == begin) {
        fetch_entries(t, items, i, after);
        fetch_rows(t, m, items, i, next);
    }
    fetch_entries(t, items, after, least(i + 3 * BURST, m->n));
    fetch_rows(t, m, items, next, after);
}

int remote_on_pulls(struct adapm_lane *l, const struct message *m, const uint8_t *items, uint64_t *at, uint64_t end) {
    struct lane_table *t = &l->tables[m->table];
    struct message answer = *m;
    answer.type = MSG_ANSWER;
    for (uint64_t begin = *at; *at < end; ++*at) {
        if ((*at - begin) % BURST == 0) fetch_burst(t, m, items, begin, *at);
        const uint8_t *item = items + *at * PULL_BYTES;
        if (load32(item) >= t->shape->rows) return lane_refuse(l, "the table has fewer rows");
        int err = on_access(l, m, &answer, item);
        if (err) return err;
    }
    return 0;
}
