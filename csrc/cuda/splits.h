// How far a product is split along its columns, where a block takes a tile of rows and walks over column tiles. No CUDA
// in here: python_tests/build/test_splits.py compiles it by itself.
#pragma once

#include <cstdint>

#include "cuda/tunables.h"

namespace icl {

// What a block costs beyond its column tiles, counted in them: until the first one has arrived, and after the last.
constexpr double kBlockStart = ICL_LOSS_SM90_BLOCK_START;

// What the busiest place spends, in column tiles, where `places` blocks run at a time.
inline double split_time(int64_t row_tiles, int64_t column_tiles, int64_t places, int64_t splits) {
  const int64_t rounds = (row_tiles * splits + places - 1) / places, tiles = (column_tiles + splits - 1) / splits;
  return double(rounds) * (double(tiles) + kBlockStart);
}

// The splits that finish soonest, `least` or more, of several the fewest. All work spread evenly is the least time that
// so many can take.
inline int64_t best_splits(int64_t row_tiles, int64_t column_tiles, int64_t places, int64_t least = 1) {
  int64_t best = least < column_tiles ? least : column_tiles;
  double soonest = split_time(row_tiles, column_tiles, places, best);
  for (int64_t splits = best + 1; splits <= column_tiles; ++splits) {
    if (double(row_tiles) * (double(column_tiles) + kBlockStart * double(splits)) / double(places) >= soonest) break;
    const double time = split_time(row_tiles, column_tiles, places, splits);
    if (time < soonest) soonest = time, best = splits;
  }
  return best;
}

}  // namespace icl
