/* cuBLAS, cuBLASLt and cuDNN: a call is one launch, whatever it launches inside. */
#include "stand_in.h"

typedef struct {
  void *stream;
} Handle;

static int new_handle(void **h) { return *h = calloc(1, sizeof(Handle)), 0; }

static int library_call(const char *name, void *stream) {
  LOCKED;
  Stream *s;
  int error = enqueue(stream, &s);
  if (error) return error;
  Record *r = record(LIBRARY, name, 0);
  r->stream = stream, r->capture = s->capture ? s->capture->number : 0;
  return 0;
}
#define LIBRARY_CALL(name) int name(Handle *h) { return library_call(#name, h->stream); }

/* ------------------------------------------------------------------ cuBLAS and cuBLASLt */

OK(cublasDestroy_v2) OK(cublasSetWorkspace_v2) OK(cublasSetMathMode) OK(cublasSetPointerMode_v2)
OK(cublasSetSmCountTarget)
int cublasCreate_v2(void **h) { return new_handle(h); }
int cublasSetStream_v2(Handle *h, void *stream) { return h->stream = stream, 0; }
int cublasGetMathMode(void *h, int *mode) { return *mode = 0, 0; }
int cublasGetPointerMode_v2(void *h, int *mode) { return *mode = 0, 0; }
LIBRARY_CALL(cublasGemmEx) LIBRARY_CALL(cublasSgemm_v2) LIBRARY_CALL(cublasSgemmEx)
LIBRARY_CALL(cublasGemmStridedBatchedEx) LIBRARY_CALL(cublasSgemmStridedBatched)
LIBRARY_CALL(cublasSgemv_v2) LIBRARY_CALL(cublasDotEx) LIBRARY_CALL(cublasSdot_v2)
int cublasLtMatmul(void *h, void *d, void *alpha, void *a, void *ad, void *b, void *bd, void *beta,
                   void *c, void *cd, void *e, void *ed, void *algo, void *workspace, size_t size,
                   void *stream) {
  return library_call("cublasLtMatmul", stream);
}
/* The descriptors of cuBLASLt are host structures, and its own functions make them. */
int cublasLtMatmulAlgoGetHeuristic(void *h, void *d, void *a, void *b, void *c, void *e, void *p,
                                   int requested, void *results, int *returned) {
  memset(results, 0, 96); /* one cublasLtMatmulHeuristicResult_t: state SUCCESS, no workspace */
  return *returned = 1, 0;
}

/* ------------------------------------------------------------------ cuDNN's graph API */

/* cuDNN 9.10 was the last for cards before compute capability 7.5. */
size_t cudnnGetVersion(void) {
  static size_t (*theirs)(void);
  if (10 * attribute(75) + attribute(76) < 75) return 91000;
  if (!theirs) theirs = dlsym(dlopen("libcudnn.so.9", RTLD_LAZY), "cudnnGetVersion");
  return theirs();
}
int cudnnGetProperty(int which, int *value) { /* libraryPropertyType: major, minor, patch */
  size_t version = cudnnGetVersion();
  return *value = which == 0 ? version / 10000 : which == 1 ? version / 100 % 100 : version % 100, 0;
}
OK(cudnnDestroy) OK(cudnnBackendDestroyDescriptor) OK(cudnnBackendFinalize)
int cudnnCreate(void **h) { return new_handle(h); }
int cudnnSetStream(Handle *h, void *stream) { return h->stream = stream, 0; }
int cudnnGetStream(Handle *h, void **stream) { return *stream = h->stream, 0; }

typedef struct Descriptor {
  int type;
  struct Descriptor *link; /* the descriptor that was last set on it */
} Descriptor;
enum { INT64 = 3, TYPE_DESCRIPTOR = 15, INT32 = 23 }; /* cudnnBackendAttributeType_t */
enum { HEURISTIC_RESULTS = 202, CONFIG_ENGINE = 300 }; /* cudnnBackendAttributeName_t */
enum { FORWARD = 10 }; /* cudnnBackendDescriptorType_t; the two backward ones follow */

int cudnnBackendCreateDescriptor(int type, Descriptor **d) {
  *d = calloc(1, sizeof **d), (*d)->type = type;
  return 0;
}
int cudnnBackendSetAttribute(Descriptor *d, int name, int type, int64_t count, const void *from) {
  if (type == TYPE_DESCRIPTOR && count > 0) d->link = *(Descriptor **)from;
  return 0;
}
int cudnnBackendGetAttribute(Descriptor *d, int name, int type, int64_t requested, int64_t *count,
                             void *to) {
  int64_t have = type == TYPE_DESCRIPTOR ? (name == HEURISTIC_RESULTS || name == CONFIG_ENGINE)
                                         : (type == INT64 || type == INT32); /* one zero */
  if (count) *count = have;
  if (!to || !have || requested < 1) return 0;
  if (type == TYPE_DESCRIPTOR) (*(Descriptor **)to)->link = d->link;
  else memset(to, 0, type == INT64 ? 8 : 4);
  return 0;
}
int cudnnBackendExecute(Handle *h, Descriptor *plan, void *pack) {
  static const char *names[] = {"cudnn convolution", "cudnn convolution, weight gradient",
                                "cudnn convolution, input gradient"};
  Descriptor *d = plan;
  while (d && (d->type < FORWARD || d->type > FORWARD + 2)) d = d->link;
  return library_call(d ? names[d->type - FORWARD] : "cudnn plan", h->stream);
}

/* ------------------------------------------------------------------ batch norm, the older API */

OK(cudnnSetTensorNdDescriptor) OK(cudnnDestroyTensorDescriptor) OK(cudnnSetActivationDescriptor)
OK(cudnnDestroyActivationDescriptor)
int cudnnCreateTensorDescriptor(void **d) { return new_handle(d); }
int cudnnCreateActivationDescriptor(void **d) { return new_handle(d); }
LIBRARY_CALL(cudnnBatchNormalizationForwardTrainingEx)
LIBRARY_CALL(cudnnBatchNormalizationBackwardEx)
LIBRARY_CALL(cudnnBatchNormalizationForwardInference)
int cudnnGetBatchNormalizationForwardTrainingExWorkspaceSize(void *h, int m, int o, void *x,
    void *z, void *y, void *b, void *a, size_t *size) { return *size = 0, 0; }
int cudnnGetBatchNormalizationBackwardExWorkspaceSize(void *h, int m, int o, void *x, void *y,
    void *dy, void *dz, void *dx, void *b, void *a, size_t *size) { return *size = 0, 0; }
int cudnnGetBatchNormalizationTrainingExReserveSpaceSize(void *h, int m, int o, void *a, void *x,
    size_t *size) { return *size = 0, 0; }
