/* Frames over connected stream sockets: the part of the tcp transport that is C (transports/tcp_link.py is the rest).
 *
 * A wire is one connected socket.  What goes over it begins with 8 bytes, little-endian: its length, and whether it is a note.  Whoever drives a wire
 * reads when the socket is readable and writes when it is writable; each costs one system call.
 *
 * An engine is a lane of the kernel, as five functions: wires that have one hand it the frames that are the kernel's, and take the frames with
 * which it answers, without anyone in between.  This module is not linked with the kernel.
 *
 * Everything is called by one thread, and nothing here waits. */
#ifndef ADAPM_TCP_H
#define ADAPM_TCP_H
#include <stddef.h>
#include <stdint.h>

/* cffi begin */
typedef struct adapm_wire adapm_wire;
typedef struct adapm_hub adapm_hub; /* what the wires of one transport have in common */

enum adapm_came { ADAPM_CAME_NOTHING = 0, ADAPM_CAME_FRAME = 1, ADAPM_CAME_NOTE = 2, ADAPM_CAME_BLOCKED = 3 };

typedef struct {
    const uint8_t *data; /* until the next call for this wire */
    uint64_t length;
} adapm_piece;

adapm_hub *adapm_hub_new(void);
void adapm_hub_free(adapm_hub *h); /* after its wires */
/* addresses [6]: a lane, and of adapm_lane_receive_piece, adapm_lane_take, adapm_buffer_data, adapm_buffer_len, adapm_buffer_free */
void adapm_hub_drive(adapm_hub *h, const uint64_t *addresses);
/* Sends what the engine has to send; bytes since the last call, as answers also leave while the engine makes others.  What is for a peer without a wire is
 * dropped; *missing: the last such peer, or -1. */
int64_t adapm_hub_flush(adapm_hub *h, int64_t *missing);
/* A wire that has begun to wait for its socket since the last call: its tag, or -1. */
int64_t adapm_hub_waiting(adapm_hub *h);

/* tag: whatever the caller knows it by.  The socket stays the caller's. */
adapm_wire *adapm_wire_new(adapm_hub *h, int fd, uint64_t tag);
void adapm_wire_free(adapm_wire *w); /* what has not been sent is gone */
void adapm_wire_allow(adapm_wire *w, uint64_t frame, uint64_t note); /* bytes that one may have at most; 0 at first */
#define ADAPM_NOBODY -1
void adapm_wire_serve(adapm_wire *w, int64_t peer); /* from now on the engine's frames come from and go to this peer, if there is one */
void adapm_wire_mute(adapm_wire *w); /* the engine gets no more frames from here: they are the caller's; its own still go */
/* Takes what the socket has, once: bytes; 0: it has nothing; -EPIPE: its end; -ENOMEM: no room for what was announced; -errno. */
int64_t adapm_wire_read(adapm_wire *w);
/* What came next, as enum adapm_came: a piece that is the caller's, nothing whole, or BLOCKED: the engine can not go on now: ask again later.
 * -EMSGSIZE: longer than allowed (piece->length), for good; another error is the engine's, which has refused this frame: there may be more. */
int32_t adapm_wire_next(adapm_wire *w, adapm_piece *piece);
/* Sends a frame, or a note, after all others.  0: nobody needs data any more; 1: data stays as it is until its token comes; -errno: the socket's.
 * copy: it is copied if it must wait, and 0 results. */
int32_t adapm_wire_send(adapm_wire *w, int32_t note, const uint8_t *data, uint64_t length, int32_t copy, uint64_t token);
int32_t adapm_wire_write(adapm_wire *w); /* sends what waits; 1: some still does; -errno */
int64_t adapm_wire_sent(adapm_wire *w);  /* a token whose data is free, or -1 */
uint64_t adapm_wire_queued(adapm_wire *w); /* bytes that wait */
uint64_t adapm_wire_room(adapm_wire *w);   /* bytes that it keeps for what has begun to come */
uint64_t adapm_wire_said(adapm_wire *w);   /* bytes that the socket has taken so far */
/* cffi end */
#endif
