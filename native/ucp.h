/* Frames over libucp, which is looked for when the program runs.  ucp_links.h makes links of them, and transports/ucx.py the rest of the transport.
 *
 * A port is one worker of UCX: it has a descriptor to sleep on and an address, and opens ways to other ports.  A frame goes as one
 * active message with two words before it: the way's key, which the receiver chose, and a number.  What happens becomes events, in the order
 * in which it happens; nothing here calls back, waits or knows who is at the other end.
 *
 * Everything is called by one thread.  Results are >= 0, or a status of UCX < 0, which adapm_ucp_why puts into words. */
#ifndef ADAPM_UCP_H
#define ADAPM_UCP_H
#include <stddef.h>
#include <stdint.h>

/* cffi begin */
typedef struct adapm_port adapm_port;
typedef struct adapm_way adapm_way;

enum adapm_ucp_kind {
    ADAPM_UCP_FRAME = 1,  /* number, data, length; to be given back. status < 0: it did not come whole */
    ADAPM_UCP_OFFER = 2,  /* number, length: a large frame that waits with its sender; to be taken or given back */
    ADAPM_UCP_SENT = 3,   /* held: of the frame that has gone, and whose memory is free; status < 0: it did not go */
    ADAPM_UCP_FAILED = 4, /* key, status: nothing more goes this way */
};

typedef struct {
    int32_t kind, status;
    uint64_t key;    /* ours, of the way; of frames and offers, what their sender says it is */
    uint64_t number; /* of the frame */
    void *data;
    uint64_t length;
    void *held;      /* UCX's handle of it, NULL where the data is our own; of SENT, what came with the frame */
} adapm_ucp_event;

/* Loads the library, once for the process.  0, or -1 and why in error. */
int32_t adapm_ucp_load(const char *path, char *error, size_t room);
void adapm_ucp_version(uint32_t *major, uint32_t *minor, uint32_t *release);
const char *adapm_ucp_why(int32_t status);
size_t adapm_ucp_said(char *text, size_t room); /* its warnings and errors since the last call, which it would have printed; bytes */

/* names and values [n]: settings of UCX without the prefix UCX_, beside those of the environment. */
adapm_port *adapm_port_open(const char **names, const char **values, uint32_t n, int32_t *status);
void adapm_port_close(adapm_port *p); /* with all its ways; events and what they hold are gone */
int32_t adapm_port_fd(adapm_port *p); /* readable when there is something to do */
const uint8_t *adapm_port_address(adapm_port *p, uint64_t *length);

/* The address must be one that adapm_port_address gave, in whatever process: UCX believes it.
 * ours, theirs: the keys with which frames come and go; events of the way bear ours. */
adapm_way *adapm_way_open(adapm_port *p, const uint8_t *address, uint64_t ours, uint64_t theirs, int32_t *status);
void adapm_way_close(adapm_way *w); /* what has not gone is dropped, and its SENT comes */
int32_t adapm_way_lanes(adapm_way *w, char *text, size_t room); /* "tcp/lo tcp/eth0"; how many */
/* 0: it has gone and its memory is free; 1: SENT will come, with mine, and until then it must stay as it is.
 * rendezvous: the receiver fetches the frame straight to where it will lie. */
int32_t adapm_way_send(adapm_way *w, uint64_t number, const void *data, uint64_t length, int32_t rendezvous, void *mine);

/* Does what there is to do; the number of events, which are valid until the next call.  0: all is quiet, and the descriptor will tell.
 * -15 (busy): there is nothing to do now, but no descriptor will tell; come again soon.
 * spin: nanoseconds for which to look for something first. */
int32_t adapm_port_turn(adapm_port *p, uint64_t spin, adapm_ucp_event **events);
int32_t adapm_port_rest(adapm_port *p); /* 0: all is quiet, as above; else a turn is needed */
void adapm_port_give(adapm_port *p, const adapm_ucp_event *e); /* a frame is read, or an offer is refused */
int32_t adapm_port_take(adapm_port *p, const adapm_ucp_event *e); /* an offer is accepted: it comes as a FRAME, or as one with status < 0 */
/* cffi end */
#endif
