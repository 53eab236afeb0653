/* Lanes at work get frames that no correct lane sends, and must refuse or believe them without harm.
 *
 *     fuzz_frames run SEED FRAMES TAPE     so many of them; the tape has those of the world that is being played
 *     fuzz_frames replay TAPE              the same world again, with the frames that the tape has
 *     fuzz_frames emit SEED FRAMES         to standard output, each with its length (8 bytes) before it
 *
 * The world and what it does by itself follow from its seed; a tape is that seed and, for each frame, a struct record and its bytes.  Exit status: 0 all is
 * well, 1 something that must hold does not, 3 a call took longer than a second, or whatever a sanitizer ends with. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include "fuzz_mutate.h"
#include "harness.h"

#define WORLD_FRAMES 1500 /* in one world */
#define TAPE_BYTES (64l << 20)
#define SLOW_US 1000000
#define WORLD_SECONDS 20 /* of CPU time; it takes a tenth of one */
#ifdef ADAPM_SANITIZED
#define GROWTH_KIB (1l << 20) /* the sanitizer keeps books of its own, and finds leaks at the end */
#else
#define GROWTH_KIB (16l << 10) /* that the process may grow by after the first worlds */
#endif
#define SETTLED 40             /* worlds */
#define REASONS 64

struct record {
    uint32_t step; /* of the world, before which it comes */
    uint8_t from, to, instead, pad; /* instead: of what is first on the link */
    uint32_t len, pad2;
};

struct tape {
    uint64_t seed, used;
    uint8_t bytes[];
};

static struct corpus corpus;
static struct {
    uint64_t frames, believed, refused, untouched, waited, worlds;
    int64_t slowest_us;
    struct {
        const char *why;
        uint64_t n;
    } reasons[REASONS];
} seen;

static void remember(const struct frame *f) { corpus_add(&corpus, f); }

static void too_long(int signal) {
    (void)signal;
    static const char text[] = "a call does not return\n";
    ssize_t ignored = write(2, text, sizeof text - 1);
    (void)ignored;
    _exit(3);
}

static void limit_world(void) {
    const struct itimerval limit = {.it_value.tv_sec = WORLD_SECONDS};
    MUST(!setitimer(ITIMER_PROF, &limit, NULL), "setitimer");
}

/* Of a clock that stands still while a busy machine runs others, but for reports. */
static int64_t now_us(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec * 1000000ll + t.tv_nsec / 1000;
}

static void count_reason(const char *why) {
    for (uint32_t i = 0; i < REASONS; i++) {
        if (seen.reasons[i].why && strcmp(seen.reasons[i].why, why)) continue;
        seen.reasons[i].why = why;
        seen.reasons[i].n++;
        return;
    }
}

/* ---- one frame */

/* What a frame may make leave at most: answers to all it can ask for, and what was owed before. */
static int64_t most_out(const struct world *w, int64_t len) { return 8192 + 32 * len + 256 * (int64_t)(world_total_rows(w) * w->nnodes); }

static void check_refusal(const struct world *w, uint32_t to, uint64_t before) {
    char why[256];
    const struct adapm_lane *l = w->members[to].lane;
    adapm_lane_refusal(w->members[to].lane, why, sizeof why);
    MUST(l->refusal.why && strlen(why) > 20, "a refusal says only: %s", why);
    seen.refused++;
    count_reason(l->refusal.why);
    if (l->refusal.item || l->refusal.at > FRAME_HEAD) return;
    MUST(world_digest(w, to) == before, "a frame was refused and yet changed something: %s", why);
    seen.untouched++;
}

