/* Looking into a lane from tests and simulations: one row, what operations wait for, and whether all rows make sense together. Not thread-safe against running workers. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "lane.h"

#define FOR_GOOD 0x80000000u /* beside the intents of a row: this node is to have it whatever they say */

static void list_asked(struct adapm_lane *l, uint64_t ref, adapm_row_view *out, uint32_t *nodes, uint32_t most) {
    for (uint64_t i = 0; i < fifo_len(&l->asked); i++) {
        const struct asked *a = &FIFO_AT(&l->asked, struct asked, i);
        if (row_ref(a->table, a->row) != ref) continue;
        if (nodes && out->holders + out->asked < most) nodes[out->holders + out->asked] = a->node;
        out->asked++;
    }
}

int adapm_lane_inspect(adapm_lane *l, uint32_t table, uint64_t row, adapm_row_view *out, float *value, float *base, uint32_t *holders, uint32_t max_holders) {
    if (table >= l->ntables || row >= l->tables[table].shape->rows) return -ERANGE;
    struct lane_table *t = &l->tables[table];
    struct row_meta *m = row_lookup(t, row);
    uint64_t word = atomic_load_explicit(row_entry(t, row), memory_order_acquire);
    *out = (adapm_row_view){.state = m ? m->state : ROW_ABSENT,
                            .hint_owner = m && m->state == ROW_REPLICA ? m->source : row_hint_owner(l, table, row),
                            .hint_counter = row_hint_counter(l, table, row), .intents = row_active(l, table, row) | (m && m->flags & META_FOR_GOOD ? FOR_GOOD : 0),
                            .foreseen = row_foreseen(l, table, row), .dirty = (word & ADAPM_DIRTY) != 0};
    if (m && value) memcpy(value, slot_row(t, adapm_slot(word)), 4ull * t->shape->row_len);
    if (m && base && m->state == ROW_REPLICA) memcpy(base, base_row(t, m), 4ull * t->shape->row_len);
    if (m && m->state == ROW_PENDING) out->want = m->flags & META_WANT_SENT ? 2 : 1;
    for (uint32_t i = m && m->state == ROW_OWNED ? m->holders : 0; i; i = l->holders[i].next) {
        if (holders && out->holders < max_holders) holders[out->holders] = l->holders[i].node;
        out->holders++;
        out->stale += l->holders[i].stale;
    }
    list_asked(l, row_ref(table, row), out, holders, max_holders);
    return 0;
}

static void count_keys(struct adapm_lane *l, const struct operation *o, uint64_t *of_node) {
    uint64_t left = o->remaining;
    for (uint32_t i = 0; i < o->n && left; i++) {
        if (o->keys[i] >= l->tables[o->table].shape->rows) continue; /* no other node has an answer to give */
        of_node[row_destination(l, o->table, o->keys[i])]++;
        left--;
    }
    of_node[l->node] += left;
}

static void count_sync(struct adapm_lane *l, const struct sync *s, adapm_open_op *out, uint64_t *of_node) {
    out->answers = s->phase == SYNC_ROUNDS;
    for (uint64_t i = 0; i < s->n; i++) of_node[row_destination(l, ref_table(s->rows[i]), ref_row(s->rows[i]))]++;
    for (uint32_t p = 0; out->answers && p < l->nnodes; p++) of_node[p] += l->peers[p].rounds_answered < s->rounds[p];
}

static void count_refresh(struct adapm_lane *l, adapm_open_op *out, uint64_t *of_node) {
    out->answers = l->refreshing;
    for (uint32_t p = 0; out->answers && p < l->nnodes; p++) of_node[p] += l->peers[p].fresh && !l->peers[p].lost;
}

int adapm_lane_next_open(adapm_lane *l, uint32_t *place, adapm_open_op *out, uint64_t *of_node) {
    for (; *place < l->nworkers * ADAPM_OPS; ++*place) {
        uint32_t worker = *place / ADAPM_OPS, op = *place % ADAPM_OPS;
        const struct operation *o = &l->workers[worker].ops[op];
        if (!o->kind || l->workers[worker].gone) continue;
        *out = (adapm_open_op){.serial = o->serial, .worker = worker, .kind = o->kind, .table = o->table};
        memset(of_node, 0, l->nnodes * sizeof *of_node);
        if (o->kind <= ADAPM_SET) count_keys(l, o, of_node);
        if (o->kind == ADAPM_BARRIER) count_refresh(l, out, of_node);
        for (uint32_t i = 0; i < l->nsyncs; i++)
            if (l->syncs[i].worker == worker && l->syncs[i].op == op) count_sync(l, &l->syncs[i], out, of_node);
        ++*place;
        return 1;
    }
    return 0;
}

static const char *const KINDS[MSG_TYPES] = {"nothing", "DELTA", "DROP", "SET_ROW", "WANT", "ROUND_END", "STATE", "GRANT", "GRANT_CURRENT", "REPLY_END",
                                             "FORWARDED_WANT", "MOVED", "NUDGE", "PULL", "PUSH", "SET", "ANSWER", "ACK"};

