#include "wire.h"

#include <stdlib.h>

_Static_assert(sizeof(struct message) == 32, "the head's layout is the wire format");

static struct adapm_buffer *buffer_new(uint8_t lane) {
    struct adapm_buffer *b = malloc(sizeof *b);
    if (!b) abort();
    b->cap = 4096;
    b->len = FRAME_HEAD;
    b->data = malloc((size_t)b->cap);
    if (!b->data) abort();
    memset(b->data, 0, FRAME_HEAD);
    b->data[0] = FRAME_KIND_LANE;
    b->data[1] = lane;
    return b;
}

static uint8_t *buffer_room(struct adapm_buffer *b, int64_t bytes) {
    if (b->len + bytes > b->cap) {
        while (b->len + bytes > b->cap) b->cap *= 16; /* 4 KiB, 64 KiB, 1 MiB: few copies, and few sizes for the allocator */
        b->data = realloc(b->data, (size_t)b->cap);
        if (!b->data) abort();
    }
    uint8_t *at = b->data + b->len;
    b->len += bytes;
    return at;
}

static void close_frame(struct outbox *o) {
    o->bytes += o->open->len;
    *FIFO_PUSH(&o->frames, struct adapm_buffer *) = o->open;
    o->open = NULL;
    o->message = 0;
}

uint8_t *outbox_first_item(struct outbox *o, uint8_t lane, const struct message *head, uint32_t item_bytes) {
    if (o->open && o->open->len >= FRAME_LIMIT) close_frame(o);
    if (!o->open) o->open = buffer_new(lane);
    bool joins = o->message && item_bytes && message_same(&o->head, head); /* there was no room for it */
    if (!joins) {
        o->message = o->open->len;
        o->head = *head;
        o->head.n = 0;
        o->head.bytes = sizeof o->head;
        buffer_room(o->open, sizeof o->head);
    }
    o->head.n += item_bytes != 0;
    o->head.bytes += item_bytes;
    o->items++;
    uint8_t *item = buffer_room(o->open, item_bytes);
    memcpy(o->open->data + o->message, &o->head, sizeof o->head);
    if (!item_bytes) o->message = 0; /* an end or a nudge stands alone */
    return item;
}

struct adapm_buffer *outbox_take(struct outbox *o) {
    if (!fifo_len(&o->frames)) {
        if (!o->open) return NULL;
        close_frame(o);
    }
    struct adapm_buffer *b = FIFO_POP(&o->frames, struct adapm_buffer *);
    o->bytes -= b->len;
    return b;
}

bool outbox_empty(const struct outbox *o) { return !o->open && !fifo_len(&o->frames); }

void outbox_close(struct outbox *o) {
    for (struct adapm_buffer *b; (b = outbox_take(o));) adapm_buffer_free(b);
    fifo_free(&o->frames);
}

const uint8_t *adapm_buffer_data(const adapm_buffer *b) { return b->data; }

int64_t adapm_buffer_len(const adapm_buffer *b) { return b->len; }

void adapm_buffer_free(adapm_buffer *b) {
    if (!b) return;
    free(b->data);
    free(b);
}

const char *wire_head(const uint8_t *frame, int64_t len, int64_t at, struct message *head) {
    if (len - at < (int64_t)sizeof *head) {
        *head = (struct message){0};
        return "its head is cut off";
    }
    memcpy(head, frame + at, sizeof *head);
    if (!head->type || head->type >= MSG_TYPES) return "there is no such kind of message";
    return head->bytes >= sizeof *head && head->bytes <= len - at ? NULL : "it is longer than the frame, or shorter than its head";
}

uint64_t wire_item_bytes(const struct message *head, uint32_t row_len) {
    uint64_t row = 4ull * row_len, columns = 4ull * head->col_len;
    switch ((enum message_type)head->type) {
    case MSG_DELTA: return 4 + row;
    case MSG_DROP:
    case MSG_WANT:
    case MSG_FORWARDED_WANT: return 4;
    case MSG_SET_ROW: return 4 + columns;
    case MSG_STATE:
    case MSG_GRANT: return 12 + row;
    case MSG_GRANT_CURRENT:
    case MSG_MOVED:
    case MSG_ACK: return 12;
    case MSG_PULL: return 8;
    case MSG_PUSH:
    case MSG_SET: return 8 + columns;
    case MSG_ANSWER: return 12 + columns;
    case MSG_ROUND_END:
    case MSG_REPLY_END:
    case MSG_NUDGE:
    case MSG_TYPES: break;
    }
    return 0;
}
