/* A small hash map from row references to 32-bit values, for the few rows that have something unanswered. Linear probing, no tombstones. */
#ifndef ADAPM_MAP_H
#define ADAPM_MAP_H

#include <stdint.h>
#include <stdlib.h>

struct map {
    uint64_t *keys; /* key + 1; 0 empty */
    uint32_t *values;
    uint64_t used, mask;
};

static inline uint64_t map_place(const struct map *m, uint64_t key) { return (key * 0x9e3779b97f4a7c15ULL >> 20) & m->mask; }

static inline uint64_t map_probe(const struct map *m, uint64_t key) {
    uint64_t i = map_place(m, key);
    while (m->keys[i] && m->keys[i] != key + 1) i = (i + 1) & m->mask;
    return i;
}
/* The value of key, 0 if it has none. */
static inline uint32_t map_get(const struct map *m, uint64_t key) { return m->used ? m->values[map_probe(m, key)] : 0; }

static inline void map_grow(struct map *m) {
    struct map old = *m;
    m->mask = old.keys ? old.mask * 2 + 1 : 63;
    m->keys = calloc(m->mask + 1, sizeof *m->keys);
    m->values = calloc(m->mask + 1, sizeof *m->values);
    if (!m->keys || !m->values) abort();
    for (uint64_t i = 0; old.keys && i <= old.mask; i++)
        if (old.keys[i]) {
            uint64_t j = map_probe(m, old.keys[i] - 1);
            m->keys[j] = old.keys[i];
            m->values[j] = old.values[i];
        }
    free(old.keys);
    free(old.values);
}

static inline void map_remove_at(struct map *m, uint64_t i) {
    for (uint64_t j = (i + 1) & m->mask; m->keys[j]; j = (j + 1) & m->mask) { /* close the gap */
        uint64_t k = map_place(m, m->keys[j] - 1);
        if (((j - k) & m->mask) < ((j - i) & m->mask)) continue;
        m->keys[i] = m->keys[j];
        m->values[i] = m->values[j];
        i = j;
    }
    m->keys[i] = 0;
    m->values[i] = 0;
    m->used--;
}

/* Sets the value of key; 0 removes it. */
static inline void map_put(struct map *m, uint64_t key, uint32_t value) {
    if (!m->keys || m->used * 2 > m->mask) map_grow(m);
    uint64_t i = map_probe(m, key);
    if (!value) {
        if (m->keys[i]) map_remove_at(m, i);
        return;
    }
    if (!m->keys[i]) m->used++;
    m->keys[i] = key + 1;
    m->values[i] = value;
}
static inline void map_free(struct map *m) {
    free(m->keys);
    free(m->values);
}

#endif
