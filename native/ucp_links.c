#include "ucp_links.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "engine.h"

/* Frames that can have overtaken one: each counts as at least its charge, and they fit in the window. */
#define MOST_AHEAD (ADAPM_LINK_WINDOW / ADAPM_LINK_CHARGE)
#define FEWEST 64 /* places of a ring */

/* A frame that has come, and waits until the caller or the engine takes it. */
struct arrival {
    struct arrival *next;
    adapm_ucp_event event;
};

/* A frame that goes. */
struct departure {
    struct departure *next, *previous;
    adapm_link *link;
    const void *data;
    uint64_t length;
    uint64_t begin;       /* what had been handed to UCX before it, by length and charge */
    adapm_buffer *buffer; /* the engine's, or NULL */
    uint64_t token;
    bool has_token;
    uint8_t copy[];
};

struct queue {
    struct departure *first, *last;
};

struct adapm_link {
    adapm_links *all;
    adapm_link *older;     /* of all links of the transport */
    adapm_link *next_todo; /* of those that have something to say */
    bool todo, served, blocked, closed, deaf, told;
    uint32_t peer;
    uint64_t ours, max_frame;
    adapm_way *way;
    int32_t failed;       /* UCX's status, until the caller knows */
    adapm_link_event fault;
    /* what comes */
    uint64_t due;         /* the number of the frame that comes next */
    adapm_ucp_event *ring; /* frames from there on: those that are here are FRAMEs, those that are being fetched are OFFERs */
    uint64_t places;
    uint64_t early;       /* bytes in the ring, with charges */
    struct arrival *first, *last;
    uint64_t waiting;     /* bytes from first on, with charges */
    int64_t handled;      /* of the first one, by the engine */
    uint64_t handed_over, expected;
    /* what goes */
    uint64_t fetched_from, at_most; /* see adapm_link_fetched_from */
    uint64_t burst;                 /* bytes handed to UCX since something came */
    uint64_t total, number, handed, queued;
    struct queue ready, flying;
};

struct adapm_links {
    adapm_port *port;
    uint64_t spin, allowance;
    struct engine engine;
    adapm_link *newest;
    adapm_link **by_key, **by_peer; /* by_key: open addressing; keys are random */
    uint32_t nlinks, slots, npeers;
    adapm_link *todo, *last_todo;
    adapm_ucp_event *events; /* of the port's last turn */
    int32_t at, n;
    struct arrival *shown;   /* what the caller looks at */
    struct queue done, stuck; /* with tokens that are to be told; those that UCX may read until the end */
    uint32_t nblocked;
    bool asked;              /* something was sent since something last came */
    bool was_handled;        /* the engine got frames since the caller was told */
    bool was_busy;           /* the port's last turn has brought something, and so has asked UCX */
    struct departed departed;
};

/* Memory for a few bytes per frame: without it nothing can go on. */
static void *must(void *memory) {
    if (!memory) abort();
    return memory;
}

/* ---- links by key, and those that have something to say */

static adapm_link **place_of(const adapm_links *a, uint64_t key) {
    uint32_t at = (uint32_t)key & (a->slots - 1);
    while (a->by_key[at] && a->by_key[at]->ours != key) at = (at + 1) & (a->slots - 1);
    return &a->by_key[at];
}

static adapm_link *find(const adapm_links *a, uint64_t key) { return a->slots ? *place_of(a, key) : NULL; }

/* Room for one more; half of the places stay empty. */
static void make_places(adapm_links *a) {
    if (2 * ++a->nlinks <= a->slots) return;
    free(a->by_key);
    a->slots = a->slots ? 2 * a->slots : 16;
    a->by_key = must(calloc(a->slots, sizeof *a->by_key));
    for (adapm_link *l = a->newest; l; l = l->older) *place_of(a, l->ours) = l;
}

/* The next turn looks at it. */
static void list(adapm_link *l) {
    adapm_links *a = l->all;
    if (l->todo) return;
    l->todo = true;
    l->next_todo = NULL;
    if (a->todo) a->last_todo->next_todo = l;
    else a->todo = l;
    a->last_todo = l;
}

static void unlist(adapm_links *a) {
    a->todo->todo = false;
    a->todo = a->todo->next_todo;
}

static void block(adapm_link *l, bool blocked) {
    if (l->blocked == blocked) return;
    l->blocked = blocked;
    if (blocked) {
        l->all->nblocked++;
    } else {
        l->all->nblocked--;
        list(l);
    }
}

