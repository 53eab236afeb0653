/* The kernel's public face.  The part between the two marks is read by cffi as it stands; everything is opaque there.
 *
 * Return values: >= 0 is a result, < 0 a negative errno.  The kernel never prints, never exits, and allocates nothing on a
 * path that a local pull or push takes. */
#ifndef ADAPM_KERNEL_H
#define ADAPM_KERNEL_H
#include <stddef.h>
#include <stdint.h>

/* cffi begin */
typedef struct adapm_segment adapm_segment;
typedef struct adapm_worker adapm_worker;
typedef struct adapm_lane adapm_lane;
typedef struct adapm_buffer adapm_buffer;

/* ---- segment.c */
/* How rows are managed (docs/techniques.md); all zero: adaptive. */
enum adapm_on_want { ADAPM_DECIDE = 0, ADAPM_REPLICATE = 1, ADAPM_RELOCATE = 2 };
typedef struct {
    uint32_t ignores_intents; /* they are not even written down */
    uint32_t at_once;         /* intents are acted on when they are seen, not when their clock is near */
    uint32_t on_want;         /* enum adapm_on_want: what a row's owner does when another node wants it */
    uint32_t copies;          /* a pull of a row that is elsewhere sets up a copy ... */
    uint32_t ages;            /* ... which pulls read in so many clocks, counting the one in which it was asked for; 0: for good */
} adapm_technique;
enum adapm_distribution { ADAPM_UNIFORM = 0, ADAPM_LOG_UNIFORM = 1, ADAPM_WEIGHTED = 2 };
typedef struct {
    uint32_t node, nnodes, nworkers, nlanes, ntables;
    uint64_t seed, heap_bytes;
    const uint64_t *rows, *capacity; /* [ntables] */
    const uint32_t *row_len;         /* [ntables], floats */
    const uint32_t *distribution;    /* [ntables], enum adapm_distribution; NULL: all uniform */
    adapm_technique technique;
} adapm_spec;
int64_t adapm_segment_size(const adapm_spec *spec);                            /* bytes, -EOVERFLOW, -EINVAL */
adapm_segment *adapm_segment_create(int fd, const adapm_spec *spec, int *err); /* reserves all but the arenas; -ENOSPC */
adapm_segment *adapm_segment_attach(int fd, int *err);                         /* -EPROTO: not a segment, other version or size. Merges the pages of what is filled already */
uint32_t adapm_segment_row_len(const adapm_segment *s, uint32_t table);
void adapm_segment_close(adapm_segment *s);                                    /* unmaps; no worker or lane may be left on it */
void adapm_segment_fail(adapm_segment *s, int err);                            /* every wait of every worker ends with err < 0 */

/* ---- worker.c and rows.c: the worker's half */
enum adapm_op { ADAPM_PULL = 1, ADAPM_PUSH = 2, ADAPM_SET = 3, ADAPM_SYNC = 4, ADAPM_BARRIER = 5 };
adapm_worker *adapm_worker_attach(adapm_segment *s, uint32_t slot, int node_fd, int worker_fd, int *err);
void adapm_worker_detach(adapm_worker *w); /* releases the handle; the node is told by other means */
/* index of the first key outside [0, rows), or -1 */
int64_t adapm_keys_bad(const int64_t *keys, int64_t n, int64_t rows);
/* Each call of these checks all keys before anything else: -ERANGE, and adapm_keys_bad knows which.  out and vals are dense [n, col_len].  miss (room for n) gets the indices into
 * keys that are not local; their number is returned.  set writes only rows that are owned and unshared, the others are misses. */
