/* Intents: from a worker's calendar to the counts of its rows, when they come in sight, begin, end, or are forgotten. */
#include "lane.h"

#include <stdlib.h>

#include "trace.h"

/* ---- counts of rows, in arrays that small as they are stay in the cache; what an element has no room for is in a map */

#define ACTIVE_MOST UINT8_MAX
#define FORESEEN_MOST UINT16_MAX

bool intent_up(struct adapm_lane *l, uint32_t table, uint64_t row) {
    uint8_t *n = &l->tables[table].active[row];
    if (*n < ACTIVE_MOST) return ++*n == 1;
    map_put(&l->active_more, row_ref(table, row), map_get(&l->active_more, row_ref(table, row)) + 1);
    return false;
}

bool intent_down(struct adapm_lane *l, uint32_t table, uint64_t row) {
    uint8_t *n = &l->tables[table].active[row];
    uint32_t more = *n == ACTIVE_MOST ? map_get(&l->active_more, row_ref(table, row)) : 0;
    if (!more) return --*n == 0;
    map_put(&l->active_more, row_ref(table, row), more - 1);
    return false;
}

uint32_t row_active(struct adapm_lane *l, uint32_t table, uint64_t row) {
    uint32_t n = l->tables[table].active[row];
    return n < ACTIVE_MOST ? n : n + map_get(&l->active_more, row_ref(table, row));
}

static void foresee_key(struct adapm_lane *l, uint32_t table, uint64_t row) {
    uint16_t *n = &l->tables[table].foreseen[row];
    if (*n < FORESEEN_MOST) ++*n;
    else map_put(&l->foreseen_more, row_ref(table, row), map_get(&l->foreseen_more, row_ref(table, row)) + 1);
}

static void unforesee_key(struct adapm_lane *l, uint32_t table, uint64_t row) {
    uint16_t *n = &l->tables[table].foreseen[row];
    uint32_t more = *n == FORESEEN_MOST ? map_get(&l->foreseen_more, row_ref(table, row)) : 0;
    if (more) map_put(&l->foreseen_more, row_ref(table, row), more - 1);
    else --*n;
}

uint32_t row_foreseen(struct adapm_lane *l, uint32_t table, uint64_t row) {
    if (!l->foresees) return 0;
    uint32_t n = l->tables[table].foreseen[row];
    return n < FORESEEN_MOST ? n : n + map_get(&l->foreseen_more, row_ref(table, row));
}

/* ---- in sight */

/* Intents that have come into sight. */
static void look_ahead(struct adapm_lane *l, struct lane_worker *w, int64_t *budget) {
    struct calendar *c = &w->calendar;
    for (int64_t next; *budget > 0 && (next = wheel_next(&c->later)) != INT64_MAX && next - c->last_clock <= c->sight;) {
        struct intent *i = wheel_pop(&c->later);
        for (uint32_t k = 0; k < i->n; k++) {
            if (k + GLANCE_COUNTS < i->n) prefetch_counts(&l->tables[i->table], i->keys[k + GLANCE_COUNTS]);
            foresee_key(l, i->table, i->keys[k]);
        }
        wheel_add(&c->starts, i, i->start);
        *budget -= i->n / 4; /* little work beside that of acting on them */
    }
}

/* What has not been acted on yet never will be: its rows may be wanted by nobody any more. */
static void forget_intent(struct adapm_lane *l, const struct intent *i) {
    for (uint32_t k = i->done; k < i->n && l->foresees; k++) {
        unforesee_key(l, i->table, i->keys[k]);
        struct row_meta *m = row_lookup(&l->tables[i->table], i->keys[k]);
        if (m) holder_interest_ends(l, i->table, m);
    }
}

/* ---- acted on */

/* Whether more is to be done about the row than to count: it is the first active intent, or the last with none in sight. */
static bool turns(const struct lane_table *t, uint32_t row, bool up) {
    return up ? !t->active[row] : t->active[row] == 1 && !(t->foreseen && t->foreseen[row]);
}

/* Fetches what the keys ahead will need. */
static void glance(const struct adapm_lane *l, const struct intent *i, bool up) {
    struct lane_table *t = &l->tables[i->table];
    const uint32_t *keys = i->keys + i->done;
    uint32_t n = i->n - i->done;
    if (n > GLANCE_COUNTS) prefetch_counts(t, keys[GLANCE_COUNTS]);
    if (n > GLANCE_ENTRY && l->nnodes > 1 && turns(t, keys[GLANCE_ENTRY], up)) prefetch_entry(t, keys[GLANCE_ENTRY]);
    if (n > GLANCE_META && l->nnodes > 1 && !up && turns(t, keys[GLANCE_META], up)) prefetch_meta(t, keys[GLANCE_META]);
}