/* ---- frames that come */

static void give(adapm_links *a, const adapm_ucp_event *e) { adapm_port_give(a->port, e); }

static uint64_t weight(const adapm_ucp_event *e) { return e->length + ADAPM_LINK_CHARGE; }

static adapm_ucp_event *in_ring(const adapm_link *l, uint64_t number) {
    return number - l->due < l->places ? &l->ring[number & (l->places - 1)] : NULL;
}

/* The place in the ring of a frame that is less than MOST_AHEAD ahead. */
static adapm_ucp_event *make_place(adapm_link *l, uint64_t number) {
    uint64_t places = l->places ? l->places : FEWEST;
    while (number - l->due >= places) places *= 2;
    if (places != l->places) {
        adapm_ucp_event *ring = must(calloc(places, sizeof *ring));
        for (uint64_t i = 0; i < l->places; i++) ring[(l->due + i) & (places - 1)] = *in_ring(l, l->due + i);
        free(l->ring);
        l->ring = ring;
        l->places = places;
    }
    return in_ring(l, number);
}

static void keep(adapm_link *l, const adapm_ucp_event *e) {
    *make_place(l, e->number) = *e;
    l->early += weight(e);
}

static void clear(adapm_link *l, adapm_ucp_event *place) {
    l->early -= weight(place);
    place->kind = 0;
}

static void accuse(adapm_link *l, enum adapm_link_fault fault, uint64_t number, uint64_t length) {
    if (l->deaf) return;
    l->deaf = true;
    l->fault = (adapm_link_event){.kind = ADAPM_LINK_FAULT, .status = fault, .number = number, .length = length};
    list(l);
}

/* Whether a frame or an offer may come now; else its sender stands accused. */
static bool is_welcome(adapm_link *l, const adapm_ucp_event *e) {
    const adapm_ucp_event *place = in_ring(l, e->number);
    if (e->length > l->max_frame) {
        accuse(l, ADAPM_FAULT_TOO_LARGE, e->number, e->length);
    } else if (e->number < l->due || (place && place->kind)) {
        accuse(l, ADAPM_FAULT_TWICE, e->number, e->length);
    } else if (e->number - l->due >= MOST_AHEAD || l->early + e->length > l->max_frame + ADAPM_LINK_WINDOW) {
        accuse(l, ADAPM_FAULT_EARLY, e->number, l->early + e->length);
    }
    return !l->deaf;
}

/* It is its turn. */
static void queue_up(adapm_link *l, const adapm_ucp_event *e) {
    struct arrival *f = must(malloc(sizeof *f));
    *f = (struct arrival){.event = *e};
    if (l->first) l->last->next = f;
    else l->first = f;
    l->last = f;
    l->waiting += weight(e);
    l->due++;
    l->burst = 0;
    list(l);
    if (l->blocked && l->waiting > l->all->allowance) accuse(l, ADAPM_FAULT_STUFFED, e->number, l->waiting);
}

/* Those whose turn it has become. */
static void queue_up_early(adapm_link *l) {
    for (adapm_ucp_event *place; (place = in_ring(l, l->due)) && place->kind == ADAPM_UCP_FRAME;) {
        clear(l, place);
        queue_up(l, place);
    }
}

static void on_offer(adapm_link *l, const adapm_ucp_event *e) {
    if (!is_welcome(l, e)) {
        give(l->all, e);
        return;
    }
    keep(l, e);
    if (adapm_port_take(l->all->port, e) < 0) accuse(l, ADAPM_FAULT_NO_MEMORY, e->number, e->length);
}

static void on_arrival(adapm_link *l, const adapm_ucp_event *e) {
    adapm_ucp_event *place = in_ring(l, e->number);
    if (place && place->kind == ADAPM_UCP_OFFER) clear(l, place);
    if (e->status < 0) {
        l->failed = e->status;
        list(l);
    } else if (is_welcome(l, e)) {
        if (e->number != l->due || !l->way) { /* who gets a frame may answer */
            keep(l, e);
        } else {
            queue_up(l, e);
            queue_up_early(l);
        }
        return;
    }
    give(l->all, e);
}

/* ---- frames that go */

static void append(struct queue *q, struct departure *d) {
    d->next = NULL;
    d->previous = q->last;
    if (q->last) q->last->next = d;
    else q->first = d;
    q->last = d;
}

static void take_out(struct queue *q, struct departure *d) {
    if (d->previous) d->previous->next = d->next;
    else q->first = d->next;
    if (d->next) d->next->previous = d->previous;
    else q->last = d->previous;
}

