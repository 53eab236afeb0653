/* The lane engine's private parts, shared by lane.c, calendar.c, owner.c, holder.c, remote.c, sync.c and trace.c.
 *
 * A lane is a value: it is handed requests, ticks and frames, and returns frames. All of a key's messages stay in its lane.
 *
 *      rings ---> calendar.c ---> holder.c <--- frames <--- peers' owner.c
 *                 (intents)       (wants, deltas, drops)
 *      requests -> remote.c                owner.c ---> frames (states, grants)
 *                  (access without intent)
 */
#ifndef ADAPM_LANE_H
#define ADAPM_LANE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "arena.h"
#include "calendar.h"
#include "entry.h"
#include "fifo.h"
#include "kernel.h"
#include "layout.h"
#include "map.h"
#include "segment.h"
#include "wire.h"

enum row_state { ROW_ABSENT = 0, ROW_PENDING = 1, ROW_REPLICA = 2, ROW_OWNED = 3 };

/* What the node knows about a row that has a slot: 24 bytes. Of an absent row it knows a hint, which is in the entry word in place of the slot. */
struct row_meta {
    uint32_t row;
    uint8_t state; /* enum row_state, never ROW_ABSENT while the slot is in use */
    uint8_t flags;
    uint16_t source;  /* replica: the node that gave us its state, where our deltas go */
    union {
        uint32_t base;    /* replica, and reserved for it while pending: its slot in the table's pool of bases */
        uint32_t holders; /* owned: first of its holder records, 0 none */
    };
    uint32_t hint;    /* see row_hint_owner */
    uint32_t epoch;   /* sync epoch in which it was last extracted, or got its slot */
};
enum row_flag {
    META_WANT_SENT = 1,    /* pending: the want is under way (else it is due) */
    META_DELTA_QUEUED = 2, /* in its peer's queue of deltas */
    META_DROP_QUEUED = 4,
    META_PARKED = 8,     /* pending: operations wait for its state */
    META_SET_SENT = 16,  /* replica: a set of it is in the unanswered round */
    META_FOR_GOOD = 32,  /* this node is to have the row whatever intents say */
    META_STAYS = META_PARKED | META_FOR_GOOD /* when the row becomes something else */
};

/* One node that holds a replica of one of our rows. Free records are chained by next. */
struct holder {
    uint32_t next;       /* in the row's list; 0 ends it */
    uint32_t prev_stale, next_stale; /* in the peer's FIFO of stale rows */
    uint32_t table, row;
    uint16_t node;
    uint8_t stale;   /* in the FIFO */
    uint8_t granting; /* in the peer's queue of rows that may be granted to it */
};

struct lane_table {
    const struct adapm_table *shape;
    adapm_entry *entries;
    float *arena;
    adapm_stamp *stamps; /* by slot; NULL: copies do not get too old */
    struct pool slots, bases;
    struct row_meta *meta; /* [capacity] */
    uint8_t *active;       /* [rows] active intents of this node, whether the row is here or not */
    uint16_t *foreseen;    /* [rows] intents in sight, not acted on yet; NULL: nobody asks */
};

/* A set of a replica that waits for its round. */
struct set_item {
    uint32_t table, row, worker, op, pos;
};

/* A node's want of a row that was ours when it came. */
struct asked {
    uint32_t table, row, node;
};

/* How long the first of a queue has been in it, about: at least as long as it has, at most by the time that the queue takes to turn over. */
struct age {
    uint64_t in, out, mark; /* items that came and went; what had come at marked_at */
    double since, marked_at;
};

static inline void age_enter(struct age *a, double now) {
    if (a->in == a->out) {
        a->since = a->marked_at = now;
        a->mark = a->in;
    }
    a->in++;
}

static inline void age_leave(struct age *a, uint64_t n, double now) {
    a->out += n;
    if (a->out < a->mark) return;
    a->since = a->marked_at;
    a->marked_at = now;
    a->mark = a->in;
}

/* From now on, `since` is later than now only when all that is in it has left. */
static inline void age_mark(struct age *a, double now) {
    a->mark = a->in;
    a->marked_at = now;
}

static inline bool age_before(const struct age *a, double time) { return a->in != a->out && a->since < time; }

