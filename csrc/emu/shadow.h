// Shadow memory: for every few bytes of shared and global memory, who wrote and who read them last.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "emu/async.h"

namespace emu {

// A place in the source: an instruction's address or a Loc, packed. 0: unknown.
using Site = uint32_t;
Site site_of(Loc loc);
Site site_of(const void* return_address);
std::string describe(Site site);

enum class Kind { kRead, kWrite, kAtomic };
enum class Proxy { kGeneric, kAsync };

// Who accesses memory: a component of the vector clocks, at which count, through which proxy; for the running thread,
// whose clock says what happened before.
struct Actor {
  uint32_t component, count;
  Proxy proxy;
};
Actor running_thread();
int new_component(int owner, bool copies);  // owner: the thread whose fences cover it, -1 for the async proxy's own

// Checks an access of the running thread and remembers it. A failed check ends the launch.
void check_access(const void* p, size_t bytes, Kind kind, Site site);
void check_access(const void* p, size_t bytes, Kind kind, Site site, Actor actor);

void begin_launch_shadow(const void* closure, size_t closure_bytes);
void begin_block_shadow();
void end_launch_shadow();
bool in_dynamic_shared(const void* p, size_t bytes);

}  // namespace emu
