#include "calendar.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernel.h"

#define LATEST (INT64_MAX - 2 * WHEEL) /* stands for every later clock: none of them comes */

void wheel_open(struct wheel *w) {
    memset(w, 0, sizeof *w);
    w->far_min = INT64_MAX;
}

static void bucket_add(struct wheel *w, struct intent *i) {
    uint32_t b = (uint64_t)i->at % WHEEL;
    i->next = NULL;
    if (w->first[b]) w->last[b]->next = i;
    else w->first[b] = i;
    w->last[b] = i;
    w->full[b / 64] |= 1ULL << (b % 64);
    w->near++;
}

static void far_add(struct wheel *w, struct intent *i) {
    i->next = w->far;
    w->far = i;
    if (i->at < w->far_min) w->far_min = i->at;
}

/* Begins the window at an earlier clock; what it no longer covers goes to the far list. */
static void rewind_to(struct wheel *w, int64_t at) {
    int64_t end = w->cursor + WHEEL;
    for (int64_t clock = at + WHEEL > w->cursor ? at + WHEEL : w->cursor; w->near && clock < end; clock++) {
        uint32_t b = (uint64_t)clock % WHEEL;
        for (struct intent *i = w->first[b], *next; i; i = next) {
            next = i->next;
            far_add(w, i);
            w->near--;
        }
        w->first[b] = NULL;
        w->full[b / 64] &= ~(1ULL << (b % 64));
    }
    w->cursor = at;
}

void wheel_add(struct wheel *w, struct intent *i, int64_t at) {
    i->at = at < 0 ? 0 : at < LATEST ? at : LATEST;
    if (i->at < w->cursor) rewind_to(w, i->at);
    else if (!w->near && !w->far) w->cursor = i->at;
    if (i->at - w->cursor < WHEEL) bucket_add(w, i);
    else far_add(w, i);
}

void wheel_put_back(struct wheel *w, struct intent *i) {
    uint32_t b = (uint64_t)i->at % WHEEL;
    i->next = w->first[b];
    if (!i->next) w->last[b] = i;
    w->first[b] = i;
    w->full[b / 64] |= 1ULL << (b % 64);
    w->near++;
}

/* Clock of the first full bucket; there is one. */
static int64_t near_next(const struct wheel *w) {
    uint32_t from = (uint64_t)w->cursor % WHEEL;
    for (uint32_t step = 0; step <= WHEEL / 64; step++) {
        uint32_t word = (from / 64 + step) % (WHEEL / 64);
        uint64_t bits = w->full[word];
        if (step == 0) bits &= ~0ULL << (from % 64);
        if (bits) {
            uint32_t b = word * 64 + (uint32_t)__builtin_ctzll(bits);
            return w->cursor + (b + WHEEL - from) % WHEEL;
        }
    }
    return INT64_MAX;
}

int64_t wheel_next(const struct wheel *w) {
    int64_t near = w->near ? near_next(w) : INT64_MAX;
    return near < w->far_min ? near : w->far_min;
}

/* Files what the far list holds for the window that begins at the cursor. */
static void refile(struct wheel *w) {
    struct intent *i = w->far;
    w->far = NULL;
    w->far_min = INT64_MAX;
    while (i) {
        struct intent *next = i->next;
        if (i->at - w->cursor < WHEEL) bucket_add(w, i);
        else far_add(w, i);
        i = next;
    }
}

struct intent *wheel_pop(struct wheel *w) {
    int64_t at = wheel_next(w);
    if (at == INT64_MAX) return NULL;
    w->cursor = at;
    if (w->far_min == at) refile(w);
    uint32_t b = (uint64_t)at % WHEEL;
    struct intent *i = w->first[b];
    w->first[b] = i->next;
    if (!i->next) w->full[b / 64] &= ~(1ULL << (b % 64));
    w->near--;
    return i;
}

void wheel_close(struct wheel *w) {
    for (struct intent *i; (i = wheel_pop(w));) free(i);
}

/* Ticks come no closer than work requires: a clock or two apart, and several within the time by which intents come ahead. */
#define GAP_MOST 8.0    /* ticks */
#define GAP_CLOCKS 2.0
#define GAP_LEAD 0.1    /* of the lead */

/* z with P(N(0, 1) <= z) = p */
static double normal_quantile(double p) {
    double low = -40, high = 40;
    for (int step = 0; step < 80; step++) {
        double z = (low + high) / 2;
        if (0.5 * erfc(-z / sqrt(2.0)) < p) low = z;
        else high = z;
    }
    return high;
}

static uint64_t keys_left(const struct intent *first) {
    uint64_t sum = 0;
    for (const struct intent *i = first; i; i = i->next) sum += i->n - i->done;
    return sum;
}

uint64_t wheel_keys(const struct wheel *w) {
    uint64_t sum = keys_left(w->far);
    for (uint32_t b = 0; w->near && b < WHEEL; b++) sum += keys_left(w->first[b]);
    return sum;
}

int64_t calendar_next(const struct calendar *c) {
    int64_t start = wheel_next(&c->starts), later = wheel_next(&c->later);
    return start < later ? start : later;
}

uint64_t poisson_quantile(double lambda, double p) {
    if (!(lambda > 0)) return 0;
    if (lambda > 1e6) return (uint64_t)ceil(lambda + normal_quantile(p) * sqrt(lambda));
    double k = floor(lambda), mode = exp(k * log(lambda) - lambda - lgamma(k + 1)), sum = mode;
    double term = mode;
    for (double j = k; j > 0 && term > mode * 1e-18; j--) sum += term *= j / lambda; /* P(X <= k), from the mode down */
    if (sum >= p) {
        for (term = mode; k > 0 && sum - term >= p; k--) {
            sum -= term;
            term *= k / lambda;
        }
        return (uint64_t)k;
    }
    for (term = mode; sum < p && term > 1e-300; k++) sum += term *= lambda / (k + 1);
    return (uint64_t)k;
}

uint64_t adapm_timer_window(double used, double quantile) { return poisson_quantile(2 * used, quantile); }

int64_t timer_tick(struct calendar *c, const struct timer_input *in) {
    double d = (double)(in->clock - c->last_clock);
    c->last_clock = in->clock;
    double used = c->rate, gap = in->slept ? 1 : fmax(in->elapsed, 1); /* the next gap between ticks, by this one */
    if (in->running && d > 0) {
        double pace = d / fmax(in->elapsed, 1);
        if (in->slept && c->armed != INT64_MAX) pace = fmax(pace, (double)(in->clock - c->armed)); /* how far it ran on while we were being woken */
        c->rate = (1 - in->decay) * c->rate + in->decay * pace;
        used = fmax(pace, c->rate);
    }
    c->armed = INT64_MAX;
    double weight = 1 - pow(0.95, fmax(in->elapsed, 1));
    c->speed += weight * (d / fmax(in->elapsed, 1) - c->speed);
    c->window = in->at_once ? ALWAYS : (int64_t)poisson_quantile((gap + fmax(gap, in->answer)) * used, in->quantile);
    c->sight = c->window == ALWAYS ? ALWAYS : (int64_t)fmax((double)c->window, ceil(used * in->sight));
    return c->window;
}

void timer_lead(struct calendar *c, double lead) { c->lead = fmin(fmax(lead, 0), 1.1 * c->lead + 0.1); }

double timer_gap(const struct calendar *c) {
    return c->speed > 0 ? fmax(1, fmin(GAP_MOST, fmin(GAP_CLOCKS, GAP_LEAD * c->lead) / c->speed)) : GAP_MOST;
}
