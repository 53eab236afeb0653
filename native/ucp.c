#define _GNU_SOURCE
#include "ucp.h"

#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "ucp_abi.h"

#define AM_ID 7
#define KEPT 4                     /* buffers that are kept for the next large frames */
#define KEPT_FROM ((size_t)64 << 10)
#define KEPT_ROOM ((size_t)2 << 20)
#define STEPS 1024                 /* of UCX in one turn */
#define PATIENCE 1000000           /* turns of closing ways; each is some microseconds at most */
#define SLOW_YIELD 20000           /* ns: somebody else wants the processor */

static struct {
#define MEMBER(result, name, arguments) result (*name) arguments;
    UCX_FUNCTIONS(MEMBER)
#undef MEMBER
    const char *(*status_string)(ucx_status status); /* of libucs */
    void (*push_log_handler)(ucx_log_handler handler);
} ucp;

static struct {
    pthread_mutex_t lock; /* UCX has a thread of its own */
    size_t length;
    char text[4096];
} said = {.lock = PTHREAD_MUTEX_INITIALIZER};

struct head {
    uint64_t key, number;
};

/* A transfer under way. UCX gives it back with its end. */
struct transfer {
    struct transfer *next, *previous;
    adapm_port *port;
    struct head head;
    uint64_t length;
    void *buffer; /* where a frame is received */
    void *mine;   /* whose frame is sent */
};

struct adapm_way {
    adapm_way *next, *previous;
    adapm_port *port;
    ucx_handle ep;
    uint64_t ours, theirs;
};

struct adapm_port {
    ucx_handle context, worker;
    void *address;
    size_t address_length;
    int fd;
    adapm_way *ways;
    struct transfer *transfers;
    adapm_ucp_event *events, *shown; /* those to come, and those that the last turn gave out */
    uint32_t n, cap, shown_cap;
    uint64_t closing;                /* ways whose end UCX has not confirmed */
    void *kept[KEPT];
    uint32_t nkept;
};

#define LINK(list, item) do { \
        (item)->previous = NULL; \
        (item)->next = (list); \
        if (list) (list)->previous = (item); \
        (list) = (item); \
    } while (0)

#define UNLINK(list, item) do { \
        if ((item)->previous) (item)->previous->next = (item)->next; \
        else (list) = (item)->next; \
        if ((item)->next) (item)->next->previous = (item)->previous; \
    } while (0)

/* Memory for a few bytes per frame: without it nothing can go on. */
static void *must(void *memory) {
    if (!memory) abort();
    return memory;
}

/* ---- the library */

static int on_log(const char *file, unsigned line, const char *function, int level, const void *component, const char *format, va_list arguments) {
    (void)file, (void)line, (void)function, (void)component;
    if (level == UCX_LOG_FATAL || level > UCX_LOG_WARN) return UCX_LOG_CONTINUE; /* its last words, or wanted by UCX_LOG_LEVEL */
    pthread_mutex_lock(&said.lock);
    if (said.length && said.length < sizeof said.text - 1) said.text[said.length++] = '\n';
    size_t room = sizeof said.text - said.length;
    int wanted = vsnprintf(said.text + said.length, room, format, arguments);
    if (wanted > 0) said.length += (size_t)wanted < room ? (size_t)wanted : room - 1;
    pthread_mutex_unlock(&said.lock);
    return UCX_LOG_STOP;
}

size_t adapm_ucp_said(char *text, size_t room) {
    pthread_mutex_lock(&said.lock);
    size_t length = said.length < room ? said.length : room;
    memcpy(text, said.text, length);
    said.length = 0;
    pthread_mutex_unlock(&said.lock);
    return length;
}

static bool old(void) {
    unsigned major, minor, release;
    ucp.get_version(&major, &minor, &release);
    return major != UCX_OLDEST_MAJOR || minor < UCX_OLDEST_MINOR;
}

