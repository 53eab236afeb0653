/* Messages between lanes. A frame is an 8-byte head (kind 1, lane, zeros) and whole messages; a message is a 32-byte head and n items of one size.
 * All numbers are little-endian, rows are raw float32; nothing in a message is aligned beyond 4 bytes.
 *
 *   round (holder -> owner):   DELTA* DROP* SET_ROW* WANT* ROUND_END       reply (owner -> holder):   STATE* GRANT* GRANT_CURRENT* REPLY_END
 *   outside of rounds:         FORWARDED_WANT, and its answer STATE or GRANT; PULL/ANSWER, PUSH/ACK, SET/ACK; MOVED (to the home); NUDGE */
#ifndef ADAPM_WIRE_H
#define ADAPM_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "fifo.h"
#include "kernel.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the wire format is written in place and needs a little-endian machine"
#endif

#define FRAME_HEAD 8
#define FRAME_KIND_LANE 1
#define FRAME_LIMIT (1 << 20) /* a frame that has grown beyond is closed */
#define OUTBOX_LIMIT (64ll << 20) /* what waits to be taken for one peer may grow to about this by what a frame asks for */
#define PIECE (60 << 10) /* bytes of answers, about, that are made before they are taken, where taking them is cheap: what a buffer of 64 KiB has room for */

enum message_type { /*                    items                                        head fields used */
    MSG_DELTA = 1,        /* row, float[row_len]                          table */
    MSG_DROP,             /* row                                          table */
    MSG_SET_ROW,          /* row, float[col_len]                          table, columns */
    MSG_WANT,             /* row                                          table */
    MSG_ROUND_END,        /* - */
    MSG_STATE,            /* row, counter, float[row_len]                 table */
    MSG_GRANT,            /* row, counter, float[row_len]                 table */
    MSG_GRANT_CURRENT,    /* row, counter                                 table */
    MSG_REPLY_END,        /* - */
    MSG_FORWARDED_WANT,   /* row                                          table, origin: who wants it */
    MSG_MOVED,            /* row, counter                                 table; the sender owns it now */
    MSG_NUDGE,            /* - */
    MSG_PULL,             /* row, pos                                     table, origin, worker, op, columns */
    MSG_PUSH,             /* row, pos, float[col_len]                     the same */
    MSG_SET,              /* row, pos, float[col_len]                     the same */
    MSG_ANSWER,           /* pos, counter, float[col_len]                 the same */
    MSG_ACK,              /* pos, counter                                 the same */
    MSG_TYPES
};
#define PULL_BYTES 8   /* of an item of PULL */
#define MSG_MORE 1    /* flag of REPLY_END: the budget left stale rows behind */
#define MSG_REFRESH 2 /* flag of ROUND_END: the reply is to bring what is stale; of NUDGE: the round is to ask for it */

struct message {
    uint32_t n, bytes; /* items; of the message with its head */
    uint8_t type, flags;
    uint16_t origin;
    uint32_t table, worker, op, col_off, col_len;
};

struct adapm_buffer {
    uint8_t *data;
    int64_t len, cap;
};

/* What leaves for one peer, in order. */
struct outbox {
    struct fifo frames; /* struct adapm_buffer *, closed */
    struct adapm_buffer *open;
    int64_t message;     /* where the message begins that may still grow, 0: none */
    struct message head; /* its head */
    int64_t bytes;   /* of the closed frames */
    uint64_t items;  /* ever added */
};

uint8_t *outbox_first_item(struct outbox *o, uint8_t lane, const struct message *head, uint32_t item_bytes);
struct adapm_buffer *outbox_take(struct outbox *o); /* the next frame, NULL: none */
bool outbox_empty(const struct outbox *o);
void outbox_close(struct outbox *o);

/* The head of the message at a place in a frame; NULL, or why it cannot be one. */
const char *wire_head(const uint8_t *frame, int64_t len, int64_t at, struct message *head);
/* Bytes of one item; row_len: of the head's table. */
uint64_t wire_item_bytes(const struct message *head, uint32_t row_len);

static inline uint32_t load32(const uint8_t *p) {
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return v;
}
static inline uint64_t load64(const uint8_t *p) {
    uint64_t v;
    memcpy(&v, p, sizeof v);
    return v;
}
static inline uint8_t *store32(uint8_t *p, uint32_t v) {
    memcpy(p, &v, sizeof v);
    return p + sizeof v;
}
static inline uint8_t *store64(uint8_t *p, uint64_t v) {
    memcpy(p, &v, sizeof v);
    return p + sizeof v;
}

/* Whether items under these heads may be of one message: all but n and bytes is the same. Field by field: a head is written so just before, and a processor
 * waits where it is to read in one piece what was written in several. */
static inline bool message_same(const struct message *a, const struct message *b) {
    return a->op == b->op && a->type == b->type && a->worker == b->worker && a->table == b->table && a->origin == b->origin && a->flags == b->flags &&
           a->col_len == b->col_len && a->col_off == b->col_off;
}

/* Room for one more item of what leaves for the peer. */
static inline uint8_t *outbox_item(struct outbox *o, uint8_t lane, const struct message *head, uint32_t item_bytes) {
    struct adapm_buffer *b = o->open;
    if (!o->message || !item_bytes || !message_same(&o->head, head) || b->len >= FRAME_LIMIT || b->len + item_bytes > b->cap)
        return outbox_first_item(o, lane, head, item_bytes);
    uint8_t *item = b->data + b->len;
    b->len += item_bytes;
    o->items++;
    store32(store32(b->data + o->message, ++o->head.n), o->head.bytes += item_bytes);
    return item;
}

#endif
