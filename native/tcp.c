#define _GNU_SOURCE
#include "tcp.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "engine.h"

#define NOTE (UINT64_C(1) << 63)
#define HEAD sizeof(uint64_t)
#define USUAL ((size_t)2 << 20) /* bytes of a buffer; longer frames get one of their own */
#define POOLED 4                /* buffers that are kept for the next event, warm */
#define GATHERED 64             /* pieces that one system call sends */

/* Something that waits for the socket. */
struct waiting {
    struct waiting *next;
    const uint8_t *data;
    uint64_t left;
    adapm_buffer *buffer; /* the engine's, or NULL */
    uint64_t token;
    bool has_token;
    uint8_t copy[];
};

struct adapm_wire {
    adapm_hub *hub;
    int fd;
    uint64_t tag;
    uint64_t max_frame, max_note;
    uint32_t peer;
    bool served;      /* what comes for the engine goes there */
    bool listed;      /* among those of which the caller is to be told that they wait */
    int error;        /* of sending, when nobody was there to be told */
    uint8_t *buffer;  /* while something has begun and not ended */
    size_t room, begin, end;
    int64_t handled;  /* of the frame at begin, by the engine, which could not go on */
    struct waiting *first, **last;
    struct waiting *done; /* with tokens */
    uint64_t queued, said;
};

struct adapm_hub {
    struct engine engine;
    adapm_wire **by_peer;
    uint32_t npeers;
    adapm_wire **begun; /* to wait */
    uint32_t nbegun, cap;
    uint8_t *pool[POOLED];
    uint32_t pooled;
    struct departed departed;
};

/* Memory without which nothing can go on. */
static void *must(void *memory) {
    if (!memory) abort();
    return memory;
}

/* ---- the hub */

adapm_hub *adapm_hub_new(void) {
    adapm_hub *h = must(calloc(1, sizeof *h));
    h->departed.missing = -1;
    return h;
}

void adapm_hub_free(adapm_hub *h) {
    while (h->pooled) free(h->pool[--h->pooled]);
    free(h->by_peer);
    free(h->begun);
    free(h);
}

void adapm_hub_drive(adapm_hub *h, const uint64_t *addresses) { h->engine = engine_at(addresses); }

static uint8_t *take_buffer(adapm_hub *h, size_t room) {
    return room == USUAL && h->pooled ? h->pool[--h->pooled] : malloc(room);
}

static void give_buffer(adapm_hub *h, uint8_t *buffer, size_t room) {
    if (room == USUAL && h->pooled < POOLED) h->pool[h->pooled++] = buffer;
    else free(buffer);
}

/* The caller is to be told that the wire waits, or that it broke. */
static void list(adapm_wire *s) {
    adapm_hub *h = s->hub;
    if (s->listed) return;
    if (h->nbegun == h->cap) {
        h->cap = h->cap ? 2 * h->cap : 8;
        h->begun = must(realloc(h->begun, h->cap * sizeof *h->begun));
    }
    h->begun[h->nbegun++] = s;
    s->listed = true;
}

int64_t adapm_hub_waiting(adapm_hub *h) {
    if (!h->nbegun) return -1;
    adapm_wire *s = h->begun[--h->nbegun];
    s->listed = false;
    return (int64_t)s->tag;
}

/* ---- wires */

adapm_wire *adapm_wire_new(adapm_hub *h, int fd, uint64_t tag) {
    adapm_wire *s = must(calloc(1, sizeof *s));
    s->hub = h;
    s->fd = fd;
    s->tag = tag;
    s->last = &s->first;
    return s;
}

void adapm_wire_allow(adapm_wire *s, uint64_t frame, uint64_t note) {
    s->max_frame = frame;
    s->max_note = note;
}

void adapm_wire_mute(adapm_wire *s) { s->served = false; }

static void leave(adapm_wire *s) {
    if (s->peer < s->hub->npeers && s->hub->by_peer[s->peer] == s) s->hub->by_peer[s->peer] = NULL;
    s->served = false;
}

void adapm_wire_serve(adapm_wire *s, int64_t peer) {
    adapm_hub *h = s->hub;
    leave(s);
    if (peer < 0) return;
    s->peer = (uint32_t)peer;
    if (s->peer >= h->npeers) {
        h->by_peer = must(realloc(h->by_peer, (s->peer + 1) * sizeof *h->by_peer));
        memset(h->by_peer + h->npeers, 0, (s->peer + 1 - h->npeers) * sizeof *h->by_peer);
        h->npeers = s->peer + 1;
    }
    h->by_peer[s->peer] = s;
    s->served = true;
}