static void forget(adapm_links *a, struct departure *d) {
    if (d->buffer) a->engine.free(d->buffer);
    free(d);
}

static void forget_all(adapm_links *a, struct queue *q) {
    for (struct departure *d; (d = q->first);) {
        take_out(q, d);
        forget(a, d);
    }
}

/* Nobody needs its data any more. */
static void finish(adapm_link *l, struct departure *d) {
    if (d->has_token) append(&l->all->done, d);
    else forget(l->all, d);
}

static void fail(adapm_link *l, int32_t status) {
    l->failed = status;
    list(l);
}

/* Whether UCX may have one more. */
static bool has_room(const adapm_link *l) { return !l->flying.first || l->handed - l->flying.first->begin < ADAPM_LINK_WINDOW; }

/* Whether the receiver is to fetch it, which costs a round trip more.  But what several send along may fill what is between the two, and UCX does
 * not tell when there is room again. */
static bool is_fetched(const adapm_link *l, uint64_t length) {
    bool alone = !l->flying.first && !l->early && l->burst + length <= l->at_most;
    return length >= l->fetched_from && !alone;
}

static void hand(adapm_link *l, struct departure *d) {
    bool fetched = is_fetched(l, d->length);
    take_out(&l->ready, d);
    append(&l->flying, d);
    d->begin = l->handed;
    l->handed += d->length + ADAPM_LINK_CHARGE;
    l->burst += d->length;
    int32_t status = adapm_way_send(l->way, l->number++, d->data, d->length, fetched, d);
    if (status == 1) return;
    take_out(&l->flying, d);
    l->queued -= d->length;
    finish(l, d);
    if (status < 0) fail(l, status);
}

static void hand_all(adapm_link *l) {
    while (l->ready.first && has_room(l)) hand(l, l->ready.first);
}

static void send(adapm_link *l, struct departure *d) {
    d->link = l;
    l->total++;
    l->queued += d->length;
    l->all->asked = true;
    append(&l->ready, d);
    hand_all(l);
}

static void on_sent(const adapm_ucp_event *e) {
    struct departure *d = e->held;
    adapm_link *l = d->link;
    take_out(&l->flying, d);
    l->queued -= d->length;
    if (e->status < 0) {
        append(&l->all->stuck, d); /* whoever was cut off may be reading it until this process closes the port */
        fail(l, e->status);
    } else {
        finish(l, d);
        if (!l->closed) hand_all(l);
    }
}

void adapm_link_send(adapm_link *l, const void *data, uint64_t length, int32_t copy, uint64_t token) {
    struct departure *d = must(malloc(sizeof *d + (copy ? length : 0)));
    *d = (struct departure){.data = data, .length = length, .token = token, .has_token = !copy};
    if (copy && length) d->data = memcpy(d->copy, data, length);
    send(l, d);
}

static int64_t flush(adapm_links *a) {
    int64_t n = 0;
    uint32_t peer;
    for (adapm_buffer *b; (b = a->engine.take(a->engine.lane, &peer));) {
        adapm_link *l = peer < a->npeers ? a->by_peer[peer] : NULL;
        uint64_t length = (uint64_t)a->engine.length(b);
        n += (int64_t)length;
        if (l) {
            struct departure *d = must(malloc(sizeof *d));
            *d = (struct departure){.data = a->engine.data(b), .length = length, .buffer = b};
            send(l, d);
        } else {
            a->departed.missing = peer;
            a->engine.free(b);
        }
    }
    a->departed.bytes += n;
    return n;
}

int64_t adapm_links_flush(adapm_links *a, int64_t *missing) {
    flush(a);
    return departed_tell(&a->departed, missing);
}

/* ---- turns */

/* The first frame is done with; it stays until it is given back. */
static struct arrival *advance(adapm_link *l) {
    struct arrival *f = l->first;
    l->first = f->next;
    l->waiting -= weight(&f->event);
    l->handled = 0;
    l->handed_over++;
    l->all->asked = false;
    return f;
}

static void drop(adapm_links *a, struct arrival *f) {
    give(a, &f->event);
    free(f);
}