enum nudge { NUDGE_NONE = 0, NUDGE_ROUND = 1, NUDGE_REFRESH = 2 };

struct peer {
    uint32_t id;
    bool lost;
    /* as holder towards this owner */
    bool round_open; /* our round is unanswered */
    enum nudge nudged_us; /* it owes us something: send it a round, empty if need be */
    uint8_t fresh;   /* 1: a round must go for a refresh, 2: it is under way */
    uint64_t rounds_sent, rounds_answered;
    uint64_t round_moment; /* of the tick in which our latest round left: what answers it is at least so young */
    double round_sent_at; /* in ticks; < 0: the answer's time has been taken */
    uint64_t replicas;    /* rows that we replicate from it */
    struct fifo wants, deltas, drops; /* row references */
    struct age deltas_age;
    struct fifo sets, sets_sent;      /* struct set_item */
    /* as owner towards this holder */
    bool nudged; /* we nudged it since its last round */
    uint32_t stale_head, stale_tail; /* FIFO of holder records */
    struct age stale_age;
    struct fifo grants; /* references of rows that may be granted to it */
    /* frames */
    struct outbox out;
    bool in_ready, in_active;
    uint64_t resume; /* items handled of the message that met a locked row */
};

/* An open operation of a worker, as the node sees it. */
struct operation {
    uint32_t kind; /* 0: free */
    uint32_t table, n, col_off, col_len;
    uint32_t asked;     /* keys dispatched: answers to later ones are none */
    uint32_t remaining; /* keys unanswered, plus 1 while it is being dispatched */
    uint32_t *keys;     /* in the worker's heap */
    float *rows;
    uint64_t serial;    /* no two of a lane share it */
    uint64_t oldest;    /* pulls: stamps up to this one are too old */
};

struct parked {
    uint32_t worker, op, pos, next;
};

struct lane_worker {
    struct adapm_worker_shared *shared;
    struct operation *ops; /* [ADAPM_OPS] */
    uint32_t cursor;       /* keys dispatched of the request at the ring's head */
    int fd;                /* its eventfd */
    bool gone;
    bool posted;           /* completions were posted since it was last woken */
    struct calendar calendar;
};

struct sync {
    uint32_t worker, op;
    enum sync_phase { SYNC_INTENTS, SYNC_ROWS, SYNC_ROUNDS } phase;
    int64_t clock;    /* of the worker at the call: intents starting at or before it must be satisfied */
    uint32_t epoch;
    uint64_t *rows;   /* references not yet extracted */
    uint64_t n;
    uint64_t *rounds; /* [nnodes] rounds_sent at the start of the last phase */
};

/* Why a frame was refused, and where. */
struct refusal {
    const char *why;
    int64_t at;             /* byte at which the message begins */
    struct message message; /* its head; type 0: none of it could be read */
    uint64_t item;
    uint32_t row; /* of the item, or the position of an answer */
};

/* A hint's counter: no run comes near. What a lying peer sets to it stays there, for counters must not begin anew. */
#define COUNTER_BITS 52
#define COUNTER_MOST ((1ull << COUNTER_BITS) - 1)