int64_t adapm_pull(adapm_worker *w, uint32_t table, uint32_t col_off, uint32_t col_len, const int64_t *keys, int64_t n, float *out, uint32_t *miss);
int64_t adapm_push(adapm_worker *w, uint32_t table, uint32_t col_off, uint32_t col_len, const int64_t *keys, int64_t n, const float *vals, uint32_t *miss);
int64_t adapm_set(adapm_worker *w, uint32_t table, uint32_t col_off, uint32_t col_len, const int64_t *keys, int64_t n, const float *vals, uint32_t *miss);
/* While one of these waits for another process it calls turn(with) now and then instead of sched_yield(); NULL: sched_yield() again. */
typedef void (*adapm_turn)(void *with);
void adapm_worker_yield_with(adapm_worker *w, adapm_turn turn, void *with);
int adapm_is_local(adapm_worker *w, uint32_t table, const int64_t *keys, int64_t n, uint8_t *out);
/* Signals as many keys as the ring takes now, returns their number (0: full, wait and call again; -ERANGE: a key is none of the table's). */
int64_t adapm_intent(adapm_worker *w, uint32_t table, const int64_t *keys, int64_t n, int64_t start, int64_t end);
int64_t adapm_advance_clock(adapm_worker *w); /* the new clock */
int64_t adapm_clock(adapm_worker *w);
/* Posts a request for the keys at idx[0..n) (idx NULL: 0..n), with their rows of vals for push and set (vals NULL for pull).  As many keys as one request
 * takes: returns their number, and the op in *op; 0: no room now, wait for a completion and call again. SYNC and BARRIER take n = 0 and return 1. */
int64_t adapm_post(adapm_worker *w, uint32_t kind, uint32_t table, uint32_t col_off, uint32_t col_len, const int64_t *keys, const uint32_t *idx, int64_t n,
                   const float *vals, uint32_t *op);
/* Next completion: 1 and the three values, or 0. */
int adapm_completed(adapm_worker *w, uint32_t *op, int32_t *status, uint64_t *detail);
/* After the completion of a pull: row i of the request goes to out[idx[i]] (idx NULL: out[i]); out NULL drops it.  Frees the request's buffer: once for every op, of any kind. */
void adapm_collect(adapm_worker *w, uint32_t op, float *out, const uint32_t *idx);
/* Sleeps until a completion is there or room in a ring may have come (returns 1), timeout_ms passed (0), or the node failed (< 0). */
int adapm_wait(adapm_worker *w, int timeout_ms);
/* For an event loop that watches worker_fd: arm before sleeping (returns 1 if completions are there already), then drain when it fires. */
int adapm_arm(adapm_worker *w);
void adapm_drain_fd(adapm_worker *w);
#define ADAPM_COUNTERS 14
void adapm_worker_counters(adapm_worker *w, uint64_t *out); /* so many: struct adapm_counters, in its order */
void adapm_segment_counters(adapm_segment *s, uint32_t worker, uint64_t *out); /* the same of any worker of the node */
void adapm_worker_waited(adapm_worker *w, int kind, uint64_t ns);  /* so long for operations of this enum adapm_op; 0: for room */
/* tests only: die (SIGKILL) inside push, at step 1 hold written, 2 locked, 3 saved, 4 half the row written, 5 DIRTY appended, not unlocked; 0 = off.
 * After so many rows have passed this step. */
void adapm_die_at(adapm_worker *w, int step, int after);
void adapm_stop_at(adapm_worker *w, int step, int after); /* the same, but be stopped there (SIGSTOP), once; at step 4 nothing of the row is written */

/* ---- init.c: initial values; a row's depend on seed, table, column group and key alone */
int adapm_fill_row(uint32_t kind, double a, double b, uint64_t seed, uint32_t table, uint32_t column, uint64_t key, float *dst, uint32_t n);

/* ---- timer.c: a descriptor that becomes readable at a time of CLOCK_MONOTONIC, in seconds > 0 */
int adapm_timer_open(void);
int adapm_timer_set(int fd, double at);

/* ---- sample.c: keys for samples */
typedef struct {
    uint64_t state[4];
} adapm_stream; /* of random numbers */
void adapm_stream_seed(adapm_stream *stream, uint64_t seed, uint32_t node, uint32_t worker, uint32_t table);
void adapm_alias_build(adapm_segment *s, uint32_t table, const double *weights); /* [rows], none negative, one positive; once, before workers attach */
enum adapm_draw_how { ADAPM_DISTINCT = 1, ADAPM_LOCAL = 2 };
/* Draws keys[from .. to), by the table's distribution.  DISTINCT: none that is in keys[0 .. to) already.  LOCAL: of rows that are here, as far as those are
 * found by 32 draws per key; the others of all rows.  0, -ENOMEM, or -EDOM: DISTINCT, and fewer than `to` rows have a positive weight. */
