// What every file of the library's boundary needs: XLA's FFI, symbols that are seen outside, and messages for C.
#ifndef GPHM_BOUNDARY_H_
#define GPHM_BOUNDARY_H_

#include <cstdint>
#include <string>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

#define GPHM_EXPORT extern "C" __attribute__((visibility("default")))

namespace gphm {

// Copies a message for the caller; returns 0 on success, 1 otherwise.
inline int32_t report(const std::string& problem, char* message, int64_t room) {
  if (problem.empty()) return 0;
  if (room > 0) message[problem.copy(message, static_cast<size_t>(room - 1))] = '\0';
  return 1;
}

}  // namespace gphm

#endif  // GPHM_BOUNDARY_H_