struct adapm_lane {
    struct adapm_segment *segment;
    int fd; /* of the segment, to reserve slots */
    uint32_t id, node, nnodes, nworkers, ntables;
    adapm_lane_config config;
    adapm_technique technique;
    struct adapm_lane_shared *shared;
    adapm_lane_stats *stats;
    struct lane_table *tables;
    struct lane_worker *workers;
    struct peer *peers; /* [nnodes]; our own is unused */
    struct fifo ready;  /* peers with frames to take */
    struct fifo active; /* peers to look at in the next tick */
    struct holder *holders;
    uint32_t holders_cap, holders_next, holders_free;
    struct map in_flight; /* row reference -> remote pushes and sets of ours that are unanswered */
    struct map active_more, foreseen_more; /* row reference -> what active[] and foreseen[] have no room for */
    struct map far_hints; /* row reference -> the upper bits of its hint's counter, where they are not zero */
    struct map parked_of; /* row reference -> first parked record */
    struct parked *parked;
    uint32_t parked_cap, parked_next, parked_free;
    struct fifo pending;      /* references of rows that became pending; compacted lazily */
    struct fifo asked;        /* struct asked: what other nodes want to have relocated to them, until the next tick */
    struct fifo dirty;        /* owned rows that our workers changed: their holders are not marked stale yet */
    struct fifo locked_sets;  /* struct set_item that met a locked row */
    struct fifo events;       /* struct lane_event */
    struct sync *syncs;
    uint32_t nsyncs, syncs_cap;
    uint32_t epoch; /* of syncs */
    uint64_t serial; /* of the latest operation */
    uint64_t moment; /* of this tick */
    double now;     /* ticks since creation */
    double answer;  /* moving average of the answer time of rounds, in ticks */
    double debt;    /* ticks until refreshes have kept to their share of the node's time */
    double refreshed_at; /* when a refresh of ours last began */
    double oldest;       /* what waits for the next refresh came then or later */
    double dirty_since;  /* when the first of dirty came, in ticks */
    bool refresh;   /* whether this tick does */
    uint64_t taken_at; /* when adapm_lane_take last gave a frame away, 0: none is being sent */
    bool foresees;  /* rows are wanted as far as intents are in sight */
    bool urgent;    /* somebody waits for what only a tick can send */
    bool slept;     /* the last rest went to sleep */
    bool refreshing;
    bool arena_full;
    bool copying; /* rows that are kept from the start on are on their way here */
    bool blocked; /* a request waits for a locked row */
    bool in_pieces; /* see adapm_lane_receive_piece */
    float *scratch; /* one row */
    struct lane_trace *trace; /* NULL: nothing is traced */
    int64_t frame_limit;
    struct refusal refusal; /* of the frame that was refused last */
};

struct lane_event {
    uint32_t kind, worker, op;
};

static inline uint64_t row_ref(uint32_t table, uint64_t row) { return (uint64_t)table << 32 | row; }
static inline uint32_t ref_table(uint64_t ref) { return (uint32_t)(ref >> 32); }
static inline uint32_t ref_row(uint64_t ref) { return (uint32_t)ref; }

static inline adapm_entry *row_entry(struct lane_table *t, uint64_t row) { return &t->entries[adapm_position(t->shape, row)]; }
static inline float *slot_row(struct lane_table *t, uint32_t slot) { return t->arena + (uint64_t)slot * t->shape->stride; }
static inline float *base_row(struct lane_table *t, const struct row_meta *m) { return (float *)pool_at(&t->bases, m->base); }

/* A row's value has come in answer to what was asked for in this moment; under its lock. */
static inline void stamp_row(struct lane_table *t, uint32_t slot, uint64_t moment) {
    if (t->stamps) atomic_store_explicit(&t->stamps[slot], moment, memory_order_relaxed);
}
static inline bool stamp_too_old(const struct lane_table *t, const struct row_meta *m, uint64_t oldest) {
    return t->stamps && atomic_load_explicit(&t->stamps[m - t->meta], memory_order_relaxed) <= oldest;
}

/* Fetching what later items will need, in three steps: what the row's number tells, what its entry word tells, what its record tells. */
#define PREFETCH_ENTRY 48 /* items ahead */
#define PREFETCH_SLOT 24
#define PREFETCH_BASE 10
#define GLANCE_COUNTS 192 /* the same where an item takes a few nanoseconds, its row being left alone */
#define GLANCE_ENTRY 128
#define GLANCE_META 64
static inline void prefetch_counts(const struct lane_table *t, uint64_t row) {
    __builtin_prefetch(&t->active[row], 1);
    if (t->foreseen) __builtin_prefetch(&t->foreseen[row], 1);
}

static inline void prefetch_entry(struct lane_table *t, uint64_t row) {
    __builtin_prefetch(row_entry(t, row));
}
static inline uint64_t prefetch_meta(struct lane_table *t, uint64_t row) {
    uint64_t word = atomic_load_explicit(row_entry(t, row), memory_order_relaxed);
    if (word & ADAPM_WRITE) __builtin_prefetch(&t->meta[adapm_slot(word)], 1);
    return word;
}
static inline void prefetch_row(const struct lane_table *t, const float *first) {
    for (uint32_t i = 0; i < t->shape->row_len && i < 256; i += ADAPM_LINE / sizeof(float)) __builtin_prefetch(first + i, 1);
}
static inline void prefetch_slot(struct lane_table *t, uint64_t row) {
    uint64_t word = prefetch_meta(t, row);
    if (!(word & ADAPM_WRITE)) return;
    prefetch_row(t, slot_row(t, adapm_slot(word)));
}
static inline void prefetch_base(struct adapm_lane *l, struct lane_table *t, uint64_t row) {
    uint64_t word = atomic_load_explicit(row_entry(t, row), memory_order_relaxed);
    if (!(word & ADAPM_WRITE)) return;
    const struct row_meta *m = &t->meta[adapm_slot(word)];
    if (m->state == ROW_REPLICA) prefetch_row(t, base_row(t, m));
    if (m->state == ROW_OWNED) __builtin_prefetch(&l->holders[m->holders], 1);
}

