/* Frames of other nodes: what is wrong with one, and to whom each of its items goes. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "lane.h"
#include "profile.h"

int64_t adapm_lane_frame_limit(adapm_lane *l) { return l->frame_limit; }

static int on_reply_end(struct adapm_lane *l, struct peer *p, const struct message *m) {
    if (!p->round_open) return lane_refuse(l, "no round of ours is unanswered");
    double ticks = l->now - p->round_sent_at;
    l->answer = 0.9 * l->answer + 0.1 * (ticks > 1 ? ticks : 1);
    holder_on_reply_end(l, p, m->flags & MSG_MORE);
    sync_progress(l);
    refresh_progress(l);
    return 0;
}

static void on_round_end(struct adapm_lane *l, struct peer *p, const struct message *m) {
    uint64_t since = profile_now(), reply = 0;
    owner_reply(l, p, m->flags & MSG_REFRESH);
    profile_lap(&reply, &since);
    l->stats->extract_ns += reply;
    l->stats->apply_ns -= reply; /* of adapm_lane_receive, which is not over yet */
}

static int on_end(struct adapm_lane *l, struct peer *p, const struct message *m) {
    switch (m->type) {
    case MSG_ROUND_END: on_round_end(l, p, m); return 0;
    case MSG_REPLY_END: return on_reply_end(l, p, m);
    default: /* MSG_NUDGE; one that meets our open round is answered by it */
        if (p->round_open) return 0;
        p->nudged_us = m->flags & MSG_REFRESH ? NUDGE_REFRESH : NUDGE_ROUND;
        peer_activate(l, p);
        return 0;
    }
}

static int on_moved(struct adapm_lane *l, struct peer *p, uint32_t table, uint32_t row, uint64_t counter) {
    if (counter > COUNTER_MOST) return lane_refuse(l, "no row moves so often");
    row_learn(l, table, row, p->id, counter);
    return 0;
}

static int on_item(struct adapm_lane *l, struct peer *p, const struct message *m, const uint8_t *item) {
    if (m->type == MSG_ANSWER || m->type == MSG_ACK) return remote_on_answer(l, p, m, item);
    uint32_t row = load32(item);
    if (row >= l->tables[m->table].shape->rows) return lane_refuse(l, "the table has fewer rows");
    const float *value = (const float *)(item + 4), *after_counter = (const float *)(item + 12);
    switch (m->type) {
    case MSG_DELTA: return owner_on_delta(l, p, m->table, row, value);
    case MSG_DROP: return owner_on_drop(l, p, m->table, row);
    case MSG_SET_ROW: return owner_on_set(l, p, m->table, row, m->col_off, m->col_len, value);
    case MSG_WANT: return owner_on_want(l, m->table, row, p->id);
    case MSG_FORWARDED_WANT: return owner_on_want(l, m->table, row, m->origin);
    case MSG_STATE: return holder_on_state(l, p, m->table, row, load64(item + 4), after_counter);
    case MSG_GRANT: return holder_on_grant(l, p, m->table, row, load64(item + 4), after_counter);
    case MSG_GRANT_CURRENT: return holder_on_grant(l, p, m->table, row, load64(item + 4), NULL);
    case MSG_MOVED: return on_moved(l, p, m->table, row, load64(item + 4));
    default: return remote_on_access(l, m, item); /* PUSH, SET */
    }
}

/* What a message's head says wrongly, whatever its items are; NULL: nothing. size: of an item. */
static const char *head_wrong(const struct adapm_lane *l, const struct message *m, uint64_t size) {
    if (!size) return m->n || m->bytes != sizeof *m || m->table ? "it has neither items nor a table" : NULL;
    uint32_t row_len = l->tables[m->table].shape->row_len;
    if (m->col_len > row_len || m->col_off > row_len - m->col_len) return "the table has fewer columns";
    if (!m->n || sizeof *m + m->n * size != m->bytes) return "its length is not that of its items";
    return m->origin < l->nnodes ? NULL : "there is no such node";
}

/* ---- looking ahead
 *
 * What an item needs is fetched while those before it are handled, in whatever messages they are: where two tables or two kinds of answers take turns, messages
 * are short. Each item passes three stages: its entry is fetched, then what the entry tells, then what the record tells. */
