/* What adapm uses of libucp's binary interface: types of ucp.h by the names of this project, with the same layout.
 *
 * UCX keeps it stable within libucp.so.0: a struct says in its field mask which fields count, fields are only added at its end, and numbers
 * keep their meaning.  So no header of UCX is needed to build adapm, and one build runs with every libucp from UCX_OLDEST on.
 * tests/test_ucx_abi.py compares all this with the headers of an installed UCX. */
#ifndef ADAPM_UCP_ABI_H
#define ADAPM_UCP_ABI_H
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#define UCX_OLDEST_MAJOR 1
#define UCX_OLDEST_MINOR 14 /* from here on an endpoint tells its lanes */

typedef signed char ucx_status; /* 0: done, 1: in progress, < 0: error */
typedef void *ucx_handle; /* context, worker, endpoint, configuration, address */

enum {
    UCX_IN_PROGRESS = 1,
    UCX_ERR_NO_MEMORY = -4,
    UCX_ERR_NO_DEVICE = -14,
    UCX_ERR_BUSY = -15,
    UCX_ERR_LAST = -100,
};

enum { /* ucp_params_field, ucp_feature, ucp_worker_params_field, ucp_ep_params_field, ucp_ep_attr_field */
    UCX_PARAM_FEATURES = 1 << 0,
    UCX_FEATURE_WAKEUP = 1 << 4,
    UCX_FEATURE_AM = 1 << 6,
    UCX_WORKER_THREAD_MODE = 1 << 0,
    UCX_EP_REMOTE_ADDRESS = 1 << 0,
    UCX_EP_ERR_MODE = 1 << 1,
    UCX_EP_ERR_HANDLER = 1 << 2,
    UCX_EP_ATTR_TRANSPORTS = 1 << 3,
    UCX_ERR_MODE_PEER = 1,
    UCX_CLOSE_FORCE = 1 << 0,
};

enum { /* ucp_op_attr_t, ucp_send_am_flags, ucp_am_cb_flags, ucp_am_recv_attr_t, ucp_am_handler_param_field */
    UCX_OP_CALLBACK = 1 << 1,
    UCX_OP_USER_DATA = 1 << 2,
    UCX_OP_FLAGS = 1 << 4,
    UCX_OP_MEMORY_TYPE = 1 << 6,
    UCX_AM_SEND_EAGER = 1 << 1,
    UCX_AM_SEND_RNDV = 1 << 2,
    UCX_AM_WHOLE_MESSAGE = 1 << 0,
    UCX_AM_RECV_DATA = 1 << 16,
    UCX_AM_RECV_RNDV = 1 << 17,
    UCX_AM_HANDLER_ID = 1 << 0,
    UCX_AM_HANDLER_FLAGS = 1 << 1,
    UCX_AM_HANDLER_CB = 1 << 2,
    UCX_AM_HANDLER_ARG = 1 << 3,
};

typedef struct { /* ucp_params_t */
    uint64_t field_mask, features;
    size_t request_size;
    void *request_init, *request_cleanup;
    uint64_t tag_sender_mask;
    int mt_workers_shared;
    size_t estimated_num_eps, estimated_num_ppn;
    const char *name;
    size_t node_local_id;
} ucx_params;

typedef struct { /* ucp_worker_params_t */
    uint64_t field_mask;
    int thread_mode;
    unsigned long cpu_mask[1024 / (8 * sizeof(unsigned long))];
    unsigned events;
    void *user_data;
    int event_fd;
    uint64_t flags;
    const char *name;
    size_t am_alignment;
    uint64_t client_id;
} ucx_worker_params;

typedef struct { /* ucs_sock_addr_t */
    const struct sockaddr *addr;
    socklen_t addrlen;
} ucx_sockaddr;

typedef struct { /* ucp_ep_params_t */
    uint64_t field_mask;
    const void *address;
    int err_mode;
    struct {
        void (*cb)(void *arg, ucx_handle ep, ucx_status status);
        void *arg;
    } err_handler;
    void *user_data;
    unsigned flags;
    ucx_sockaddr sockaddr;
    void *conn_request;
    const char *name;
    ucx_sockaddr local_sockaddr;
} ucx_ep_params;

