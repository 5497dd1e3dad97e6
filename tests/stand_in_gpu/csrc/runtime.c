/* The runtime API: the device, and kernels that are known by the address of their host stub. */
#include "stand_in.h"
#include <driver_types.h>

OK(cudaDeviceEnablePeerAccess) OK(cudaMemPoolSetAccess)
OK(cudaMemPoolSetAttribute) OK(cudaMemPoolTrimTo) OK(cudaFuncSetAttribute) OK(cudaProfilerStart)
OK(cudaProfilerStop) OK(cudaDeviceSetGraphMemAttribute)

int num_devices(void) {
  const char *told = getenv("STAND_IN_DEVICES");
  return told ? atoi(told) : 1;
}
__thread int current_device;

int cudaGetDeviceCount(int *count) { return *count = num_devices(), 0; }
int cudaGetDevice(int *device) { return *device = current_device, 0; }
int cudaSetDevice(int device) { return current_device = device, 0; }
int cudaDriverGetVersion(int *version) { return *version = 13000, 0; }
int cudaRuntimeGetVersion(int *version) { return *version = 13000, 0; }
int cudaDeviceGetAttribute(int *value, int number, int device) {
  return *value = attribute(number), 0;
}
int cudaDeviceCanAccessPeer(int *can, int device, int peer) { return *can = 0, 0; }
int cudaDeviceGetPCIBusId(char *id, int length, int device) {
  return snprintf(id, length, "0000:00:00.0"), 0;
}
int cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
  return *least = 0, *greatest = -5, 0;
}
int cudaDeviceGetDefaultMemPool(void **pool, int device) { return *pool = pool, 0; }
int cudaGetDeviceProperties(struct cudaDeviceProp *p, int device) {
  memset(p, 0, sizeof *p);
  strcpy(p->name, device_name());
  p->totalGlobalMem = total_memory();
  p->maxThreadsPerBlock = attribute(1);
  for (int i = 0; i < 3; i++)
    p->maxThreadsDim[i] = attribute(2 + i), p->maxGridSize[i] = attribute(5 + i);
  p->sharedMemPerBlock = attribute(8), p->totalConstMem = attribute(9);
  p->warpSize = attribute(10), p->regsPerBlock = attribute(12);
  p->multiProcessorCount = attribute(16), p->memoryBusWidth = attribute(37);
  p->l2CacheSize = attribute(38), p->maxThreadsPerMultiProcessor = attribute(39);
  p->major = attribute(75), p->minor = attribute(76);
  p->sharedMemPerMultiprocessor = attribute(81), p->regsPerMultiprocessor = attribute(82);
  p->sharedMemPerBlockOptin = attribute(97), p->maxBlocksPerMultiProcessor = attribute(106);
  p->reservedSharedMemPerBlock = attribute(111), p->textureAlignment = 512;
  p->unifiedAddressing = p->streamPrioritiesSupported = p->cooperativeLaunch = 1;
  p->concurrentKernels = p->memoryPoolsSupported = p->canMapHostMemory = 1;
  return 0;
}
static int not_supported() { return NOT_SUPPORTED; }
int cudaGetDriverEntryPointByVersion(const char *symbol, void **f, unsigned version,
                                     unsigned long long flags, int *status) {
  *f = dlsym(RTLD_DEFAULT, symbol);
  if (!*f) *f = (void *)not_supported;
  if (status) *status = 0;
  return 0;
}

/* ------------------------------------------------------------------ kernels of libraries */

typedef struct {
  const void *host;
  const char *name;
} Registered;
static Registered *kernels;
static size_t num_kernels, max_kernels, num_sorted;

void **__cudaRegisterFatBinary(void *binary) {
  static void *slot;
  return &slot;
}
void __cudaRegisterFatBinaryEnd(void **binary) {}
void __cudaUnregisterFatBinary(void **binary) {}
char __cudaInitModule(void **binary) { return 1; }
void __cudaRegisterVar(void **b, char *host, char *d, const char *n, int e, size_t s, int c, int g) {}
void __cudaRegisterFunction(void **binary, const char *host, char *device, const char *name,
                            int limit, void *t, void *b, void *bd, void *gd, int *w) {
  LOCKED;
  if (num_kernels == max_kernels) {
    max_kernels = max_kernels ? 2 * max_kernels : 1 << 16;
    kernels = realloc(kernels, max_kernels * sizeof *kernels);
  }
  kernels[num_kernels++] = (Registered){host, name};
}
static int by_host(const void *a, const void *b) {
  const Registered *x = a, *y = b;
  return (x->host > y->host) - (x->host < y->host);
}
static const char *kernel_name(const void *host) {
  if (num_sorted != num_kernels)
    qsort(kernels, num_kernels, sizeof *kernels, by_host), num_sorted = num_kernels;
  Registered key = {host, 0}, *found = bsearch(&key, kernels, num_kernels, sizeof key, by_host);
  return found ? found->name : "unknown kernel";
}

/* `<<<grid, block>>>` pushes its configuration, and the host stub pops it. */
typedef struct {
  unsigned x, y, z;
} Dim;
static __thread struct {
  Dim grid, block;
  size_t shared;
  void *stream;
} pushed[8];
static __thread int depth;
unsigned __cudaPushCallConfiguration(Dim grid, Dim block, size_t shared, void *stream) {
  pushed[depth].grid = grid, pushed[depth].block = block;
  pushed[depth].shared = shared, pushed[depth++].stream = stream;
  return 0;
}
int __cudaPopCallConfiguration(Dim *grid, Dim *block, size_t *shared, void *stream) {
  depth--;
  *grid = pushed[depth].grid, *block = pushed[depth].block;
  *shared = pushed[depth].shared, *(void **)stream = pushed[depth].stream;
  return 0;
}
int __cudaGetKernel(const void **kernel, const void *host) { return *kernel = host, 0; }

int cudaLaunchKernel(const void *f, Dim grid, Dim block, void **args, size_t shared, void *stream) {
  LOCKED;
  Stream *s;
  int error = enqueue(stream, &s);
  if (error) return error;
  Record *r = record(RUNTIME_KERNEL, kernel_name(f), 0);
  memcpy(r->grid, &grid, sizeof r->grid), memcpy(r->block, &block, sizeof r->block);
  r->shared = shared, r->stream = stream, r->capture = s->capture ? s->capture->number : 0;
  return 0;
}
int __cudaLaunchKernel(const void *f, Dim grid, Dim block, void **args, size_t shared, void *s) {
  return cudaLaunchKernel(f, grid, block, args, shared, s);
}
int cudaLaunchKernelExC(const cudaLaunchConfig_t *c, const void *f, void **args) {
  Dim grid = {c->gridDim.x, c->gridDim.y, c->gridDim.z};
  Dim block = {c->blockDim.x, c->blockDim.y, c->blockDim.z};
  return cudaLaunchKernel(f, grid, block, args, c->dynamicSmemBytes, c->stream);
}
int cudaFuncGetAttributes(struct cudaFuncAttributes *a, const void *f) {
  memset(a, 0, sizeof *a);
  a->maxThreadsPerBlock = 1024, a->numRegs = 32;
  a->binaryVersion = a->ptxVersion = 10 * attribute(75) + attribute(76);
  return 0;
}
int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *f, int threads,
                                                           size_t shared, unsigned flags) {
  return *blocks = attribute(39) / (threads ? threads : 1), 0;
}