#define SEEN 64 /* a power of two, more than PREFETCH_ENTRY */
#define NO_ROW UINT64_MAX

struct scout {
    const uint8_t *frame;
    int64_t len, at;        /* where the message behind this one begins */
    const uint8_t *item;    /* the next of the message that it is in */
    uint64_t left, size;    /* items there; of each */
    uint32_t table;
    bool want;
    uint64_t skip;          /* items of the first message that are handled already */
    uint64_t handled, entries, slots, bases; /* items; those beyond `handled` are ahead of it */
    uint64_t refs[SEEN];
};

/* What is not looked at here: answers are looked for by their position, and pulls look ahead themselves. */
static bool has_rows(const struct message *m) { return m->type != MSG_ANSWER && m->type != MSG_ACK && m->type != MSG_PULL; }

/* Goes on to the next message with rows; false: there is none, or none that is right. */
static bool scout_message(const struct adapm_lane *l, struct scout *s) {
    while (s->at < s->len) {
        struct message m;
        bool wrong = wire_head(s->frame, s->len, s->at, &m) || m.table >= l->ntables;
        uint64_t size = wrong ? 0 : wire_item_bytes(&m, l->tables[m.table].shape->row_len), skip = s->skip;
        if (wrong || head_wrong(l, &m, size)) {
            s->at = s->len;
            return false;
        }
        s->item = s->frame + s->at + sizeof m + skip * size;
        s->at += m.bytes;
        s->skip = 0;
        if (!size || !has_rows(&m) || m.n <= skip) continue;
        s->left = m.n - skip;
        s->size = size;
        s->table = m.table;
        s->want = m.type == MSG_WANT || m.type == MSG_FORWARDED_WANT;
        return true;
    }
    return false;
}

static bool scout_entry(struct adapm_lane *l, struct scout *s) {
    if (!s->left && !scout_message(l, s)) return false;
    struct lane_table *t = &l->tables[s->table];
    uint32_t row = load32(s->item);
    bool is_row = row < t->shape->rows;
    s->refs[s->entries++ % SEEN] = is_row ? row_ref(s->table, row) : NO_ROW;
    s->item += s->size;
    s->left--;
    if (is_row) prefetch_entry(t, row);
    if (is_row && s->want) prefetch_counts(t, row);
    return true;
}

/* Before each item that has a row. */
static void scout(struct adapm_lane *l, struct scout *s) {
    while (s->entries < s->handled + PREFETCH_ENTRY && scout_entry(l, s)) {}
    for (; s->slots < s->entries && s->slots < s->handled + PREFETCH_SLOT; s->slots++) {
        uint64_t ref = s->refs[s->slots % SEEN];
        if (ref != NO_ROW) prefetch_slot(&l->tables[ref_table(ref)], ref_row(ref));
    }
    for (; s->bases < s->slots && s->bases < s->handled + PREFETCH_BASE; s->bases++) {
        uint64_t ref = s->refs[s->bases % SEEN];
        if (ref != NO_ROW) prefetch_base(l, &l->tables[ref_table(ref)], ref_row(ref));
    }
    s->handled++;
}

/* ---- messages */

/* So many items may be handled before too much waits for whom they are answered to: each asks for a row at most. In pieces: so many of a pull that their
 * answers can be on their way while the others are made. */
static uint64_t items_answerable(const struct adapm_lane *l, const struct peer *p, const struct message *m) {
    if (m->type == MSG_PULL || m->type == MSG_FORWARDED_WANT) p = &l->peers[m->origin];
    else if (m->type != MSG_WANT && m->type != MSG_SET_ROW) return m->n;
    uint64_t row = 4ull * l->tables[m->table].shape->row_len, room = p->out.bytes < OUTBOX_LIMIT ? (uint64_t)(OUTBOX_LIMIT - p->out.bytes) : 0;
    if (m->type == MSG_PULL && l->in_pieces && room > PIECE) room = PIECE;
    return (room + row) / (12 + row);
}