typedef struct { /* ucp_request_param_t */
    uint32_t op_attr_mask, flags;
    void *request;
    union {
        void (*send)(void *request, ucx_status status, void *user_data);
        void (*recv_am)(void *request, ucx_status status, size_t length, void *user_data);
    } cb;
    uint64_t datatype;
    void *user_data;
    void *reply_buffer;
    int memory_type; /* 0: of the host */
    void *recv_info;
    void *memh;
    uint64_t remote_datatype;
    const void *remote;
    size_t remote_count;
} ucx_request_param;

typedef struct { /* ucp_am_recv_param_t */
    uint64_t recv_attr;
    ucx_handle reply_ep;
} ucx_am_recv_param;

typedef struct { /* ucp_am_handler_param_t */
    uint64_t field_mask;
    unsigned id;
    uint32_t flags;
    ucx_status (*cb)(void *arg, const void *header, size_t header_length, void *data, size_t length, const ucx_am_recv_param *param);
    void *arg;
} ucx_am_handler_param;

typedef struct { /* ucp_transport_entry_t */
    const char *transport_name, *device_name;
} ucx_transport_entry;

typedef struct { /* ucp_ep_attr_t */
    uint64_t field_mask;
    char name[32];
    struct sockaddr_storage local_sockaddr, remote_sockaddr;
    struct {
        ucx_transport_entry *entries;
        unsigned num_entries;
        size_t entry_size;
    } transports;
    void *user_data;
} ucx_ep_attr;

/* Of libucs, for which there is no such promise, but which has kept it for years: what UCX has to say goes to handlers. */
enum { UCX_LOG_FATAL = 0, UCX_LOG_WARN = 2, UCX_LOG_STOP = 0, UCX_LOG_CONTINUE = 1 };
typedef int (*ucx_log_handler)(const char *file, unsigned line, const char *function, int level, const void *component, const char *format, va_list arguments);

/* The functions of libucp: X(result, name without "ucp_", arguments) */
#define UCX_FUNCTIONS(X) \
    X(void, get_version, (unsigned *major, unsigned *minor, unsigned *release)) \
    X(ucx_status, config_read, (const char *prefix, const char *file, ucx_handle *config)) \
    X(ucx_status, config_modify, (ucx_handle config, const char *name, const char *value)) \
    X(void, config_release, (ucx_handle config)) \
    X(ucx_status, init_version, (unsigned major, unsigned minor, const ucx_params *params, const void *config, ucx_handle *context)) \
    X(void, cleanup, (ucx_handle context)) \
    X(ucx_status, worker_create, (ucx_handle context, const ucx_worker_params *params, ucx_handle *worker)) \
    X(void, worker_destroy, (ucx_handle worker)) \
    X(ucx_status, worker_get_address, (ucx_handle worker, void **address, size_t *length)) \
    X(void, worker_release_address, (ucx_handle worker, void *address)) \
    X(ucx_status, worker_get_efd, (ucx_handle worker, int *fd)) \
    X(ucx_status, worker_arm, (ucx_handle worker)) \
    X(unsigned, worker_progress, (ucx_handle worker)) \
    X(ucx_status, worker_set_am_recv_handler, (ucx_handle worker, const ucx_am_handler_param *param)) \
    X(ucx_status, ep_create, (ucx_handle worker, const ucx_ep_params *params, ucx_handle *ep)) \
    X(void *, ep_close_nbx, (ucx_handle ep, const ucx_request_param *param)) \
    X(ucx_status, ep_query, (ucx_handle ep, ucx_ep_attr *attr)) \
    X(void *, am_send_nbx, (ucx_handle ep, unsigned id, const void *header, size_t header_length, const void *buffer, size_t count, const ucx_request_param *param)) \
    X(void *, am_recv_data_nbx, (ucx_handle worker, void *data_desc, void *buffer, size_t count, const ucx_request_param *param)) \
    X(void, am_data_release, (ucx_handle worker, void *data)) \
    X(void, request_free, (void *request))

#endif
