/* The holder's side: rows that our workers want and others own; replicas, their deltas, their end. */
#include <errno.h>
#include <string.h>

#include "lane.h"
#include "pace.h"
#include "simd.h"
#include "trace.h"

/* Puts a pending row into the queue of the peer its want goes to. */
void holder_queue_want(struct adapm_lane *l, uint32_t table, uint64_t row) {
    struct peer *p = &l->peers[row_destination(l, table, row)];
    *FIFO_PUSH(&p->wants, uint64_t) = row_ref(table, row);
    peer_activate(l, p);
}

/* Absent -> pending, its want due; false: there is no room for it. */
static bool pend(struct adapm_lane *l, uint32_t table, uint64_t row) {
    struct lane_table *t = &l->tables[table];
    uint32_t soon = pool_soon(&t->slots);
    if (soon != POOL_NONE) __builtin_prefetch(&t->meta[soon], 1);
    uint32_t slot = pool_take(&t->slots), base = slot == POOL_NONE ? POOL_NONE : pool_take(&t->bases); /* now: later there is no way back */
    if (base == POOL_NONE) {
        if (slot != POOL_NONE) pool_give(&t->slots, slot);
        if (!l->arena_full) lane_post_event(l, ADAPM_EVENT_ARENA_FULL, table, 0);
        l->arena_full = true;
        l->stats->not_wanted_full++;
        return false;
    }
    adapm_write_fence(); /* the slot's last row became absent before; its readers must not see our zeros and the old word */
    memset(slot_row(t, slot), 0, t->slots.slot_bytes);
    adapm_entry *e = row_entry(t, row);
    uint64_t word = atomic_load_explicit(e, memory_order_relaxed);
    t->meta[slot] = (struct row_meta){.row = (uint32_t)row, .state = ROW_PENDING, .base = base, .hint = adapm_slot(word), .epoch = l->epoch};
    adapm_unlock(e, (uint64_t)slot << ADAPM_SLOT_SHIFT | ADAPM_WRITE | ADAPM_TRACK | (word & ADAPM_SEQ)); /* nobody locks an absent row */
    *FIFO_PUSH(&l->pending, uint64_t) = row_ref(table, row);
    l->stats->rows_pending++;
    holder_queue_want(l, table, row);
    return true;
}

/* 0 -> 1 of an absent row makes it pending. A replica's queued drop sees the intent when its turn comes; a pending or owned row has all it needs. A row
 * with active intents is absent where there is no room for it, and asked for again when there are none, or where it was relocated away, and asked for again
 * at once. */
void holder_intent_starts(struct adapm_lane *l, uint32_t table, uint64_t row) {
    bool first = intent_up(l, table, row);
    if (l->nnodes == 1 || !(first || l->technique.on_want == ADAPM_RELOCATE)) return;
    if (!row_lookup(&l->tables[table], row)) pend(l, table, row);
}

/* The copy is wanted until the worker is so many clocks further. */
static void expire(struct adapm_lane *l, uint32_t table, uint64_t row, uint32_t worker) {
    struct lane_worker *w = &l->workers[worker];
    struct intent *i = malloc(sizeof *i + sizeof *i->keys);
    if (!i) abort();
    *i = (struct intent){.end = atomic_load_explicit(&w->shared->clock, memory_order_acquire) + l->technique.ages, .table = table, .n = 1};
    i->keys[0] = (uint32_t)row;
    wheel_add(&w->calendar.ends, i, i->end);
    intent_up(l, table, row);
    l->stats->intents_started++;
}

struct row_meta *holder_copy(struct adapm_lane *l, uint32_t table, uint64_t row, uint32_t worker) {
    if (!pend(l, table, row)) return NULL;
    struct row_meta *m = row_lookup(&l->tables[table], row);
    if (l->technique.ages) expire(l, table, row, worker);
    else m->flags |= META_FOR_GOOD;
    return m;
}

