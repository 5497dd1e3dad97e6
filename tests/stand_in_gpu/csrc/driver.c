/* The driver API, as far as Triton's launcher and PyTorch's lazy look-ups use it. */
#include "stand_in.h"

/* Called with every kernel that goes through the driver, before its parameters go away. */
void (*stand_in_on_launch)(Function *, const unsigned *grid, const unsigned *block, unsigned shared,
                           void *stream, void **params);

OK(cuInit) OK(cuCtxSetCurrent) OK(cuCtxSetLimit) OK(cuFuncSetAttribute) OK(cuFuncSetCacheConfig)
OK(cuLinkAddData_v2) OK(cuLinkComplete) OK(cuLinkCreate_v2) OK(cuTensorMapEncodeTiled)
OK(cuTensorMapEncodeIm2col) OK(cuStreamWriteValue32) OK(cuDevicePrimaryCtxRelease_v2)
OK(cuDevicePrimaryCtxRelease) OK(cuModuleUnload)

static int context; /* its address is the one context */

int cuGetProcAddress_v2(const char *symbol, void **f, int version, uint64_t flags, int *status) {
  *f = dlsym(RTLD_DEFAULT, symbol);
  if (status) *status = *f ? 0 : 1;
  return *f ? 0 : NOT_FOUND;
}
int cuGetProcAddress(const char *symbol, void **f, int version, uint64_t flags) {
  return cuGetProcAddress_v2(symbol, f, version, flags, 0);
}
int cuDriverGetVersion(int *version) { return *version = 13000, 0; }
int cuDeviceGetCount(int *count) { return *count = num_devices(), 0; }
int cuDeviceGet(int *device, int ordinal) { return *device = ordinal, 0; }
int cuDeviceGetName(char *name, int length, int device) {
  return snprintf(name, length, "%s", device_name()), 0;
}
int cuDeviceTotalMem_v2(size_t *bytes, int device) { return *bytes = total_memory(), 0; }
int cuDeviceGetAttribute(int *value, int number, int device) {
  return *value = attribute(number), 0;
}
int cuCtxGetCurrent(void **current) { return *current = &context, 0; }
int cuCtxGetDevice(int *device) { return *device = current_device, 0; }
int cuCtxGetLimit(size_t *value, int limit) { return *value = 0, 0; }
int cuDevicePrimaryCtxRetain(void **current, int device) { return *current = &context, 0; }
int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) {
  return *flags = 0, *active = 1, 0;
}
int cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, void *f, int threads, size_t shared) {
  return *blocks = attribute(39) / (threads ? threads : 1), 0;
}
int cuOccupancyMaxActiveClusters(int *clusters, void *f, const void *config) {
  return *clusters = 1, 0;
}

/* ------------------------------------------------------------------ cubins */

static uint64_t number(const unsigned char *at, int size) {
  uint64_t value = 0;
  return memcpy(&value, at, size), value;
}
/* A cubin ends with its table of sections or of program headers, whichever comes last. */
static size_t elf_size(const unsigned char *image) {
  size_t programs = number(image + 0x20, 8) + number(image + 0x36, 2) * number(image + 0x38, 2);
  size_t sections = number(image + 0x28, 8) + number(image + 0x3a, 2) * number(image + 0x3c, 2);
  return programs > sections ? programs : sections;
}
/* Section `.nv.info.<kernel>` holds (format, attribute, size) records; EIATTR_KPARAM_INFO (0x17)
 * is one per parameter: index, ordinal, offset, and a word whose top 14 bits are its size. */
static void read_params(Function *f) {
  const unsigned char *image = f->image, *table = image + number(image + 0x28, 8);
  size_t entry = number(image + 0x3a, 2), count = number(image + 0x3c, 2);
  const unsigned char *names = table + number(image + 0x3e, 2) * entry;
  const char *strings = (const char *)image + number(names + 0x18, 8);
  for (size_t i = 0; i < count; i++) {
    const unsigned char *section = table + i * entry;
    const char *name = strings + number(section, 4);
    if (strncmp(name, ".nv.info.", 9) || strcmp(name + 9, f->name)) continue;
    const unsigned char *at = image + number(section + 0x18, 8);
    const unsigned char *end = at + number(section + 0x20, 8);
    while (at < end) {
      if (at[0] == 4 && at[1] == 0x17) {
        int ordinal = number(at + 8, 2);
        f->param_sizes[ordinal & 255] = number(at + 12, 4) >> 18;
        if (ordinal >= f->num_params) f->num_params = ordinal + 1;
      }
      at += 4 + (at[0] == 4 ? number(at + 2, 2) : 0);
    }
  }
}