int adapm_draw(const adapm_segment *s, uint32_t table, adapm_stream *stream, uint32_t how, int64_t *keys, int64_t from, int64_t to);
void adapm_shuffle(adapm_stream *stream, int64_t *keys, int64_t n);

/* ---- ops.c: minibatches on plain arrays.  Indices are checked already; rows are dense unless said otherwise */
/* The distinct keys in rising order, and each key's place among them; room for n in both.  Their number, or -ENOMEM. */
int64_t adapm_unique(const int64_t *keys, int64_t n, int64_t *distinct, int64_t *inverse);
void adapm_gather(const float *rows, uint32_t len, const int64_t *index, int64_t n, float *out);           /* out[i] = rows[index[i]] */
void adapm_scatter_add(float *rows, uint32_t len, const int64_t *index, int64_t n, const float *vals);     /* rows[index[i]] += vals[i] */
/* rows and out: [nrows, 2 * len], a row's values and its sums of squares; grads: [n, len], of the rows at inverse[n]. */
void adapm_adagrad(const float *rows, int64_t nrows, uint32_t len, const int64_t *inverse, int64_t n, const float *grads, float lr, float eps, float *out);
/* rows and out: [nrows, len + 1], a row's values and its sum of mean squares. */
void adapm_rowwise_adagrad(const float *rows, int64_t nrows, uint32_t len, const int64_t *inverse, int64_t n, const float *grads, float lr, float eps, float *out);
/* rows and out: [nrows, 3 * len], a row's values and its two moments. */
typedef struct {
    float lr;           /* with the correction of both moments' bias */
    float gain1, gain2; /* 1 - beta, of each moment */
    float bound;        /* of moment 1 squared / moment 2 */
    float eps;
} adapm_adam_step;
void adapm_adam(const float *rows, int64_t nrows, uint32_t len, const int64_t *inverse, int64_t n, const float *grads, const adapm_adam_step *step, float *out);
void adapm_sgd(int64_t nrows, uint32_t len, const int64_t *inverse, int64_t n, const float *grads, float lr, float *out); /* out: [nrows, len] */