void holder_renew(struct adapm_lane *l, uint32_t table, struct row_meta *m, uint32_t worker) {
    if (m->flags & META_PARKED) return; /* it is to be renewed already */
    expire(l, table, m->row, worker);
    holder_queue_drop(l, table, m);
}

bool holder_keep(struct adapm_lane *l, uint32_t table, uint64_t row) {
    struct lane_table *t = &l->tables[table];
    if (!row_lookup(t, row) && !pend(l, table, row)) return false;
    row_lookup(t, row)->flags |= META_FOR_GOOD;
    return true;
}

/* 1 -> 0 does nothing at once: an owned row may be granted, a replica be dropped, when their round goes. */
void holder_intent_ends(struct adapm_lane *l, uint32_t table, uint64_t row) {
    struct lane_table *t = &l->tables[table];
    if (!intent_down(l, table, row) || l->nnodes == 1 || (t->foreseen && t->foreseen[row])) return;
    struct row_meta *m = row_lookup(t, row);
    if (m) holder_interest_ends(l, table, m);
}

void holder_interest_ends(struct adapm_lane *l, uint32_t table, struct row_meta *m) {
    if (row_wanted(&l->tables[table], m)) return;
    if (m->state == ROW_OWNED) owner_maybe_grant(l, table, m);
    else if (m->state == ROW_REPLICA) holder_queue_drop(l, table, m);
}

void holder_queue_delta(struct adapm_lane *l, uint32_t table, struct row_meta *m) {
    if (m->flags & META_DELTA_QUEUED) return;
    struct peer *p = &l->peers[m->source];
    m->flags |= META_DELTA_QUEUED;
    age_enter(&p->deltas_age, l->now);
    *FIFO_PUSH(&p->deltas, uint64_t) = row_ref(table, m->row);
    peer_activate(l, p);
}

void holder_queue_drop(struct adapm_lane *l, uint32_t table, struct row_meta *m) {
    if (m->flags & META_DROP_QUEUED) return;
    m->flags |= META_DROP_QUEUED;
    *FIFO_PUSH(&l->peers[m->source].drops, uint64_t) = row_ref(table, m->row);
    peer_activate(l, &l->peers[m->source]);
}

/* The row at the front of a queue of p, if it is still a replica of p's. */
static struct row_meta *replica_of(struct adapm_lane *l, struct peer *p, uint64_t ref) {
    struct row_meta *m = row_lookup(&l->tables[ref_table(ref)], ref_row(ref));
    return m && m->state == ROW_REPLICA && m->source == p->id ? m : NULL;
}

/* Under the row's lock: what it gained since base goes into p's round; val becomes the new base. */
static void extract(struct adapm_lane *l, struct peer *p, uint32_t table, struct row_meta *m, const float *val) {
    struct lane_table *t = &l->tables[table];
    uint32_t len = t->shape->row_len;
    struct message head = {.type = MSG_DELTA, .table = table};
    uint8_t *item = store32(lane_item(l, p->id, &head, 4 + 4 * len), m->row);
    adapm_row_diff((float *)item, val, base_row(t, m), len);
    adapm_row_copy(base_row(t, m), val, len);
    m->epoch = l->epoch;
    l->stats->deltas_out++;
    pace_charge(l, t);
}

static bool changed(struct lane_table *t, struct row_meta *m, const float *val) {
    return memcmp(val, base_row(t, m), 4ull * t->shape->row_len) != 0;
}

static int send_delta(struct adapm_lane *l, struct peer *p, uint32_t table, struct row_meta *m) {
    struct lane_table *t = &l->tables[table];
    adapm_entry *e = row_entry(t, m->row);
    uint64_t word;
    if (lane_lock(l, e, &word)) return -EBUSY;
    if (word & ADAPM_DIRTY) extract(l, p, table, m, slot_row(t, adapm_slot(word)));
    adapm_unlock(e, word & ~ADAPM_DIRTY);
    return 0;
}

