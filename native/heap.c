#include "heap.h"

#include <string.h>

void heap_open(struct heap *h, uint64_t off, uint64_t len) {
    h->n = 1;
    h->free[0] = (struct heap_part){off, len};
}

static void remove_part(struct heap *h, uint32_t i) {
    h->n--;
    memmove(&h->free[i], &h->free[i + 1], (h->n - i) * sizeof h->free[0]);
}

static void insert_part(struct heap *h, uint32_t i, struct heap_part part) {
    memmove(&h->free[i + 1], &h->free[i], (h->n - i) * sizeof h->free[0]);
    h->free[i] = part;
    h->n++;
}

uint64_t heap_take(struct heap *h, uint64_t len) {
    uint32_t i = 0;
    while (i < h->n && h->free[i].len < len) i++;
    if (i == h->n) return HEAP_FULL;
    uint64_t off = h->free[i].off;
    h->free[i].off += len;
    h->free[i].len -= len;
    if (!h->free[i].len) remove_part(h, i);
    return off;
}

void heap_give(struct heap *h, uint64_t off, uint64_t len) {
    uint32_t i = 0;
    while (i < h->n && h->free[i].off < off) i++;
    insert_part(h, i, (struct heap_part){off, len});
    if (i + 1 < h->n && off + len == h->free[i + 1].off) {
        h->free[i].len += h->free[i + 1].len;
        remove_part(h, i + 1);
    }
    if (i > 0 && h->free[i - 1].off + h->free[i - 1].len == off) {
        h->free[i - 1].len += h->free[i].len;
        remove_part(h, i);
    }
}
