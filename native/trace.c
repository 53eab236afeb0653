/* The events of traced keys, in a ring of the node's own memory, until the node takes them. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "mix.h"
#include "profile.h"
#include "trace.h"

#define CLOCKS_EVERY 5000000u /* ns between two notes of a clock that no event needs: they are to draw with */

struct traced_worker {
    int64_t clock; /* noted last */
    uint64_t at;
};

struct lane_trace {
    adapm_trace_event *ring;
    uint64_t head, tail, mask, lost; /* lost: events that found the ring full, since they were last taken */
    bool told;                       /* the node knows that there is something to take */
    uint64_t *below;                 /* [ntables] keys whose hash is below are traced */
    struct map chosen;               /* row references that are traced, whatever their hash */
    struct traced_worker *workers;   /* [nworkers] */
};

int adapm_lane_trace(adapm_lane *l, uint32_t room, const uint64_t *below, const uint64_t *refs, uint32_t n) {
    struct lane_trace *t = calloc(1, sizeof *t);
    if (!t) return -ENOMEM;
    t->mask = room - 1;
    t->ring = calloc(room, sizeof *t->ring);
    t->below = calloc(l->ntables, sizeof *t->below);
    t->workers = calloc(l->nworkers ? l->nworkers : 1, sizeof *t->workers);
    if (!t->ring || !t->below || !t->workers) {
        trace_free(t);
        return -ENOMEM;
    }
    memcpy(t->below, below, l->ntables * sizeof *below);
    for (uint32_t i = 0; i < n; i++) map_put(&t->chosen, refs[i], 1);
    l->trace = t;
    return 0;
}

uint32_t adapm_lane_trace_take(adapm_lane *l, adapm_trace_event *out, uint32_t room) {
    struct lane_trace *t = l->trace;
    uint32_t n = 0;
    if (!t) return 0;
    for (; n < room && t->tail < t->head; n++) out[n] = t->ring[t->tail++ & t->mask];
    if (t->lost && n < room) {
        out[n++] = (adapm_trace_event){.time = profile_now(), .kind = ADAPM_TRACE_LOST, .clock = (int64_t)t->lost};
        t->lost = 0;
    }
    t->told = false;
    return n;
}

/* All nodes choose the same keys. The hash is none that decides where a row's home is. */
static bool chosen(const struct lane_trace *t, uint32_t table, uint64_t row) {
    return (adapm_mix(adapm_hash(table, row) + ADAPM_GOLDEN) >> 32) < t->below[table] || map_get(&t->chosen, row_ref(table, row));
}

static void add(struct adapm_lane *l, adapm_trace_event event) {
    struct lane_trace *t = l->trace;
    uint64_t used = t->head - t->tail;
    event.time = profile_now();
    if (used > t->mask) t->lost++;
    else t->ring[t->head++ & t->mask] = event;
    if (t->told || used < t->mask / 16) return;
    t->told = true;
    lane_post_event(l, ADAPM_EVENT_TRACE, 0, 0);
}

void trace_event(struct adapm_lane *l, uint8_t kind, uint32_t table, uint64_t row, uint32_t peer) {
    if (chosen(l->trace, table, row)) add(l, (adapm_trace_event){.kind = kind, .table = table, .row = (uint32_t)row, .peer = (uint16_t)peer});
}

void trace_counted(struct adapm_lane *l, bool up, uint32_t table, uint64_t row) {
    const struct row_meta *m = row_lookup(&l->tables[table], row);
    if (m && m->flags & META_FOR_GOOD) return; /* it is wanted in any case */
    if (row_active(l, table, row) == up) trace_event(l, up ? ADAPM_TRACE_WANTED : ADAPM_TRACE_UNWANTED, table, row, l->node);
}

static void note_clock(struct adapm_lane *l, uint32_t worker, int64_t clock) {
    struct traced_worker *w = &l->trace->workers[worker];
    if (w->clock == clock) return;
    add(l, (adapm_trace_event){.kind = ADAPM_TRACE_CLOCK, .worker = (uint16_t)worker, .clock = clock});
    *w = (struct traced_worker){clock, profile_now()};
}

static int64_t clock_of(const struct adapm_lane *l, uint32_t worker) {
    return atomic_load_explicit(&l->workers[worker].shared->clock, memory_order_acquire);
}

void trace_clock(struct adapm_lane *l, uint32_t worker, int64_t clock) {
    if (profile_now() - l->trace->workers[worker].at >= CLOCKS_EVERY) note_clock(l, worker, clock);
}

void trace_missed(struct adapm_lane *l, uint32_t op_kind, uint8_t reason, uint32_t worker, uint32_t table, uint64_t row) {
    static const uint8_t kinds[] = {[ADAPM_PULL] = ADAPM_TRACE_PULL, [ADAPM_PUSH] = ADAPM_TRACE_PUSH, [ADAPM_SET] = ADAPM_TRACE_SET};
    if (!chosen(l->trace, table, row)) return;
    uint32_t asked = reason == ADAPM_TRACE_LATE ? l->node : row_destination(l, table, row);
    add(l, (adapm_trace_event){.kind = kinds[op_kind], .reason = reason, .worker = (uint16_t)worker, .clock = clock_of(l, worker), .table = table,
                               .row = (uint32_t)row, .peer = (uint16_t)asked});
}

void trace_intent(struct adapm_lane *l, uint32_t worker, const struct intent *i) {
    for (uint32_t k = 0; k < i->n; k++) {
        if (!chosen(l->trace, i->table, i->keys[k])) continue;
        note_clock(l, worker, clock_of(l, worker));
        add(l, (adapm_trace_event){.kind = ADAPM_TRACE_SIGNAL, .worker = (uint16_t)worker, .clock = i->start, .end = i->end, .table = i->table, .row = i->keys[k]});
    }
}

void trace_free(struct lane_trace *t) {
    if (!t) return;
    map_free(&t->chosen);
    free(t->workers);
    free(t->below);
    free(t->ring);
    free(t);
}