/* A copy that is too old for a pull that waits is dropped like any other, and wanted again at once. Unlocks. */
static void ask_again(struct adapm_lane *l, uint32_t table, struct row_meta *m, adapm_entry *e, uint64_t word) {
    struct lane_table *t = &l->tables[table];
    memset(slot_row(t, adapm_slot(word)), 0, t->slots.slot_bytes);
    m->state = ROW_PENDING;
    m->flags = META_PARKED | (m->flags & META_FOR_GOOD);
    m->epoch = l->epoch;
    adapm_unlock(e, word & ~(ADAPM_READ | ADAPM_DIRTY));
    *FIFO_PUSH(&l->pending, uint64_t) = row_ref(table, m->row);
    l->stats->rows_pending++;
    holder_queue_want(l, table, m->row);
}

static int send_drop(struct adapm_lane *l, struct peer *p, uint32_t table, struct row_meta *m) {
    struct lane_table *t = &l->tables[table];
    uint32_t row = m->row;
    adapm_entry *e = row_entry(t, row);
    uint64_t word;
    if (lane_lock(l, e, &word)) return -EBUSY;
    const float *val = slot_row(t, adapm_slot(word));
    if (changed(t, m, val)) extract(l, p, table, m, val); /* whatever DIRTY says */
    if (m->flags & META_PARKED) ask_again(l, table, m, e, word);
    else row_vanish(t, m, e, word);
    l->stats->rows_replica--;
    l->stats->replicas_dropped++;
    trace(l, ADAPM_TRACE_DROPPED, table, row, p->id);
    p->replicas--;
    /* The drop is sent behind all deltas (round_drops keeps the list). */
    return 0;
}

static int64_t row_bytes(struct adapm_lane *l, uint64_t ref) { return 4 * (int64_t)l->tables[ref_table(ref)].shape->row_len; }

static void round_deltas(struct adapm_lane *l, struct peer *p, int64_t *budget) {
    uint64_t queued = fifo_len(&p->deltas);
    if (queued) pace_sent(l, p->deltas_age.since);
    for (uint64_t n = fifo_len(&p->deltas); n && *budget > 0; n--) {
        lane_prefetch_queue(l, &p->deltas, true);
        uint64_t ref = FIFO_POP(&p->deltas, uint64_t);
        struct row_meta *m = replica_of(l, p, ref);
        if (!m) continue;
        if (send_delta(l, p, ref_table(ref), m)) {
            *FIFO_PUSH(&p->deltas, uint64_t) = ref;
            continue;
        }
        m->flags &= (uint8_t)~META_DELTA_QUEUED;
        *budget -= row_bytes(l, ref);
    }
    if (queued) pace_charge_frame(l);
    age_leave(&p->deltas_age, queued - fifo_len(&p->deltas), l->now);
}

/* Deltas of dropped rows and the drops themselves alternate; they are two messages to the same peer, and a row's delta always precedes its drop. */
static void round_drops(struct adapm_lane *l, struct peer *p, int64_t *budget) {
    struct fifo gone = {0};
    for (uint64_t n = fifo_len(&p->drops); n && *budget > 0; n--) {
        lane_prefetch_queue(l, &p->drops, true);
        uint64_t ref = FIFO_POP(&p->drops, uint64_t);
        struct row_meta *m = replica_of(l, p, ref);
        if (!m) continue;
        if (row_wanted(&l->tables[ref_table(ref)], m) && !(m->flags & META_PARKED)) {
            m->flags &= (uint8_t)~META_DROP_QUEUED; /* wanted again meanwhile */
        } else if (send_drop(l, p, ref_table(ref), m)) {
            *FIFO_PUSH(&p->drops, uint64_t) = ref;
        } else {
            *FIFO_PUSH(&gone, uint64_t) = ref;
            *budget -= row_bytes(l, ref);
        }
    }
    while (fifo_len(&gone)) {
        uint64_t ref = FIFO_POP(&gone, uint64_t);
        struct message head = {.type = MSG_DROP, .table = ref_table(ref)};
        store32(lane_item(l, p->id, &head, 4), ref_row(ref));
    }
    fifo_free(&gone);
}

