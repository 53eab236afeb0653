/* A worker writes intents and posts requests of all sizes as fast as the rings and the heap take them; a node reads them, answers
 * late and out of order, and sleeps whenever it finds nothing.  Argument: seconds.  Exit status 1: a key was lost, doubled or out of
 * order at the wrap-around, an answer went to the wrong place, or somebody slept through a wake-up. */
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <unistd.h>

#include "harness.h"
#include "rings.h"

enum { ROWS = 1 << 20, ROW_LEN = 5, LONGEST = 40000, HELD = 200, PATIENCE_MS = 10000, PULLS = 64 };

static adapm_segment *segment;
static int node_fd, worker_fd;
static _Atomic bool stop, finished; /* the worker shall stop; it has stopped */

/* Key i of the stream that both sides know. */
static int64_t key_of(uint64_t i) { return (int64_t)(i * 7919 % ROWS); }

/* What the node answers: from the key and the place in the row. */
static float value_of(uint64_t key, uint32_t j) { return (float)(key % 65536 + j); }

static void write_eventfd(int fd) {
    const uint64_t one = 1;
    MUST(write(fd, &one, sizeof one) == sizeof one, "eventfd");
}

/* ---- the worker */

struct pull {
    bool open;
    uint64_t first; /* of its keys in the stream */
    int64_t n;
};

struct producer {
    adapm_worker *w;
    uint64_t seed, intents, requests, pulled; /* pulled: keys posted */
    struct pull pulls[ADAPM_OPS];
    uint32_t open;
    int64_t keys[LONGEST];
    float out[LONGEST * ROW_LEN];
};

static void sleep_for_room(struct producer *p) {
    int rc = adapm_wait(p->w, PATIENCE_MS);
    MUST(rc == 1, "wait returned %d: a wake-up is lost", rc);
}

static int64_t next_keys(struct producer *p, uint64_t first, uint64_t most) {
    int64_t n = (int64_t)(harness_random(&p->seed) % most) + 1;
    for (int64_t i = 0; i < n; i++) p->keys[i] = key_of(first + (uint64_t)i);
    return n;
}

static void signal_intent(struct producer *p) {
    int64_t n = next_keys(p, p->intents, harness_random(&p->seed) % 64 ? 50 : LONGEST);
    for (int64_t done = 0; done < n;) {
        int64_t took = adapm_intent(p->w, 0, p->keys + done, n - done, (int64_t)p->intents, (int64_t)p->intents + 1);
        if (!took) sleep_for_room(p);
        done += took;
    }
    p->intents += (uint64_t)n;
}

static bool collect_one(struct producer *p) {
    uint32_t op;
    int32_t status;
    uint64_t detail;
    if (!adapm_completed(p->w, &op, &status, &detail)) return false;
    struct pull *pull = &p->pulls[op];
    MUST(op < ADAPM_OPS && pull->open && !status && detail == op, "op %u, status %d", op, status);
    adapm_collect(p->w, op, p->out, NULL);
    for (int64_t i = 0; i < pull->n; i++)
        for (uint32_t j = 0; j < ROW_LEN; j++) {
            float got = p->out[i * ROW_LEN + j], expected = value_of((uint64_t)key_of(pull->first + (uint64_t)i), j);
            MUST(got == expected, "op %u, row %ld: %g instead of %g", op, (long)i, got, expected);
        }
    pull->open = false;
    p->open--;
    return true;
}

static void post_pull(struct producer *p) {
    uint32_t op;
    int64_t n = next_keys(p, p->pulled, PULLS), took;
    while (!(took = adapm_post(p->w, ADAPM_PULL, 0, 0, ROW_LEN, p->keys, NULL, n, NULL, &op)))
        if (!collect_one(p)) sleep_for_room(p);
    MUST(took > 0 && op < ADAPM_OPS && !p->pulls[op].open, "took %ld, op %u", (long)took, op);
    p->pulls[op] = (struct pull){true, p->pulled, took};
    p->pulled += (uint64_t)took;
    p->requests++;
    p->open++;
}

static void *worker(void *arg) {
    struct producer *p = arg;
    while (!atomic_load(&stop)) {
        signal_intent(p);
        if (harness_random(&p->seed) % 2) post_pull(p);
        if (harness_random(&p->seed) % 64 == 0) /* now and then everything comes to rest */
            while (p->open)
                if (!collect_one(p)) sleep_for_room(p);
    }
    while (p->open)
        if (!collect_one(p)) sleep_for_room(p);
    return NULL;
}

/* ---- the node */

struct consumer {
    struct adapm_worker_shared *w;
    uint64_t seed, intents, records, skips, requests, slept;
    struct adapm_request held[HELD]; /* requests that wait for their answer */
    uint32_t nheld;
};

static void take_record(struct consumer *c, const struct adapm_intent_record *r) {
    const uint32_t *keys = (const uint32_t *)(r + 1);
    MUST(r->table == 0 && r->n > 0 && r->end == r->start + 1 && r->start <= (int64_t)c->intents, "record %u %u", r->table, r->n);
    for (uint32_t i = 0; i < r->n; i++)
        MUST(keys[i] == key_of(c->intents + i), "intent %lu is %u", (unsigned long)(c->intents + i), keys[i]);
    c->intents += r->n;
    c->records++;
}

