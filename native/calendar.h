/* Intents of one worker in one lane, by clock, and the timer that decides when to act on them (DESIGN: action timer; paper, section 4.2).
 *
 * A wheel keeps records (not keys) in 1,024 buckets of one clock each, from its cursor on; what lies beyond is in an unordered list that is
 * sorted into the buckets about once per 1,024 clocks. An intent is in the wheel of starts until it is acted on, then in the wheel of ends. */
#ifndef ADAPM_CALENDAR_H
#define ADAPM_CALENDAR_H

#include <stdint.h>

#define WHEEL 1024

struct intent {
    struct intent *next;
    int64_t at; /* the clock it is filed under */
    int64_t start, end;
    uint32_t table, n, done; /* done: keys already handled of a record that exceeded a tick's budget */
    uint32_t keys[];
};

struct wheel {
    struct intent *first[WHEEL], *last[WHEEL];
    uint64_t full[WHEEL / 64]; /* bit per non-empty bucket */
    struct intent *far;        /* at >= cursor + WHEEL when filed */
    int64_t far_min;           /* INT64_MAX: none */
    int64_t cursor;            /* nothing filed before it */
    uint64_t near;             /* records in buckets */
};

struct calendar {
    struct wheel later, starts, ends; /* intents that are not in sight yet, that are to be acted on, that are */
    double rate;        /* e: clocks per tick, averaged */
    double speed;       /* the same over all ticks, those in which the clock stood still too */
    double lead;        /* clocks by which intents come ahead, of late: the smallest, forgotten slowly */
    int64_t last_clock; /* at the previous tick */
    int64_t armed;      /* the clock the lane slept until, INT64_MAX if for none */
    int64_t window;     /* W of this tick */
    int64_t sight;      /* intents that start within so many clocks count for interest in rows that are here */
};

void wheel_open(struct wheel *w);
void wheel_add(struct wheel *w, struct intent *i, int64_t at);
void wheel_put_back(struct wheel *w, struct intent *i); /* the last one popped, to be first again */
int64_t wheel_next(const struct wheel *w);              /* earliest clock filed, INT64_MAX: empty */
struct intent *wheel_pop(struct wheel *w);              /* the earliest, NULL: empty */
void wheel_close(struct wheel *w);
uint64_t wheel_keys(const struct wheel *w); /* keys of its records that are still to be counted */
int64_t calendar_next(const struct calendar *c); /* the clock of the earliest intent that is to be acted on, INT64_MAX: there is none */

uint64_t poisson_quantile(double lambda, double p); /* smallest k with P(X <= k) >= p */

#define ALWAYS (INT64_MAX / 2) /* W when intents are acted on as soon as they are seen */

/* W for this tick: the worker's clock and whether it runs; elapsed ticks since the last one and whether the lane slept through them;
 * answer: ticks until a round is answered. */
struct timer_input {
    int64_t clock;
    int running, slept, at_once;
    double elapsed, answer, decay, quantile;
    double sight; /* ticks */
};
int64_t timer_tick(struct calendar *c, const struct timer_input *in);

void timer_lead(struct calendar *c, double lead); /* an intent came, so many clocks ahead */
double timer_gap(const struct calendar *c);       /* ticks that may pass until the next, as far as this worker goes */

#endif
