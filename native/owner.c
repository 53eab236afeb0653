/* The owner's side: who gets a row, who is stale, what a reply contains. */
#include <errno.h>

#include "lane.h"
#include "pace.h"
#include "simd.h"
#include "trace.h"

static struct peer *holder_peer(struct adapm_lane *l, const struct holder *h) { return &l->peers[h->node]; }

struct holder *owner_find(struct adapm_lane *l, const struct row_meta *m, uint32_t node) {
    for (uint32_t i = m->holders; i; i = l->holders[i].next)
        if (l->holders[i].node == node) return &l->holders[i];
    return NULL;
}

static void holder_add(struct adapm_lane *l, uint32_t table, struct row_meta *m, uint32_t node) {
    uint32_t i = l->holders_free;
    if (i) {
        l->holders_free = l->holders[i].next;
    } else {
        if (l->holders_next == l->holders_cap) {
            l->holders_cap *= 2;
            l->holders = realloc(l->holders, l->holders_cap * sizeof *l->holders);
            if (!l->holders) abort();
        }
        i = l->holders_next++;
    }
    l->holders[i] = (struct holder){.next = m->holders, .table = table, .row = m->row, .node = (uint16_t)node};
    m->holders = i;
}

static void stale_append(struct adapm_lane *l, struct holder *h, double since) {
    struct peer *p = holder_peer(l, h);
    uint32_t i = (uint32_t)(h - l->holders);
    h->stale = 1;
    h->next_stale = 0;
    h->prev_stale = p->stale_tail;
    if (p->stale_tail) l->holders[p->stale_tail].next_stale = i;
    else p->stale_head = i;
    p->stale_tail = i;
    age_enter(&p->stale_age, since);
    peer_activate(l, p);
}

static void stale_remove(struct adapm_lane *l, struct holder *h) {
    if (!h->stale) return;
    struct peer *p = holder_peer(l, h);
    if (h->prev_stale) l->holders[h->prev_stale].next_stale = h->next_stale;
    else p->stale_head = h->next_stale;
    if (h->next_stale) l->holders[h->next_stale].prev_stale = h->prev_stale;
    else p->stale_tail = h->prev_stale;
    age_leave(&p->stale_age, 1, l->now);
    h->stale = 0;
}

static void holder_remove(struct adapm_lane *l, struct row_meta *m, struct holder *h) {
    uint32_t i = (uint32_t)(h - l->holders), *link = &m->holders;
    stale_remove(l, h);
    while (*link != i) link = &l->holders[*link].next;
    *link = h->next;
    h->next = l->holders_free;
    l->holders_free = i;
}

void owner_changed(struct adapm_lane *l, struct row_meta *m, uint32_t except, double since) {
    for (uint32_t i = m->holders; i; i = l->holders[i].next)
        if (l->holders[i].node != except && !l->holders[i].stale) stale_append(l, &l->holders[i], since);
}

/* A row with one holder and no intent of our own belongs to that holder; it gets it in the reply to its next round. */
void owner_maybe_grant(struct adapm_lane *l, uint32_t table, struct row_meta *m) {
    if (l->technique.on_want != ADAPM_DECIDE || m->state != ROW_OWNED || !m->holders || l->holders[m->holders].next || row_wanted(&l->tables[table], m)) return;
    struct holder *h = &l->holders[m->holders];
    if (h->granting) return;
    h->granting = 1;
    *FIFO_PUSH(&holder_peer(l, h)->grants, uint64_t) = row_ref(table, m->row);
    peer_activate(l, holder_peer(l, h));
}