/* Counts the record's keys up or down, as far as the budget goes; true when it is done. */
static bool count_intent(struct adapm_lane *l, struct intent *i, bool up, int64_t *budget) {
    for (; i->done < i->n && *budget > 0; i->done++, --*budget) {
        glance(l, i, up);
        uint32_t row = i->keys[i->done];
        if (up && l->foresees) unforesee_key(l, i->table, row);
        if (up) holder_intent_starts(l, i->table, row);
        else holder_intent_ends(l, i->table, row);
        if (TRACED(l)) trace_counted(l, up, i->table, row);
    }
    if (i->done < i->n) return false;
    i->done = 0;
    *(up ? &l->stats->intents_started : &l->stats->intents_ended) += i->n;
    return true;
}

static void end_intents(struct adapm_lane *l, struct lane_worker *w, int64_t clock, int64_t *budget) {
    while (*budget > 0 && wheel_next(&w->calendar.ends) <= clock) {
        struct intent *i = wheel_pop(&w->calendar.ends);
        if (count_intent(l, i, false, budget)) free(i);
        else wheel_put_back(&w->calendar.ends, i);
    }
}

/* Acts on the worker's earliest intent. */
static void start_intent(struct adapm_lane *l, struct lane_worker *w, int64_t *budget) {
    struct intent *i = wheel_pop(&w->calendar.starts);
    if (i->end <= worker_clock(w) && !i->done) {
        l->stats->intents_late += i->n;
        forget_intent(l, i);
        free(i);
    } else if (count_intent(l, i, true, budget)) {
        wheel_add(&w->calendar.ends, i, i->end);
    } else {
        wheel_put_back(&w->calendar.starts, i);
    }
}

/* The worker whose next intent within its window is the most urgent. */
static struct lane_worker *most_urgent(struct adapm_lane *l) {
    struct lane_worker *found = NULL;
    int64_t least = INT64_MAX;
    for (uint32_t i = 0; i < l->nworkers; i++) {
        struct lane_worker *w = &l->workers[i];
        int64_t next = wheel_next(&w->calendar.starts);
        if (next == INT64_MAX || next - w->calendar.last_clock > w->calendar.window) continue;
        if (next - w->calendar.last_clock >= least) continue;
        least = next - w->calendar.last_clock;
        found = w;
    }
    return found;
}

void intents_tick(struct adapm_lane *l, double elapsed) {
    int64_t budget = l->config.tick_keys;
    for (uint32_t i = 0; i < l->nworkers; i++) {
        struct lane_worker *w = &l->workers[i];
        struct timer_input in = {.clock = worker_clock(w), .running = !w->gone && atomic_load(&w->shared->state) == ADAPM_RUNNING, .slept = l->slept,
                                 .at_once = l->technique.at_once, .elapsed = elapsed, .answer = l->answer, .sight = l->config.sight, .decay = l->config.timer_decay, .quantile = l->config.timer_quantile};
        timer_tick(&w->calendar, &in);
        if (TRACED(l)) trace_clock(l, i, in.clock);
        look_ahead(l, w, &budget);
        end_intents(l, w, in.clock, &budget);
    }
    for (struct lane_worker *w; budget > 0 && (w = most_urgent(l));) start_intent(l, w, &budget);
}

/* Intents that were not acted on are forgotten; of those acted on in part, that part is to end. */
static void forget_starts(struct adapm_lane *l, struct calendar *c) {
    for (struct intent *i; (i = wheel_pop(&c->later));) free(i);
    for (struct intent *i; (i = wheel_pop(&c->starts));) {
        forget_intent(l, i);
        if (!i->done) {
            free(i);
            continue;
        }
        l->stats->intents_started += i->n = i->done;
        i->done = 0;
        wheel_add(&c->ends, i, i->end);
    }
}

void intents_gone(struct adapm_lane *l, struct lane_worker *w) {
    forget_starts(l, &w->calendar);
    int64_t all = INT64_MAX;
    end_intents(l, w, INT64_MAX - 1, &all);
}
