/* The fake CUDA runtime of Paddock's tests: one device whose memory is the host's, and which computes nothing.
 *
 * Memory is taken, copied, filled and given back for real and counted; kernels, products and everything else return
 * success and do nothing, so that no number that comes out means anything. Written from the declarations of CUDA 13.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef FAKE_CUDART
#include <malloc.h>

enum { SUCCESS = 0, OUT_OF_MEMORY = 2 };
static size_t held, count, peak;
static int last_error;

static size_t capacity(void) {
    const char *given = getenv("PADDOCK_FAKE_CUDA_MEMORY");
    return given ? strtoull(given, 0, 10) : (size_t)8 << 30;
}

static int take(void **out, size_t bytes) {
    if (held + bytes > capacity()) {
        *out = 0;
        return last_error = OUT_OF_MEMORY;
    }
    *out = calloc(1, bytes ? bytes : 1);
    size_t taken = malloc_usable_size(*out);
    held += taken;
    count++;
    peak = held > peak ? held : peak;
    return SUCCESS;
}

static int give(void *pointer) {
    if (pointer) {
        held -= malloc_usable_size(pointer);
        count--;
        free(pointer);
    }
    return SUCCESS;
}

/* What the tests ask: bytes of the device that are taken, in how many pieces, and the most at once. */
size_t paddock_fake_cuda_held(void) { return held; }
size_t paddock_fake_cuda_count(void) { return count; }
size_t paddock_fake_cuda_peak(void) { return peak; }

int cudaGetDeviceCount(int *out) { return *out = 1, SUCCESS; }
int cudaGetDevice(int *out) { return *out = 0, SUCCESS; }
int cudaSetDevice(int device) { return device == 0 ? SUCCESS : (last_error = 101); }
int cudaDeviceGetAttribute(int *out, int attribute, int device) {
    /* 75 and 76: compute capability; 16: processors; 10: threads of a warp; 8, 97: shared memory */
    *out = attribute == 75 ? 9 : attribute == 76 ? 0 : attribute == 16 ? 132 : attribute == 10 ? 32
         : attribute == 8 || attribute == 81 || attribute == 97 ? 49152 : attribute == 1 ? 1024 : 1;
    return SUCCESS;
}
struct properties {
    char name[256]; char uuid[16]; char luid[8]; unsigned mask; size_t memory, shared; int registers, warp;
    size_t pitch; int threads, dims[3], grid[3]; size_t constant; int major, minor; size_t texture, texture_pitch;
    int processors; char rest[1024];
};
int cudaGetDeviceProperties(struct properties *out, int device) {
    memset(out, 0, offsetof(struct properties, rest) + 256);
    strcpy(out->name, "Paddock's fake CUDA device");
    out->memory = capacity();
    out->shared = 49152;
    out->registers = 65536;
    out->warp = 32;
    out->threads = 1024;
    out->dims[0] = out->dims[1] = 1024, out->dims[2] = 64;
    out->grid[0] = 2147483647, out->grid[1] = out->grid[2] = 65535;
    out->major = 9;
    out->processors = 132;
    return SUCCESS;
}
int cudaMemGetInfo(size_t *unused, size_t *total) { return *total = capacity(), *unused = *total - held, SUCCESS; }
int cudaRuntimeGetVersion(int *out) { return *out = 13000, SUCCESS; }
int cudaDriverGetVersion(int *out) { return *out = 13000, SUCCESS; }
int cudaGetLastError(void) { int found = last_error; return last_error = 0, found; }
int cudaPeekAtLastError(void) { return last_error; }
const char *cudaGetErrorName(int error) { return error == OUT_OF_MEMORY ? "cudaErrorMemoryAllocation" : "fake"; }
const char *cudaGetErrorString(int error) { return error == OUT_OF_MEMORY ? "out of memory" : "a fake error"; }

int cudaMalloc(void **out, size_t bytes) { return take(out, bytes); }
int cudaFree(void *pointer) { return give(pointer); }
int cudaMallocFromPoolAsync(void **out, size_t bytes, void *pool, void *stream) { return take(out, bytes); }
int cudaFreeAsync(void *pointer, void *stream) { return give(pointer); }
int cudaMallocHost(void **out, size_t bytes) { return *out = calloc(1, bytes ? bytes : 1), SUCCESS; }
int cudaHostAlloc(void **out, size_t bytes, unsigned flags) { return cudaMallocHost(out, bytes); }
int cudaFreeHost(void *pointer) { return free(pointer), SUCCESS; }
int cudaMemcpy(void *to, const void *from, size_t bytes, int kind) { return memmove(to, from, bytes), SUCCESS; }
int cudaMemcpyAsync(void *to, const void *from, size_t bytes, int kind, void *stream) {
    return memmove(to, from, bytes), SUCCESS;
}
int cudaMemcpy2DAsync(char *to, size_t to_pitch, const char *from, size_t from_pitch, size_t width, size_t height,
                      int kind, void *stream) {
    for (size_t row = 0; row < height; row++) memmove(to + row * to_pitch, from + row * from_pitch, width);
    return SUCCESS;
}
int cudaMemcpyFromSymbol(void *to, const void *symbol, size_t bytes, size_t offset, int kind) {
    return memset(to, 0, bytes), SUCCESS;
}
int cudaMemset(void *to, int value, size_t bytes) { return memset(to, value, bytes), SUCCESS; }
int cudaMemsetAsync(void *to, int value, size_t bytes, void *stream) { return memset(to, value, bytes), SUCCESS; }
int cudaMemPoolGetAttribute(void *pool, int attribute, uint64_t *out) { return *out = held, SUCCESS; }
int cudaPointerGetAttributes(void *out, const void *pointer) { return memset(out, 0, 16), SUCCESS; }

