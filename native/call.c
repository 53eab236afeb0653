/* adapm._call: one call from Python per pull or push of local rows, or intent.
 *
 * Finding out what the arguments are costs more than copying a few rows, if Python code does it.  Here it is a look into each
 * array: what is as the kernel wants it goes there, and everything else goes back to the caller untouched - other types, names
 * that no table has, a worker that is closed.  So there is one place that converts and complains, adapm/arguments.py, and this
 * one never does either.
 *
 * The module is not linked with the kernel: a Caller gets the addresses of the functions it calls. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#define NPY_NO_DEPRECATED_API NPY_1_7_API_VERSION
#include <numpy/arrayobject.h>
#include <sched.h>
#include <stdbool.h>

#include "kernel.h"

/* Other threads may run Python meanwhile if a call takes longer than some 5 us.  In a shorter one they would gain nothing, and we
 * could lose: who gives the interpreter away while another thread computes gets it back after 5 ms, Python's switch interval. */
#define HELD_FLOATS 16384
#define KEY_FLOATS 16 /* looking up a key costs as much as so many floats of its row */

typedef struct {
    PyObject_HEAD
    adapm_worker *worker; /* NULL: closed */
    __typeof__(&adapm_pull) pull;
    __typeof__(&adapm_push) push;
    __typeof__(&adapm_intent) intent;
    __typeof__(&adapm_worker_yield_with) yield_with;
    PyObject *tables;     /* {name: (index, {columns: (offset, length)})} */
    uint32_t *scratch;    /* where the kernel puts what it misses: of the worker, which keeps it alive */
    int64_t room;         /* keys that it is enough for */
    bool holds;           /* the kernel runs while we hold the interpreter */
} Caller;

/* What a call addresses: borrowed from its arguments. */
struct access {
    uint32_t table, offset, length;
    const int64_t *keys;
    int64_t n;
};

/* ---- the interpreter */

/* The kernel waits for somebody, who may be a thread of this very process and need the interpreter. */
static void give_way(void *caller) {
    if (((Caller *)caller)->holds) {
        Py_BEGIN_ALLOW_THREADS
        sched_yield();
        Py_END_ALLOW_THREADS
    } else {
        sched_yield();
    }
}

static PyThreadState *enter_kernel(Caller *self, const struct access *a) {
    self->holds = a->n * (KEY_FLOATS + (int64_t)a->length) <= HELD_FLOATS;
    return self->holds ? NULL : PyEval_SaveThread();
}

static void leave_kernel(Caller *self, PyThreadState *saved) {
    self->holds = false;
    if (saved) PyEval_RestoreThread(saved);
}

/* ---- arguments: whether they are what the kernel takes; no error is ever set */

static bool take_number(PyObject *given, uint32_t *number) {
    unsigned long value = PyLong_Check(given) ? PyLong_AsUnsignedLong(given) : UINT32_MAX;
    if (value == (unsigned long)-1 && PyErr_Occurred()) PyErr_Clear();
    *number = (uint32_t)value;
    return value < UINT32_MAX;
}

/* Both halves of a pair, borrowed. */
static bool take_pair(PyObject *given, PyObject **first, PyObject **second) {
    if (!given || !PyTuple_CheckExact(given) || PyTuple_GET_SIZE(given) != 2) return false;
    *first = PyTuple_GET_ITEM(given, 0);
    *second = PyTuple_GET_ITEM(given, 1);
    return true;
}

/* Names are looked up, and nothing whose comparison could run somebody's code. */
static bool take_columns(PyObject *spans, PyObject *columns, struct access *a) {
    PyObject *offset, *length;
    if (columns != Py_None && !PyUnicode_CheckExact(columns) && !PyTuple_CheckExact(columns)) return false;
    if (!PyDict_CheckExact(spans)) return false;
    PyObject *span = PyDict_GetItemWithError(spans, columns);
    if (!span) PyErr_Clear();
    return take_pair(span, &offset, &length) && take_number(offset, &a->offset) && take_number(length, &a->length);
}

static bool take_table(Caller *self, PyObject *table, PyObject **spans, struct access *a) {
    PyObject *index;
    if (!PyUnicode_CheckExact(table)) return false;
    PyObject *entry = PyDict_GetItemWithError(self->tables, table);
    if (!entry) PyErr_Clear();
    return take_pair(entry, &index, spans) && take_number(index, &a->table);
}

static bool is_dense(PyObject *given, int type, int dimensions) {
    if (!PyArray_CheckExact(given)) return false;
    PyArrayObject *array = (PyArrayObject *)given;
    return PyArray_TYPE(array) == type && PyArray_NDIM(array) == dimensions && PyArray_ISCARRAY_RO(array);
}

