// Failures: one message of several lines, which ends the launch; and places in the source.
#include <cxxabi.h>
#include <dlfcn.h>

#include <cstdio>
#include <stdexcept>
#include <unordered_map>

#include "emu/machine.h"

extern "C" __attribute__((visibility("hidden"))) const char __ehdr_start;  // the module's first byte

namespace emu {
namespace {

constexpr Site kInternedLoc = 1u << 31;
std::vector<Loc> interned_locs;

// file:line of an instruction, and of the calls it was inlined into; the bare address where addr2line is missing.
std::string lines_of_instruction(uintptr_t offset) {
  Dl_info info;
  char command[1200], line[1024];
  std::string lines;
  if (dladdr(&__ehdr_start, &info) && info.dli_fname && !strchr(info.dli_fname, '\'')) {
    snprintf(command, sizeof command, "addr2line -i -e '%s' 0x%zx 2>/dev/null", info.dli_fname, offset);
    if (FILE* pipe = popen(command, "r")) {
      while (fgets(line, sizeof line, pipe)) {
        std::string text = line;
        text.erase(text.find_last_not_of('\n') + 1);
        const size_t remark = text.find(" (discriminator");
        if (remark != std::string::npos) text.erase(remark);
        if (text.starts_with("??")) continue;
        lines += (lines.empty() ? "" : ", called at ") + text;
      }
      pclose(pipe);
    }
  }
  if (!lines.empty()) return lines;
  snprintf(line, sizeof line, "instruction 0x%zx of %s", offset, info.dli_fname ? info.dli_fname : "the module");
  return line;
}

}  // namespace

Site site_of(const void* return_address) {
  const auto offset = reinterpret_cast<uintptr_t>(return_address) - reinterpret_cast<uintptr_t>(&__ehdr_start);
  return offset < kInternedLoc ? static_cast<Site>(offset) : 0;
}

Site site_of(Loc loc) {
  static std::unordered_map<uint64_t, Site> known_locs;
  const uint64_t key = reinterpret_cast<uint64_t>(loc.file_name()) << 20 ^ loc.line();
  const auto [found, is_new] = known_locs.try_emplace(key, 0);
  if (is_new) {
    found->second = kInternedLoc | static_cast<Site>(interned_locs.size());
    interned_locs.push_back(loc);
  }
  return found->second;
}

std::string describe(Loc loc) { return std::string(loc.file_name()) + ":" + std::to_string(loc.line()); }

std::string describe(Site site) {
  if (!site) return "an unknown place";
  if (site & kInternedLoc) return describe(interned_locs[site & ~kInternedLoc]);
  return lines_of_instruction(site - 1);  // the call, not what comes after it
}

std::string describe(const Fiber& fiber) {
  const Context& c = fiber.context;
  char text[256];
  snprintf(text, sizeof text, "block (%u, %u, %u), thread %d (warp %d, lane %d)", c.block_index.x, c.block_index.y,
           c.block_index.z, c.thread, c.warp, c.lane);
  return text;
}

void fail_at(const std::string& what, const std::string& where) {
  if (!machine.running) throw std::runtime_error("emulator: " + what + "\n  at " + where);
  machine.report = what + "\n  kernel " + machine.kernel + ", " + describe(*machine.running) + "\n  at " + where;
  abandon_launch();
}

void fail(const std::string& what, Loc loc) { fail_at(what, describe(loc)); }

}  // namespace emu
