/* Streams, events and captures: what CUDA lets run in which order, and what it refuses.
 *
 * Every stream counts its work; an event is a copy of a stream's clock. The rules of a capture are
 * those of the CUDA runtime's documentation (cudaStreamBeginCapture, cudaThreadExchangeStream-
 * CaptureMode, "Creating a Graph Using Stream Capture" of the programming guide). One is stricter:
 * the capturing thread may not use the legacy stream, where CUDA runs that work once, outside the
 * graph, if the captured stream does not block.
 */
#include "stand_in.h"

enum { GLOBAL, THREAD_LOCAL, RELAXED };

typedef struct {
  int recorded; /* how many recordings of events there were by then; 0 if it never was */
  Capture *capture; /* that the event was last recorded in */
  Clock clock;
} Event;

static Stream legacy = {.is_legacy = 1}, *streams[MAX_STREAMS] = {&legacy};
static int num_streams = 1, num_captures, num_recordings;
static __thread Stream *own_stream; /* cudaStreamPerThread */
static __thread int thread_mode = GLOBAL;
static Capture *active[64];
static int num_active;

static Stream *new_stream(void) {
  Stream *s = calloc(1, sizeof *s);
  s->index = num_streams < MAX_STREAMS ? num_streams++ : MAX_STREAMS - 1;
  streams[s->index] = s;
  return s->handle = s;
}
Stream *stream_of(void *handle) {
  if (handle == 0 || handle == (void *)1) return &legacy;
  if (handle == (void *)2) return own_stream ? own_stream : (own_stream = new_stream());
  return handle;
}
static void join(Clock *into, const Clock *from) {
  for (int i = 0; i < num_streams; i++)
    if (from->done[i] > into->done[i]) into->done[i] = from->done[i];
}

/* ------------------------------------------------------------------ copies to the host */

void deliver_later(Stream *s, void *to, const void *from, size_t size) {
  Delivery *d = malloc(sizeof *d + size);
  d->next = 0, d->after = s->clock.done[s->index], d->to = to, d->size = size;
  memcpy(d->bytes, from, size);
  memset(to, 0xFF, size);
  if (s->last) s->last->next = d;
  else s->first = d;
  s->last = d;
}
static void deliver_until(Stream *s, uint32_t done) {
  while (s->first && s->first->after <= done) {
    Delivery *d = s->first;
    memcpy(d->to, d->bytes, d->size);
    if (!(s->first = d->next)) s->last = 0;
    free(d);
  }
}
static void deliver_clock(const Clock *clock) {
  for (int i = 0; i < num_streams; i++) deliver_until(streams[i], clock->done[i]);
}
void deliver(Stream *s) {
  if (s) deliver_clock(&s->clock);
  else
    for (int i = 0; i < num_streams; i++) deliver_until(streams[i], UINT32_MAX);
}

/* ------------------------------------------------------------------ what a capture forbids */

Capture *capture_of(Stream *s) { return s->capture; }

void invalidate(Capture *capture) {
  if (capture && capture->status == ACTIVE) capture->status = INVALIDATED;
}
/* The thread's own capture, or another thread's that forbids things to all. */
static Capture *forbidding(int mode) {
  for (int i = 0; i < num_active; i++) {
    Capture *c = active[i];
    int own = pthread_equal(c->thread, pthread_self());
    if (own && c->mode != RELAXED && mode != RELAXED) return c;
    if (!own && c->mode == GLOBAL && mode == GLOBAL) return c;
  }
  return 0;
}
static int refuse_in(Capture *capture, int error, const char *why) {
  invalidate(capture);
  return refuse(error, why);
}
int unsafe_call(const char *name) {
  LOCKED;
  Capture *capture = forbidding(thread_mode);
  char why[128];
  snprintf(why, sizeof why, "%s is not permitted in a capture", name);
  return capture ? refuse_in(capture, CAPTURE_UNSUPPORTED, why) : 0;
}

int enqueue(void *handle, Stream **stream) {
  Stream *s = *stream = stream_of(handle);
  if (s->capture && s->capture->status == INVALIDATED) return fail(CAPTURE_INVALIDATED);
  Capture *own = s->is_legacy ? forbidding(THREAD_LOCAL) : 0;
  if (own) return refuse_in(own, CAPTURE_IMPLICIT, "use of the legacy stream in a capture");
  s->clock.done[s->index]++;
  if (s->capture) s->capture->num_nodes++;
  return 0;
}
int remember_address(Stream *s, const void *address) {
  Capture *c = s->capture;
  if (!c) return 0;
  if (c->num_addresses == c->max_addresses) {
    c->max_addresses = c->max_addresses ? 2 * c->max_addresses : 256;
    c->addresses = realloc(c->addresses, c->max_addresses * sizeof *c->addresses);
  }
  return c->addresses[c->num_addresses++] = address, 0;
}