static bool take_keys(PyObject *keys, struct access *a) {
    if (!is_dense(keys, NPY_INT64, 1)) return false;
    a->keys = PyArray_DATA((PyArrayObject *)keys);
    __builtin_prefetch(a->keys); /* keys that come but once are in no cache: they arrive while the rest is looked at */
    a->n = PyArray_DIM((PyArrayObject *)keys, 0);
    return true;
}

static bool take_access(Caller *self, PyObject *table, PyObject *keys, PyObject *columns, struct access *a) {
    PyObject *spans;
    return self->worker && take_keys(keys, a) && a->n <= self->room && take_table(self, table, &spans, a) && take_columns(spans, columns, a);
}

/* From a first clock until before the last one, which may be None for the one after. */
static bool take_clocks(PyObject *start, PyObject *end, int64_t *first, int64_t *last) {
    int far = 0;
    if (!PyLong_CheckExact(start) || !(end == Py_None || PyLong_CheckExact(end))) return false;
    *first = PyLong_AsLongLongAndOverflow(start, &far);
    if (far || *first < 0 || *first == INT64_MAX) return false;
    *last = end == Py_None ? *first + 1 : PyLong_AsLongLongAndOverflow(end, &far);
    return !far && *first < *last;
}

/* Float32 [n, length]. */
static bool are_rows(PyObject *given, const struct access *a) {
    if (!is_dense(given, NPY_FLOAT32, 2)) return false;
    const npy_intp *shape = PyArray_DIMS((PyArrayObject *)given);
    return shape[0] == a->n && shape[1] == a->length;
}

/* ---- methods */

/* `out` if rows may be written there, or a new array; NULL without an error if `out` is something else. */
static PyObject *take_out(PyObject *out, const struct access *a) {
    if (out == Py_None) return PyArray_EMPTY(2, ((npy_intp[]){a->n, a->length}), NPY_FLOAT32, 0);
    if (!are_rows(out, a) || !PyArray_ISWRITEABLE((PyArrayObject *)out)) return NULL;
    Py_INCREF(out);
    return out;
}

PyDoc_STRVAR(pull_doc, "pull(table, keys, columns, out, /)\n--\n\n"
                       "The rows; (rows, what the kernel returned) if it did not find all of them here; None if it was not called.");

static PyObject *caller_pull(Caller *self, PyObject *const *args, Py_ssize_t nargs) {
    struct access a;
    if (nargs != 4) return PyErr_Format(PyExc_TypeError, "pull takes 4 arguments, got %zd", nargs);
    if (!take_access(self, args[0], args[1], args[2], &a)) Py_RETURN_NONE;
    PyObject *rows = take_out(args[3], &a);
    if (!rows && PyErr_Occurred()) return NULL;
    if (!rows) Py_RETURN_NONE;
    PyThreadState *saved = enter_kernel(self, &a);
    int64_t missed = self->pull(self->worker, a.table, a.offset, a.length, a.keys, a.n, PyArray_DATA((PyArrayObject *)rows), self->scratch);
    leave_kernel(self, saved);
    return missed ? Py_BuildValue("NL", rows, (long long)missed) : rows;
}

PyDoc_STRVAR(push_doc, "push(table, keys, columns, values, /)\n--\n\n"
                       "What the kernel returned: 0 if all rows were here; None if it was not called.");

static PyObject *caller_push(Caller *self, PyObject *const *args, Py_ssize_t nargs) {
    struct access a;
    if (nargs != 4) return PyErr_Format(PyExc_TypeError, "push takes 4 arguments, got %zd", nargs);
    if (!take_access(self, args[0], args[1], args[2], &a) || !are_rows(args[3], &a)) Py_RETURN_NONE;
    PyThreadState *saved = enter_kernel(self, &a);
    int64_t missed = self->push(self->worker, a.table, a.offset, a.length, a.keys, a.n, PyArray_DATA((PyArrayObject *)args[3]), self->scratch);
    leave_kernel(self, saved);
    return PyLong_FromLongLong(missed);
}

PyDoc_STRVAR(intent_doc, "intent(table, keys, start, end, /)\n--\n\n"
                         "What the kernel returned: the number of keys, or fewer if the node must make room first; None if it was not called.");

static PyObject *caller_intent(Caller *self, PyObject *const *args, Py_ssize_t nargs) {
    struct access a = {0};
    PyObject *spans;
    int64_t start, end;
    if (nargs != 4) return PyErr_Format(PyExc_TypeError, "intent takes 4 arguments, got %zd", nargs);
    if (!self->worker || !take_keys(args[1], &a) || !take_table(self, args[0], &spans, &a) || !take_clocks(args[2], args[3], &start, &end)) Py_RETURN_NONE;
    PyThreadState *saved = enter_kernel(self, &a);
    int64_t took = self->intent(self->worker, a.table, a.keys, a.n, start, end);
    leave_kernel(self, saved);
    return PyLong_FromLongLong(took);
}

