/* What the parts of the stand-in share. `__init__.py` says what it is. */
#pragma once
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Names without a prefix of NVIDIA's are ours alone: nothing else in the process may bind them. */
#define OURS __attribute__((visibility("hidden")))

/* A call that succeeds and leaves no trace. */
#define OK(name) int name() { return 0; }

/* ------------------------------------------------------------------ the record (record.c) */

enum Kind { DRIVER_KERNEL, RUNTIME_KERNEL, COPY, FILL, LIBRARY, GRAPH, SYNC };

typedef struct {
  int kind;
  const char *name;
  unsigned grid[3], block[3], shared;
  int capture;  /* number of the capture that took it, 0 where it was enqueued to run */
  void *stream; /* the handle it was enqueued on */
  size_t bytes; /* of a copy or fill; nodes of a graph */
} Record;

/* One thread at a time changes what the stand-in knows; held to the end of the enclosing block. */
OURS void lock(void);
OURS void unlock(int *);
#define LOCKED int locked __attribute__((cleanup(unlock), unused)) = (lock(), 1)

OURS Record *record(enum Kind, const char *name, size_t bytes);
OURS int attribute(int number); /* CUdevice_attribute; cudaDeviceAttr has the same numbers */
OURS uint64_t total_memory(void);
OURS const char *device_name(void);
int num_devices(void);
extern __thread int current_device;

/* Keep `error` as the thread's last one, as the runtime does, and return it. */
OURS int fail(int error);
/* Note in words why a call was refused. */
OURS int refuse(int error, const char *why);

/* ------------------------------------------------------------------ errors (cudaError_t) */

enum {
  INVALID_VALUE = 1,
  OUT_OF_MEMORY = 2,
  NOT_SUPPORTED = 801,
  ILLEGAL_STATE = 401,
  NOT_FOUND = 500,
  NOT_READY = 600,
  ILLEGAL_ADDRESS = 700,
  MISALIGNED_ADDRESS = 716,
  COOPERATIVE_LAUNCH_TOO_LARGE = 720,
  CAPTURE_UNSUPPORTED = 900,
  CAPTURE_INVALIDATED = 901,
  CAPTURE_MERGE = 902,
  CAPTURE_UNMATCHED = 903,
  CAPTURE_UNJOINED = 904,
  CAPTURE_ISOLATION = 905,
  CAPTURE_IMPLICIT = 906,
  CAPTURED_EVENT = 907,
  CAPTURE_WRONG_THREAD = 908,
};

/* ------------------------------------------------------------------ order of work (order.c) */

enum { MAX_STREAMS = 512 };

/* For every stream, how much of its work has been waited for. */
typedef struct {
  uint32_t done[MAX_STREAMS];
} Clock;

enum CaptureStatus { NO_CAPTURE, ACTIVE, INVALIDATED, ENDED };

typedef struct Stream Stream;

typedef struct Capture {
  int number, mode;
  enum CaptureStatus status;
  pthread_t thread;
  Stream *origin;
  size_t num_nodes, num_addresses, max_addresses;
  const void **addresses; /* of device memory that its nodes are known to use */
} Capture;

typedef struct Delivery {
  struct Delivery *next;
  uint32_t after; /* the stream's work that ends with this copy */
  void *to;
  size_t size;
  char bytes[];
} Delivery;

struct Stream {
  int index, is_legacy;
  void *handle;
  Capture *capture;
  uint32_t done_before; /* its own work when it joined the capture */
  Clock clock;
  Delivery *first, *last;
};

OURS Stream *stream_of(void *handle);
/* Work is about to be enqueued on a stream: 0, or the error with which it is refused. */
OURS int enqueue(void *handle, Stream **stream);
/* A call that may wait, or touch every stream: refused where the thread's capture forbids it. */
OURS int unsafe_call(const char *name);
/* The capture that the stream takes part in now, if any. */
OURS Capture *capture_of(Stream *);
OURS void invalidate(Capture *);
/* What a capture's nodes use must be there when its graph is launched. */
OURS int remember_address(Stream *, const void *);
/* Deliver what `stream` has copied to pinned host memory; all streams' where it is null. */
OURS void deliver(Stream *);
OURS void deliver_later(Stream *, void *to, const void *from, size_t size);

/* ------------------------------------------------------------------ memory (memory.c) */

/* 1 live device memory, 0 no device memory, -1 device memory that has been freed. */
OURS int device_memory(const void *address, size_t size);
OURS int is_pinned(const void *address);

/* ------------------------------------------------------------------ the driver (driver.c) */

typedef struct {
  const char *name;
  const unsigned char *image; /* the cubin */
  size_t size;
  int num_params;
  uint16_t param_sizes[256]; /* bytes of each */
} Function;