/* A set of a replica: first what our workers pushed before it, then the set, in one round and under one lock. */
static int send_set(struct adapm_lane *l, struct peer *p, const struct set_item *s, struct row_meta *m) {
    struct lane_table *t = &l->tables[s->table];
    const struct operation *op = &l->workers[s->worker].ops[s->op];
    adapm_entry *e = row_entry(t, m->row);
    uint64_t word;
    if (lane_lock(l, e, &word)) return -EBUSY;
    const float *val = slot_row(t, adapm_slot(word));
    if (changed(t, m, val)) extract(l, p, s->table, m, val);
    adapm_unlock(e, word & ~ADAPM_DIRTY);
    m->epoch = l->epoch;
    struct message head = {.type = MSG_SET_ROW, .table = s->table, .col_off = op->col_off, .col_len = op->col_len};
    uint8_t *item = store32(lane_item(l, p->id, &head, 4 + 4 * op->col_len), s->row);
    memcpy(item, op->rows + (uint64_t)s->pos * op->col_len, 4ull * op->col_len);
    m->flags |= META_SET_SENT;
    return 0;
}

static void round_sets(struct adapm_lane *l, struct peer *p) {
    for (uint64_t n = fifo_len(&p->sets); n; n--) {
        struct set_item s = FIFO_POP(&p->sets, struct set_item);
        struct row_meta *m = replica_of(l, p, row_ref(s.table, s.row));
        if (!m) {
            remote_set(l, &s);
        } else if (m->flags & META_SET_SENT || send_set(l, p, &s, m)) {
            *FIFO_PUSH(&p->sets, struct set_item) = s; /* one set of a row per round */
        } else {
            *FIFO_PUSH(&p->sets_sent, struct set_item) = s;
        }
    }
}

/* A want not sent yet that nobody needs any more: nothing was accumulated, nobody waits. */
static bool cancel(struct adapm_lane *l, uint32_t table, struct row_meta *m) {
    struct lane_table *t = &l->tables[table];
    adapm_entry *e = row_entry(t, m->row);
    uint64_t word;
    if (t->active[m->row] || m->flags & META_STAYS || lane_lock(l, e, &word)) return false;
    if (word & ADAPM_DIRTY) {
        adapm_unlock(e, word);
        return false;
    }
    row_vanish(t, m, e, word);
    l->stats->rows_pending--;
    return true;
}

static void round_wants(struct adapm_lane *l, struct peer *p, int64_t *budget) {
    for (uint64_t n = fifo_len(&p->wants); n && *budget > 0; n--) {
        lane_prefetch_queue(l, &p->wants, false);
        uint64_t ref = FIFO_POP(&p->wants, uint64_t);
        uint32_t table = ref_table(ref), row = ref_row(ref);
        struct row_meta *m = row_lookup(&l->tables[table], row);
        if (!m || m->state != ROW_PENDING || m->flags & META_WANT_SENT || cancel(l, table, m)) continue;
        if (map_get(&l->in_flight, ref)) continue; /* the state must contain our pushes under way; their last answer queues it again */
        if (row_destination(l, table, row) != p->id) {
            holder_queue_want(l, table, row);
            continue;
        }
        struct message head = {.type = MSG_WANT, .table = table};
        store32(lane_item(l, p->id, &head, 4), row);
        m->flags |= META_WANT_SENT;
        l->stats->wants_out++;
        *budget -= row_bytes(l, ref);
    }
}

/* Whether the next round to p refreshes what we replicate from it, and its deltas. */
static bool refreshes(const struct adapm_lane *l, const struct peer *p) { return l->refresh || p->nudged_us == NUDGE_REFRESH || p->fresh == 1; }