PyDoc_STRVAR(use_scratch_doc, "use_scratch(address, room, /)\n--\n\n"
                              "What is missed goes to this address from now on, where room is for so many uint32_t.");

static PyObject *caller_use_scratch(Caller *self, PyObject *args) {
    unsigned long long address;
    long long room;
    if (!PyArg_ParseTuple(args, "KL", &address, &room)) return NULL;
    self->scratch = (uint32_t *)(uintptr_t)address;
    self->room = room;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(close_doc, "close()\n--\n\nThe worker ends: from now on everything returns None.");

static PyObject *caller_close(Caller *self, PyObject *Py_UNUSED(ignored)) {
    if (self->worker) self->yield_with(self->worker, NULL, NULL);
    self->worker = NULL;
    Py_RETURN_NONE;
}

/* ---- the type and the module */

PyDoc_STRVAR(caller_doc, "Caller(worker, pull, push, intent, yield_with, tables)\n--\n\n"
                         "Calls the kernel for one worker, in its thread.\n\n"
                         "The first five are addresses: the kernel's handle and its functions adapm_pull, adapm_push, adapm_intent and\n"
                         "adapm_worker_yield_with. tables is {name: (index, {columns: (offset, length)})}, and may change.\n"
                         "Until `use_scratch` has been called, nothing but calls without keys gets to the kernel.\n"
                         "`close` it before the handle goes.");

static PyObject *caller_new(PyTypeObject *type, PyObject *args, PyObject *keywords) {
    static char *names[] = {"worker", "pull", "push", "intent", "yield_with", "tables", NULL};
    unsigned long long worker, pull, push, intent, yield_with;
    PyObject *tables;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "KKKKKO!", names, &worker, &pull, &push, &intent, &yield_with, &PyDict_Type, &tables)) return NULL;
    Caller *self = (Caller *)type->tp_alloc(type, 0); /* zeroed */
    if (!self) return NULL;
    self->worker = (adapm_worker *)(uintptr_t)worker;
    self->pull = (__typeof__(self->pull))(uintptr_t)pull;
    self->push = (__typeof__(self->push))(uintptr_t)push;
    self->intent = (__typeof__(self->intent))(uintptr_t)intent;
    self->yield_with = (__typeof__(self->yield_with))(uintptr_t)yield_with;
    Py_INCREF(tables);
    self->tables = tables;
    self->yield_with(self->worker, give_way, self);
    return (PyObject *)self;
}

static void caller_dealloc(Caller *self) {
    PyTypeObject *type = Py_TYPE(self);
    Py_XDECREF(self->tables);
    type->tp_free(self);
    Py_DECREF(type);
}

#define METHOD(function) ((PyCFunction)(void (*)(void))(function))

static PyMethodDef caller_methods[] = {
    {"pull", METHOD(caller_pull), METH_FASTCALL, pull_doc},
    {"push", METHOD(caller_push), METH_FASTCALL, push_doc},
    {"intent", METHOD(caller_intent), METH_FASTCALL, intent_doc},
    {"use_scratch", METHOD(caller_use_scratch), METH_VARARGS, use_scratch_doc},
    {"close", METHOD(caller_close), METH_NOARGS, close_doc},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot caller_slots[] = {
    {Py_tp_doc, (void *)caller_doc},
    {Py_tp_new, caller_new},
    {Py_tp_dealloc, caller_dealloc},
    {Py_tp_methods, caller_methods},
    {0, NULL},
};

static PyType_Spec caller_spec = {.name = "adapm._call.Caller", .basicsize = sizeof(Caller), .flags = Py_TPFLAGS_DEFAULT, .slots = caller_slots};

static int fill_module(PyObject *module) {
    import_array1(-1);
    PyObject *type = PyType_FromModuleAndSpec(module, &caller_spec, NULL);
    int rc = type ? PyModule_AddType(module, (PyTypeObject *)type) : -1;
    Py_XDECREF(type);
    return rc;
}

static PyModuleDef_Slot module_slots[] = {{Py_mod_exec, fill_module}, {0, NULL}};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "adapm._call",
    .m_doc = "One call from Python per pull or push of local rows, or intent.",
    .m_slots = module_slots,
};

PyMODINIT_FUNC PyInit__call(void) { return PyModuleDef_Init(&module); }
