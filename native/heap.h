/* Who has which part of a worker's heap.  The heap is shared, this book-keeping is private to the worker: the node only ever
 * sees offsets in requests.  Free parts are kept in order and joined with their neighbours; there is at most one more of them
 * than open requests, so the list has a fixed size and first fit is fast enough. */
#ifndef ADAPM_HEAP_H
#define ADAPM_HEAP_H

#include <stdint.h>

#include "layout.h"

struct heap_part {
    uint64_t off, len;
};

struct heap {
    uint32_t n;
    struct heap_part free[ADAPM_OPS + 1];
};

#define HEAP_FULL UINT64_MAX

void heap_open(struct heap *h, uint64_t off, uint64_t len);
uint64_t heap_take(struct heap *h, uint64_t len); /* offset, or HEAP_FULL */
void heap_give(struct heap *h, uint64_t off, uint64_t len);

#endif
