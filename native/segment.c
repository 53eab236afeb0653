/* The segment as a whole: its size, its first contents, and who may map it. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "segment.h"

#define MAX_ROWS 0xfffffffeULL /* a row fits in the low half of a dirty ring's record, and one value stays free */
#define MAX_TABLES 65536u
#define HUGE_PAGE (2ULL << 20)
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25 /* Linux 6.1 and newer */
#endif

/* ---- laying out */

/* Hands out page-aligned parts one behind the other. */
struct cursor {
    uint64_t end;
    bool overflow;
};

static uint64_t place(struct cursor *c, uint64_t count, uint64_t size) {
    uint64_t off = c->end, bytes, padded;
    c->overflow |= __builtin_mul_overflow(count, size, &bytes);
    c->overflow |= __builtin_add_overflow(bytes, (uint64_t)ADAPM_PAGE - 1, &padded);
    c->overflow |= __builtin_add_overflow(off, padded & ~((uint64_t)ADAPM_PAGE - 1), &c->end);
    c->overflow |= c->end > INT64_MAX;
    return off;
}

/* The parts that follow take so many bytes in all. If that fills a huge page, they begin at one. */
static void begin_region(struct cursor *c, uint64_t bytes) {
    if (bytes >= HUGE_PAGE) c->overflow |= __builtin_add_overflow(c->end, -c->end & (HUGE_PAGE - 1), &c->end);
}

static uint32_t stride_of(uint32_t row_len) {
    const uint32_t line = ADAPM_LINE / sizeof(float);
    return (row_len + line - 1) / line * line;
}

static uint32_t largest_stride(const adapm_spec *spec) {
    uint32_t largest = 0;
    for (uint32_t t = 0; t < spec->ntables; t++)
        if (stride_of(spec->row_len[t]) > largest) largest = stride_of(spec->row_len[t]);
    return largest;
}

/* A request takes a quarter of the heap at most and one row at least; one row of the widest table must fit twice. */
/* Room to save the rows of any hold. */
static uint64_t undo_floats(const adapm_spec *spec) {
    uint64_t most = largest_stride(spec);
    return most > ADAPM_HELD_FLOATS ? most : ADAPM_HELD_FLOATS;
}

static uint64_t heap_size(const adapm_spec *spec) {
    uint64_t least = 8 * (ADAPM_LINE + sizeof(float) * (uint64_t)largest_stride(spec));
    uint64_t bytes = spec->heap_bytes > least ? spec->heap_bytes : least;
    return bytes & ~((uint64_t)ADAPM_LINE - 1);
}

static struct adapm_ring place_ring(struct cursor *c, uint64_t capacity, uint64_t size) {
    return (struct adapm_ring){.off = place(c, capacity, size), .mask = capacity - 1};
}

static void place_worker(struct cursor *c, const adapm_spec *spec, struct adapm_worker_shared *w) {
    w->mailbox.intent = place_ring(c, ADAPM_INTENT_RING, 1);
    w->mailbox.dirty = place_ring(c, ADAPM_DIRTY_RING, sizeof(uint64_t));
    w->mailbox.request = place_ring(c, ADAPM_OPS, sizeof(struct adapm_request));
    w->mailbox.done = place_ring(c, ADAPM_OPS, sizeof(struct adapm_completion));
    w->off_undo = place(c, undo_floats(spec), sizeof(float));
    w->heap_bytes = heap_size(spec);
    w->off_heap = place(c, w->heap_bytes, 1);
    atomic_init(&w->wake_clock, INT64_MAX);
}

static void place_entries(struct cursor *c, const adapm_spec *spec, uint32_t i, struct adapm_table *t) {
    t->rows = spec->rows[i];
    t->row_len = spec->row_len[i];
    t->stride = stride_of(spec->row_len[i]);
    t->eighth = (spec->rows[i] + 7) / 8;
    t->capacity = spec->capacity[i];
    t->off_entries = place(c, 8 * t->eighth, sizeof(adapm_entry));
    t->distribution = spec->distribution ? spec->distribution[i] : ADAPM_UNIFORM;
    t->off_stamps = spec->technique.ages ? place(c, t->capacity, sizeof(adapm_stamp)) : 0;
    t->off_cells = t->distribution == ADAPM_WEIGHTED ? place(c, t->rows, sizeof(struct adapm_cell)) : 0;
}

static void place_arena(struct cursor *c, const adapm_spec *spec, uint32_t i, struct adapm_table *t) {
    t->off_arena = place(c, spec->capacity[i], stride_of(spec->row_len[i]) * sizeof(float));
}

/* What one part of every table takes together. */
static uint64_t region_bytes(const adapm_spec *spec, void (*part)(struct cursor *, const adapm_spec *, uint32_t, struct adapm_table *)) {
    struct cursor c = {0, false};
    struct adapm_table table;
    for (uint32_t t = 0; t < spec->ntables; t++) part(&c, spec, t, &table);
    return c.end;
}

