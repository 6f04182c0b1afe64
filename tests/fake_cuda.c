// A CUDA driver without a GPU: two devices, contexts numbered by the stream, and a record of the last launch.
#include <stdint.h>
#include <string.h>

#define CALLED __attribute__((visibility("default")))

int fake_pointers, fake_sizes;  // how many parameters of each kind the next launch has
int fake_launch_result, fake_load_result;
int fake_loads, fake_launches, fake_pushed, fake_popped, fake_dynamic_shared;
int fake_capability[2] = {89, 103};
unsigned fake_shape[7];
char fake_image[64], fake_function[64];
void *fake_seen_pointers[16], *fake_stream;
int32_t fake_seen_sizes[16];
static void* current;

CALLED int cuInit(unsigned flags) { return flags != 0; }
CALLED int cuDeviceGetCount(int* count) { *count = 2; return 0; }
CALLED int cuDeviceGet(int* device, int index) { *device = index; return 0; }
CALLED int cuDeviceGetAttribute(int* value, int attribute, int device) {
  int capability = fake_capability[device];
  *value = attribute == 75 ? capability / 10 : attribute == 76 ? capability % 10 : -1;
  return 0;
}
// Streams 1xx belong to the context of device 0, streams 2xx to that of device 1.
CALLED int cuStreamGetCtx(void* stream, void** context) { *context = (void*)((intptr_t)stream / 100); return 0; }
CALLED int cuCtxPushCurrent_v2(void* context) { current = context; ++fake_pushed; return 0; }
CALLED int cuCtxPopCurrent_v2(void** context) { *context = current; current = 0; ++fake_popped; return 0; }
CALLED int cuCtxGetDevice(int* device) { *device = (int)(intptr_t)current - 1; return current ? 0 : 201; }
CALLED int cuModuleLoadData(void** module, const void* image) {
  strncpy(fake_image, image, sizeof fake_image - 1);
  *module = fake_image;
  ++fake_loads;
  return fake_load_result;
}
CALLED int cuModuleGetFunction(void** function, void* module, const char* name) {
  strncpy(fake_function, name, sizeof fake_function - 1);
  *function = fake_function;
  return module != fake_image;
}
CALLED int cuFuncSetAttribute(void* function, int attribute, int value) {
  if (attribute == 8) fake_dynamic_shared = value;
  return function != fake_function;
}
CALLED int cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                          unsigned shared, void* stream, void** parameters, void** extra) {
  unsigned shape[] = {gx, gy, gz, bx, by, bz, shared};
  memcpy(fake_shape, shape, sizeof shape);
  fake_stream = stream;
  int n = 0;
  for (int i = 0; i < fake_pointers; ++i) fake_seen_pointers[i] = *(void**)parameters[n++];
  for (int i = 0; i < fake_sizes; ++i) fake_seen_sizes[i] = *(int32_t*)parameters[n++];
  if (*(void**)parameters[n] || *(void**)parameters[n + 1]) return 1;  // Triton's scratch
  ++fake_launches;
  return extra || function != fake_function ? 1 : fake_launch_result;
}
CALLED int cuGetErrorString(int code, const char** text) {
  *text = code == 700   ? "an illegal memory access was encountered"
          : code == 222 ? "the provided PTX was compiled with an unsupported toolchain."
                        : 0;
  return 0;
}
