/* A few lanes and their workers in one process, on links that anything can be put on: what fuzz_frames.c plays with. */
#ifndef ADAPM_FUZZ_WORLD_H
#define ADAPM_FUZZ_WORLD_H

#include <stdbool.h>
#include <stdint.h>

#include "lane.h"

#define MOST_NODES 4
#define MOST_WORKERS 2 /* of a node */
#define MOST_TABLES 2
#define LINK_FRAMES 32

struct frame {
    uint8_t *data;
    int64_t len;
};

struct link {
    struct frame frames[LINK_FRAMES];
    uint32_t head, n; /* a ring */
    int64_t done;     /* bytes of the first that are handled */
};

struct member {
    adapm_segment *segment;
    adapm_lane *lane;
    adapm_worker *workers[MOST_WORKERS];
    int fd, node_fd, worker_fds[MOST_WORKERS];
    adapm_entry *locked; /* a row that a stopped worker holds, NULL: none */
    uint64_t word;       /* its entry before */
};

struct world {
    uint32_t nnodes, nworkers, ntables;
    uint64_t rows[MOST_TABLES], capacity[MOST_TABLES];
    uint32_t row_len[MOST_TABLES];
    struct member members[MOST_NODES];
    struct link links[MOST_NODES][MOST_NODES]; /* from, to */
    uint64_t life; /* state of the random numbers that the world's own steps draw */
    void (*sent)(const struct frame *f); /* sees every frame that a lane makes; NULL: nobody does */
};

void world_open(struct world *w, uint64_t seed);
void world_close(struct world *w);
void world_step(struct world *w); /* one step of a worker, a lane or a link, as it may come */
uint64_t world_total_rows(const struct world *w);

struct frame *link_first(struct link *l); /* NULL: it is empty */
void link_drop(struct link *l);           /* the first */
void link_put_first(struct link *l, const uint8_t *data, int64_t len);
/* Hands the link's first frame to its lane, which handles as much of it as it can; what that returned. */
int64_t world_deliver(struct world *w, uint32_t from, uint32_t to);
/* Puts what the lane sends onto its links; how many bytes that is. A link that is full loses what comes: lanes that were lied to owe nobody a proof. */
int64_t world_collect(struct world *w, uint32_t node);
/* Everything that must hold within one lane, and how much memory it may use. */
void world_check(const struct world *w, uint32_t node);
/* A number that changes with anything that a frame may change in a lane but its statistics. */
uint64_t world_digest(const struct world *w, uint32_t node);

static inline uint64_t draw(uint64_t *state) { /* splitmix64: any seed will do */
    uint64_t z = *state += 0x9e3779b97f4a7c15ULL;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return z ^ (z >> 31);
}
static inline uint32_t below(uint64_t *state, uint32_t n) { return (uint32_t)((draw(state) >> 32) * n >> 32); }

#endif
