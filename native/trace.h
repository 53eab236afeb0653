/* What happens to some keys, for people: `adapm trace` draws it. Nothing here decides anything.
 *
 * Without a trace (l->trace is NULL) each place costs a branch that never goes the other way, where a row changes its state or a worker's access was
 * already missed: never where a worker reads or writes rows of its own segment. */
#ifndef ADAPM_TRACE_H
#define ADAPM_TRACE_H

#include "lane.h"

struct lane_trace;

void trace_event(struct adapm_lane *l, uint8_t kind, uint32_t table, uint64_t row, uint32_t peer);
void trace_counted(struct adapm_lane *l, bool up, uint32_t table, uint64_t row); /* its active intents have been */
void trace_missed(struct adapm_lane *l, uint32_t op_kind, uint8_t reason, uint32_t worker, uint32_t table, uint64_t row);
void trace_intent(struct adapm_lane *l, uint32_t worker, const struct intent *i);
void trace_clock(struct adapm_lane *l, uint32_t worker, int64_t clock);
void trace_free(struct lane_trace *t);

#define TRACED(l) __builtin_expect((l)->trace != NULL, 0)

/* Something happened to a row, with that node if any. */
static inline void trace(struct adapm_lane *l, enum adapm_trace_kind kind, uint32_t table, uint64_t row, uint32_t peer) {
    if (TRACED(l)) trace_event(l, (uint8_t)kind, table, row, peer);
}

/* An access of our worker that must wait or go to another node; m: what we know of the row. */
static inline void trace_access(struct adapm_lane *l, uint32_t worker, uint32_t op_kind, uint32_t table, uint64_t row, const struct row_meta *m) {
    enum adapm_trace_reason reason = ADAPM_TRACE_NO_INTENT;
    if (m) {
        reason = ADAPM_TRACE_LATE;
        l->stats->accesses_late++;
    } else if (l->tables[table].active[row]) {
        reason = ADAPM_TRACE_NO_ROOM;
        l->stats->accesses_no_room++;
    }
    if (TRACED(l)) trace_missed(l, op_kind, (uint8_t)reason, worker, table, row);
}

#endif