/* ---- lane.c: the node's half.  A lane is a value: it is handed events and returns frames; it does no I/O but writing workers' eventfds. */
typedef struct {
    uint32_t lane;
    uint32_t tick_keys;   /* keys of intents handled in one tick, at most */
    uint32_t round_bytes; /* bytes of rows in one round or reply, about */
    uint64_t reserve_bytes; /* memory that growing arenas leave free */
    int64_t (*available)(void); /* how much there is: asked once per 4 MiB of growth */
    double timer_start, timer_decay, timer_quantile; /* e0, a, p of the action timer */
    double pace_frame, pace_row, pace_float; /* ticks by which each exchange with a peer for a refresh, each row in it, and each float of that, put off the next refresh; 0: none */
    double sight; /* ticks: how far an intent may be from its start to count for interest in its rows; 0: only active ones do */
    double pace_most;            /* ticks after which a refresh comes whatever the last ones cost */
    double tick_us;              /* what statistics take a tick for */
} adapm_lane_config;
adapm_lane *adapm_lane_new(adapm_segment *s, int fd, const adapm_lane_config *config, const int *worker_fds, int *err);
void adapm_lane_free(adapm_lane *l);
int64_t adapm_lane_populate(adapm_lane *l, uint32_t table); /* takes the rows whose home is here; their number */
int adapm_lane_fill(adapm_lane *l, uint32_t table, uint32_t column, uint32_t col_off, uint32_t col_len, uint32_t kind, double a, double b, const float *array);
/* Wants these rows for good, at all nodes alike, before any frame is received: how many of them are asked for and come before EVENT_COPIED, or -ENOMEM. */
int64_t adapm_lane_keep(adapm_lane *l, uint32_t table, const int64_t *rows, int64_t n);
int adapm_lane_serve(adapm_lane *l);                    /* drains requests; 1: some wait for a locked row, call again at the next tick */
int adapm_lane_tick(adapm_lane *l, double elapsed);     /* elapsed: ticks since the last one, >= 1 unless early; ticks until the next is due, 0: there is nothing to do */
int adapm_lane_urgent(adapm_lane *l);                   /* 1: somebody waits for what only the next tick can do */
int adapm_lane_rest(adapm_lane *l);                     /* 1: nothing to do, the lane is armed to be kicked; 0: tick again */
void adapm_lane_kicked(adapm_lane *l);                  /* the eventfd fired */
int64_t adapm_lane_receive(adapm_lane *l, uint32_t peer, const uint8_t *frame, int64_t len, int64_t offset); /* bytes handled from offset on; less than all: retry later from there; -EPROTO */
/* The same, but less than all also when some 64 KiB of answers are to be taken: where that takes no detour, the first are on their way while the others are made. */
int64_t adapm_lane_receive_piece(adapm_lane *l, uint32_t peer, const uint8_t *frame, int64_t len, int64_t offset);
void adapm_lane_refusal(adapm_lane *l, char *why, uint32_t room); /* what was wrong with the frame that was last refused, and where */
int64_t adapm_lane_frame_limit(adapm_lane *l);          /* bytes of the longest frame that a lane makes of such tables */
adapm_buffer *adapm_lane_take(adapm_lane *l, uint32_t *peer); /* next frame to send, or NULL */
const uint8_t *adapm_buffer_data(const adapm_buffer *b);
int64_t adapm_buffer_len(const adapm_buffer *b);
void adapm_buffer_free(adapm_buffer *b);                /* from any thread */
enum adapm_event_kind {
    ADAPM_EVENT_NONE = 0,
    ADAPM_EVENT_BARRIER = 1,
    ADAPM_EVENT_FRESH = 2,
    ADAPM_EVENT_ARENA_FULL = 3,
    ADAPM_EVENT_COPIED = 4,
    ADAPM_EVENT_TRACE = 5
};
int adapm_lane_event(adapm_lane *l, uint32_t *worker, uint32_t *op); /* next enum adapm_event_kind for the node itself */
void adapm_lane_complete(adapm_lane *l, uint32_t worker, uint32_t op, int32_t status, uint64_t detail);
void adapm_lane_fresh(adapm_lane *l);                   /* bring every replica up to date, then EVENT_FRESH */
void adapm_lane_worker_gone(adapm_lane *l, uint32_t worker); /* finished or dead: unlocks, undoes, ends its intents */
void adapm_lane_peer_lost(adapm_lane *l, uint32_t peer);     /* every open operation ends with -ECONNRESET */
void adapm_lane_links(adapm_lane *l, uint64_t shm, uint64_t tcp, uint64_t rdma); /* for the statistics */
typedef struct {
    uint64_t ticks, rounds, replies, nudges;
    uint64_t bytes_out, bytes_in, frames_out, frames_in;
    uint64_t update_bytes, state_bytes, grant_bytes, access_bytes; /* of bytes_out: deltas and sets; copies; moved rows; pulls, pushes, sets and answers */
    uint64_t refused; /* frames that broke the protocol */
    uint64_t relocations_in, relocations_out, replicas_made, replicas_dropped;
    uint64_t deltas_out, deltas_in, states_out, states_in, wants_out, forwards;
    uint64_t refreshes, refresh_wait_us, refresh_wait_most_us; /* times that changed rows were sent on; how long the first of them had waited: sum, most */
    uint64_t pull_remote, push_remote, pull_served, push_served; /* keys: asked of others; served for others */
    uint64_t intents_started, intents_ended, intents_late, not_wanted_full;
    uint64_t accesses_late, accesses_no_room; /* keys of workers that met a row on its way here, and one that stays away for want of room */
    uint64_t rows_owned, rows_replica, rows_pending, parked;
    uint64_t drain_ns, calendar_ns, extract_ns, apply_ns, serve_ns, send_ns; /* where the node's time went; see profile.h */
    uint64_t cpu_ns; /* of its process, all threads */
    uint64_t links_shm, links_tcp, links_rdma; /* other nodes that lanes of this kind lead to */
} adapm_lane_stats;
void adapm_segment_statistics(adapm_segment *s, adapm_lane_stats *out); /* from any process attached to the segment */
typedef struct {
    uint32_t state; /* 0 absent 1 pending 2 replica 3 owned */
    uint32_t hint_owner; uint64_t hint_counter;
    uint32_t intents, foreseen, holders, stale, dirty, want; /* intents: 1 << 31 more if the row is here for good; want: 0 none 1 due 2 sent */
    uint32_t asked; /* nodes that have asked an owner for it and wait for its next tick; they follow the holders */
} adapm_row_view;
int adapm_lane_inspect(adapm_lane *l, uint32_t table, uint64_t row, adapm_row_view *out, float *value, float *base, uint32_t *holders, uint32_t max_holders);
typedef struct {
    uint64_t serial; /* no two operations of a lane share it */
    uint32_t worker, kind, table; /* kind: enum adapm_op; table: of pull, push and set */
    uint32_t answers;             /* sync and barrier: all rows have left, what counts per node is an answer that it owes */
} adapm_open_op;
/* The next open operation of a worker from *place on (0: the first), and how many rows of it each node has to answer for, ourselves included: those are on
 * their way here. 1, or 0: there is none left. For messages: takes time. */