void adapm_lane_refusal(adapm_lane *l, char *why, uint32_t room) {
    const struct refusal *r = &l->refusal;
    const struct message *m = &r->message;
    const char *what = m->type == MSG_ANSWER || m->type == MSG_ACK ? "position" : "row";
    if (!m->type) snprintf(why, room, "%s (at byte %lld)", r->why, (long long)r->at);
    else if (m->type >= MSG_TYPES) snprintf(why, room, "%s (kind %u, at byte %lld)", r->why, m->type, (long long)r->at);
    else snprintf(why, room, "%s (%s at byte %lld, item %llu of %u: table %u, %s %u, columns %u+%u, for node %u, worker %u, operation %u)", r->why, KINDS[m->type], (long long)r->at,
                  (unsigned long long)r->item, m->n, m->table, what, r->row, m->col_off, m->col_len, m->origin, m->worker, m->op);
}

struct tally {
    uint64_t owned, replica, pending;
};

static const char *row_wrong(struct adapm_lane *l, struct lane_table *t, uint64_t row, struct tally *sum) {
    uint64_t word = atomic_load_explicit(row_entry(t, row), memory_order_acquire);
    bool read = word & ADAPM_READ, write = word & ADAPM_WRITE, track = word & ADAPM_TRACK;
    if (word & ADAPM_LOCK) return "is locked";
    if (!write) return read || track || word & ADAPM_DIRTY ? "is absent but has flags" : NULL;
    struct row_meta *m = &t->meta[adapm_slot(word)];
    if (adapm_slot(word) >= t->slots.next) return "has a slot that was never handed out";
    if (m->row != row) return "shares its slot with another row";
    bool shared = m->state == ROW_OWNED && m->holders;
    if (m->state == ROW_PENDING && (read || !track)) return "is pending but readable or untracked";
    if (m->state == ROW_REPLICA && !(read && track)) return "is a replica but unreadable or untracked";
    if (m->state == ROW_OWNED && (!read || (shared && !track))) return "is owned but unreadable, or shared and untracked";
    if (m->state == ROW_OWNED && row_hint_owner(l, (uint32_t)(t - l->tables), row) != l->node) return "is owned but its hint points elsewhere";
    if (m->state == ROW_REPLICA && m->source == l->node) return "is a replica of itself";
    sum->owned += m->state == ROW_OWNED;
    sum->replica += m->state == ROW_REPLICA;
    sum->pending += m->state == ROW_PENDING;
    return NULL;
}

static const char *peer_wrong(struct adapm_lane *l, struct peer *p) {
    uint64_t n = 0;
    for (uint32_t i = p->stale_head; i; i = l->holders[i].next_stale, n++) {
        struct holder *h = &l->holders[i];
        struct row_meta *m = row_lookup(&l->tables[h->table], h->row);
        if (!h->stale || h->node != p->id || n > p->stale_age.in - p->stale_age.out) return "has a broken list of stale rows";
        if (!m || m->state != ROW_OWNED || owner_find(l, m, p->id) != h) return "is owed a row that is not held by it";
    }
    return n == p->stale_age.in - p->stale_age.out ? NULL : "has a list of stale rows that does not add up";
}

int adapm_lane_validate(adapm_lane *l, char *why, uint32_t room) {
    struct tally sum = {0};
    uint64_t slots = 0, replicas = 0, foreseen = 0;
    for (uint32_t table = 0; table < l->ntables; table++) {
        struct lane_table *t = &l->tables[table];
        slots += pool_used(&t->slots);
        for (uint64_t row = 0; row < t->shape->rows; row++) {
            const char *wrong = row_wrong(l, t, row, &sum);
            foreseen += row_foreseen(l, table, row);
            if (wrong) return snprintf(why, room, "table %u, row %llu %s", table, (unsigned long long)row, wrong), -EILSEQ;
        }
    }
    for (uint32_t i = 0; i < l->nnodes; i++) {
        const char *wrong = peer_wrong(l, &l->peers[i]);
        if (wrong) return snprintf(why, room, "peer %u %s", i, wrong), -EILSEQ;
        replicas += l->peers[i].replicas;
    }
    const adapm_lane_stats *s = l->stats;
    if (slots != sum.owned + sum.replica + sum.pending) return snprintf(why, room, "slots are lost or shared"), -EILSEQ;
    for (uint32_t i = 0; i < l->nworkers && l->foresees; i++) foreseen -= wheel_keys(&l->workers[i].calendar.starts);
    if (foreseen) return snprintf(why, room, "intents in sight and what rows count of them differ"), -EILSEQ;
    if (s->rows_owned != sum.owned || s->rows_replica != sum.replica || s->rows_pending != sum.pending || replicas != sum.replica)
        return snprintf(why, room, "the counts of rows are wrong"), -EILSEQ;
    return 0;
}