static void play(struct world *w, uint32_t from, uint32_t to, const struct frame *f) {
    link_put_first(&w->links[from][to], f->data, f->len);
    uint64_t before = world_digest(w, to);
    int64_t since = now_us(CLOCK_PROCESS_CPUTIME_ID), handled = world_deliver(w, from, to), took = now_us(CLOCK_PROCESS_CPUTIME_ID) - since;
    if (took > seen.slowest_us) seen.slowest_us = took;
    MUST(took < SLOW_US, "a frame of %" PRId64 " bytes took %" PRId64 " us", f->len, took);
    seen.frames++;
    if (handled < 0) check_refusal(w, to, before);
    else if (handled < f->len) seen.waited++;
    else seen.believed++;
    int64_t out = world_collect(w, to);
    MUST(out <= most_out(w, f->len), "a frame of %" PRId64 " bytes made %" PRId64 " bytes leave", f->len, out);
    world_check(w, to);
}

/* ---- making and taping */

static void tape_add(struct tape *tape, const struct record *r, const struct frame *f) {
    memcpy(tape->bytes + tape->used, r, sizeof *r);
    memcpy(tape->bytes + tape->used + sizeof *r, f->data, (size_t)f->len);
    tape->used += sizeof *r + (uint64_t)f->len;
}

/* Another frame, unless the lane has to go on with an earlier one first. */
static void attack(struct world *w, struct tape *tape, uint32_t step, uint64_t *random) {
    uint32_t to = below(random, w->nnodes), from = (to + 1 + below(random, w->nnodes - 1)) % w->nnodes;
    struct link *l = &w->links[from][to];
    if (l->done) return;
    struct frame f = mutant(w, to, &corpus, link_first(l), random);
    struct record r = {.step = step, .from = (uint8_t)from, .to = (uint8_t)to, .instead = l->n && below(random, 2), .len = (uint32_t)f.len};
    tape_add(tape, &r, &f);
    if (r.instead) link_drop(l);
    play(w, from, to, &f);
}

static void run_world(struct tape *tape, uint64_t seed, uint64_t frames) {
    struct world w;
    uint64_t random = seed ^ 0x5bd1e995, until = seen.frames + frames;
    tape->seed = seed;
    tape->used = 0;
    world_open(&w, seed);
    w.sent = remember;
    uint32_t busy = 1 + below(&random, 6); /* steps between two frames, about */
    for (uint32_t step = 0; seen.frames < until && tape->used < TAPE_BYTES - 4 * LONGEST && step < 50 * WORLD_FRAMES; step++) {
        while (!below(&random, busy) && seen.frames < until) attack(&w, tape, step, &random);
        world_step(&w);
        if (step % 64 == 0)
            for (uint32_t n = 0; n < w.nnodes; n++) world_check(&w, n);
    }
    world_close(&w);
    corpus_clear(&corpus);
    seen.worlds++;
}

static void replay(const struct tape *tape) {
    struct world w;
    world_open(&w, tape->seed);
    uint32_t step = 0;
    for (uint64_t at = 0; at < tape->used;) {
        struct record r;
        memcpy(&r, tape->bytes + at, sizeof r);
        const struct frame f = {(uint8_t *)tape->bytes + at + sizeof r, r.len};
        at += sizeof r + r.len;
        for (; step < r.step; step++) world_step(&w);
        struct link *l = &w.links[r.from][r.to];
        if (r.from >= w.nnodes || r.to >= w.nnodes || l->done) continue; /* a tape that was shortened */
        if (r.instead && l->n) link_drop(l);
        play(&w, r.from, r.to, &f);
    }
    for (uint32_t n = 0; n < w.nnodes; n++) world_check(&w, n);
    world_close(&w);
}

/* ---- the programs */

static struct tape *tape_open(const char *path, bool writing) {
    int fd = open(path, writing ? O_RDWR | O_CREAT | O_TRUNC : O_RDWR, 0600);
    MUST(fd >= 0 && (!writing || !ftruncate(fd, TAPE_BYTES)), "%s: %s", path, strerror(errno));
    off_t size = lseek(fd, 0, SEEK_END);
    struct tape *tape = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    MUST(tape != MAP_FAILED && size >= (off_t)sizeof *tape, "%s: %s", path, strerror(errno));
    if (!writing && tape->used > (uint64_t)size - sizeof *tape) harness_fail(__FILE__, __LINE__, "a tape", "%s is cut off", path);
    close(fd);
    return tape;
}

