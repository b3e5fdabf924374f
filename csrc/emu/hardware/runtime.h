// The names of csrc/ptx/hardware/runtime.h, which says what they are, on the emulator.
#pragma once

#include "emu/emu.h"

#define ICL_DYNAMIC_SHARED(name) unsigned char* name = static_cast<unsigned char*>(emu::dynamic_shared())

#define ICL_LAUNCH(kernel, grid, block, shared, stream, ...)                                                        \
  ((void)(stream), emu::launch(grid, block, shared, emu::kernel_name(reinterpret_cast<const void*>(kernel), #kernel), \
                               [=] { kernel(__VA_ARGS__); }))