/* Gives the row to node to; it becomes absent here. pending: the other side holds no replica. */
static int grant(struct adapm_lane *l, uint32_t table, struct row_meta *m, uint32_t to, bool pending) {
    struct lane_table *t = &l->tables[table];
    uint32_t row = m->row;
    adapm_entry *e = row_entry(t, row);
    uint64_t word, counter = row_hint_counter(l, table, row);
    counter += counter < COUNTER_MOST;
    if (lane_lock(l, e, &word)) return -EBUSY;
    struct holder *h = owner_find(l, m, to);
    bool current = h && !pending && !h->stale && !(word & ADAPM_DIRTY);
    struct message head = {.type = current ? MSG_GRANT_CURRENT : MSG_GRANT, .table = table};
    uint32_t len = t->shape->row_len;
    uint8_t *item = lane_item(l, to, &head, 12 + (current ? 0 : 4 * len));
    item = store64(store32(item, row), counter);
    if (!current) adapm_row_copy((float *)item, slot_row(t, adapm_slot(word)), len);
    if (h) holder_remove(l, m, h);
    row_vanish(t, m, e, word);
    row_set_hint(l, table, row, to, counter);
    l->stats->rows_owned--;
    l->stats->relocations_out++;
    trace(l, ADAPM_TRACE_GIVEN, table, row, to);
    return 0;
}

/* Answers node to with the row's state. add: it becomes a holder. */
static int state(struct adapm_lane *l, uint32_t table, struct row_meta *m, uint32_t to, bool add) {
    struct lane_table *t = &l->tables[table];
    adapm_entry *e = row_entry(t, m->row);
    uint64_t word;
    if (lane_lock(l, e, &word)) return -EBUSY;
    struct message head = {.type = MSG_STATE, .table = table};
    uint32_t len = t->shape->row_len;
    uint8_t *item = lane_item(l, to, &head, 12 + 4 * len);
    item = store64(store32(item, m->row), row_hint_counter(l, table, m->row));
    adapm_row_copy((float *)item, slot_row(t, adapm_slot(word)), len);
    if (add) holder_add(l, table, m, to);
    else stale_remove(l, owner_find(l, m, to));
    adapm_unlock(e, word | ADAPM_TRACK); /* under the lock that copied the row: no push can slip between */
    return 0;
}

int owner_on_want(struct adapm_lane *l, uint32_t table, uint64_t row, uint32_t from) {
    struct row_meta *m = row_lookup(&l->tables[table], row);
    if (from == l->node) return lane_refuse(l, "it is for a want of this node's own");
    if (!m || m->state != ROW_OWNED) {
        uint32_t to = row_destination(l, table, row);
        if (to == from || to == l->node) return lane_refuse(l, "it comes back to who wants the row"); /* counters grow along hints */
        struct message head = {.type = MSG_FORWARDED_WANT, .table = table, .origin = (uint16_t)from};
        store32(lane_item(l, to, &head, 4), (uint32_t)row);
        l->stats->forwards++;
        return 0;
    }
    if (owner_find(l, m, from)) return lane_refuse(l, "who wants the row holds it");
    if (l->technique.on_want == ADAPM_RELOCATE && !(m->flags & META_FOR_GOOD)) {
        *FIFO_PUSH(&l->asked, struct asked) = (struct asked){table, (uint32_t)row, from};
        return 0;
    }
    if (l->technique.on_want == ADAPM_DECIDE && !m->holders && !row_wanted(&l->tables[table], m)) return grant(l, table, m, from, true);
    return state(l, table, m, from, true);
}

/* Whether a want that was ours to serve is served, or on its way to the row's new owner. */
static bool serve_asked(struct adapm_lane *l, const struct asked *a) {
    struct row_meta *m = row_lookup(&l->tables[a->table], a->row);
    if (m && m->state == ROW_OWNED) return !grant(l, a->table, m, a->node, true);
    return owner_on_want(l, a->table, a->row, a->node) != -EBUSY;
}

/* At its tick, not on arrival: who has just got a row has some use of it before it goes on to the next. */
void owner_serve_asked(struct adapm_lane *l) {
    for (uint64_t n = fifo_len(&l->asked); n; n--) {
        struct asked a = FIFO_POP(&l->asked, struct asked);
        if (!serve_asked(l, &a)) *FIFO_PUSH(&l->asked, struct asked) = a;
    }
}

/* The row that a holder's round speaks of: ours, and known to be held there. */
static int held(struct adapm_lane *l, struct peer *p, uint32_t table, uint64_t row, struct row_meta **m, struct holder **h) {
    *m = row_lookup(&l->tables[table], row);
    if (!*m || (*m)->state != ROW_OWNED) return lane_refuse(l, "the row is owned elsewhere");
    *h = owner_find(l, *m, p->id);
    return *h ? 0 : lane_refuse(l, "its sender does not hold the row");
}

