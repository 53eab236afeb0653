/* When replicas are refreshed: as often as it costs the node no more than a small share of its time, and at least every so often.
 *
 * Every row that a refresh moves (a delta or a state, out or in), and every frame that leaves for it, puts off the next refresh a little. A few hot
 * rows that few nodes share are thus brought up to date at every tick or two; where many nodes share them, or nearly all rows are replicated and change, updates of the same row are added up between refreshes instead
 * of taking the processor from those who make them. Wants, drops, grants and sets never wait, and neither does what a sync waits for. */
#ifndef ADAPM_PACE_H
#define ADAPM_PACE_H

#include "lane.h"

/* A frame leaves because of a refresh, and is answered or is an answer. */
static inline void pace_charge_frame(struct adapm_lane *l) { l->debt += l->config.pace_frame; }

/* A refresh moved a row of this table. */
static inline void pace_charge(struct adapm_lane *l, const struct lane_table *t) {
    l->debt += l->config.pace_row + l->config.pace_float * t->shape->row_len;
}

static inline void pace_begin(struct adapm_lane *l) {
    l->refresh = true;
    l->refreshed_at = l->oldest = l->now;
    for (uint32_t i = 0; i < l->nnodes; i++) {
        age_mark(&l->peers[i].deltas_age, l->now);
        age_mark(&l->peers[i].stale_age, l->now);
    }
}

/* When the first of what is to be sent on came; now, if nothing is. */
static inline double pace_oldest(const struct adapm_lane *l) {
    double oldest = fifo_len(&l->dirty) ? l->dirty_since : l->now;
    for (uint32_t i = 0; i < l->nnodes; i++) {
        const struct peer *p = &l->peers[i];
        if (p->lost) continue;
        if (age_before(&p->deltas_age, oldest)) oldest = p->deltas_age.since;
        if (age_before(&p->stale_age, oldest)) oldest = p->stale_age.since;
    }
    return oldest;
}

/* Whether something has waited for as long as it may. A peer's refresh has brought what lay between it and us up to date: then ours is not due yet. */
static inline bool pace_overdue(struct adapm_lane *l) {
    if (l->now - l->oldest < l->config.pace_most) return false;
    l->oldest = pace_oldest(l);
    return l->now - l->oldest >= l->config.pace_most;
}

/* Before a tick: decides whether it refreshes. */
static inline void pace_tick(struct adapm_lane *l, double elapsed) {
    l->debt = l->debt > elapsed ? l->debt - elapsed : 0;
    if (!l->refresh && (l->debt <= 0 || pace_overdue(l))) pace_begin(l);
    l->refresh |= l->nsyncs != 0;
}

/* After a tick: the refresh goes on until all that had changed when it began is sent. */
static inline void pace_tock(struct adapm_lane *l) {
    bool left = false;
    for (uint32_t i = 0; i < l->nnodes && l->refresh && !left; i++) {
        const struct peer *p = &l->peers[i];
        left = !p->lost && (age_before(&p->deltas_age, l->refreshed_at) || age_before(&p->stale_age, l->refreshed_at));
    }
    l->refresh = left;
}

/* Rows that changed `since` and later are sent on now. */
static inline void pace_sent(struct adapm_lane *l, double since) {
    uint64_t wait = (uint64_t)((l->now - since) * l->config.tick_us);
    l->stats->refreshes++;
    l->stats->refresh_wait_us += wait;
    if (wait > l->stats->refresh_wait_most_us) l->stats->refresh_wait_most_us = wait;
}

#endif
