/* A process's view of the segment: where it is mapped, and how to get from offsets to pointers. */
#ifndef ADAPM_SEGMENT_H
#define ADAPM_SEGMENT_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "entry.h"
#include "layout.h"

struct adapm_segment {
    uint8_t *base;
    uint64_t size;
};

/* Backs [off, off + len) of the file with memory, so that touching it can not end in SIGBUS.  0, or -ENOSPC, -ENOMEM, ... */
int adapm_reserve(int fd, uint64_t off, uint64_t len);

static inline void *adapm_at(const adapm_segment *s, uint64_t off) { return s->base + off; }

static inline struct adapm_header *adapm_seg_header(const adapm_segment *s) { return adapm_at(s, 0); }

static inline struct adapm_table *adapm_seg_table(const adapm_segment *s, uint32_t table) {
    return (struct adapm_table *)adapm_at(s, adapm_seg_header(s)->off_tables) + table;
}

static inline struct adapm_lane_shared *adapm_seg_lane(const adapm_segment *s, uint32_t lane) {
    return (struct adapm_lane_shared *)adapm_at(s, adapm_seg_header(s)->off_lanes) + lane;
}

static inline struct adapm_worker_shared *adapm_seg_worker(const adapm_segment *s, uint32_t worker) {
    return (struct adapm_worker_shared *)adapm_at(s, adapm_seg_header(s)->off_workers) + worker;
}

/* The entries of a table, to be indexed with adapm_position. */
static inline adapm_entry *adapm_seg_entries(const adapm_segment *s, uint32_t table) {
    return adapm_at(s, adapm_seg_table(s, table)->off_entries);
}

static inline adapm_entry *adapm_seg_entry(const adapm_segment *s, uint32_t table, uint64_t row) {
    return adapm_seg_entries(s, table) + adapm_position(adapm_seg_table(s, table), row);
}

static inline float *adapm_seg_row(const adapm_segment *s, uint32_t table, uint32_t slot) {
    const struct adapm_table *t = adapm_seg_table(s, table);
    return (float *)adapm_at(s, t->off_arena) + (uint64_t)slot * t->stride;
}

/* The cells of a table with weights, one for each row. */
static inline struct adapm_cell *adapm_seg_cells(const adapm_segment *s, uint32_t table) {
    return adapm_at(s, adapm_seg_table(s, table)->off_cells);
}

/* The data of a ring: bytes, or records to be indexed with position & mask. */
static inline void *adapm_seg_ring(const adapm_segment *s, const struct adapm_ring *ring) { return adapm_at(s, ring->off); }

/* 0 while the node lives, then the negative errno it gave up with.  Pairs with the release in adapm_segment_fail. */
static inline int adapm_seg_failed(const adapm_segment *s) {
    return (int)atomic_load_explicit(&adapm_seg_header(s)->failed, memory_order_acquire);
}

#endif
