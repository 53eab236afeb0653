#include "fuzz_mutate.h"

#include <stdlib.h>
#include <string.h>

#define MOST_MESSAGES 64

static uint8_t made[2 * LONGEST], scratch[2 * LONGEST];

/* What is being made: its bytes, and where its messages begin as far as it can be told. */
struct draft {
    int64_t len;
    uint32_t n;
    int64_t at[MOST_MESSAGES + 1]; /* at[n]: the end of the last */
    uint32_t to;                   /* the node that gets it */
};

void corpus_add(struct corpus *c, const struct frame *f) {
    if (f->len > LONGEST / 4) return;
    struct frame *place = &c->frames[c->next];
    free(place->data);
    place->data = malloc((size_t)f->len);
    memcpy(place->data, f->data, (size_t)f->len);
    place->len = f->len;
    c->next = (c->next + 1) % CORPUS;
    if (c->n < CORPUS) c->n++;
}

void corpus_clear(struct corpus *c) {
    for (uint32_t i = 0; i < CORPUS; i++) free(c->frames[i].data);
    memset(c, 0, sizeof *c);
}

static void find_messages(struct draft *d) {
    struct message m;
    d->n = 0;
    for (int64_t at = FRAME_HEAD; d->n < MOST_MESSAGES && !wire_head(made, d->len, at, &m); at += m.bytes) {
        d->at[d->n++] = at;
        d->at[d->n] = at + m.bytes;
    }
}

/* ---- numbers that are likely to hurt, or to be believed */

static uint32_t number(const struct world *w, uint64_t *r) {
    static const uint32_t edges[] = {0, 1, 2, 3, 7, 8, 31, 32, 63, 64, 255, 256, 1023, 1024, 4095, 65535, 65536, 0x3fffffff, 0x40000000, 0x7fffffff, 0x80000000, 0xfffffffe, 0xffffffff};
    uint32_t table = below(r, w->ntables), row = (uint32_t)w->rows[table];
    switch (below(r, 6)) {
    case 0: return edges[below(r, sizeof edges / sizeof *edges)];
    case 1: return row - 1 + below(r, 3);
    case 2: return w->row_len[table] - 1 + below(r, 3);
    case 3: return w->nnodes - 1 + below(r, 3);
    case 4: return below(r, row);
    default: return (uint32_t)draw(r);
    }
}

static uint64_t counter(const struct world *w, uint64_t *r) {
    switch (below(r, 5)) {
    case 0: return 1ull << below(r, 64);
    case 1: return (1ull << below(r, 64)) - 1;
    case 2: return COUNTER_MOST - 1 + below(r, 3);
    case 3: return draw(r);
    default: return number(w, r);
    }
}

/* ---- making */

static void put_message(struct draft *d, const struct message *head, const uint8_t *items) {
    int64_t body = (int64_t)head->bytes - (int64_t)sizeof *head;
    if (d->len + (int64_t)head->bytes > LONGEST || d->n == MOST_MESSAGES) return;
    memcpy(made + d->len, head, sizeof *head);
    memcpy(made + d->len + sizeof *head, items, (size_t)body);
    d->at[d->n++] = d->len;
    d->at[d->n] = d->len += head->bytes;
}

/* Makes the head speak of an operation that the receiver has open, if there is one among the first; its number of keys. */
static uint32_t know_operation(const struct world *w, const struct draft *d, struct message *m, uint64_t *r) {
    const struct adapm_lane *l = w->members[d->to].lane;
    m->worker = below(r, l->nworkers);
    m->op = below(r, 6);
    const struct operation *o = &l->workers[m->worker].ops[m->op];
    if (!o->kind || !o->n || o->table >= w->ntables || !o->col_len) return 4;
    m->table = o->table;
    m->col_off = o->col_off;
    m->col_len = o->col_len;
    if (m->type != MSG_ANSWER && m->type != MSG_ACK) m->origin = (uint16_t)d->to;
    return o->n;
}

