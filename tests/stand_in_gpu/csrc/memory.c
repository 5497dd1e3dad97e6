/* Memory: a device's is host address space that no kernel touches; copies and fills are real.
 *
 * A freed address is never given out again, so that its use is seen. What is copied to pinned
 * memory reads as 0xFF bytes (NaN) until the host has waited for the copy.
 */
#include <sys/mman.h>

#include "stand_in.h"
#include <driver_types.h>

typedef struct {
  uintptr_t start;
  size_t size;
  int live;
} Block;
typedef struct {
  Block *blocks;
  size_t num, max;
} Blocks; /* sorted by address where addresses only grow */

static Blocks device, host;
static uintptr_t heap_end;
static size_t in_use;

static void add(Blocks *all, uintptr_t start, size_t size) {
  if (all->num == all->max) {
    all->max = all->max ? 2 * all->max : 256;
    all->blocks = realloc(all->blocks, all->max * sizeof(Block));
  }
  all->blocks[all->num++] = (Block){start, size, 1};
}
static Block *device_block(uintptr_t address) {
  size_t low = 0, high = device.num;
  while (low < high) {
    size_t middle = (low + high) / 2;
    if (device.blocks[middle].start <= address) low = middle + 1;
    else high = middle;
  }
  Block *found = low ? &device.blocks[low - 1] : 0;
  return found && address < found->start + found->size ? found : 0;
}
static Block *host_block(uintptr_t address) {
  for (size_t i = host.num; i-- > 0;) {
    Block *b = &host.blocks[i];
    if (b->live && address >= b->start && address < b->start + b->size) return b;
  }
  return 0;
}

int device_memory(const void *address, size_t size) {
  Block *block = device_block((uintptr_t)address);
  if (!block) return 0;
  return block->live && (uintptr_t)address + size <= block->start + block->size ? 1 : -1;
}
int is_pinned(const void *address) { return host_block((uintptr_t)address) != 0; }