/* The row's record, or NULL when it is absent. Valid under a lock held by a worker too: locking keeps slot and flags. */
static inline struct row_meta *row_lookup(struct lane_table *t, uint64_t row) {
    uint64_t word = atomic_load_explicit(row_entry(t, row), memory_order_relaxed); /* state changes are all ours */
    return word & ADAPM_WRITE ? &t->meta[adapm_slot(word)] : NULL;
}

/* Whether workers of this node want the row, now or as far as their intents are in sight: then it is not given away, and a replica stays. */
static inline bool row_wanted(const struct lane_table *t, const struct row_meta *m) {
    return m->flags & META_FOR_GOOD || t->active[m->row] || (t->foreseen && t->foreseen[m->row]);
}

static inline int64_t worker_clock(const struct lane_worker *w) { return atomic_load_explicit(&w->shared->clock, memory_order_acquire); }

/* intents.c */
uint32_t row_active(struct adapm_lane *l, uint32_t table, uint64_t row);   /* active intents */
uint32_t row_foreseen(struct adapm_lane *l, uint32_t table, uint64_t row); /* intents in sight, not acted on yet */
bool intent_up(struct adapm_lane *l, uint32_t table, uint64_t row);   /* one more is active; true: the first */
bool intent_down(struct adapm_lane *l, uint32_t table, uint64_t row); /* one less; true: none is left */
void intents_tick(struct adapm_lane *l, double elapsed);
void intents_gone(struct adapm_lane *l, struct lane_worker *w); /* the worker has ended */

/* lane.c */
void lane_drain(struct adapm_lane *l, uint32_t worker); /* its intents and dirty records */
int lane_lock(struct adapm_lane *l, adapm_entry *e, uint64_t *word); /* 0 or -EBUSY */
uint32_t row_hint_owner(struct adapm_lane *l, uint32_t table, uint64_t row);
uint64_t row_hint_counter(struct adapm_lane *l, uint32_t table, uint64_t row);
void row_set_hint(struct adapm_lane *l, uint32_t table, uint64_t row, uint32_t owner, uint64_t counter);
void row_learn(struct adapm_lane *l, uint32_t table, uint64_t row, uint32_t owner, uint64_t counter);
uint32_t row_destination(struct adapm_lane *l, uint32_t table, uint64_t row); /* where something about a row we do not own goes */
void peer_activate(struct adapm_lane *l, struct peer *p);
void lane_wake_workers(struct adapm_lane *l); /* those that completions were posted to, if they sleep */
int lane_refuse(struct adapm_lane *l, const char *why); /* -EPROTO: a frame says what no correct peer says, namely this */
void lane_post_event(struct adapm_lane *l, uint32_t kind, uint32_t worker, uint32_t op);
uint8_t *lane_item(struct adapm_lane *l, uint32_t peer, const struct message *head, uint32_t item_bytes);
uint8_t *lane_item_later(struct adapm_lane *l, uint32_t peer, const struct message *head, uint32_t item_bytes); /* with whatever goes to the peer next, at the next tick at the latest */
void lane_message(struct adapm_lane *l, uint32_t peer, uint8_t type, uint8_t flags); /* one without items */
int row_read(struct lane_table *t, uint64_t row, uint32_t col_off, uint32_t col_len, float *out); /* 0, -ENOENT, -EBUSY */
void row_vanish(struct lane_table *t, struct row_meta *m, adapm_entry *e, uint64_t word); /* unlocks into absent, frees slot and base */