static bool due(const struct adapm_lane *l, const struct peer *p) {
    if (p->round_open || p->lost) return false;
    return p->nudged_us || p->fresh == 1 || fifo_len(&p->drops) || fifo_len(&p->sets) || fifo_len(&p->wants) || (l->refresh && fifo_len(&p->deltas));
}

bool holder_waits(const struct adapm_lane *l, const struct peer *p) {
    return due(l, p) || (fifo_len(&p->deltas) && !p->round_open && !p->lost);
}

void holder_round(struct adapm_lane *l, struct peer *p) {
    if (!due(l, p)) return;
    bool refresh = refreshes(l, p);
    int64_t budget = l->config.round_bytes, wants = l->config.round_bytes;
    uint64_t before = p->out.items;
    if (refresh) round_deltas(l, p, &budget);
    round_drops(l, p, &budget);
    round_sets(l, p);
    round_wants(l, p, &wants);
    if (p->out.items == before && !p->nudged_us && p->fresh != 1) return; /* all that was due had gone elsewhere, or is locked */
    lane_message(l, p->id, MSG_ROUND_END, refresh ? MSG_REFRESH : 0);
    p->round_open = true;
    p->nudged_us = NUDGE_NONE;
    if (p->fresh == 1) p->fresh = 2;
    p->rounds_sent++;
    p->round_sent_at = l->now;
    p->round_moment = l->moment;
    l->stats->rounds++;
}

/* After a pending row has its value: what waited for it, and what it asks of its owner next. */
static void settle_replica(struct adapm_lane *l, uint32_t table, struct row_meta *m, bool dirty) {
    if (dirty) holder_queue_delta(l, table, m);
    if (!row_wanted(&l->tables[table], m) || m->flags & META_PARKED) holder_queue_drop(l, table, m);
}

static int refresh(struct adapm_lane *l, struct peer *p, struct lane_table *t, struct row_meta *m, const float *state) {
    adapm_entry *e = row_entry(t, m->row);
    uint64_t word;
    if (lane_lock(l, e, &word)) return -EBUSY;
    adapm_row_rebase(slot_row(t, adapm_slot(word)), base_row(t, m), state, t->shape->row_len);
    stamp_row(t, adapm_slot(word), p->round_moment);
    adapm_unlock(e, word);
    pace_charge(l, t);
    return 0;
}

/* A pending row's value: state and what our workers pushed meanwhile, if anything. */
static void accumulate(float *val, const float *state, uint32_t len, uint64_t word) {
    if (word & ADAPM_DIRTY) adapm_row_add(val, state, len);
    else adapm_row_copy(val, state, len);
}

static int become_replica(struct adapm_lane *l, struct peer *p, uint32_t table, struct row_meta *m, const float *state) {
    struct lane_table *t = &l->tables[table];
    adapm_entry *e = row_entry(t, m->row);
    uint64_t word;
    if (lane_lock(l, e, &word)) return -EBUSY;
    float *val = slot_row(t, adapm_slot(word));
    m->state = ROW_REPLICA;
    m->source = (uint16_t)p->id;
    m->flags &= META_STAYS;
    adapm_row_copy(base_row(t, m), state, t->shape->row_len);
    accumulate(val, state, t->shape->row_len, word);
    stamp_row(t, adapm_slot(word), p->round_moment);
    p->replicas++;
    l->stats->rows_pending--;
    l->stats->rows_replica++;
    l->stats->replicas_made++;
    trace(l, ADAPM_TRACE_REPLICA, table, m->row, p->id);
    remote_unpark(l, table, m, val);
    adapm_unlock(e, word | ADAPM_READ); /* DIRTY stays: what was accumulated is still to be extracted */
    settle_replica(l, table, m, word & ADAPM_DIRTY);
    if (l->copying && !l->stats->rows_pending) {
        l->copying = false;
        lane_post_event(l, ADAPM_EVENT_COPIED, 0, 0);
    }
    return 0;
}

