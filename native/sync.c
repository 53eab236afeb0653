/* wait_sync and the refresh of a barrier. */
#include <stdlib.h>
#include <string.h>

#include "lane.h"

void sync_start(struct adapm_lane *l, uint32_t worker, uint32_t op) {
    if (l->nsyncs == l->syncs_cap) {
        l->syncs_cap = l->syncs_cap ? 2 * l->syncs_cap : 8;
        l->syncs = realloc(l->syncs, l->syncs_cap * sizeof *l->syncs);
        if (!l->syncs) abort();
    }
    int64_t clock = atomic_load_explicit(&l->workers[worker].shared->clock, memory_order_acquire);
    l->syncs[l->nsyncs++] = (struct sync){.worker = worker, .op = op, .phase = SYNC_INTENTS, .clock = clock};
}

/* Whether the row still has something that its owner has not been sent, from before epoch. */
static bool unsettled(struct adapm_lane *l, uint64_t ref, uint32_t epoch) {
    struct lane_table *t = &l->tables[ref_table(ref)];
    struct row_meta *m = row_lookup(t, ref_row(ref));
    if (!m) return false;
    bool dirty = atomic_load_explicit(row_entry(t, ref_row(ref)), memory_order_acquire) & ADAPM_DIRTY;
    return (m->state == ROW_PENDING || dirty) && m->epoch < epoch;
}

static void note(struct sync *s, const struct fifo *f, uint64_t *cap) {
    if (s->n + fifo_len(f) > *cap) {
        *cap = 2 * (s->n + fifo_len(f));
        s->rows = realloc(s->rows, *cap * sizeof *s->rows);
        if (!s->rows) abort();
    }
    if (fifo_len(f)) memcpy(s->rows + s->n, &FIFO_AT(f, uint64_t, 0), fifo_len(f) * sizeof *s->rows);
    s->n += fifo_len(f);
}

/* Every row that is pending or has unsent deltas now, and owned ones whose holders have not been told. */
static void snapshot(struct adapm_lane *l, struct sync *s) {
    uint64_t cap = 0;
    s->epoch = ++l->epoch;
    note(s, &l->pending, &cap);
    note(s, &l->dirty, &cap);
    for (uint32_t p = 0; p < l->nnodes; p++) note(s, &l->peers[p].deltas, &cap);
}

static void settle_rows(struct adapm_lane *l, struct sync *s) {
    uint64_t kept = 0;
    for (uint64_t i = 0; i < s->n; i++)
        if (unsettled(l, s->rows[i], s->epoch)) s->rows[kept++] = s->rows[i];
    s->n = kept;
}

static void note_rounds(struct adapm_lane *l, struct sync *s) {
    s->rounds = calloc(l->nnodes, sizeof *s->rounds);
    if (!s->rounds) abort();
    for (uint32_t p = 0; p < l->nnodes; p++) s->rounds[p] = l->peers[p].rounds_sent;
}

static bool rounds_answered(struct adapm_lane *l, const struct sync *s) {
    for (uint32_t p = 0; p < l->nnodes; p++)
        if (l->peers[p].rounds_answered < s->rounds[p]) return false;
    return true;
}

/* Moves one sync on as far as it goes now; true when it is complete. */
static bool advance(struct adapm_lane *l, struct sync *s) {
    if (s->phase == SYNC_INTENTS) {
        for (uint32_t w = 0; w < l->nworkers; w++) lane_drain(l, w); /* a row we pushed to may be in the ring of the worker that pushed first */
        owner_drain_dirty(l);
        if (calendar_next(&l->workers[s->worker].calendar) <= s->clock) return false;
        snapshot(l, s);
        s->phase = SYNC_ROWS;
    }
    if (s->phase == SYNC_ROWS) {
        settle_rows(l, s);
        if (s->n) return false;
        note_rounds(l, s);
        s->phase = SYNC_ROUNDS;
    }
    return rounds_answered(l, s);
}

void sync_progress(struct adapm_lane *l) {
    uint32_t kept = 0;
    for (uint32_t i = 0; i < l->nsyncs; i++) {
        struct sync *s = &l->syncs[i];
        if (!advance(l, s)) {
            l->syncs[kept++] = *s;
            continue;
        }
        free(s->rows);
        free(s->rounds);
        remote_complete(l, s->worker, s->op, 0, 0);
    }
    l->nsyncs = kept;
}

/* A refresh needs, from every peer that we replicate from, the answer to a round sent after its start that left nothing stale behind.
 * A pending row's state may be under way from anyone: then everyone is asked, and the answer comes behind that state. */
void adapm_lane_fresh(adapm_lane *l) {
    l->refreshing = true;
    for (uint32_t i = 0; i < l->nnodes; i++) {
        struct peer *p = &l->peers[i];
        if (i == l->node || p->lost || !(p->replicas || l->stats->rows_pending)) continue;
        p->fresh = 1;
        l->urgent = true;
        peer_activate(l, p);
    }
    refresh_progress(l); /* nobody to ask: it is complete already */
}

void refresh_progress(struct adapm_lane *l) {
    if (!l->refreshing) return;
    for (uint32_t i = 0; i < l->nnodes; i++)
        if (l->peers[i].fresh && !l->peers[i].lost) return;
    l->refreshing = false;
    lane_post_event(l, ADAPM_EVENT_FRESH, 0, 0);
}
