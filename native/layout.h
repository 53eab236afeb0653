/* The shared segment, specified.  This file is the contract between a node and its workers: they meet nowhere else.
 *
 *   +--------+--------+--------+---------+-------------------+-----------------+-----------------+
 *   | header | tables | lanes  | workers | rings and heaps   | entries (and    | arena, table    |
 *   |        | [T]    | [L]    | [W]     | of each worker    | cells), 0 .. T-1| 0 .. T-1        |
 *   +--------+--------+--------+---------+-------------------+-----------------+-----------------+
 *
 * Everything is an offset from the segment's first byte, never a pointer.  All parts start on a 4096-byte boundary; the
 * first entries and the first arena, where there is enough of them, at a huge page (2 MiB).
 * The file behind the mapping is sparse; whatever is about to be touched has been reserved with fallocate before, so that
 * a full machine ends in an error and never in SIGBUS.
 *
 * Notation for each shared field:  [writer -> readers, order].  "W" is the worker that owns the block, "N" the node.
 */
#ifndef ADAPM_LAYOUT_H
#define ADAPM_LAYOUT_H

#include <stdatomic.h>
#include <stdint.h>

#include "kernel.h"

#define ADAPM_MAGIC 0x314d504144414dULL /* "MADAPM1" */
#define ADAPM_LAYOUT_VERSION 4u
#define ADAPM_LINE 64
#define ADAPM_MAX_NODES 4000
#define ADAPM_PAGE 4096

/* ---- entry word: one per global row --------------------------------------------------------------------------------
 *
 *    63            32   31    30    29     28     27   26                 0
 *   +----------------+------+------+------+-------+-------+--------------------+
 *   |      slot      | LOCK | READ | WRITE| TRACK | DIRTY | seq                |
 *   +----------------+------+------+------+-------+-------+--------------------+
 *
 * absent   neither READ nor WRITE (a fresh, zero word is an absent row); the node keeps a hint in place of the slot
 * owned    READ|WRITE, with holders elsewhere also TRACK        replica   READ|WRITE|TRACK
 * pending  WRITE|TRACK: pushes accumulate in the slot, nobody reads it
 *
 * Any change of a row's bytes or of its state happens under LOCK or by one release-store, and increments seq; so a reader
 * that finds the same word before and after its copy has an untorn row of the right key.  seq survives absence.
 * While locked, seq holds the locker's id + 1 instead (the old word is in the locker's hold record).
 */
#define ADAPM_LOCK 0x80000000ULL
#define ADAPM_READ 0x40000000ULL
#define ADAPM_WRITE 0x20000000ULL
#define ADAPM_TRACK 0x10000000ULL
#define ADAPM_DIRTY 0x08000000ULL
#define ADAPM_SEQ 0x07ffffffULL
#define ADAPM_SLOT_SHIFT 32
#define ADAPM_LOCKER_LANE 0x04000000u /* lane l locks as ADAPM_LOCKER_LANE + l, worker slot w as w */

struct adapm_header {
    uint64_t magic;   /* [N -> W, plain: written before any worker can attach, never changed; so are all plain fields] */
    uint32_t version; /* ADAPM_LAYOUT_VERSION */
    uint32_t node, nnodes;
    uint32_t ntables, nlanes, nworkers;
    uint64_t size; /* bytes of the whole segment */
    uint64_t seed;
    uint64_t off_tables, off_lanes, off_workers;
    adapm_technique technique;
    _Alignas(ADAPM_LINE) _Atomic uint32_t failed; /* [N -> W, release/acquire] non-zero: the node gives up (negative errno); waits end */
};

struct adapm_table {
    uint64_t rows;
    uint32_t row_len;       /* floats in a row, all columns */
    uint32_t stride;        /* floats between rows: row_len rounded up to a 64-byte line */
    uint64_t eighth;        /* ceil(rows / 8), for adapm_position */
    uint64_t capacity;      /* slots in the arena */
    uint64_t off_entries;   /* _Atomic uint64_t[8 * eighth] */
    uint64_t off_arena;     /* float[capacity * stride] */
    uint64_t off_cells;     /* struct adapm_cell[rows], of a table with weights; 0: none */
    uint64_t distribution;  /* enum adapm_distribution of kernel.h: how samples are drawn */
    uint64_t off_stamps;    /* adapm_stamp[capacity], where copies may get too old; 0: none */
};

