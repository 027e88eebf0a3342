// Numbers of rows that a kernel is given.
#pragma once

#include <cstdint>

namespace {

// Whether all of `ids` [count] are in [0, rows).
inline bool all_inside(const int64_t* ids, int64_t count, int64_t rows) {
  bool inside = true;
  for (int64_t i = 0; i < count; ++i) inside &= ids[i] >= 0 && ids[i] < rows;
  return inside;
}

}  // namespace
