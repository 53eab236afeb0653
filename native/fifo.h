/* A growing FIFO of fixed-size items, private to the node. Items are taken from the front; what is put back goes to the end. */
#ifndef ADAPM_FIFO_H
#define ADAPM_FIFO_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

struct fifo {
    uint8_t *items;
    uint64_t head, tail, cap; /* in items; head <= tail <= cap */
};

static inline uint64_t fifo_len(const struct fifo *f) { return f->tail - f->head; }

/* Room for one more item of size bytes; memory is taken in doubling steps and given back with the lane. */
static inline void *fifo_push_raw(struct fifo *f, uint64_t size) {
    if (f->tail == f->cap) {
        uint64_t n = fifo_len(f);
        if (f->head >= f->cap / 2 && f->cap) {
            memmove(f->items, f->items + f->head * size, n * size);
        } else {
            f->cap = f->cap ? f->cap * 2 : 8;
            uint8_t *grown = malloc(f->cap * size);
            if (!grown) abort(); /* a queue of a few bytes per row: the machine is beyond saving */
            if (n) memcpy(grown, f->items + f->head * size, n * size);
            free(f->items);
            f->items = grown;
        }
        f->head = 0;
        f->tail = n;
    }
    return f->items + f->tail++ * size;
}
static inline void *fifo_pop_raw(struct fifo *f, uint64_t size) {
    void *item = f->items + f->head++ * size;
    if (f->head == f->tail) f->head = f->tail = 0; /* the item stays readable until the next push */
    return item;
}
static inline void fifo_free(struct fifo *f) {
    free(f->items);
    memset(f, 0, sizeof *f);
}

#define FIFO_PUSH(f, type) ((type *)fifo_push_raw((f), sizeof(type)))
#define FIFO_POP(f, type) (*(type *)fifo_pop_raw((f), sizeof(type)))
#define FIFO_AT(f, type, i) (((type *)(f)->items)[(f)->head + (i)])

#endif