static bool drain_intents(struct consumer *c) {
    struct adapm_ring *ring = &c->w->mailbox.intent;
    uint64_t used = adapm_ring_used(ring), at = atomic_load(&ring->tail) & ring->mask;
    const uint8_t *data = adapm_seg_ring(segment, ring);
    const struct adapm_intent_record *r = (const struct adapm_intent_record *)(data + at);
    if (!used) return false;
    if (*(const uint32_t *)r == ADAPM_SKIP) {
        c->skips++;
        adapm_ring_release(ring, ring->mask + 1 - at);
        return true;
    }
    take_record(c, r);
    adapm_ring_release(ring, sizeof *r + (r->n + (r->n & 1ULL)) * sizeof(uint32_t));
    return true;
}

static bool hold_requests(struct consumer *c) {
    struct adapm_ring *ring = &c->w->mailbox.request;
    const struct adapm_request *records = adapm_seg_ring(segment, ring);
    bool any = false;
    for (; c->nheld < HELD && adapm_ring_used(ring); any = true) {
        c->held[c->nheld++] = records[atomic_load(&ring->tail) & ring->mask];
        adapm_ring_release(ring, 1);
        c->requests++;
    }
    return any;
}

static void answer(struct consumer *c, uint32_t i) {
    struct adapm_request r = c->held[i];
    c->held[i] = c->held[--c->nheld];
    const uint32_t *keys = adapm_at(segment, r.off);
    float *rows = adapm_at(segment, r.off + (r.n * sizeof *keys + ADAPM_LINE - 1) / ADAPM_LINE * ADAPM_LINE);
    for (uint32_t k = 0; k < r.n; k++)
        for (uint32_t j = 0; j < r.col_len; j++) rows[k * r.col_len + j] = value_of(keys[k], j);
    struct adapm_ring *ring = &c->w->mailbox.done;
    struct adapm_completion *done = adapm_seg_ring(segment, ring);
    MUST(adapm_ring_room(ring), "the done ring overflows");
    done[atomic_load(&ring->head) & ring->mask] = (struct adapm_completion){.op = r.op, .detail = r.op};
    adapm_ring_publish(ring, 1);
}

static void wake_worker(struct consumer *c) {
    adapm_wake_fence();
    if (atomic_exchange(&c->w->waiting, 0)) write_eventfd(worker_fd);
}

/* One look at everything. Answers some of the held requests, all of them when nothing else is left to do. */
static bool work(struct consumer *c) {
    bool any = false;
    for (int i = 0; i < 32 && drain_intents(c); i++) any = true;
    any |= hold_requests(c);
    uint32_t answers = any ? (uint32_t)(harness_random(&c->seed) % (c->nheld + 1)) : c->nheld;
    for (uint32_t i = 0; i < answers; i++) answer(c, (uint32_t)(harness_random(&c->seed) % c->nheld));
    if (any || answers) wake_worker(c);
    return any || answers;
}

static void sleep_until_kicked(struct consumer *c) {
    struct adapm_lane_shared *lane = adapm_seg_lane(segment, 0);
    struct pollfd fd = {.fd = node_fd, .events = POLLIN};
    uint64_t writes;
    atomic_store(&lane->asleep, 1);
    adapm_wake_fence();
    if (!adapm_ring_used(&c->w->mailbox.intent) && !adapm_ring_used(&c->w->mailbox.request)) {
        MUST(poll(&fd, 1, PATIENCE_MS) == 1, "the node is not woken, or the worker hangs");
        c->slept++;
    }
    atomic_store(&lane->asleep, 0);
    if (read(node_fd, &writes, sizeof writes) == sizeof writes) atomic_exchange(&lane->kicked, 0);
}

static void *node(void *arg) {
    struct consumer *c = arg;
    for (;;) {
        while (work(c)) {}
        if (atomic_load(&finished)) return NULL;
        sleep_until_kicked(c);
    }
}

static void check_end(const struct producer *p, const struct consumer *c) {
    MUST(c->intents == p->intents && c->requests == p->requests && !c->nheld, "%lu of %lu intents, %lu of %lu requests", (unsigned long)c->intents,
         (unsigned long)p->intents, (unsigned long)c->requests, (unsigned long)p->requests);
    MUST(c->slept && c->requests > ADAPM_OPS, "too short a run: %lu requests, %lu sleeps", (unsigned long)c->requests, (unsigned long)c->slept);
    printf("%lu intents in %lu records (%lu skips), %lu requests for %lu keys, the node slept %lu times\n", (unsigned long)c->intents,
           (unsigned long)c->records, (unsigned long)c->skips, (unsigned long)c->requests, (unsigned long)p->pulled, (unsigned long)c->slept);
}

int main(int argc, char **argv) {
    static struct producer p = {.seed = 0x1111};
    static struct consumer c = {.seed = 0x2222};
    pthread_t node_thread, worker_thread;
    segment = harness_segment(ROWS, ROW_LEN, 1, 1);
    node_fd = harness_eventfd();
    worker_fd = harness_eventfd();
    p.w = harness_worker(segment, 0, node_fd, worker_fd);
    c.w = adapm_seg_worker(segment, 0);
    pthread_create(&node_thread, NULL, node, &c);
    pthread_create(&worker_thread, NULL, worker, &p);
    poll(NULL, 0, (int)(harness_duration(argc, argv) * 1000));
    atomic_store(&stop, true);
    pthread_join(worker_thread, NULL);
    atomic_store(&finished, true);
    write_eventfd(node_fd); /* it may sleep */
    pthread_join(node_thread, NULL);
    check_end(&p, &c);
    adapm_worker_detach(p.w);
    adapm_segment_close(segment);
    return 0;
}
