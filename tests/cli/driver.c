/* A driver that the tests control: as much of cuda.h as `kvista doctor` calls, on plain memory. GPUS is how many devices
   it has; INIT is what cuInit returns. */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

static size_t taken;
static void *current;

int cuInit(unsigned flags) { return INIT; }
int cuDriverGetVersion(int *version) { *version = 13010; return 0; }
int cuDeviceGetCount(int *count) { *count = GPUS; return 0; }
int cuDeviceGet(int *device, int index) { *device = 40 + index; return index < GPUS ? 0 : 101; }
int cuDeviceGetName(char *name, int length, int device) {
  if (device < 40) return 101;
  strncpy(name, "Pretend \033[31mGPU", length);
  return 0;
}
int cuDeviceGetAttribute(int *value, int which, int device) {
  *value = which == 75 ? 9 : which == 76 ? 0 : which == 16 ? 132 : -1;
  return 0;
}
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = &taken; return 0; }
/* Not while memory is out, nor under a thread that is left in it. */
int cuDevicePrimaryCtxRelease_v2(int device) { return taken == 0 && current == NULL ? 0 : 1; }
int cuCtxGetCurrent(void **context) { *context = current; return 0; }
int cuCtxSetCurrent(void *context) {
  if (context != &taken && context != NULL) return 201;
  current = context;
  return 0;
}
int cuCtxSynchronize(void) { return 0; }
int cuMemGetInfo_v2(size_t *free_bytes, size_t *total) { *free_bytes = 3ul << 30; *total = 4ul << 30; return 0; }
int cuMemAlloc_v2(unsigned long long *address, size_t bytes) {
  if (FULL) return 2;
  taken++;
  *address = (unsigned long long)(size_t)malloc(bytes);
  return 0;
}
int cuMemFree_v2(unsigned long long address) { taken--; free((void *)(size_t)address); return 0; }
int cuMemHostAlloc(void **address, size_t bytes, unsigned flags) { taken++; *address = malloc(bytes); return 0; }
int cuMemFreeHost(void *address) { taken--; free(address); return 0; }
int cuMemcpyHtoD_v2(unsigned long long to, const void *from, size_t bytes) {
  memcpy((void *)(size_t)to, from, bytes);
  return 0;
}
int cuMemcpyDtoH_v2(void *to, unsigned long long from, size_t bytes) {
  memcpy(to, (void *)(size_t)from, bytes);
  return 0;
}
int cuMemcpyDtoD_v2(unsigned long long to, unsigned long long from, size_t bytes) {
  memcpy((void *)(size_t)to, (void *)(size_t)from, bytes);
  return 0;
}
int cuGetErrorName(int code, const char **name) {
  *name = code == 100 ? "CUDA_ERROR_NO_DEVICE" : code == 2 ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR_STUB_LIBRARY";
  return 0;
}
