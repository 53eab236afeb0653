/* splitmix64's output function: every bit of the result depends on every bit of x, and no two x give the same. */
#ifndef ADAPM_MIX_H
#define ADAPM_MIX_H

#include <stdint.h>

#define ADAPM_GOLDEN 0x9e3779b97f4a7c15ULL

static inline uint64_t adapm_mix(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
    return x ^ (x >> 31);
}

#endif