static void forget_waiting(adapm_hub *h, struct waiting *w) {
    for (struct waiting *next; w; w = next) {
        next = w->next;
        if (w->buffer) h->engine.free(w->buffer);
        free(w);
    }
}

static void unlist(adapm_wire *s) {
    adapm_hub *h = s->hub;
    for (uint32_t i = 0; i < h->nbegun; i++)
        if (h->begun[i] == s) h->begun[i--] = h->begun[--h->nbegun];
}

void adapm_wire_free(adapm_wire *s) {
    leave(s);
    if (s->buffer) give_buffer(s->hub, s->buffer, s->room);
    forget_waiting(s->hub, s->first);
    forget_waiting(s->hub, s->done);
    unlist(s);
    free(s);
}

uint64_t adapm_wire_queued(adapm_wire *s) { return s->queued; }

uint64_t adapm_wire_room(adapm_wire *s) { return s->buffer ? s->room : 0; }

uint64_t adapm_wire_said(adapm_wire *s) { return s->said; }

/* ---- sending */

static struct waiting *wait_with(adapm_wire *s, const uint8_t *data, uint64_t left, size_t copied) {
    struct waiting *w = must(malloc(sizeof *w + copied));
    *w = (struct waiting){.data = data, .left = left};
    if (copied) w->data = memcpy(w->copy, data, copied); /* after the line above, which may write what pads the struct */
    *s->last = w;
    s->last = &w->next;
    s->queued += left;
    return w;
}

/* What the socket takes of a head and data now; all that was before is gone. -errno */
static int64_t send_now(adapm_wire *s, const uint64_t *head, const uint8_t *data, uint64_t length) {
    if (s->first) return 0;
    struct iovec pieces[] = {{(void *)head, HEAD}, {(void *)data, length}};
    struct msghdr message = {.msg_iov = pieces, .msg_iovlen = length ? 2 : 1};
    ssize_t sent = sendmsg(s->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0) return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR ? 0 : -errno;
    s->said += (uint64_t)sent;
    return sent;
}

/* Sends what can be sent now; the rest waits, and is described by *rest, if it is not all of the data's own. */
static int32_t begin(adapm_wire *s, bool note, const uint8_t *data, uint64_t length, bool copy, struct waiting **rest) {
    uint64_t head = length | (note ? NOTE : 0);
    int64_t sent = send_now(s, &head, data, length);
    *rest = NULL;
    if (sent < 0) return (int32_t)sent;
    if ((uint64_t)sent == HEAD + length) return 0;
    list(s);
    if ((size_t)sent < HEAD) wait_with(s, (const uint8_t *)&head + sent, HEAD - (size_t)sent, HEAD - (size_t)sent);
    uint64_t gone = (size_t)sent > HEAD ? (uint64_t)sent - HEAD : 0;
    if (gone < length) *rest = wait_with(s, data + gone, length - gone, copy ? length - gone : 0);
    return 0;
}

int32_t adapm_wire_send(adapm_wire *s, int32_t note, const uint8_t *data, uint64_t length, int32_t copy, uint64_t token) {
    struct waiting *rest;
    int32_t rc = begin(s, note, data, length, copy, &rest);
    if (rc || !rest || copy) return rc;
    rest->token = token;
    rest->has_token = true;
    return 1;
}

static void send_buffer(adapm_wire *s, adapm_buffer *b) {
    adapm_hub *h = s->hub;
    struct waiting *rest;
    int32_t rc = begin(s, false, h->engine.data(b), (uint64_t)h->engine.length(b), false, &rest);
    if (rest) rest->buffer = b;
    else h->engine.free(b);
    if (rc) {
        s->error = rc;
        list(s);
    }
}

static int64_t flush(adapm_hub *h) {
    int64_t n = 0;
    uint32_t peer;
    for (adapm_buffer *b; (b = h->engine.take(h->engine.lane, &peer));) {
        n += h->engine.length(b);
        adapm_wire *s = peer < h->npeers ? h->by_peer[peer] : NULL;
        if (s) {
            send_buffer(s, b);
        } else {
            h->departed.missing = peer;
            h->engine.free(b);
        }
    }
    h->departed.bytes += n;
    return n;
}

int64_t adapm_hub_flush(adapm_hub *h, int64_t *missing) {
    flush(h);
    return departed_tell(&h->departed, missing);
}

/* ---- receiving */

/* The length of what begins at begin, head included, as far as it is known. */
static uint64_t wanted(const adapm_wire *s) {
    uint64_t head;
    if (s->end - s->begin < HEAD) return HEAD;
    memcpy(&head, s->buffer + s->begin, HEAD);
    return HEAD + (head & ~NOTE);
}

