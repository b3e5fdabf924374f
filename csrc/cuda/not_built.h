// The CUDA sources that did not compile, each with why: csrc/keep_going.py makes an object of one NotBuilt in place of
// theirs.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace icl {

struct NotBuilt {
  NotBuilt(const char* source, const char* why) { all().emplace_back(source, why); }

  static std::vector<std::pair<std::string, std::string>>& all() {
    static std::vector<std::pair<std::string, std::string>> sources;
    return sources;
  }
};

}  // namespace icl