/* One cell of an alias table [N -> W, plain: written before any worker can attach].  A draw picks a cell and a number below 2^32: if that is below own, the
 * cell's own row comes, else the other. */
struct adapm_cell {
    uint32_t own, other;
};

/* By slot: the moment in which the row's value, as it is, was asked for; UINT64_MAX: it is the main copy [N -> W, relaxed, written under the row's lock:
 * who finds the same slot in the entry before and behind its load has this row's stamp, and then reads a value that is as young or younger]. */
typedef _Atomic uint64_t adapm_stamp;

/* How a sleeping node is woken.  A producer publishes its record, then fences (seq_cst), then looks at asleep; the node
 * sets asleep, fences (seq_cst), then looks at the rings once more (adapm_lane_rest).  One of the two sees the other. */
struct adapm_lane_shared {
    _Alignas(ADAPM_LINE) _Atomic uint32_t asleep; /* [N -> W] 1: no tick is scheduled; whoever adds work kicks */
    _Atomic uint32_t kicked;                      /* [W sets by exchange, N clears] 1: the eventfd was written and not yet read */
    _Atomic uint64_t moment; /* [N -> W, release/acquire] ticks so far: what is asked for after W has read it gets a larger stamp */
    _Alignas(ADAPM_LINE) adapm_lane_stats stats;  /* [N -> anyone, plain: figures for people, may be read a little torn] */
};

/* SPSC ring of bytes or of fixed records.  head and tail only grow; index = position & mask.
 * [producer writes head with release; it pairs with the consumer's acquire load, and the reverse for tail]. */
struct adapm_ring {
    uint64_t off;  /* of the data */
    uint64_t mask; /* capacity - 1, in units of one record (bytes for the intent ring) */
    _Alignas(ADAPM_LINE) _Atomic uint64_t head;
    _Alignas(ADAPM_LINE) _Atomic uint64_t tail;
};

enum adapm_worker_state { ADAPM_FREE = 0, ADAPM_RUNNING = 1, ADAPM_FINISHED = 2 };

struct adapm_counters { /* [W -> anyone, relaxed: written by their worker only; a reader may see them a little late] */
    _Atomic uint64_t pull_keys, pull_local; /* keys asked for; keys answered from this segment by the kernel itself */
    _Atomic uint64_t push_keys, push_local;
    _Atomic uint64_t set_keys;
    _Atomic uint64_t intent_keys;
    _Atomic uint64_t waits;   /* times a full ring or heap made the worker wait */
    _Atomic uint64_t retries; /* pulls of a row repeated because it changed meanwhile */
    _Atomic uint64_t room_ns, pull_ns, push_ns, set_ns, sync_ns, barrier_ns; /* waited for: room in rings and heap, then by enum adapm_op */
};

/* Rings between one worker and one lane. */
struct adapm_mailbox {
    struct adapm_ring intent;   /* [W -> N] bytes; records are struct adapm_intent_record + keys, never wrap (see there) */
    struct adapm_ring dirty;    /* [W -> N] uint64_t: table << 32 | row.  Appended under the row's lock when DIRTY gets set */
    struct adapm_ring request;  /* [W -> N] struct adapm_request */
    struct adapm_ring done;     /* [N -> W] struct adapm_completion; cannot overflow: W has at most mask + 1 requests open */
};

/* How many rows of this stride are locked, saved, changed and unlocked together: their locks are then taken while nothing but
 * the hold is under way to memory, and what is saved stays in the first level cache. */
#define ADAPM_HELD 32u
#define ADAPM_HELD_FLOATS 2048u
static inline uint32_t adapm_held_together(uint32_t stride) {
    uint32_t rows = ADAPM_HELD;
    while (rows > 1 && rows * (uint64_t)stride > ADAPM_HELD_FLOATS) rows /= 2;
    return rows;
}