/* Memory of the process's own; the tape is a file's. */
static long resident_kib(void) {
    long pages = 0, shared = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    MUST(f && fscanf(f, "%*d %ld %ld", &pages, &shared) == 2, "/proc/self/statm");
    fclose(f);
    return (pages - shared) * (sysconf(_SC_PAGESIZE) / 1024);
}

static void report(double seconds, long grown) {
    printf("%" PRIu64 " frames in %" PRIu64 " worlds, %.1f s, %.0f frames/s: %" PRIu64 " believed, %" PRIu64 " waited for a locked row, %" PRIu64 " refused, of which %" PRIu64
           " at their first item, without a trace\nslowest call %" PRId64 " us, memory grew by %ld KiB\n",
           seen.frames, seen.worlds, seconds, (double)seen.frames / seconds, seen.believed, seen.waited, seen.refused, seen.untouched, seen.slowest_us, grown);
    for (uint32_t i = 0; i < REASONS && seen.reasons[i].why; i++) printf("%10" PRIu64 "  %s\n", seen.reasons[i].n, seen.reasons[i].why);
}

static int run(uint64_t seed, uint64_t frames, const char *path) {
    struct tape *tape = tape_open(path, true);
    int64_t since = now_us(CLOCK_MONOTONIC);
    long before = 0, grown = 0;
    for (uint64_t world = 0; seen.frames < frames; world++) {
        limit_world();
        run_world(tape, seed + world * 0x9e3779b97f4a7c15ULL, frames - seen.frames < WORLD_FRAMES ? frames - seen.frames : WORLD_FRAMES);
        if (world < SETTLED) before = resident_kib();
        grown = resident_kib() - before;
        MUST(grown < GROWTH_KIB, "memory grew by %ld KiB", grown);
    }
    report((double)(now_us(CLOCK_MONOTONIC) - since) / 1e6, grown);
    return 0;
}

static uint64_t emitted, to_emit;

/* Whoever reads this has lanes of its own: what these do with it is nothing to them. */
static void emit_one(struct world *w, uint64_t *random) {
    uint32_t to = below(random, w->nnodes), from = (to + 1 + below(random, w->nnodes - 1)) % w->nnodes;
    struct frame f = mutant(w, to, &corpus, link_first(&w->links[from][to]), random);
    uint64_t len = (uint64_t)f.len;
    MUST(fwrite(&len, sizeof len, 1, stdout) == 1 && fwrite(f.data, 1, len, stdout) == len, "standard output is closed");
    emitted++;
}

static int emit(uint64_t seed, uint64_t frames) {
    to_emit = frames;
    for (uint64_t world = 0; emitted < to_emit; world++) {
        struct world w;
        uint64_t random = seed + world;
        world_open(&w, seed + world * 0x9e3779b97f4a7c15ULL);
        w.sent = remember;
        for (uint32_t step = 0; step < 4 * WORLD_FRAMES && emitted < to_emit; step++) {
            world_step(&w);
            if (corpus.n && !below(&random, 4)) emit_one(&w, &random);
        }
        world_close(&w);
        corpus_clear(&corpus);
    }
    return fflush(stdout);
}

int main(int argc, char **argv) {
    signal(SIGPROF, too_long);
    if (argc == 5 && !strcmp(argv[1], "run")) return run(strtoull(argv[2], NULL, 0), strtoull(argv[3], NULL, 0), argv[4]);
    if (argc == 4 && !strcmp(argv[1], "emit")) return emit(strtoull(argv[2], NULL, 0), strtoull(argv[3], NULL, 0));
    if (argc == 3 && !strcmp(argv[1], "replay")) {
        limit_world();
        replay(tape_open(argv[2], false));
        return 0;
    }
    fputs("fuzz_frames run SEED FRAMES TAPE | replay TAPE | emit SEED FRAMES\n", stderr);
    return 2;
}