/* What is left, if anything, gets room for the rest of it. Its length was allowed. */
static bool make_room(adapm_wire *s) {
    size_t left = s->end - s->begin, needed = s->buffer ? wanted(s) : 0;
    if (s->buffer && s->begin + needed <= s->room && s->end < s->room) return true;
    size_t room = needed > USUAL ? needed : s->max_frame ? USUAL : HEAD + s->max_note;
    uint8_t *buffer = s->buffer && room == s->room ? s->buffer : take_buffer(s->hub, room);
    if (!buffer) return false;
    if (left) memmove(buffer, s->buffer + s->begin, left);
    if (s->buffer && s->buffer != buffer) give_buffer(s->hub, s->buffer, s->room);
    s->buffer = buffer;
    s->room = room;
    s->begin = 0;
    s->end = left;
    return true;
}

static void let_go(adapm_wire *s) {
    if (s->buffer) give_buffer(s->hub, s->buffer, s->room);
    s->buffer = NULL;
    s->begin = s->end = 0;
}

int64_t adapm_wire_read(adapm_wire *s) {
    if (!make_room(s)) return -ENOMEM;
    ssize_t came = recv(s->fd, s->buffer + s->end, s->room - s->end, MSG_DONTWAIT);
    if (came > 0) {
        s->end += (size_t)came;
        return came;
    }
    int error = errno;
    if (s->begin == s->end) let_go(s);
    if (!came) return -EPIPE;
    return error == EAGAIN || error == EWOULDBLOCK || error == EINTR ? 0 : -error;
}

/* The engine handles the frame that begins at begin, if it can go on; what it answers leaves meanwhile. */
static int32_t hand_over(adapm_wire *s, const adapm_piece *piece) {
    adapm_hub *h = s->hub;
    int64_t handled;
    do {
        handled = h->engine.receive(h->engine.lane, s->peer, piece->data, (int64_t)piece->length, s->handled);
        if (handled >= 0) s->handled += handled;
    } while (handled >= 0 && s->handled < (int64_t)piece->length && flush(h));
    if (handled >= 0 && s->handled < (int64_t)piece->length) return ADAPM_CAME_BLOCKED;
    s->handled = 0;
    s->begin += HEAD + piece->length;
    return handled < 0 ? (int32_t)handled : ADAPM_CAME_NOTHING;
}

int32_t adapm_wire_next(adapm_wire *s, adapm_piece *piece) {
    while (s->end - s->begin >= HEAD) {
        uint64_t head;
        memcpy(&head, s->buffer + s->begin, HEAD);
        bool note = head & NOTE;
        *piece = (adapm_piece){s->buffer + s->begin + HEAD, head & ~NOTE};
        if (piece->length > (note ? s->max_note : s->max_frame)) return -EMSGSIZE;
        if (s->end - s->begin - HEAD < piece->length) return ADAPM_CAME_NOTHING;
        if (note || !s->served || !engine_wants(piece->data, piece->length)) {
            s->begin += HEAD + piece->length;
            return note ? ADAPM_CAME_NOTE : ADAPM_CAME_FRAME;
        }
        int32_t rc = hand_over(s, piece);
        if (rc) return rc;
    }
    if (s->begin == s->end) let_go(s);
    return ADAPM_CAME_NOTHING;
}

/* ---- what waits to be sent */

static void finished(adapm_wire *s, struct waiting *w) {
    if (w->buffer) s->hub->engine.free(w->buffer);
    if (!w->has_token) {
        free(w);
        return;
    }
    w->buffer = NULL;
    w->next = s->done;
    s->done = w;
}

static void advance(adapm_wire *s, uint64_t sent) {
    s->queued -= sent;
    while (s->first && sent >= s->first->left) {
        struct waiting *w = s->first;
        sent -= w->left;
        s->first = w->next;
        if (!s->first) s->last = &s->first;
        finished(s, w);
    }
    if (sent) {
        s->first->data += sent;
        s->first->left -= sent;
    }
}

int32_t adapm_wire_write(adapm_wire *s) {
    struct iovec pieces[GATHERED];
    size_t n = 0;
    if (s->error) return s->error;
    for (struct waiting *w = s->first; w && n < GATHERED; w = w->next) pieces[n++] = (struct iovec){(void *)w->data, w->left};
    if (!n) return 0;
    struct msghdr message = {.msg_iov = pieces, .msg_iovlen = n};
    ssize_t sent = sendmsg(s->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0) return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR ? 1 : -errno;
    s->said += (uint64_t)sent;
    advance(s, (uint64_t)sent);
    return s->first ? 1 : 0;
}

int64_t adapm_wire_sent(adapm_wire *s) {
    struct waiting *w = s->done;
    if (!w) return -1;
    int64_t token = (int64_t)w->token;
    s->done = w->next;
    free(w);
    return token;
}
