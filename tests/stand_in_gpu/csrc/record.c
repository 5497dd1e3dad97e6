/* What was asked of the GPU, the GPU that is stood in for, and why a call was refused. */
#include "stand_in.h"

Record *stand_in_records;
size_t stand_in_num_records;
char stand_in_refusal[256]; /* why the last refused call was refused */

static size_t capacity;
static pthread_mutex_t mutex;
static char name[256];
static uint64_t memory;
static int attributes[256];

/* STAND_IN_GPU is "name|bytes of memory|attribute=value,attribute=value,...". */
__attribute__((constructor)) static void become(void) {
  pthread_mutexattr_t kind;
  pthread_mutexattr_init(&kind);
  pthread_mutexattr_settype(&kind, PTHREAD_MUTEX_RECURSIVE);
  pthread_mutex_init(&mutex, &kind);
  const char *text = getenv("STAND_IN_GPU");
  if (!text) return;
  int used = 0, number, value, step;
  sscanf(text, "%255[^|]|%lu|%n", name, &memory, &used);
  for (text += used; sscanf(text, "%d=%d%n", &number, &value, &step) == 2; text += *text == ',') {
    attributes[number & 255] = value;
    text += step;
  }
}

void lock(void) { pthread_mutex_lock(&mutex); }
void unlock(int *held) { (void)held, pthread_mutex_unlock(&mutex); }

int attribute(int number) { return number >= 0 && number < 256 ? attributes[number] : 0; }
uint64_t total_memory(void) { return memory; }
const char *device_name(void) { return name; }

Record *record(enum Kind kind, const char *what, size_t bytes) {
  if (stand_in_num_records == capacity) {
    capacity = capacity ? 2 * capacity : 4096;
    stand_in_records = realloc(stand_in_records, capacity * sizeof(Record));
  }
  Record *r = &stand_in_records[stand_in_num_records++];
  memset(r, 0, sizeof *r);
  r->kind = kind, r->name = what, r->bytes = bytes;
  return r;
}

void stand_in_clear(void) {
  LOCKED;
  stand_in_num_records = 0;
}

/* For a caller that does not launch a kernel but says which one it would have launched. */
int stand_in_note(const char *what, void *stream) {
  LOCKED;
  Stream *s;
  int error = enqueue(stream, &s);
  if (error) return error;
  Record *r = record(DRIVER_KERNEL, strdup(what), 0);
  r->stream = stream, r->capture = s->capture ? s->capture->number : 0;
  return 0;
}

static __thread int last_error;
int fail(int error) {
  if (error) last_error = error;
  return error;
}
int refuse(int error, const char *why) {
  snprintf(stand_in_refusal, sizeof stand_in_refusal, "%s", why);
  if (getenv("STAND_IN_GPU_VERBOSE")) fprintf(stderr, "stand-in GPU: %d, %s\n", error, why);
  return fail(error);
}
int cudaPeekAtLastError(void) { return last_error; }
int cudaGetLastError(void) {
  int error = last_error;
  return last_error = 0, error;
}
static const char *text_of(int error) {
  if (!error) return "no error";
  if (error == OUT_OF_MEMORY) return "out of memory";
  return *stand_in_refusal ? stand_in_refusal : "an error of the stand-in GPU";
}
const char *cudaGetErrorString(int error) { return text_of(error); }
const char *cudaGetErrorName(int error) {
  return error == OUT_OF_MEMORY ? "cudaErrorMemoryAllocation" : error ? "cudaError" : "cudaSuccess";
}
int cuGetErrorString(int error, const char **text) { return *text = text_of(error), 0; }
int cuGetErrorName(int error, const char **text) { return *text = text_of(error), 0; }