int owner_on_delta(struct adapm_lane *l, struct peer *p, uint32_t table, uint64_t row, const float *delta) {
    struct lane_table *t = &l->tables[table];
    struct row_meta *m;
    struct holder *h;
    uint64_t word;
    int err = held(l, p, table, row, &m, &h);
    if (err) return err;
    adapm_entry *e = row_entry(t, row);
    if (lane_lock(l, e, &word)) return -EBUSY;
    adapm_row_add(slot_row(t, adapm_slot(word)), delta, t->shape->row_len);
    adapm_unlock(e, word);
    owner_changed(l, m, p->id, l->now);
    l->stats->deltas_in++;
    pace_charge(l, t);
    return 0;
}

int owner_on_drop(struct adapm_lane *l, struct peer *p, uint32_t table, uint64_t row) {
    struct row_meta *m;
    struct holder *h;
    int err = held(l, p, table, row, &m, &h);
    if (err) return err;
    holder_remove(l, m, h);
    owner_maybe_grant(l, table, m);
    /* TRACK of a row without holders is taken off when its next dirty record comes (owner_drain_dirty). */
    return 0;
}

int owner_on_set(struct adapm_lane *l, struct peer *p, uint32_t table, uint64_t row, uint32_t col_off, uint32_t col_len, const float *value) {
    struct lane_table *t = &l->tables[table];
    struct row_meta *m;
    struct holder *h;
    uint64_t word;
    int err = held(l, p, table, row, &m, &h);
    if (err) return err;
    adapm_entry *e = row_entry(t, row);
    if (lane_lock(l, e, &word)) return -EBUSY;
    adapm_row_copy(slot_row(t, adapm_slot(word)) + col_off, value, col_len);
    struct message head = {.type = MSG_STATE, .table = table};
    uint32_t len = t->shape->row_len;
    uint8_t *item = lane_item(l, p->id, &head, 12 + 4 * len);
    item = store64(store32(item, (uint32_t)row), row_hint_counter(l, table, row));
    adapm_row_copy((float *)item, slot_row(t, adapm_slot(word)), len); /* whatever the budget: the caller's copy is fresh when its set completes */
    adapm_unlock(e, word);
    stale_remove(l, h);
    owner_changed(l, m, p->id, l->now);
    return 0;
}

static int mark_changed(struct adapm_lane *l, struct lane_table *t, struct row_meta *m) {
    adapm_entry *e = row_entry(t, m->row);
    uint64_t word;
    if (lane_lock(l, e, &word)) return -EBUSY;
    bool dirty = word & ADAPM_DIRTY;
    word &= ~ADAPM_DIRTY;
    if (!m->holders) word &= ~ADAPM_TRACK;
    m->epoch = l->epoch;
    adapm_unlock(e, word);
    if (dirty) owner_changed(l, m, l->node, l->dirty_since);
    return 0;
}

void owner_drain_dirty(struct adapm_lane *l) {
    for (uint64_t n = fifo_len(&l->dirty); n; n--) {
        lane_prefetch_queue(l, &l->dirty, false);
        uint64_t ref = FIFO_POP(&l->dirty, uint64_t);
        struct lane_table *t = &l->tables[ref_table(ref)];
        struct row_meta *m = row_lookup(t, ref_row(ref));
        if (m && m->state == ROW_OWNED && mark_changed(l, t, m)) *FIFO_PUSH(&l->dirty, uint64_t) = ref; /* locked */
    }
}

/* Whether h, the row's holder, is to get the row itself now. */
static bool grantable(struct adapm_lane *l, uint32_t table, const struct row_meta *m, const struct holder *h) {
    return m->holders == (uint32_t)(h - l->holders) && !h->next && !row_wanted(&l->tables[table], m);
}