/* A message that says something well-formed, if it does not lie about its numbers: which table, row, node, worker and operation is anyone's guess. */
static void invent(const struct world *w, struct draft *d, uint64_t *r) {
    struct message m = {.type = (uint8_t)(1 + below(r, MSG_TYPES - 1)), .flags = (uint8_t)below(r, 4), .table = below(r, w->ntables)};
    uint32_t len = w->row_len[m.table];
    m.origin = (uint16_t)below(r, w->nnodes);
    if (m.type >= MSG_PULL || m.type == MSG_SET_ROW) m.col_off = below(r, len), m.col_len = 1 + below(r, len - m.col_off);
    uint32_t keys = 4;
    if (m.type >= MSG_PULL) m.worker = below(r, w->nworkers), m.op = below(r, 6);
    if (m.type >= MSG_PULL && below(r, 2)) keys = know_operation(w, d, &m, r), len = w->row_len[m.table];
    uint64_t size = wire_item_bytes(&m, len);
    m.n = size ? 1 + below(r, 4) : 0;
    if (!size) m.table = m.origin = 0;
    m.bytes = (uint32_t)(sizeof m + m.n * size);
    memset(scratch, 0, m.bytes);
    for (uint32_t i = 0; i < m.n; i++) {
        uint8_t *item = scratch + i * size;
        bool answer = m.type == MSG_ANSWER || m.type == MSG_ACK;
        store32(item, below(r, answer ? keys : (uint32_t)w->rows[m.table]));
        if (size >= 8) store32(item + 4, below(r, answer ? 4 : keys));
    }
    put_message(d, &m, scratch);
}

static void begin(struct draft *d, const struct frame *f) {
    memset(made, 0, FRAME_HEAD);
    made[0] = FRAME_KIND_LANE;
    d->len = FRAME_HEAD;
    d->n = 0;
    if (f && f->len <= LONGEST / 4) memcpy(made, f->data, (size_t)f->len), d->len = f->len;
}

/* ---- mutations */

static void flip(const struct world *w, struct draft *d, uint64_t *r) {
    (void)w;
    if (d->len) made[below(r, (uint32_t)d->len)] ^= (uint8_t)(1 << below(r, 8));
}

static void cut(const struct world *w, struct draft *d, uint64_t *r) {
    (void)w;
    d->len = below(r, (uint32_t)d->len + 1);
    if (below(r, 2)) d->len &= ~3ll;
}

static void extend(const struct world *w, struct draft *d, uint64_t *r) {
    int64_t more = 1 + below(r, 64);
    if (d->len + more > LONGEST) return;
    for (int64_t i = 0; i < more; i++) made[d->len + i] = (uint8_t)(below(r, 2) ? draw(r) : number(w, r));
    d->len += more;
}

static void set_word(const struct world *w, struct draft *d, uint64_t *r) {
    if (d->len >= 4) store32(made + 4 * below(r, (uint32_t)d->len / 4), number(w, r));
}

/* A field of a head; sometimes the length is made to fit, so that not all is stopped by the first check. */
static void set_head(const struct world *w, struct draft *d, uint64_t *r) {
    if (!d->n) return;
    uint8_t *at = made + d->at[below(r, d->n)];
    struct message m;
    memcpy(&m, at, sizeof m);
    switch (below(r, 10)) {
    case 0: m.n = number(w, r); break;
    case 1: m.bytes = number(w, r); break;
    case 2: m.type = (uint8_t)below(r, MSG_TYPES + 2); break;
    case 3: m.flags = (uint8_t)draw(r); break;
    case 4: m.origin = (uint16_t)number(w, r); break;
    case 5: m.table = number(w, r); break;
    case 6: m.worker = number(w, r); break;
    case 7: m.op = number(w, r); break;
    case 8: m.col_off = number(w, r); break;
    default: m.col_len = number(w, r);
    }
    uint64_t size = below(r, 2) && m.table < w->ntables ? wire_item_bytes(&m, w->row_len[m.table]) : 0;
    if (size && m.bytes >= sizeof m && (m.bytes - sizeof m) / size) m.n = (uint32_t)((m.bytes - sizeof m) / size);
    memcpy(at, &m, sizeof m);
}

static void set_item(const struct world *w, struct draft *d, uint64_t *r) {
    if (!d->n) return;
    int64_t at = d->at[below(r, d->n)];
    struct message m;
    memcpy(&m, made + at, sizeof m);
    uint64_t size = m.n ? (m.bytes - sizeof m) / m.n : 0;
    if (size < 4) return;
    uint8_t *item = made + at + sizeof m + size * below(r, m.n);
    if (size >= 12 && below(r, 2)) store64(item + 4, counter(w, r));
    else if (size >= 8 && below(r, 3) == 0) store32(item + 4, number(w, r));
    else store32(item, number(w, r));
}