static int allocate(void **p, size_t size) {
  if (!heap_end) {
    heap_end = (uintptr_t)mmap(0, (size_t)1 << 42, PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  }
  if (in_use + size > total_memory()) return *p = 0, fail(OUT_OF_MEMORY);
  in_use += size;
  add(&device, heap_end, size);
  *p = (void *)heap_end;
  heap_end += (size + 4095) / 4096 * 4096 + 4096; /* a page between two blocks is nobody's */
  return 0;
}
int cudaMalloc(void **p, size_t size) {
  LOCKED;
  int error = unsafe_call("cudaMalloc");
  return error ? error : allocate(p, size);
}
int cudaMallocAsync(void **p, size_t size, void *stream) {
  LOCKED;
  return allocate(p, size);
}
static int release(void *p) {
  Block *block = p ? device_block((uintptr_t)p) : 0;
  if (!p) return 0;
  if (!block || !block->live || block->start != (uintptr_t)p)
    return refuse(INVALID_VALUE, "freed device memory that is not allocated");
  block->live = 0, in_use -= block->size;
  madvise(p, (block->size + 4095) / 4096 * 4096, MADV_DONTNEED);
  return 0;
}
int cudaFree(void *p) {
  LOCKED;
  int error = p ? unsafe_call("cudaFree") : 0;
  return error ? error : release(p);
}
int cudaFreeAsync(void *p, void *stream) {
  LOCKED;
  return release(p);
}
int cudaMemGetInfo(size_t *unused, size_t *total) {
  return *total = total_memory(), *unused = *total - in_use, 0;
}

int cudaHostRegister(void *p, size_t size, unsigned flags) {
  LOCKED;
  return add(&host, (uintptr_t)p, size), 0;
}
int cudaHostUnregister(void *p) {
  LOCKED;
  deliver(0);
  Block *block = host_block((uintptr_t)p);
  if (block) block->live = 0;
  return 0;
}
int cudaHostAlloc(void **p, size_t size, unsigned flags) {
  int error = unsafe_call("cudaHostAlloc");
  if (error) return error;
  if (posix_memalign(p, 4096, size ? size : 1)) return fail(OUT_OF_MEMORY);
  return cudaHostRegister(*p, size, flags);
}
int cudaFreeHost(void *p) {
  int error = unsafe_call("cudaFreeHost");
  if (error) return error;
  cudaHostUnregister(p);
  return free(p), 0;
}
int cudaHostGetDevicePointer(void **p, void *from, unsigned flags) { return *p = from, 0; }

int cudaPointerGetAttributes(struct cudaPointerAttributes *a, const void *p) {
  LOCKED;
  memset(a, 0, sizeof *a);
  a->type = cudaMemoryTypeUnregistered;
  if (device_memory(p, 0)) a->type = cudaMemoryTypeDevice, a->devicePointer = (void *)p;
  else if (is_pinned(p))
    a->type = cudaMemoryTypeHost, a->devicePointer = a->hostPointer = (void *)p;
  return 0;
}
int cuPointerGetAttribute(void *value, int which, uint64_t pointer) {
  return *(uint64_t *)value = pointer, 0; /* CU_POINTER_ATTRIBUTE_DEVICE_POINTER */
}
int cuPointerGetAttributes(unsigned count, int *which, void **values, uint64_t pointer) {
  return 0;
}

/* ------------------------------------------------------------------ copies and fills */

static int check_address(Stream *s, const void *p, size_t size) {
  int found = device_memory(p, size);
  if (found < 0) return refuse(INVALID_VALUE, "a copy or fill of freed device memory");
  return found ? remember_address(s, p) : 0;
}

/* `waits`: the host waits for the copy, as cudaMemcpy does. */
static int copy(void *to, const void *from, size_t size, void *handle, int waits) {
  static const char *names[2][2] = {{"host to host", "host to device"},
                                    {"device to host", "device to device"}};
  Stream *s;
  int from_device = device_memory(from, size) != 0, to_device = device_memory(to, size) != 0;
  int error = enqueue(handle, &s);
  if (!error) error = check_address(s, from, size);
  if (!error) error = check_address(s, to, size);
  if (error) return error;
  const void *on_host = from_device ? to : from;
  int pageable = !(from_device && to_device) && !is_pinned(on_host);
  if (pageable && s->capture) {
    invalidate(s->capture);
    return refuse(CAPTURE_UNSUPPORTED, "a copy of unpinned host memory in a capture");
  }
  Record *r = record(COPY, names[from_device][to_device], size);
  r->stream = handle, r->capture = s->capture ? s->capture->number : 0;
  if (s->capture) return 0; /* it runs when the graph does, and then nothing is computed */
  if (from_device && !to_device && !pageable && !waits) deliver_later(s, to, from, size);
  else memmove(to, from, size);
  return 0;
}
int cudaMemcpy(void *to, const void *from, size_t size, int kind) {
  LOCKED;
  int error = unsafe_call("cudaMemcpy");
  if (error) return error;
  record(SYNC, "cudaMemcpy", 0);
  deliver(0);
  return copy(to, from, size, 0, 1);
}
int cudaMemcpyAsync(void *to, const void *from, size_t size, int kind, void *stream) {
  LOCKED;
  return copy(to, from, size, stream, 0);
}
int cudaMemcpyToSymbol() { return unsafe_call("cudaMemcpyToSymbol"); }

static int fill(void *p, int value, size_t size, void *handle) {
  Stream *s;
  int error = enqueue(handle, &s);
  if (!error) error = check_address(s, p, size);
  if (error) return error;
  Record *r = record(FILL, "memset", size);
  r->stream = handle, r->capture = s->capture ? s->capture->number : 0;
  /* Large buffers are filled by nobody's wish but ours: a fill would make their pages real. */
  if (!s->capture && (value || size < ((size_t)1 << 20))) memset(p, value, size);
  else if (!s->capture) madvise((void *)(((uintptr_t)p + 4095) & ~4095ul), size - 8192, MADV_DONTNEED);
  return 0;
}
int cudaMemset(void *p, int value, size_t size) {
  LOCKED;
  int error = unsafe_call("cudaMemset");
  return error ? error : fill(p, value, size, 0);
}
int cudaMemsetAsync(void *p, int value, size_t size, void *stream) {
  LOCKED;
  return fill(p, value, size, stream);
}
int cudaGetSymbolAddress(void **p, const void *symbol) {
  LOCKED;
  return allocate(p, 4096);
}