static void place_header(struct cursor *c, const adapm_spec *spec, struct adapm_header *h) {
    place(c, 1, sizeof *h);
    h->version = ADAPM_LAYOUT_VERSION;
    h->node = spec->node;
    h->nnodes = spec->nnodes;
    h->ntables = spec->ntables;
    h->nlanes = spec->nlanes;
    h->nworkers = spec->nworkers;
    h->seed = spec->seed;
    h->technique = spec->technique;
    h->off_tables = place(c, spec->ntables, sizeof(struct adapm_table));
    h->off_lanes = place(c, spec->nlanes, sizeof(struct adapm_lane_shared));
    h->off_workers = place(c, spec->nworkers, sizeof(struct adapm_worker_shared));
}

/* Lays everything out, writing into the segment at base when there is one.  The bytes that must be reserved go to
 * *reserved: all but the arenas, which are last.  Returns the size or -EOVERFLOW. */
static int64_t lay_out(const adapm_spec *spec, uint8_t *base, uint64_t *reserved) {
    struct cursor c = {0, false};
    struct adapm_header header = {0};
    struct adapm_worker_shared worker = {0};
    place_header(&c, spec, &header);
    for (uint32_t w = 0; w < spec->nworkers; w++) {
        uint64_t off = header.off_workers + w * sizeof worker;
        place_worker(&c, spec, base ? (struct adapm_worker_shared *)(base + off) : &worker);
    }
    struct adapm_table *tables = base ? (struct adapm_table *)(base + header.off_tables) : NULL, table = {0};
    begin_region(&c, region_bytes(spec, place_entries));
    for (uint32_t t = 0; t < spec->ntables; t++) place_entries(&c, spec, t, tables ? &tables[t] : &table);
    *reserved = c.end;
    begin_region(&c, region_bytes(spec, place_arena));
    for (uint32_t t = 0; t < spec->ntables; t++) place_arena(&c, spec, t, tables ? &tables[t] : &table);
    if (c.overflow) return -EOVERFLOW;
    header.size = c.end;
    if (base) {
        header.magic = ADAPM_MAGIC;
        *(struct adapm_header *)base = header;
    }
    return (int64_t)c.end;
}

static bool spec_valid(const adapm_spec *spec) {
    if (spec->nlanes != 1 || spec->node >= spec->nnodes || spec->nnodes > ADAPM_MAX_NODES || spec->nworkers >= ADAPM_LOCKER_LANE) return false;
    if (spec->ntables == 0 || spec->ntables > MAX_TABLES) return false;
    for (uint32_t t = 0; t < spec->ntables; t++) {
        if (spec->rows[t] == 0 || spec->rows[t] > MAX_ROWS || spec->row_len[t] == 0 || spec->row_len[t] > INT32_MAX) return false;
        if (spec->capacity[t] == 0 || spec->capacity[t] > UINT32_MAX) return false;
        if (spec->distribution && spec->distribution[t] > ADAPM_WEIGHTED) return false;
    }
    return true;
}

int64_t adapm_segment_size(const adapm_spec *spec) {
    uint64_t reserved;
    return spec_valid(spec) ? lay_out(spec, NULL, &reserved) : -EINVAL;
}

/* ---- mapping */

int adapm_reserve(int fd, uint64_t off, uint64_t len) {
    int rc;
    do rc = fallocate(fd, 0, (off_t)off, (off_t)len) ? errno : 0;
    while (rc == EINTR);
    return -rc;
}