static void open_gap(struct draft *d, int64_t at, int64_t bytes) {
    memmove(made + at + bytes, made + at, (size_t)(d->len - at));
    d->len += bytes;
}

/* A message of another frame, before, behind or in place of one of this. */
static void splice(struct draft *d, const uint8_t *from, int64_t bytes, uint64_t *r) {
    if (d->len + bytes > LONGEST) return;
    memcpy(scratch, from, (size_t)bytes);
    uint32_t i = below(r, d->n + 1);
    int64_t at = d->n ? d->at[i] : d->len;
    open_gap(d, at, bytes);
    memcpy(made + at, scratch, (size_t)bytes);
}

static void double_message(const struct world *w, struct draft *d, uint64_t *r) {
    (void)w;
    if (!d->n) return;
    uint32_t i = below(r, d->n);
    splice(d, made + d->at[i], d->at[i + 1] - d->at[i], r);
}

static void drop_message(const struct world *w, struct draft *d, uint64_t *r) {
    (void)w;
    if (!d->n) return;
    uint32_t i = below(r, d->n);
    memmove(made + d->at[i], made + d->at[i + 1], (size_t)(d->len - d->at[i + 1]));
    d->len -= d->at[i + 1] - d->at[i];
}

static void add_invention(const struct world *w, struct draft *d, uint64_t *r) {
    d->len = d->n ? d->at[d->n] : d->len < FRAME_HEAD ? FRAME_HEAD : d->len;
    if (d->n < MOST_MESSAGES) invent(w, d, r);
}

static void add_noise(const struct world *w, struct draft *d, uint64_t *r) {
    (void)w;
    uint32_t n = 1 + below(r, 32);
    for (uint32_t i = 0; i < n && d->len; i++) made[below(r, (uint32_t)d->len)] = (uint8_t)draw(r);
}

/* The same message so often that the frame is long. */
static void repeat(const struct world *w, struct draft *d, uint64_t *r) {
    (void)w;
    if (!d->n || below(r, 50)) return;
    uint32_t i = below(r, d->n);
    int64_t bytes = d->at[i + 1] - d->at[i];
    memcpy(scratch, made + d->at[i], (size_t)bytes);
    for (; d->len + bytes <= LONGEST; d->len += bytes) memcpy(made + d->len, scratch, (size_t)bytes);
}

typedef void (*mutation)(const struct world *w, struct draft *d, uint64_t *r);
static const mutation MUTATIONS[] = {flip, cut, extend, set_word, set_head, set_head, set_item, set_item, set_item, double_message, drop_message, add_invention, add_noise, repeat};

static const struct frame *any(const struct corpus *c, uint64_t *r) { return c->n ? &c->frames[below(r, c->n)] : NULL; }

static void splice_other(const struct corpus *c, struct draft *d, uint64_t *r) {
    const struct frame *other = any(c, r);
    struct message m;
    if (!other || wire_head(other->data, other->len, FRAME_HEAD, &m)) return;
    splice(d, other->data + FRAME_HEAD, m.bytes, r);
}

struct frame mutant(const struct world *w, uint32_t to, const struct corpus *c, const struct frame *first, uint64_t *r) {
    struct draft d = {.to = to};
    uint32_t kind = below(r, 16);
    begin(&d, kind < 6 && first ? first : kind < 12 ? any(c, r) : NULL);
    if (kind == 15) { /* nothing but noise */
        d.len = below(r, 256);
        for (int64_t i = 0; i < d.len; i++) made[i] = (uint8_t)draw(r);
        if (d.len && below(r, 2)) memset(made, 0, 8), made[0] = FRAME_KIND_LANE;
        return (struct frame){made, d.len};
    }
    for (uint32_t i = kind >= 12 ? 1 + below(r, 3) : 0; i; i--) invent(w, &d, r);
    for (uint32_t i = below(r, 4); i; i--) {
        find_messages(&d);
        if (!below(r, 8)) splice_other(c, &d, r);
        else MUTATIONS[below(r, sizeof MUTATIONS / sizeof *MUTATIONS)](w, &d, r);
    }
    return (struct frame){made, d.len};
}
