/* Makes frames that no correct lane sends, out of those that one does. */
#ifndef ADAPM_FUZZ_MUTATE_H
#define ADAPM_FUZZ_MUTATE_H

#include "fuzz_world.h"

#define CORPUS 64          /* real frames that are remembered */
#define LONGEST (1 << 15)  /* bytes of a frame that is made here, but for a few that are made long */

struct corpus {
    struct frame frames[CORPUS];
    uint32_t n, next;
};

void corpus_add(struct corpus *c, const struct frame *f);
void corpus_clear(struct corpus *c);

/* A frame for a node, in a buffer that the next call uses again. first: what is on the link it goes to, or NULL. */
struct frame mutant(const struct world *w, uint32_t to, const struct corpus *c, const struct frame *first, uint64_t *random);

#endif