/* A row that is held, and its entry word before it was locked. */
struct adapm_held {
    uint64_t row, old;
};

struct adapm_worker_shared {
    /* written by the worker */
    _Alignas(ADAPM_LINE) _Atomic int64_t clock; /* [W -> N, release/acquire] */
    _Atomic uint32_t state;                     /* enum adapm_worker_state [N; W only FREE -> RUNNING at attach] */
    _Atomic uint32_t waiting;                   /* [W -> N] 1: W is about to sleep on its eventfd; N writes it after posting */
    _Atomic uint64_t oldest; /* [W -> N, relaxed: a pull's request comes behind it] copies with stamps up to this one are too old for this clock; 0: none is */
    /* written by the node */
    _Alignas(ADAPM_LINE) _Atomic int64_t wake_clock; /* [N -> W] advance_clock that reaches it kicks; INT64_MAX: never */
    /* the hold: which rows this worker is changing.  Written before their locks are taken, so that the node can undo what a dead
     * worker has half written.  Read by N only after the worker's death. */
    _Alignas(ADAPM_LINE) uint64_t hold_table;
    uint64_t hold_rows;  /* so many of held[] are valid */
    uint64_t hold_saved; /* the first so many of them have been saved to undo[], row after row with the table's stride */
    uint64_t off_undo;   /* float[ADAPM_HELD_FLOATS], or of the largest stride if that is more */
    uint64_t off_heap, heap_bytes; /* buffers of requests: allocated by W, filled and read by both */
    _Alignas(ADAPM_LINE) struct adapm_held held[ADAPM_HELD];
    _Alignas(ADAPM_LINE) struct adapm_counters counters;
    struct adapm_mailbox mailbox; /* of lane 0; more lanes will make it an array behind the workers */
};

/* A record in the intent ring: 32 bytes, then keys padded to a multiple of 8 bytes.  A record never wraps: when it does not fit before the end
 * of the ring, a record with table = ADAPM_SKIP fills the rest (the ring's size is a multiple of 8; a rest of 8..24 bytes is skipped by its first u32). */
#define ADAPM_SKIP 0xffffffffu
struct adapm_intent_record {
    uint32_t table, n;
    int64_t start, end; /* [start, end) */
    uint64_t pad;
};

/* A request: keys and rows are in the worker's heap, at off: uint32_t keys[n] padded to 64 bytes, then float rows[n * col_len].
 * The node writes the rows of a pull straight there, in any order, and reads the rows of push and set from there. */
struct adapm_request {
    uint32_t op; /* the worker's name for it, < 1024, unique among its open ones */
    uint32_t kind; /* enum adapm_op of kernel.h */
    uint32_t table, n;
    uint32_t col_off, col_len; /* floats */
    uint64_t off;
};

struct adapm_completion {
    uint32_t op;
    int32_t status;  /* 0 or a negative errno: -ECONNRESET a node was lost */
    uint64_t detail; /* for -ECONNRESET: the lost node's id */
};

#define ADAPM_INTENT_RING (1u << 20) /* bytes */
#define ADAPM_DIRTY_RING (1u << 16)  /* records */
#define ADAPM_OPS 1024u              /* records in the request and done rings, and open requests of a worker */

/* Where a row's entry is. Neighbouring (often hot) rows must not share a cache line. */
static inline uint64_t adapm_spread(uint64_t eighth, uint64_t row) { return (row & 7) * eighth + (row >> 3); }
static inline uint64_t adapm_position(const struct adapm_table *t, uint64_t row) { return adapm_spread(t->eighth, row); }

/* Home and lane use independent bits of one hash, or one lane would carry all of a node's homes. */
static inline uint64_t adapm_hash(uint32_t table, uint64_t row) {
    uint64_t x = row + 0x9e3779b97f4a7c15ULL * (table + 1ULL);
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
    return x ^ (x >> 31);
}
static inline uint32_t adapm_home(uint32_t table, uint64_t row, uint32_t nnodes) {
    return (uint32_t)(((adapm_hash(table, row) >> 32) * nnodes) >> 32);
}

#endif