/* The host waits, or asks whether it would have to; `capture` is what it would wait for. */
static int wait_for(Capture *capture, const Clock *clock, const char *name, int waits) {
  char why[128];
  snprintf(why, sizeof why, "%s of captured work", name);
  if (waits) record(SYNC, name, 0);
  if (capture && capture->status == ENDED) return refuse(CAPTURED_EVENT, why);
  if (capture) return refuse_in(capture, CAPTURE_UNSUPPORTED, why);
  int error = unsafe_call(name);
  if (!error) deliver_clock(clock);
  return error;
}

/* ------------------------------------------------------------------ streams and waits */

int cudaStreamCreate(void **s) {
  LOCKED;
  return *s = new_stream(), 0;
}
int cudaStreamCreateWithFlags(void **s, unsigned flags) { return cudaStreamCreate(s); }
int cudaStreamCreateWithPriority(void **s, unsigned flags, int priority) {
  return cudaStreamCreate(s);
}
int cudaStreamGetPriority(void *s, int *priority) { return *priority = 0, 0; }
OK(cudaStreamDestroy)

int cudaDeviceSynchronize(void) {
  LOCKED;
  record(SYNC, "cudaDeviceSynchronize", 0);
  if (num_active) /* whichever thread asks: the device holds a stream that is captured */
    return refuse_in(active[0], CAPTURE_UNSUPPORTED, "cudaDeviceSynchronize in a capture");
  return deliver(0), 0;
}
int cudaStreamSynchronize(void *handle) {
  LOCKED;
  Stream *s = stream_of(handle);
  return wait_for(s->capture, &s->clock, "cudaStreamSynchronize", 1);
}
int cudaStreamQuery(void *handle) { /* asked for, the work has always just been finished */
  LOCKED;
  Stream *s = stream_of(handle);
  return wait_for(s->capture, &s->clock, "cudaStreamQuery", 0);
}
int cuStreamSynchronize(void *handle) { return cudaStreamSynchronize(handle); }
int cuCtxSynchronize(void) { return cudaDeviceSynchronize(); }

/* ------------------------------------------------------------------ events */

int cudaEventCreate(Event **e) { return *e = calloc(1, sizeof **e), 0; }
int cudaEventCreateWithFlags(Event **e, unsigned flags) { return cudaEventCreate(e); }
int cudaEventDestroy(Event *e) { return free(e), 0; }
int cudaEventRecordWithFlags(Event *e, void *handle, unsigned external) {
  LOCKED;
  Stream *s = stream_of(handle);
  if (s->capture && s->capture->status == INVALIDATED) return fail(CAPTURE_INVALIDATED);
  e->recorded = ++num_recordings, e->clock = s->clock, e->capture = external ? 0 : s->capture;
  return 0;
}
int cudaEventRecord(Event *e, void *handle) { return cudaEventRecordWithFlags(e, handle, 0); }
int cudaEventSynchronize(Event *e) {
  LOCKED;
  return wait_for(e->capture, &e->clock, "cudaEventSynchronize", 1);
}
int cudaEventQuery(Event *e) {
  LOCKED;
  return wait_for(e->capture, &e->clock, "cudaEventQuery", 0);
}
int cudaEventElapsedTime(float *ms, Event *from, Event *to) {
  if (!from->recorded || !to->recorded) return fail(INVALID_VALUE);
  if (from->capture || to->capture) return fail(CAPTURED_EVENT);
  return *ms = to->recorded - from->recorded, 0;
}
int cudaStreamWaitEvent(void *handle, Event *e, unsigned external) {
  LOCKED;
  Stream *s = stream_of(handle);
  if (!e->recorded || external) return 0;
  if (!s->capture && !e->capture) return join(&s->clock, &e->clock), 0;
  if (!e->capture)
    return refuse_in(s->capture, CAPTURE_ISOLATION, "a capture waits for an event from outside");
  if (e->capture->status == ENDED) {
    if (s->capture) invalidate(s->capture);
    return refuse(CAPTURE_ISOLATION, "a stream waits for an event of a capture that has ended");
  }
  if (s->is_legacy)
    return refuse_in(e->capture, CAPTURE_IMPLICIT, "the legacy stream waits for captured work");
  if (s->capture && s->capture != e->capture) {
    invalidate(s->capture);
    return refuse_in(e->capture, CAPTURE_MERGE, "two captures would become one");
  }
  if (!s->capture) s->done_before = s->clock.done[s->index];
  s->capture = e->capture;
  return join(&s->clock, &e->clock), 0;
}

