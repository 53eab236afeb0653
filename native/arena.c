#define _GNU_SOURCE
#include "arena.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>

#define GROW_BYTES (4u << 20)
#define ASK_AGAIN 1024 /* requests */

void *lazy_map(uint64_t bytes) {
    void *p = mmap(NULL, bytes ? bytes : 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

void lazy_unmap(void *p, uint64_t bytes) {
    if (p) munmap(p, bytes ? bytes : 1);
}

/* Backs more slots with memory, if the machine can spare it: an arena that would end in SIGBUS, or in another process being
 * killed, is full instead. */
static int grow(struct pool *p) {
    uint64_t left = p->capacity - p->reserved;
    uint64_t slots = GROW_BYTES / p->slot_bytes + 1;
    if (slots > left) slots = left;
    if (!slots) return -ENOSPC;
    uint64_t bytes = slots * p->slot_bytes;
    if (p->limit.available() < (int64_t)(bytes + p->limit.keep)) return -ENOMEM;
    if (p->fd >= 0 && fallocate(p->fd, 0, (off_t)(p->file_at + p->reserved * p->slot_bytes), (off_t)bytes)) return -errno;
    p->reserved += slots;
    return 0;
}

int pool_open(struct pool *p, uint8_t *base, uint64_t slot_bytes, uint64_t capacity, int fd, uint64_t file_at, struct pool_limit limit) {
    *p = (struct pool){.base = base, .slot_bytes = slot_bytes, .capacity = capacity, .fd = fd, .file_at = file_at, .limit = limit};
    if (!base) p->base = lazy_map(capacity * slot_bytes);
    p->free = lazy_map(capacity * sizeof *p->free);
    return p->base && p->free ? 0 : -ENOMEM;
}

void pool_close(struct pool *p) {
    if (p->fd < 0) lazy_unmap(p->base, p->capacity * p->slot_bytes);
    lazy_unmap(p->free, p->capacity * sizeof *p->free);
}

uint32_t pool_take(struct pool *p) {
    if (p->nfree > POOL_SOON) __builtin_prefetch(pool_at(p, pool_soon(p)), 1);
    if (p->nfree) return p->free[--p->nfree];
    if (p->next == p->reserved) {
        if (p->refusals++ % ASK_AGAIN || grow(p)) return POOL_NONE;
        p->refusals = 0;
    }
    return (uint32_t)p->next++;
}

void pool_give(struct pool *p, uint32_t slot) { p->free[p->nfree++] = slot; }
