/* Frames to and from peers, in order, over the ways of ucp.h, and between these and a lane of the kernel: the rest of what the ucx transport has in C.
 *
 * UCX starts frames in order, but lets a short one overtake a large one that its receiver fetches.  So every frame has a number, from 0 on;
 * the receiver keeps what comes early, and the sender hands no frame to UCX while one is under way that began ADAPM_LINK_WINDOW bytes
 * before.  That bounds what the receiver keeps, what UCX holds for a peer that takes nothing, and what a lost peer may still be reading.
 *
 * An engine is a lane of the kernel, as five functions: links that serve one hand it the frames that are the kernel's, and take the frames
 * with which it answers, without anyone in between.  This module is not linked with the kernel.
 *
 * Everything is called by one thread, and nothing here waits. */
#ifndef ADAPM_UCP_LINKS_H
#define ADAPM_UCP_LINKS_H
#include <stddef.h>
#include <stdint.h>

#include "ucp.h"

/* cffi begin */
#define ADAPM_LINK_WINDOW 16777216
#define ADAPM_LINK_CHARGE 256 /* bytes that each frame counts for besides its own */

typedef struct adapm_links adapm_links; /* of one port */
typedef struct adapm_link adapm_link;   /* one peer */

enum adapm_link_kind {
    ADAPM_LINK_NOTHING = 0,  /* for the caller; there may be more */
    ADAPM_LINK_READY = 1,    /* the first frame came */
    ADAPM_LINK_FRAME = 2,    /* data, length: one that is the caller's, until the next turn */
    ADAPM_LINK_HANDLED = 3,  /* the engine got frames; number: links of which it can not go on */
    ADAPM_LINK_REFUSED = 4,  /* length: of a frame that the engine has refused; it gets no more from here */
    ADAPM_LINK_SENT = 5,     /* number: the token of a frame whose data is free */
    ADAPM_LINK_COMPLETE = 6, /* all frames that were expected have been handed over */
    ADAPM_LINK_FAILED = 7,   /* status: UCX's, of something that went or came this way */
    ADAPM_LINK_FAULT = 8,    /* status: enum adapm_link_fault; number, length: of the frame.  No more of this link is looked at */
    ADAPM_LINK_STRANGER = 9, /* a frame was dropped, as its key is nobody's */
};

enum adapm_link_fault {
    ADAPM_FAULT_TWICE = 1,
    ADAPM_FAULT_TOO_LARGE = 2,
    ADAPM_FAULT_EARLY = 3,     /* too much came before its turn */
    ADAPM_FAULT_STUFFED = 4,   /* too much came while the engine could not go on */
    ADAPM_FAULT_NO_MEMORY = 5, /* not the peer's */
};

typedef struct {
    int32_t kind, status;
    uint32_t peer;
    uint64_t number, length;
    const void *data;
} adapm_link_event;

/* The port is theirs from now on.  spin: nanoseconds for which to look for something, after sending, before the caller may sleep. */
adapm_links *adapm_links_new(adapm_port *p, uint64_t spin);
void adapm_links_free(adapm_links *a); /* with all links, and the port */
/* Does what there is to do, and says what comes next.  1: *e, and there may be more; 0: all is quiet, and the descriptor will tell; -15 (busy), or
 * another status < 0: there is nothing to do now, but no descriptor will tell; come again soon. */
int32_t adapm_links_turn(adapm_links *a, adapm_link_event *e);
int32_t adapm_links_rest(adapm_links *a); /* after anything else was called: 0: all is quiet, as above; else a turn is needed */
/* addresses [6]: a lane, and of adapm_lane_receive_piece, adapm_lane_take, adapm_buffer_data, adapm_buffer_len, adapm_buffer_free.
 * allowance: bytes that may wait from one peer while the lane can not go on. */
void adapm_links_drive(adapm_links *a, const uint64_t *addresses, uint64_t allowance);
void adapm_links_leave(adapm_links *a); /* the engine gets nothing more: all frames are the caller's */
/* Sends what the engine has to send; bytes since the last call, as answers also leave while the engine makes others.  What is for a peer without a link is
 * dropped; *missing: the last such peer, or -1. */
int64_t adapm_links_flush(adapm_links *a, int64_t *missing);
uint32_t adapm_links_resume(adapm_links *a); /* turns are to go on where the engine could not; how many links that are */
uint32_t adapm_links_blocked(adapm_links *a); /* how many links the engine can not go on with */

/* Frames that bear this key, which is random, come from this peer; the first one may come before the link is open.
 * max_frame: bytes that one may have at most. */
adapm_link *adapm_link_new(adapm_links *a, uint32_t peer, uint64_t ours, uint64_t max_frame);
/* address, theirs: see adapm_way_open.  0 or its status. */
int32_t adapm_link_open(adapm_link *l, const uint8_t *address, uint64_t theirs);
/* Frames of so many bytes wait here until the receiver fetches them.  at_most: but for those that go alone: no other is under way in
 * either direction, and since something last came from the peer, no more than so many bytes have gone. */
void adapm_link_fetched_from(adapm_link *l, uint64_t bytes, uint64_t at_most);
void adapm_link_serve(adapm_link *l); /* from now on the engine's frames come from and go to this peer */
/* Sends a frame after all others.  Copied: nobody needs the data any more.  Else it must stay as it is until SENT comes with this token, if it is to
 * come: the data of a frame that did not get through stays with UCX for good. */
void adapm_link_send(adapm_link *l, const void *data, uint64_t length, int32_t copy, uint64_t token);
void adapm_link_expect(adapm_link *l, uint64_t frames); /* COMPLETE is wanted as soon as so many have been handed over in all */
uint64_t adapm_link_total(adapm_link *l);  /* frames to this peer so far */
uint64_t adapm_link_queued(adapm_link *l); /* bytes that have not gone */
int32_t adapm_link_lanes(adapm_link *l, char *text, size_t room); /* see adapm_way_lanes; 0 of one that is not open */
void adapm_link_close(adapm_link *l); /* nothing more comes or goes; the link stays, for what UCX has still to say of it */
/* cffi end */
#endif