static int handle(void **out) { static char there; return *out = &there, SUCCESS; }
int cudaMemPoolCreate(void **out, void *how) { return handle(out); }
int cudaStreamCreate(void **out) { return handle(out); }
int cudaStreamCreateWithFlags(void **out, unsigned flags) { return handle(out); }
int cudaEventCreate(void **out) { return handle(out); }
int cudaEventCreateWithFlags(void **out, unsigned flags) { return handle(out); }
int cudaEventElapsedTime(float *out, void *from, void *to) { return *out = 1, SUCCESS; }
int cudaStreamIsCapturing(void *stream, int *out) { return *out = 0, SUCCESS; }
int cudaStreamEndCapture(void *stream, void **out) { return handle(out); }
int cudaGraphInstantiate(void **out, void *graph, unsigned long long flags) { return handle(out); }
int cudaLaunchHostFunc(void *stream, void (*call)(void *), void *data) { return call(data), SUCCESS; }
int cudaFuncGetAttributes(char *out, const void *function) { return memset(out, 0, 64), SUCCESS; }
int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *out, const void *f, int b, size_t s, unsigned g) {
    return *out = 1, SUCCESS;
}
int cudaGetDriverEntryPointByVersion(const char *name, void **out, unsigned v, unsigned long long f, int *found) {
    if (found) *found = 1; /* no such symbol */
    return *out = 0, SUCCESS;
}
int cudaLibraryLoadData(void **out, const void *code, void *a, void *b, unsigned c, void *d, void *e, unsigned f) {
    return handle(out);
}
int cudaLibraryGetKernel(void **out, void *library, const char *name) { return handle(out); }
int __cudaGetKernel(void **out, const void *function) { return handle(out); }
void **__cudaRegisterFatBinary(void *code) { static void *there; return &there; }
int __cudaPopCallConfiguration(uint32_t *grid, uint32_t *block, size_t *shared, void **stream) {
    for (int i = 0; i < 3; i++) grid[i] = block[i] = 1;
    return *shared = 0, *stream = 0, SUCCESS;
}
#endif

#ifdef FAKE_CUBLAS
int cublasCreate_v2(void **out) { static char there; return *out = &there, 0; }
int cublasGetMathMode(void *handle, int *out) { return *out = 0, 0; }
const char *cublasGetStatusName(int status) { return "fake"; }
const char *cublasGetStatusString(int status) { return "fake"; }
#endif

#ifdef FAKE_CUBLASLT
static int handle(void **out) { static char there; return *out = &there, 0; }
int cublasLtCreate(void **out) { return handle(out); }
int cublasLtMatmulDescCreate(void **out, int compute, int scale) { return handle(out); }
int cublasLtMatmulPreferenceCreate(void **out) { return handle(out); }
int cublasLtMatrixLayoutCreate(void **out, int type, uint64_t rows, uint64_t columns, int64_t ld) { return handle(out); }
int cublasLtMatrixTransformDescCreate(void **out, int scale) { return handle(out); }
int cublasLtMatmulAlgoGetHeuristic(void *h, void *d, void *a, void *b, void *c, void *e, void *p, int asked, char *out,
                                   int *found) {
    memset(out, 0, 64);
    return *found = 1, 0;
}
#endif

#ifdef FAKE_DRIVER
#include <stdio.h>
int cuInit(unsigned flags) { return 0; }
int cuDriverGetVersion(int *out) { return *out = 13000, 0; }
int cuDeviceGetCount(int *out) { return *out = 1, 0; }
int cuDeviceGet(int *out, int ordinal) { return *out = ordinal, ordinal != 0 ? 101 : 0; }
int cuDeviceGetName(char *out, int length, int device) {
    return snprintf(out, length, "Paddock's fake CUDA device"), 0;
}
int cuDeviceTotalMem_v2(size_t *out, int device) {
    const char *given = getenv("PADDOCK_FAKE_CUDA_MEMORY");
    return *out = given ? strtoull(given, 0, 10) : (size_t)8 << 30, 0;
}
int cuDeviceGetAttribute(int *out, int attribute, int device) { return *out = attribute == 75 ? 9 : 0, 0; }
#endif

#ifdef FAKE_CUDNN
#include <stddef.h>
int cudnnCreate(void **out) { static char there; return *out = &there, 0; }
size_t cudnnGetVersion(void) { return 91400; }
static int handle(void **out) { static char there; return *out = &there, 0; }
int cudnnCreateActivationDescriptor(void **out) { return handle(out); }
int cudnnCreateConvolutionDescriptor(void **out) { return handle(out); }
int cudnnCreateDropoutDescriptor(void **out) { return handle(out); }
int cudnnCreateFilterDescriptor(void **out) { return handle(out); }
int cudnnCreateLRNDescriptor(void **out) { return handle(out); }
int cudnnCreatePoolingDescriptor(void **out) { return handle(out); }
int cudnnCreateReduceTensorDescriptor(void **out) { return handle(out); }
int cudnnCreateRNNDataDescriptor(void **out) { return handle(out); }
int cudnnCreateRNNDescriptor(void **out) { return handle(out); }
int cudnnCreateTensorDescriptor(void **out) { return handle(out); }
const char *cudnnGetErrorString(int status) { return "fake"; }
int cudnnGetRNNTempSpaceSizes(void *h, void *r, int mode, void *x, size_t *work, size_t *reserve) {
    return *work = 0, reserve ? *reserve = 0 : 0, 0;
}
#endif