int cuModuleLoadData(void **module, const void *image) {
  size_t size = elf_size(image);
  return *module = memcpy(malloc(size), image, size), 0;
}
int cuModuleLoadDataEx(void **module, const void *image, unsigned n, int *options, void **values) {
  return cuModuleLoadData(module, image);
}
int cuModuleLoad(void **module, const char *path) {
  FILE *file = fopen(path, "rb");
  if (!file) return 301; /* CUDA_ERROR_FILE_NOT_FOUND */
  fseek(file, 0, SEEK_END);
  long size = ftell(file);
  rewind(file);
  *module = malloc(size);
  size_t got = fread(*module, 1, size, file);
  fclose(file);
  return got == (size_t)size ? 0 : 301;
}
int cuModuleGetFunction(Function **function, unsigned char *module, const char *name) {
  Function *f = *function = calloc(1, sizeof *f);
  f->name = strdup(name), f->image = module, f->size = elf_size(module);
  read_params(f);
  return 0;
}
int cuFuncGetAttribute(int *value, int which, void *function) {
  return *value = which == 0 ? 1024 : which == 4 ? 32 : 0, 0; /* threads, registers */
}

/* ------------------------------------------------------------------ launches */

/* A parameter of eight bytes that points into device memory has to point to live memory. */
static int check_pointers(Function *f, Stream *s, void **params) {
  for (int i = 0; i < f->num_params; i++) {
    if (f->param_sizes[i] != 8) continue;
    const void *address = *(void **)params[i];
    int found = device_memory(address, 0);
    if (found < 0) return refuse(ILLEGAL_ADDRESS, "a kernel was given freed device memory");
    if (found) remember_address(s, address);
  }
  return 0;
}
static int launch(Function *f, const unsigned *grid, const unsigned *block, unsigned shared,
                  void *stream, void **params) {
  LOCKED;
  Stream *s;
  int error = enqueue(stream, &s);
  if (!error) error = check_pointers(f, s, params);
  if (!error && !(grid[0] && grid[1] && grid[2] && grid[1] <= 65535 && grid[2] <= 65535))
    error = refuse(INVALID_VALUE, "a grid that no GPU takes");
  if (error) return error;
  Record *r = record(DRIVER_KERNEL, f->name, 0);
  memcpy(r->grid, grid, sizeof r->grid), memcpy(r->block, block, sizeof r->block);
  r->shared = shared, r->stream = stream, r->capture = s->capture ? s->capture->number : 0;
  if (stand_in_on_launch) stand_in_on_launch(f, grid, block, shared, stream, params);
  return 0;
}
int cuLaunchKernel(Function *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                   unsigned bz, unsigned shared, void *stream, void **params, void **extra) {
  return launch(f, (unsigned[]){gx, gy, gz}, (unsigned[]){bx, by, bz}, shared, stream, params);
}
typedef struct {
  int id, pad, value, rest[15];
} LaunchAttribute; /* CUlaunchAttribute */
typedef struct {
  unsigned grid[3], block[3], shared;
  void *stream;
  const LaunchAttribute *attributes;
  unsigned num_attributes;
} LaunchConfig; /* CUlaunchConfig */

/* Blocks that wait for each other have to be on the GPU at once. Registers are not looked at. */
static int check_cooperative(const unsigned *grid, const unsigned *block) {
  uint64_t threads = (uint64_t)block[0] * block[1] * block[2];
  uint64_t room = attribute(16) * (attribute(39) / (threads ? threads : 1));
  if ((uint64_t)grid[0] * grid[1] * grid[2] <= room) return 0;
  return refuse(COOPERATIVE_LAUNCH_TOO_LARGE, "a cooperative grid that does not fit the GPU");
}
int cuLaunchKernelEx(const LaunchConfig *c, Function *f, void **params, void **extra) {
  int error = 0;
  for (unsigned i = 0; i < c->num_attributes; i++) /* CU_LAUNCH_ATTRIBUTE_COOPERATIVE */
    if (c->attributes[i].id == 2 && c->attributes[i].value)
      error = check_cooperative(c->grid, c->block);
  return error ? error : launch(f, c->grid, c->block, c->shared, c->stream, params);
}
int cuLaunchCooperativeKernel(Function *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx,
                              unsigned by, unsigned bz, unsigned shared, void *stream,
                              void **params) {
  LaunchAttribute cooperative = {.id = 2, .value = 1};
  LaunchConfig config = {{gx, gy, gz}, {bx, by, bz}, shared, stream, &cooperative, 1};
  return cuLaunchKernelEx(&config, f, params, 0);
}