int holder_on_state(struct adapm_lane *l, struct peer *p, uint32_t table, uint64_t row, uint64_t counter, const float *state) {
    struct row_meta *m = row_lookup(&l->tables[table], row);
    int err;
    if (counter > COUNTER_MOST) return lane_refuse(l, "no row moves so often");
    if (m && m->state == ROW_REPLICA && m->source == p->id) err = refresh(l, p, &l->tables[table], m, state);
    else if (m && m->state == ROW_PENDING && m->flags & META_WANT_SENT) err = become_replica(l, p, table, m, state);
    else err = lane_refuse(l, "this node has not asked its sender for the row");
    if (err) return err;
    row_learn(l, table, row, p->id, counter);
    l->stats->states_in++;
    return 0;
}

/* Replica or pending row -> owned. state NULL: our value is the row's. */
static int become_owner(struct adapm_lane *l, struct peer *p, uint32_t table, struct row_meta *m, uint64_t counter, const float *state) {
    struct lane_table *t = &l->tables[table];
    uint32_t row = m->row;
    adapm_entry *e = row_entry(t, row);
    uint64_t word;
    if (lane_lock(l, e, &word)) return -EBUSY;
    float *val = slot_row(t, adapm_slot(word));
    if (m->state == ROW_REPLICA) {
        if (state) adapm_row_rebase(val, base_row(t, m), state, t->shape->row_len);
        p->replicas--;
        l->stats->rows_replica--;
    } else {
        accumulate(val, state, t->shape->row_len, word);
        l->stats->rows_pending--;
    }
    pool_give(&t->bases, m->base);
    m->state = ROW_OWNED;
    m->flags &= META_STAYS;
    m->holders = 0;
    row_set_hint(l, table, row, l->node, counter);
    remote_unpark(l, table, m, val);
    adapm_unlock(e, (word | ADAPM_READ) & ~(ADAPM_TRACK | ADAPM_DIRTY));
    l->stats->rows_owned++;
    l->stats->relocations_in++;
    trace(l, ADAPM_TRACE_OWNED, table, row, p->id);
    return 0;
}

int holder_on_grant(struct adapm_lane *l, struct peer *p, uint32_t table, uint64_t row, uint64_t counter, const float *state) {
    struct row_meta *m = row_lookup(&l->tables[table], row);
    bool replica = m && m->state == ROW_REPLICA && m->source == p->id;
    bool pending = m && m->state == ROW_PENDING && m->flags & META_WANT_SENT && state;
    if (counter > COUNTER_MOST) return lane_refuse(l, "no row moves so often");
    if (!replica && !pending) return lane_refuse(l, "this node has not asked its sender for the row");
    int err = become_owner(l, p, table, m, counter, state);
    if (err) return err;
    uint32_t home = adapm_home(table, row, l->nnodes);
    if (home == l->node || home == p->id) return 0; /* the giver knows */
    struct message head = {.type = MSG_MOVED, .table = table};
    store64(store32(lane_item_later(l, home, &head, 12), (uint32_t)row), counter); /* not urgent: the giver knows, and passes on what comes by way of the home */
    return 0;
}

void holder_on_reply_end(struct adapm_lane *l, struct peer *p, bool more) {
    p->round_open = false;
    p->rounds_answered++;
    while (fifo_len(&p->sets_sent)) {
        struct set_item s = FIFO_POP(&p->sets_sent, struct set_item);
        struct row_meta *m = row_lookup(&l->tables[s.table], s.row);
        if (m) m->flags &= (uint8_t)~META_SET_SENT;
        remote_settle(l, s.worker, s.op);
    }
    if (p->fresh == 2) {
        p->fresh = more ? 1 : 0;
        l->urgent |= more;
    }
    l->urgent |= fifo_len(&p->sets) || fifo_len(&p->wants); /* they waited for this answer */
    peer_activate(l, p);
}