/* Items of one message; p->resume remembers how many are done when one meets a locked row, or must wait until what they ask for has left. */
static int on_items(struct adapm_lane *l, struct peer *p, struct scout *s, const struct message *m, uint64_t size, const uint8_t *items) {
    bool rows = has_rows(m);
    uint64_t left = m->n - p->resume, now = items_answerable(l, p, m), end = p->resume + (now < left ? now : left);
    if (m->type == MSG_PULL) {
        int err = remote_on_pulls(l, m, items, &p->resume, end);
        if (err) return err;
    }
    for (; p->resume < end; p->resume++) {
        if (rows) scout(l, s);
        int err = on_item(l, p, m, items + p->resume * size);
        if (err) return err;
    }
    if (end < m->n) return -EBUSY;
    p->resume = 0;
    return 0;
}

static int on_message(struct adapm_lane *l, struct peer *p, struct scout *s, const struct message *m, const uint8_t *items) {
    if (m->table >= l->ntables) return lane_refuse(l, "there is no such table");
    uint64_t size = wire_item_bytes(m, l->tables[m->table].shape->row_len);
    const char *wrong = head_wrong(l, m, size);
    if (wrong) return lane_refuse(l, wrong);
    return size ? on_items(l, p, s, m, size, items) : on_end(l, p, m);
}

static const char *frame_wrong(const struct adapm_lane *l, uint32_t peer, const uint8_t *frame, int64_t len) {
    if (peer >= l->nnodes || peer == l->node) return "it comes from no other node of this run";
    if (l->peers[peer].lost) return "its node was given up before";
    if (len < FRAME_HEAD || frame[0] != FRAME_KIND_LANE || frame[1] != l->id) return "it is no frame of rows for this lane";
    return len <= l->frame_limit ? NULL : "no lane makes so long a frame";
}

/* The frame ends here: notes where, and forgets what of it was done. */
static int64_t refused(struct adapm_lane *l, struct peer *p, const uint8_t *frame, int64_t len, int64_t at, const struct message *m) {
    struct refusal *r = &l->refusal;
    *r = (struct refusal){.why = r->why, .at = at, .message = *m};
    if (p) r->item = p->resume;
    if (p && m->bytes >= sizeof *m && m->bytes <= len - at && r->item < m->n) {
        uint64_t size = (m->bytes - sizeof *m) / m->n;
        if (size >= sizeof r->row) r->row = load32(frame + at + sizeof *m + r->item * size);
    }
    if (p) p->resume = 0;
    l->stats->refused++;
    return -EPROTO;
}

static int64_t receive(struct adapm_lane *l, uint32_t peer, const uint8_t *frame, int64_t len, int64_t offset) {
    int64_t at = offset;
    int err = 0;
    uint64_t since = profile_now();
    struct message m = {0};
    l->refusal.why = frame_wrong(l, peer, frame, len);
    if (l->refusal.why) return refused(l, NULL, frame, len, 0, &m);
    if (!at) {
        at = FRAME_HEAD;
        l->stats->frames_in++;
        l->stats->bytes_in += (uint64_t)len;
    }
    struct scout s; /* the references are written before they are read */
    s.frame = frame;
    s.len = len;
    s.at = at;
    s.left = 0;
    s.skip = l->peers[peer].resume;
    s.handled = s.entries = s.slots = s.bases = 0;
    while (at < len) {
        const char *wrong = wire_head(frame, len, at, &m);
        err = wrong ? lane_refuse(l, wrong) : on_message(l, &l->peers[peer], &s, &m, frame + at + sizeof m);
        if (err) break;
        at += m.bytes;
    }
    lane_wake_workers(l);
    profile_lap(&l->stats->apply_ns, &since);
    return err == -EPROTO ? refused(l, &l->peers[peer], frame, len, at, &m) : at - offset;
}

int64_t adapm_lane_receive(adapm_lane *l, uint32_t peer, const uint8_t *frame, int64_t len, int64_t offset) {
    if ((uintptr_t)frame % sizeof(float) == 0 || len > l->frame_limit) return receive(l, peer, frame, len, offset);
    uint8_t *straight = malloc((size_t)len + 1); /* it came behind one of odd length, and rows are read in place */
    if (!straight) abort();
    memcpy(straight, frame, (size_t)len);
    int64_t handled = receive(l, peer, straight, len, offset);
    free(straight);
    return handled;
}

int64_t adapm_lane_receive_piece(adapm_lane *l, uint32_t peer, const uint8_t *frame, int64_t len, int64_t offset) {
    l->in_pieces = true;
    int64_t handled = adapm_lane_receive(l, peer, frame, len, offset);
    l->in_pieces = false;
    return handled;
}