/* holder.c */
void holder_intent_starts(struct adapm_lane *l, uint32_t table, uint64_t row);
struct row_meta *holder_copy(struct adapm_lane *l, uint32_t table, uint64_t row, uint32_t worker); /* for a pull of an absent row; NULL: no room */
void holder_renew(struct adapm_lane *l, uint32_t table, struct row_meta *m, uint32_t worker); /* a replica that is too old for a pull, which parks */
bool holder_keep(struct adapm_lane *l, uint32_t table, uint64_t row); /* false: no room */
void holder_intent_ends(struct adapm_lane *l, uint32_t table, uint64_t row);
void holder_interest_ends(struct adapm_lane *l, uint32_t table, struct row_meta *m); /* an intent has ended, or will never begin */
void lane_prefetch_queue(struct adapm_lane *l, const struct fifo *refs, bool rows); /* what follows in a queue of references: the rows' records, and the rows themselves */
void holder_queue_want(struct adapm_lane *l, uint32_t table, uint64_t row);
void holder_queue_delta(struct adapm_lane *l, uint32_t table, struct row_meta *m);
void holder_queue_drop(struct adapm_lane *l, uint32_t table, struct row_meta *m);
void holder_round(struct adapm_lane *l, struct peer *p); /* sends what is due to p, if no round is open */
bool holder_waits(const struct adapm_lane *l, const struct peer *p); /* something is due to p that no open round holds up */
int holder_on_state(struct adapm_lane *l, struct peer *p, uint32_t table, uint64_t row, uint64_t counter, const float *state);
int holder_on_grant(struct adapm_lane *l, struct peer *p, uint32_t table, uint64_t row, uint64_t counter, const float *state);
void holder_on_reply_end(struct adapm_lane *l, struct peer *p, bool more);

/* owner.c */
void owner_serve_asked(struct adapm_lane *l); /* gives away what was asked for since the last tick */
int owner_on_want(struct adapm_lane *l, uint32_t table, uint64_t row, uint32_t holder);
int owner_on_delta(struct adapm_lane *l, struct peer *p, uint32_t table, uint64_t row, const float *delta);
int owner_on_drop(struct adapm_lane *l, struct peer *p, uint32_t table, uint64_t row);
int owner_on_set(struct adapm_lane *l, struct peer *p, uint32_t table, uint64_t row, uint32_t col_off, uint32_t col_len, const float *value);
void owner_reply(struct adapm_lane *l, struct peer *p, bool refresh); /* the end of p's round */
void owner_changed(struct adapm_lane *l, struct row_meta *m, uint32_t except, double since); /* all holders but one become stale */
void owner_drain_dirty(struct adapm_lane *l); /* marks what our workers changed as stale at its holders */
void owner_maybe_grant(struct adapm_lane *l, uint32_t table, struct row_meta *m);
void owner_nudge(struct adapm_lane *l, struct peer *p);
bool owner_waits(const struct peer *p); /* p is to be nudged when refreshes go again */
struct holder *owner_find(struct adapm_lane *l, const struct row_meta *m, uint32_t node);

/* remote.c */
bool remote_serve(struct adapm_lane *l, uint32_t worker);
int remote_on_access(struct adapm_lane *l, const struct message *m, const uint8_t *item); /* a push or set */
int remote_on_pulls(struct adapm_lane *l, const struct message *m, const uint8_t *items, uint64_t *at, uint64_t end); /* items *at to end - 1 */
int remote_on_answer(struct adapm_lane *l, struct peer *p, const struct message *m, const uint8_t *item);
void remote_unpark(struct adapm_lane *l, uint32_t table, struct row_meta *m, float *val); /* under the row's lock, state already changed */
void remote_set(struct adapm_lane *l, const struct set_item *s);                          /* (again) where it belongs now */
void remote_settle(struct adapm_lane *l, uint32_t worker, uint32_t op);                   /* one key of the operation is answered */
void remote_complete(struct adapm_lane *l, uint32_t worker, uint32_t op, int32_t status, uint64_t detail);
void remote_fail_all(struct adapm_lane *l, uint32_t lost);

/* sync.c */
void sync_start(struct adapm_lane *l, uint32_t worker, uint32_t op);
void sync_progress(struct adapm_lane *l);
void refresh_progress(struct adapm_lane *l);

#endif