static const char *find_all(void *library) {
#define FIND(result, name, arguments) \
    if (!(*(void **)&ucp.name = dlsym(library, "ucp_" #name))) return "it lacks ucp_" #name;
    UCX_FUNCTIONS(FIND)
#undef FIND
    if (!(*(void **)&ucp.status_string = dlsym(library, "ucs_status_string"))) return "it lacks ucs_status_string";
    if (!(*(void **)&ucp.push_log_handler = dlsym(library, "ucs_log_push_handler"))) return "it lacks ucs_log_push_handler";
    return old() ? "it is older than UCX 1.14, or of another major version" : NULL;
}

int32_t adapm_ucp_load(const char *path, char *error, size_t room) {
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    const char *why = library ? find_all(library) : dlerror();
    if (!why) {
        ucp.push_log_handler(on_log);
        return 0;
    }
    snprintf(error, room, "%s", why);
    if (library) dlclose(library);
    return -1;
}

void adapm_ucp_version(uint32_t *major, uint32_t *minor, uint32_t *release) { ucp.get_version(major, minor, release); }

const char *adapm_ucp_why(int32_t status) { return ucp.status_string(status); }

/* What a call gave: NULL for done, an error, or a request, which is in progress. */
static ucx_status status_of(void *result) {
    if (!result) return 0;
    return (uintptr_t)result >= (uintptr_t)UCX_ERR_LAST ? (ucx_status)(intptr_t)result : UCX_IN_PROGRESS;
}

/* ---- events */

static adapm_ucp_event *event(adapm_port *p, enum adapm_ucp_kind kind, uint64_t key, uint64_t number, int32_t status) {
    if (p->n == p->cap) {
        p->cap = p->cap ? 2 * p->cap : 64;
        p->events = must(realloc(p->events, p->cap * sizeof *p->events));
    }
    adapm_ucp_event *e = &p->events[p->n++];
    *e = (adapm_ucp_event){.kind = kind, .status = status, .key = key, .number = number};
    return e;
}

/* Buffers of large frames go round, each warm from its last use. */
static bool goes_round(size_t length) { return length >= KEPT_FROM && length <= KEPT_ROOM; }

static void *take_buffer(adapm_port *p, size_t length) {
    if (!goes_round(length)) return malloc(length ? length : 1);
    return p->nkept ? p->kept[--p->nkept] : malloc(KEPT_ROOM);
}

static void give_buffer(adapm_port *p, void *buffer, size_t length) {
    if (goes_round(length) && p->nkept < KEPT) p->kept[p->nkept++] = buffer;
    else free(buffer);
}

static struct transfer *begin(adapm_port *p, struct head head) {
    struct transfer *t = must(malloc(sizeof *t));
    *t = (struct transfer){.port = p, .head = head};
    LINK(p->transfers, t);
    return t;
}

static void end(struct transfer *t) {
    UNLINK(t->port->transfers, t);
    free(t);
}

/* ---- receiving */

static void push_frame(adapm_port *p, struct head head, void *data, size_t length, void *held, ucx_status status) {
    adapm_ucp_event *e = event(p, ADAPM_UCP_FRAME, head.key, head.number, status);
    e->data = data;
    e->length = length;
    e->held = held;
}

static ucx_status on_message(void *arg, const void *header, size_t header_length, void *data, size_t length, const ucx_am_recv_param *param) {
    adapm_port *p = arg;
    struct head head = {0};
    if (header_length == sizeof head) memcpy(&head, header, sizeof head); /* else key 0, which nobody has */
    if (param->recv_attr & UCX_AM_RECV_RNDV) {
        adapm_ucp_event *e = event(p, ADAPM_UCP_OFFER, head.key, head.number, 0);
        e->length = length;
        e->held = data;
        return UCX_IN_PROGRESS;
    }
    if (param->recv_attr & UCX_AM_RECV_DATA) {
        push_frame(p, head, data, length, data, 0);
        return UCX_IN_PROGRESS;
    }
    void *copy = must(take_buffer(p, length));
    if (length) memcpy(copy, data, length);
    push_frame(p, head, copy, length, NULL, 0);
    return 0;
}

static void received(struct transfer *t, ucx_status status) {
    push_frame(t->port, t->head, t->buffer, t->length, NULL, status);
    end(t);
}

static void on_received(void *request, ucx_status status, size_t length, void *user_data) {
    (void)length;
    ucp.request_free(request);
    received(user_data, status);
}

int32_t adapm_port_take(adapm_port *p, const adapm_ucp_event *e) {
    void *buffer = take_buffer(p, e->length);
    if (!buffer) {
        adapm_port_give(p, e);
        return UCX_ERR_NO_MEMORY;
    }
    struct transfer *t = begin(p, (struct head){e->key, e->number});
    t->buffer = buffer;
    t->length = e->length;
    ucx_request_param param = {
        .op_attr_mask = UCX_OP_CALLBACK | UCX_OP_USER_DATA | UCX_OP_MEMORY_TYPE,
        .cb.recv_am = on_received,
        .user_data = t,
    };
    ucx_status status = status_of(ucp.am_recv_data_nbx(p->worker, e->held, buffer, e->length, &param));
    if (status != UCX_IN_PROGRESS) received(t, status);
    return 0;
}

void adapm_port_give(adapm_port *p, const adapm_ucp_event *e) {
    if (e->held) ucp.am_data_release(p->worker, e->held);
    else give_buffer(p, e->data, e->length);
}

/* ---- sending */

static void on_sent(void *request, ucx_status status, void *user_data) {
    struct transfer *t = user_data;
    ucp.request_free(request);
    event(t->port, ADAPM_UCP_SENT, 0, t->head.number, status)->held = t->mine;
    end(t);
}

int32_t adapm_way_send(adapm_way *w, uint64_t number, const void *data, uint64_t length, int32_t rendezvous, void *mine) {
    struct transfer *t = begin(w->port, (struct head){w->theirs, number});
    t->mine = mine;
    ucx_request_param param = {
        .op_attr_mask = UCX_OP_CALLBACK | UCX_OP_USER_DATA | UCX_OP_FLAGS | UCX_OP_MEMORY_TYPE,
        .flags = rendezvous ? UCX_AM_SEND_RNDV : UCX_AM_SEND_EAGER,
        .cb.send = on_sent,
        .user_data = t,
    };
    ucx_status status = status_of(ucp.am_send_nbx(w->ep, AM_ID, &t->head, sizeof t->head, data, length, &param));
    if (status != UCX_IN_PROGRESS) end(t);
    return status;
}

/* ---- ways */

static void on_failed(void *arg, ucx_handle ep, ucx_status status) {
    adapm_way *w = arg;
    (void)ep;
    event(w->port, ADAPM_UCP_FAILED, w->ours, 0, status);
}

adapm_way *adapm_way_open(adapm_port *p, const uint8_t *address, uint64_t ours, uint64_t theirs, int32_t *status) {
    adapm_way *w = must(malloc(sizeof *w));
    *w = (adapm_way){.port = p, .ours = ours, .theirs = theirs};
    ucx_ep_params params = {
        .field_mask = UCX_EP_REMOTE_ADDRESS | UCX_EP_ERR_MODE | UCX_EP_ERR_HANDLER,
        .address = address,
        .err_mode = UCX_ERR_MODE_PEER,
        .err_handler = {on_failed, w},
    };
    *status = ucp.ep_create(p->worker, &params, &w->ep);
    if (*status) {
        free(w);
        return NULL;
    }
    LINK(p->ways, w);
    return w;
}

static void on_closed(void *request, ucx_status status, void *user_data) {
    adapm_port *p = user_data;
    (void)status;
    ucp.request_free(request);
    p->closing--;
}

void adapm_way_close(adapm_way *w) {
    adapm_port *p = w->port;
    ucx_request_param param = {
        .op_attr_mask = UCX_OP_CALLBACK | UCX_OP_USER_DATA | UCX_OP_FLAGS,
        .flags = UCX_CLOSE_FORCE,
        .cb.send = on_closed,
        .user_data = p,
    };
    if (status_of(ucp.ep_close_nbx(w->ep, &param)) == UCX_IN_PROGRESS) p->closing++;
    UNLINK(p->ways, w);
    free(w);
}

int32_t adapm_way_lanes(adapm_way *w, char *text, size_t room) {
    ucx_transport_entry lanes[64];
    ucx_ep_attr attr = {.field_mask = UCX_EP_ATTR_TRANSPORTS, .transports = {lanes, 64, sizeof *lanes}};
    ucx_status status = ucp.ep_query(w->ep, &attr);
    if (status) return status;
    size_t at = 0;
    if (room) *text = 0;
    for (unsigned i = 0; i < attr.transports.num_entries && at < room; i++)
        at += (size_t)snprintf(text + at, room - at, "%s%s/%s", i ? " " : "", lanes[i].transport_name, lanes[i].device_name);
    return (int32_t)attr.transports.num_entries;
}

/* ---- ports */

static ucx_status configure(ucx_handle config, const char **names, const char **values, uint32_t n) {
    ucx_status status = 0;
    for (uint32_t i = 0; i < n && !status; i++) status = ucp.config_modify(config, names[i], values[i]);
    return status;
}

static ucx_status open_context(adapm_port *p, const char **names, const char **values, uint32_t n) {
    ucx_handle config;
    ucx_params params = {.field_mask = UCX_PARAM_FEATURES, .features = UCX_FEATURE_AM | UCX_FEATURE_WAKEUP};
    ucx_status status = ucp.config_read(NULL, NULL, &config);
    if (status) return status;
    status = configure(config, names, values, n);
    if (!status) status = ucp.init_version(UCX_OLDEST_MAJOR, UCX_OLDEST_MINOR, &params, config, &p->context);
    ucp.config_release(config);
    return status;
}

static ucx_status open_worker(adapm_port *p) {
    ucx_worker_params params = {.field_mask = UCX_WORKER_THREAD_MODE};
    ucx_am_handler_param handler = {
        .field_mask = UCX_AM_HANDLER_ID | UCX_AM_HANDLER_FLAGS | UCX_AM_HANDLER_CB | UCX_AM_HANDLER_ARG,
        .id = AM_ID,
        .flags = UCX_AM_WHOLE_MESSAGE,
        .cb = on_message,
        .arg = p,
    };
    ucx_status status = ucp.worker_create(p->context, &params, &p->worker);
    if (!status) status = ucp.worker_set_am_recv_handler(p->worker, &handler);
    if (!status) status = ucp.worker_get_efd(p->worker, &p->fd);
    return status ? status : ucp.worker_get_address(p->worker, &p->address, &p->address_length);
}

adapm_port *adapm_port_open(const char **names, const char **values, uint32_t n, int32_t *status) {
    adapm_port *p = must(calloc(1, sizeof *p));
    *status = open_context(p, names, values, n);
    if (!*status) *status = open_worker(p);
    if (!*status) return p;
    adapm_port_close(p);
    return NULL;
}

static void drop_events(adapm_port *p) {
    for (uint32_t i = 0; i < p->n; i++)
        if (p->events[i].kind == ADAPM_UCP_FRAME || p->events[i].kind == ADAPM_UCP_OFFER) adapm_port_give(p, &p->events[i]);
    p->n = 0;
}

/* UCX must have nothing left to do: what it has put off, it may free twice (1.22). */
static void close_worker(adapm_port *p) {
    while (p->ways) adapm_way_close(p->ways);
    for (int i = 0; i < PATIENCE; i++) {
        bool busy = ucp.worker_progress(p->worker);
        drop_events(p);
        if (!p->closing && (!busy || i > STEPS)) break;
    }
    if (p->address) ucp.worker_release_address(p->worker, p->address);
    ucp.worker_destroy(p->worker);
}

void adapm_port_close(adapm_port *p) {
    if (p->worker) close_worker(p);
    if (p->context) ucp.cleanup(p->context);
    for (struct transfer *t = p->transfers, *next; t; t = next) { /* whose end has never come */
        next = t->next;
        free(t->buffer);
        free(t);
    }
    while (p->nkept) free(p->kept[--p->nkept]);
    free(p->events);
    free(p->shown);
    free(p);
}

int32_t adapm_port_fd(adapm_port *p) { return p->fd; }

const uint8_t *adapm_port_address(adapm_port *p, uint64_t *length) {
    *length = p->address_length;
    return p->address;
}

/* ---- a turn */

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Until there is an event or nothing to do; whether something was done. Bounded, as what goes out makes no events. */
static bool progress(adapm_port *p) {
    int steps = 0;
    while (!p->n && steps < STEPS && ucp.worker_progress(p->worker)) steps++;
    return steps;
}

/* Looks for something until the time is over, or until somebody else wants the processor. */
static void look_for(adapm_port *p, uint64_t spin) {
    uint64_t begun = now(), before = begun;
    while (!p->n && before - begun < spin) {
        sched_yield();
        uint64_t after = now();
        if (after - before > SLOW_YIELD) return;
        before = after;
        progress(p);
    }
}

/* Sleep is not possible while there is something to do, or while a frame waits for room in shared memory, of which nobody tells. */
static ucx_status arm(adapm_port *p) {
    for (int i = 0; i < STEPS; i++) {
        ucx_status status = ucp.worker_arm(p->worker);
        if (status != UCX_ERR_BUSY) return status;
        if (!progress(p) && i) break;
        if (p->n) break;
    }
    return UCX_ERR_BUSY;
}

int32_t adapm_port_rest(adapm_port *p) { return p->n ? UCX_ERR_BUSY : arm(p); }

int32_t adapm_port_turn(adapm_port *p, uint64_t spin, adapm_ucp_event **events) {
    progress(p);
    if (!p->n && spin) look_for(p, spin);
    ucx_status status = p->n ? 0 : arm(p);
    if (!p->n) return status;
    adapm_ucp_event *full = p->events;
    uint32_t n = p->n, cap = p->cap;
    p->events = p->shown;
    p->cap = p->shown_cap;
    p->n = 0;
    p->shown = *events = full;
    p->shown_cap = cap;
    return (int32_t)n;
}