/* The engine handles the first frame, if it can go on, and what it answers leaves meanwhile; < 0: it does not want it. */
static int32_t hand_over(adapm_link *l) {
    adapm_links *a = l->all;
    int64_t length = (int64_t)l->first->event.length, handled;
    a->was_handled = true;
    do {
        handled = a->engine.receive(a->engine.lane, l->peer, l->first->event.data, length, l->handled);
        if (handled >= 0) l->handled += handled;
    } while (handled >= 0 && l->handled < length && flush(a));
    if (handled >= 0 && l->handled < length) {
        block(l, true);
        return 0;
    }
    drop(a, advance(l));
    return handled < 0 ? -1 : 0;
}

/* What of the frames that are here is the caller's. */
static bool next_frame(adapm_link *l, adapm_link_event *e) {
    while (l->first && !l->blocked) {
        const adapm_ucp_event *first = &l->first->event;
        *e = (adapm_link_event){.kind = ADAPM_LINK_FRAME, .number = first->number, .length = first->length, .data = first->data};
        if (!first->number) {
            e->kind = ADAPM_LINK_READY;
        } else if (l->served && engine_wants(first->data, first->length)) {
            if (!hand_over(l)) continue;
            l->served = false; /* what it sends still goes */
            e->kind = ADAPM_LINK_REFUSED;
            return true;
        }
        l->all->shown = advance(l);
        return true;
    }
    return false;
}

/* What a link has to say next. */
static bool next_of(adapm_link *l, adapm_link_event *e) {
    if (l->closed) return false;
    if (next_frame(l, e)) return true;
    if (l->fault.kind) {
        *e = l->fault;
        l->fault.kind = 0;
    } else if (l->failed) {
        *e = (adapm_link_event){.kind = ADAPM_LINK_FAILED, .status = l->failed};
        l->failed = 0;
    } else if (l->handed_over >= l->expected && !l->told) {
        *e = (adapm_link_event){.kind = ADAPM_LINK_COMPLETE};
        l->told = true;
    } else {
        return false;
    }
    return true;
}

static bool next_of_all(adapm_links *a, adapm_link_event *e) {
    for (; a->todo; unlist(a)) {
        if (next_of(a->todo, e)) {
            e->peer = a->todo->peer;
            return true;
        }
    }
    return false;
}

/* What happened at the port becomes the links' business; whether a stranger must be told of. */
static bool take_event(adapm_links *a, const adapm_ucp_event *e) {
    if (e->kind == ADAPM_UCP_SENT) {
        on_sent(e);
        return false;
    }
    adapm_link *l = find(a, e->key);
    if (e->kind == ADAPM_UCP_FAILED) {
        if (l) fail(l, e->status);
    } else if (!l || l->closed || l->deaf) {
        give(a, e);
    } else if (e->kind == ADAPM_UCP_OFFER) {
        on_offer(l, e);
    } else {
        on_arrival(l, e);
    }
    return !l;
}

static void give_shown(adapm_links *a) {
    if (!a->shown) return;
    drop(a, a->shown);
    a->shown = NULL;
}

/* What is known without asking the port. */
static bool next_known(adapm_links *a, adapm_link_event *e) {
    *e = (adapm_link_event){0};
    while (!next_of_all(a, e)) {
        if (a->at == a->n) return false;
        if (take_event(a, &a->events[a->at++])) {
            e->kind = ADAPM_LINK_STRANGER;
            return true;
        }
    }
    return true;
}

static bool next_of_engine(adapm_links *a, adapm_link_event *e) {
    if (!a->was_handled) return false;
    a->was_handled = false;
    *e = (adapm_link_event){.kind = ADAPM_LINK_HANDLED, .number = a->nblocked};
    return true;
}

static bool next_done(adapm_links *a, adapm_link_event *e) {
    struct departure *d = a->done.first;
    if (!d) return false;
    *e = (adapm_link_event){.kind = ADAPM_LINK_SENT, .number = d->token};
    take_out(&a->done, d);
    free(d);
    return true;
}

/* Mostly, what has just come is all there is. */
static int32_t turn(adapm_links *a) {
    uint64_t spin = a->asked ? a->spin : 0;
    if (a->was_busy && !spin && !adapm_port_rest(a->port)) return 0;
    return adapm_port_turn(a->port, spin, &a->events);
}

int32_t adapm_links_turn(adapm_links *a, adapm_link_event *e) {
    give_shown(a);
    if (next_known(a, e) || next_of_engine(a, e) || next_done(a, e)) return 1;
    int32_t n = turn(a);
    a->was_busy = n > 0;
    a->at = 0;
    a->n = n > 0 ? n : 0;
    if (n <= 0) {
        a->asked = false;
        return n;
    }
    (void)(next_known(a, e) || next_of_engine(a, e) || next_done(a, e));
    return 1;
}