/* Where the segment can be mapped so that huge pages of the file are huge pages of the process. MAP_FAILED: nowhere. */
static uint8_t *find_place(uint64_t size) {
    uint8_t *wide = mmap(NULL, size + HUGE_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (wide == MAP_FAILED) return wide;
    uint64_t before = -(uintptr_t)wide & (HUGE_PAGE - 1);
    if (before) munmap(wide, before);
    if (before < HUGE_PAGE) munmap(wide + before + size, HUGE_PAGE - before);
    return wide + before;
}

static void *map_file(int fd, uint64_t size) {
    uint8_t *place = find_place(size);
    return place == MAP_FAILED ? place : mmap(place, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
}

static adapm_segment *map(int fd, uint64_t size, int *err) {
    adapm_segment *s = malloc(sizeof *s);
    void *base = s ? map_file(fd, size) : MAP_FAILED;
    if (base == MAP_FAILED) {
        *err = s ? -errno : -ENOMEM;
        free(s);
        return NULL;
    }
    *s = (adapm_segment){base, size};
    return s;
}

/* A new file takes its size and the memory for everything but the arenas; a file with contents is refused. */
static int prepare(int fd, uint64_t size, uint64_t reserved) {
    struct stat st;
    if (fstat(fd, &st)) return -errno;
    if (st.st_size) return -EEXIST;
    if (ftruncate(fd, (off_t)size)) return -errno;
    return adapm_reserve(fd, 0, reserved);
}

adapm_segment *adapm_segment_create(int fd, const adapm_spec *spec, int *err) {
    uint64_t reserved = 0;
    int64_t size = spec_valid(spec) ? lay_out(spec, NULL, &reserved) : -EINVAL;
    *err = size < 0 ? (int)size : prepare(fd, (uint64_t)size, reserved);
    adapm_segment *s = *err ? NULL : map(fd, (uint64_t)size, err);
    if (s) lay_out(spec, s->base, &reserved);
    return s;
}

/* ---- huge pages: of an access to a large table, a good part is finding small pages
 *
 * What fallocate has backed are small pages, but full ranges of them can be merged, and are huge for all processes then.  Ranges
 * with holes are left alone: merging them would take memory for the holes.  Where the system does not want it, nothing is lost. */

static void merge_range(const adapm_segment *s, uint64_t begin, uint64_t end) {
    begin += -begin & (HUGE_PAGE - 1);
    end &= ~(HUGE_PAGE - 1);
    if (begin < end) madvise(s->base + begin, end - begin, MADV_COLLAPSE);
}

/* Makes entries and rows that are there huge pages. */
static void merge_pages(const adapm_segment *s, int fd) {
    off_t begin = (off_t)adapm_seg_table(s, 0)->off_entries, end;
    for (; (begin = lseek(fd, begin, SEEK_DATA)) >= 0 && (end = lseek(fd, begin, SEEK_HOLE)) >= 0; begin = end)
        merge_range(s, (uint64_t)begin, (uint64_t)end);
}

/* ---- validating */

static bool inside(const adapm_segment *s, uint64_t off, uint64_t count, uint64_t size) {
    uint64_t bytes;
    return off % ADAPM_PAGE == 0 && off <= s->size && !__builtin_mul_overflow(count, size, &bytes) && bytes <= s->size - off;
}

static bool ring_valid(const adapm_segment *s, const struct adapm_ring *r, uint64_t capacity, uint64_t size) {
    return r->mask == capacity - 1 && inside(s, r->off, capacity, size);
}

static bool worker_valid(const adapm_segment *s, const struct adapm_worker_shared *w) {
    return ring_valid(s, &w->mailbox.intent, ADAPM_INTENT_RING, 1) && ring_valid(s, &w->mailbox.dirty, ADAPM_DIRTY_RING, sizeof(uint64_t)) &&
           ring_valid(s, &w->mailbox.request, ADAPM_OPS, sizeof(struct adapm_request)) &&
           ring_valid(s, &w->mailbox.done, ADAPM_OPS, sizeof(struct adapm_completion)) && inside(s, w->off_heap, w->heap_bytes, 1) &&
           inside(s, w->off_undo, ADAPM_HELD_FLOATS, sizeof(float));
}

static bool table_valid(const adapm_segment *s, const struct adapm_table *t) {
    return t->rows && t->rows <= MAX_ROWS && t->eighth == (t->rows + 7) / 8 && t->row_len <= t->stride &&
           inside(s, t->off_entries, 8 * t->eighth, sizeof(adapm_entry)) && inside(s, t->off_arena, t->capacity, (uint64_t)t->stride * sizeof(float)) &&
           (!t->off_stamps || inside(s, t->off_stamps, t->capacity, sizeof(adapm_stamp))) &&
           (t->distribution != ADAPM_WEIGHTED || inside(s, t->off_cells, t->rows, sizeof(struct adapm_cell)));
}

static bool segment_valid(const adapm_segment *s) {
    const struct adapm_header *h = adapm_seg_header(s);
    if (h->magic != ADAPM_MAGIC || h->version != ADAPM_LAYOUT_VERSION || h->size != s->size) return false;
    if (!inside(s, h->off_tables, h->ntables, sizeof(struct adapm_table)) || !inside(s, h->off_lanes, h->nlanes, sizeof(struct adapm_lane_shared)) ||
        !inside(s, h->off_workers, h->nworkers, sizeof(struct adapm_worker_shared)))
        return false;
    for (uint32_t t = 0; t < h->ntables; t++)
        if (!table_valid(s, adapm_seg_table(s, t))) return false;
    for (uint32_t w = 0; w < h->nworkers; w++)
        if (!worker_valid(s, adapm_seg_worker(s, w))) return false;
    return true;
}

adapm_segment *adapm_segment_attach(int fd, int *err) {
    struct stat st;
    *err = 0;
    if (fstat(fd, &st)) *err = -errno;
    else if (st.st_size < (off_t)sizeof(struct adapm_header)) *err = -EPROTO;
    adapm_segment *s = *err ? NULL : map(fd, (uint64_t)st.st_size, err);
    if (!s) return NULL;
    if (segment_valid(s)) {
        merge_pages(s, fd);
        return s;
    }
    adapm_segment_close(s);
    *err = -EPROTO;
    return NULL;
}

void adapm_segment_close(adapm_segment *s) {
    if (!s) return;
    munmap(s->base, s->size);
    free(s);
}

void adapm_segment_fail(adapm_segment *s, int err) {
    atomic_store_explicit(&adapm_seg_header(s)->failed, (uint32_t)err, memory_order_release);
}

void adapm_segment_statistics(adapm_segment *s, adapm_lane_stats *out) { *out = adapm_seg_lane(s, 0)->stats; }

uint32_t adapm_segment_row_len(const adapm_segment *s, uint32_t table) { return adapm_seg_table(s, table)->row_len; }