int adapm_lane_next_open(adapm_lane *l, uint32_t *place, adapm_open_op *out, uint64_t *of_node);
int adapm_lane_validate(adapm_lane *l, char *why, uint32_t room); /* 0, or -EILSEQ and why */
/* ---- trace.c: what happens to some keys, for people; see adapm/tracing.py */
enum adapm_trace_kind {
    ADAPM_TRACE_LOST = 1,     /* so many (clock) events since those before this one found the ring full */
    ADAPM_TRACE_CLOCK = 2,    /* a worker was at this clock */
    ADAPM_TRACE_SIGNAL = 3,   /* the node heard of a worker's intent for [clock, end) */
    ADAPM_TRACE_WANTED = 4,   /* active intents of this node: from none to one */
    ADAPM_TRACE_UNWANTED = 5, /* and back */
    ADAPM_TRACE_OWNED = 6,    /* the main copy came from peer; a replica that was here has become it */
    ADAPM_TRACE_GIVEN = 7,    /* the main copy left for peer */
    ADAPM_TRACE_REPLICA = 8,  /* a replica of peer's main copy came */
    ADAPM_TRACE_DROPPED = 9,  /* and was dropped */
    ADAPM_TRACE_SERVED = 10,  /* an access of a worker of peer was served here */
    ADAPM_TRACE_PULL = 11,    /* an access of a worker here, at clock, that is not local: peer was asked, ourselves if the row is on its way */
    ADAPM_TRACE_PUSH = 12,
    ADAPM_TRACE_SET = 13
};
enum adapm_trace_reason { ADAPM_TRACE_NO_INTENT = 1, ADAPM_TRACE_LATE = 2, ADAPM_TRACE_NO_ROOM = 3 }; /* of the last three */
typedef struct {
    uint64_t time; /* ns of CLOCK_MONOTONIC */
    int64_t clock, end;
    uint32_t table, row;
    uint16_t peer, worker; /* worker: its slot */
    uint8_t kind, reason, unused[2];
} adapm_trace_event;
/* Begins to trace keys of each table whose hash is below below[table] (of 2^32), and n chosen ones, table << 32 | row. A ring keeps `room` events, a power of two;
 * EVENT_TRACE says that some are to be taken. Once, before anything happens. 0 or -ENOMEM */
int adapm_lane_trace(adapm_lane *l, uint32_t room, const uint64_t *below, const uint64_t *chosen, uint32_t n);
uint32_t adapm_lane_trace_take(adapm_lane *l, adapm_trace_event *out, uint32_t room); /* the oldest, and their number; 0: there are none, or there is no trace */
uint64_t adapm_timer_window(double used, double quantile);        /* W of DESIGN: Q_p(Poisson(2 * used)) */
uint32_t adapm_home_of(uint32_t table, uint64_t row, uint32_t nnodes);
/* ---- bench.c: limits to compare with. rows are dense [.., len]; slots are not checked; rows are fetched `ahead` keys before their use. */
void adapm_bench_gather(const float *rows, uint32_t len, const int64_t *slots, int64_t n, uint32_t ahead, float *out);
void adapm_bench_scatter_add(float *rows, uint32_t len, const int64_t *slots, int64_t n, uint32_t ahead, const float *vals);
/* cffi end */
#endif
