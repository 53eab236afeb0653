/* Slots of equal size in one long mapping: allocated and freed by the node alone, reserved before they are touched. */
#ifndef ADAPM_ARENA_H
#define ADAPM_ARENA_H

#include <stdint.h>

/* Growing must not drive the machine, or the container, out of memory. */
struct pool_limit {
    int64_t (*available)(void); /* bytes that may be taken now */
    uint64_t keep;              /* of these, left to others */
};

struct pool {
    uint8_t *base;
    uint64_t slot_bytes;
    uint64_t capacity, next, reserved; /* slots: in all; handed out at least once; backed by memory */
    uint32_t *free;                    /* stack of freed slots */
    uint64_t nfree;
    int fd;           /* of the segment whose pages are reserved, or -1: private memory */
    uint64_t file_at; /* base's place in that file */
    struct pool_limit limit;
    uint32_t refusals; /* times in a row that memory was short: it is asked for again now and then only */
};

#define POOL_NONE 0xffffffffu

int pool_open(struct pool *p, uint8_t *base, uint64_t slot_bytes, uint64_t capacity, int fd, uint64_t file_at, struct pool_limit limit); /* base NULL: maps its own */
void pool_close(struct pool *p);
uint32_t pool_take(struct pool *p); /* POOL_NONE: full, or the machine has no more memory to give */
void pool_give(struct pool *p, uint32_t slot);

static inline uint8_t *pool_at(const struct pool *p, uint32_t slot) { return p->base + (uint64_t)slot * p->slot_bytes; }
static inline uint64_t pool_used(const struct pool *p) { return p->next - p->nfree; }

/* The slot that is taken after some others, if that many are free; POOL_NONE: not known. */
#define POOL_SOON 8
static inline uint32_t pool_soon(const struct pool *p) { return p->nfree > POOL_SOON ? p->free[p->nfree - 1 - POOL_SOON] : POOL_NONE; }

void *lazy_map(uint64_t bytes); /* zeroed private memory that costs only what is touched, or NULL */
void lazy_unmap(void *p, uint64_t bytes);

#endif