/* ------------------------------------------------------------------ captures and graphs */

int cudaThreadExchangeStreamCaptureMode(int *mode) {
  int before = thread_mode;
  return thread_mode = *mode, *mode = before, 0;
}
int cudaStreamIsCapturing(void *handle, int *status) {
  LOCKED;
  Stream *s = stream_of(handle);
  return *status = s->capture ? s->capture->status : NO_CAPTURE, 0;
}
int cudaStreamGetCaptureInfo(void *handle, int *status, unsigned long long *id, void **graph,
                             const void ***nodes, const void **edges, size_t *count) {
  cudaStreamIsCapturing(handle, status);
  Stream *s = stream_of(handle);
  if (id) *id = s->capture ? s->capture->number : 0;
  if (graph) *graph = s->capture;
  if (nodes) *nodes = 0;
  if (edges) *edges = 0;
  if (count) *count = 0;
  return 0;
}
OK(cudaStreamUpdateCaptureDependencies)

int cudaStreamBeginCapture(void *handle, int mode) {
  LOCKED;
  Stream *s = stream_of(handle);
  if (s->is_legacy) return refuse(CAPTURE_UNSUPPORTED, "the legacy stream cannot be captured");
  if (s->capture || num_active == 64) return refuse(ILLEGAL_STATE, "already captured");
  Capture *c = calloc(1, sizeof *c); /* stays: events may point to it */
  c->number = ++num_captures, c->mode = mode, c->status = ACTIVE, c->thread = pthread_self();
  c->origin = s;
  active[num_active++] = s->capture = c;
  return 0;
}
int cudaStreamEndCapture(void *handle, Capture **graph) {
  LOCKED;
  Stream *s = stream_of(handle);
  Capture *c = s->capture;
  *graph = 0;
  if (!c) return refuse(ILLEGAL_STATE, "the stream is not captured");
  if (c->origin != s) return refuse_in(c, CAPTURE_UNMATCHED, "another stream began the capture");
  if (c->mode != RELAXED && !pthread_equal(c->thread, pthread_self()))
    return refuse_in(c, CAPTURE_WRONG_THREAD, "another thread began the capture");
  int unjoined = 0;
  for (int i = 0; i < num_streams; i++) {
    Stream *t = streams[i];
    if (t->capture != c) continue;
    int worked = t->clock.done[i] > t->done_before;
    unjoined |= worked && s->clock.done[i] < t->clock.done[i];
    t->capture = 0;
  }
  for (int i = 0; i < num_active; i++)
    if (active[i] == c) active[i] = active[--num_active];
  int invalid = c->status == INVALIDATED;
  c->status = ENDED;
  if (invalid) return fail(CAPTURE_INVALIDATED);
  if (unjoined) return refuse(CAPTURE_UNJOINED, "a stream of the capture was not joined");
  return *graph = c, 0;
}
OK(cudaGraphDestroy) OK(cudaGraphExecDestroy) OK(cudaGraphRetainUserObject)
OK(cudaUserObjectRelease)
int cudaUserObjectCreate(void **o, void *p, void *destroy, unsigned count, unsigned flags) {
  return *o = malloc(1), 0;
}
int cudaGraphInstantiateWithFlags(Capture **exec, Capture *graph, unsigned long long flags) {
  return *exec = graph, 0;
}
int cudaGraphGetNodes(Capture *graph, void **nodes, size_t *count) {
  return *count = graph->num_nodes, 0;
}
int cudaGraphLaunch(Capture *exec, void *handle) {
  LOCKED;
  Stream *s;
  int error = enqueue(handle, &s);
  if (error) return error;
  for (size_t i = 0; i < exec->num_addresses; i++)
    if (device_memory(exec->addresses[i], 0) < 0)
      return refuse(ILLEGAL_ADDRESS, "a graph uses device memory that was freed after its capture");
  Record *r = record(GRAPH, "graph", exec->num_nodes);
  r->stream = handle, r->capture = s->capture ? s->capture->number : 0;
  return 0;
}
int cudaLaunchHostFunc(void *stream, void (*f)(void *), void *data) {
  Stream *s;
  lock();
  int error = enqueue(stream, &s), captured = !error && s->capture;
  unlock(0);
  if (!error && !captured) f(data);
  return error;
}