int32_t adapm_links_rest(adapm_links *a) {
    if (a->todo || a->at < a->n || a->was_handled || a->done.first || (a->asked && a->spin)) return 1;
    return adapm_port_rest(a->port);
}

/* ---- the engine */

void adapm_links_drive(adapm_links *a, const uint64_t *addresses, uint64_t allowance) {
    a->engine = engine_at(addresses);
    a->allowance = allowance;
}

void adapm_links_leave(adapm_links *a) {
    for (adapm_link *l = a->newest; l; l = l->older) {
        l->served = false;
        block(l, false);
    }
}

uint32_t adapm_links_resume(adapm_links *a) {
    uint32_t n = a->nblocked;
    for (adapm_link *l = a->newest; l && a->nblocked; l = l->older) block(l, false);
    return n;
}

uint32_t adapm_links_blocked(adapm_links *a) { return a->nblocked; }

void adapm_link_serve(adapm_link *l) {
    adapm_links *a = l->all;
    if (l->peer >= a->npeers) {
        a->by_peer = must(realloc(a->by_peer, (l->peer + 1) * sizeof *a->by_peer));
        memset(a->by_peer + a->npeers, 0, (l->peer + 1 - a->npeers) * sizeof *a->by_peer);
        a->npeers = l->peer + 1;
    }
    a->by_peer[l->peer] = l;
    l->served = true;
}

/* ---- links come and go */

adapm_link *adapm_link_new(adapm_links *a, uint32_t peer, uint64_t ours, uint64_t max_frame) {
    adapm_link *l = must(calloc(1, sizeof *l));
    l->all = a;
    l->peer = peer;
    l->ours = ours;
    l->max_frame = max_frame;
    l->expected = l->fetched_from = UINT64_MAX;
    make_places(a);
    *place_of(a, ours) = l;
    l->older = a->newest;
    a->newest = l;
    return l;
}

int32_t adapm_link_open(adapm_link *l, const uint8_t *address, uint64_t theirs) {
    int32_t status;
    l->way = adapm_way_open(l->all->port, address, l->ours, theirs, &status);
    if (l->way) queue_up_early(l);
    return status;
}

void adapm_link_fetched_from(adapm_link *l, uint64_t bytes, uint64_t at_most) {
    l->fetched_from = bytes;
    l->at_most = at_most;
}

void adapm_link_expect(adapm_link *l, uint64_t frames) {
    l->expected = frames;
    list(l);
}

uint64_t adapm_link_total(adapm_link *l) { return l->total; }

uint64_t adapm_link_queued(adapm_link *l) { return l->queued; }

int32_t adapm_link_lanes(adapm_link *l, char *text, size_t room) { return l->way ? adapm_way_lanes(l->way, text, room) : 0; }

static void drop_frames(adapm_link *l) {
    while (l->first) drop(l->all, advance(l));
    for (uint64_t i = 0; i < l->places; i++)
        if (l->ring[i].kind == ADAPM_UCP_FRAME) give(l->all, &l->ring[i]);
    free(l->ring);
    l->ring = NULL;
    l->places = l->early = 0;
}

void adapm_link_close(adapm_link *l) {
    adapm_links *a = l->all;
    if (l->closed) return;
    l->closed = true;
    block(l, false);
    if (l->peer < a->npeers && a->by_peer[l->peer] == l) a->by_peer[l->peer] = NULL;
    drop_frames(l);
    for (struct departure *d; (d = l->ready.first);) {
        take_out(&l->ready, d);
        finish(l, d);
    }
    if (l->way) adapm_way_close(l->way);
    l->way = NULL;
}

adapm_links *adapm_links_new(adapm_port *p, uint64_t spin) {
    adapm_links *a = must(calloc(1, sizeof *a));
    a->port = p;
    a->spin = spin;
    a->departed.missing = -1;
    return a;
}

void adapm_links_free(adapm_links *a) {
    give_shown(a);
    for (adapm_link *l = a->newest; l; l = l->older) adapm_link_close(l);
    while (a->at < a->n) take_event(a, &a->events[a->at++]);
    adapm_port_close(a->port);
    for (adapm_link *l = a->newest, *older; l; l = older) {
        older = l->older;
        forget_all(a, &l->flying);
        free(l);
    }
    forget_all(a, &a->done);
    forget_all(a, &a->stuck);
    free(a->by_key);
    free(a->by_peer);
    free(a);
}