/* What is granted to p, taken from its queue; what met a locked row goes back. */
static void reply_grants(struct adapm_lane *l, struct peer *p, int64_t *budget) {
    for (uint64_t n = fifo_len(&p->grants); n && *budget > 0; n--) {
        uint64_t ref = FIFO_POP(&p->grants, uint64_t);
        uint32_t table = ref_table(ref);
        struct row_meta *m = row_lookup(&l->tables[table], ref_row(ref));
        struct holder *h = m && m->state == ROW_OWNED ? owner_find(l, m, p->id) : NULL;
        if (!h) continue;
        h->granting = 0;
        if (!grantable(l, table, m, h)) continue;
        if (grant(l, table, m, p->id, false)) {
            h->granting = 1;
            *FIFO_PUSH(&p->grants, uint64_t) = ref;
        }
        *budget -= 4 * l->tables[table].shape->row_len;
    }
}

/* What the stale rows behind this one will need is fetched while those before them are copied: so far the list has been looked at. */
struct lookout {
    uint32_t entry, row, entries, rows; /* holder records; how many there are from the one that is handled to those */
};

static void look_out(struct adapm_lane *l, struct lookout *o) {
    for (; o->entry && o->entries < PREFETCH_ENTRY; o->entries++) {
        const struct holder *h = &l->holders[o->entry];
        prefetch_entry(&l->tables[h->table], h->row);
        o->entry = h->next_stale;
    }
    for (; o->row != o->entry && o->rows < PREFETCH_SLOT; o->rows++) {
        const struct holder *h = &l->holders[o->row];
        prefetch_slot(&l->tables[h->table], h->row);
        o->row = h->next_stale;
    }
    if (o->entries) o->entries--;
    if (o->rows) o->rows--;
}

static void reply_stale(struct adapm_lane *l, struct peer *p, int64_t *budget) {
    struct lookout out = {.entry = p->stale_head, .row = p->stale_head};
    if (!p->stale_head) return;
    pace_sent(l, p->stale_age.since);
    pace_charge_frame(l);
    for (uint32_t i = p->stale_head, next; i && *budget > 0; i = next) {
        struct holder *h = &l->holders[i];
        look_out(l, &out);
        next = h->next_stale;
        struct lane_table *t = &l->tables[h->table];
        *budget -= 4 * t->shape->row_len;
        pace_charge(l, t);
        l->stats->states_out++;
        state(l, h->table, row_lookup(t, h->row), p->id, false); /* a locked row stays stale, for the next reply */
    }
}

void owner_reply(struct adapm_lane *l, struct peer *p, bool refresh) {
    int64_t budget = l->config.round_bytes;
    p->nudged = false;
    if (refresh) owner_drain_dirty(l); /* a barrier's refresh brings all that our workers pushed before it */
    reply_grants(l, p, &budget);
    if (refresh) reply_stale(l, p, &budget);
    lane_message(l, p->id, MSG_REPLY_END, p->stale_head ? MSG_MORE : 0);
    l->stats->replies++;
    peer_activate(l, p);
}

/* The first row of the queue that is still to be granted; those that are no more are forgotten. */
static bool owes_grant(struct adapm_lane *l, struct peer *p) {
    while (fifo_len(&p->grants)) {
        uint64_t ref = FIFO_AT(&p->grants, uint64_t, 0);
        struct row_meta *m = row_lookup(&l->tables[ref_table(ref)], ref_row(ref));
        struct holder *h = m && m->state == ROW_OWNED ? owner_find(l, m, p->id) : NULL;
        if (h && grantable(l, ref_table(ref), m, h)) return true;
        if (h) h->granting = 0;
        (void)FIFO_POP(&p->grants, uint64_t);
    }
    return false;
}

void owner_nudge(struct adapm_lane *l, struct peer *p) {
    bool refresh = l->refresh && p->stale_head;
    if (p->nudged || !(refresh || owes_grant(l, p))) return;
    p->nudged = true;
    lane_message(l, p->id, MSG_NUDGE, refresh ? MSG_REFRESH : 0);
    if (refresh) pace_charge_frame(l);
    l->stats->nudges++;
}

bool owner_waits(const struct peer *p) { return p->stale_head && !p->nudged; }
