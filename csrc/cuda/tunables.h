// Numbers of the kernels that were chosen, not derived. Each can be given to the compiler instead (-DICL_...=...): that
// is how `make gpu-tune` builds the variants of bench/tune_variants.py. What does not fit fails a static_assert.
#pragma once

// ---- gemm.h: every loss kernel ----
#ifndef ICL_GEMM_STAGES
#define ICL_GEMM_STAGES 3  // steps of depth in shared memory
#endif
#ifndef ICL_GEMM_STEP_BYTES
#define ICL_GEMM_STEP_BYTES 64  // of depth, in a step: 64 or 128
#endif
#ifndef ICL_GEMM_BLOCKS
#define ICL_GEMM_BLOCKS 2  // of 8 warps on a multiprocessor, for which registers are left; of float32 one
#endif

// ---- log_sum_exp.h ----
#ifndef ICL_SPLIT_BLOCKS
#define ICL_SPLIT_BLOCKS 4  // on a multiprocessor, that the columns are split for
#endif

// ---- linear_cross_entropy_fwd.cu, its large tile ----
#ifndef ICL_LOSS_ROWS
#define ICL_LOSS_ROWS 128
#endif
#ifndef ICL_LOSS_COLUMNS
#define ICL_LOSS_COLUMNS 128
#endif
#ifndef ICL_LOSS_WARPS_DOWN
#define ICL_LOSS_WARPS_DOWN 4
#endif
#ifndef ICL_LOSS_WARPS_ACROSS
#define ICL_LOSS_WARPS_ACROSS 2
#endif

// ---- linear_cross_entropy_fwd_sm90.cu ----
#ifndef ICL_LOSS_SM90_COLUMNS
#define ICL_LOSS_SM90_COLUMNS 256  // of a tile: 64, 128, 192 or 256
#endif
#ifndef ICL_LOSS_SM90_STAGES
#define ICL_LOSS_SM90_STAGES 4
#endif
#ifndef ICL_LOSS_SM90_STAGGER
#define ICL_LOSS_SM90_STAGGER true  // whether one consumer starts a ring's length after the other
#endif
#ifndef ICL_LOSS_SM90_BLOCK_START
#define ICL_LOSS_SM90_BLOCK_START 0.4  // what a block costs beyond its column tiles, counted in them
#endif

// ---- head_ablation_cross_entropy.cu ----
#ifndef ICL_HEADS_ROWS
#define ICL_HEADS_ROWS 128  // 32 a warp
#endif
#ifndef ICL_HEADS_COLUMNS
#define ICL_HEADS_COLUMNS 64
#endif
#ifndef ICL_HEADS_CHUNK_KIB
#define ICL_HEADS_CHUNK_KIB 256  // of G and M for every multiprocessor
#endif

// ---- head_ablation_cross_entropy_sm90.cu ----
#ifndef ICL_HEADS_SM90_STAGES
#define ICL_HEADS_SM90_STAGES 6
#endif
#ifndef ICL_HEADS_SM90_STAGGER
#define ICL_HEADS_SM90_STAGGER true  // whether one consumer starts a ring's length after the other
#endif
#ifndef ICL_HEADS_SM90_ROWS_MIB
#define ICL_HEADS_SM90_ROWS_MIB 12  // of rows that are multiplied at a time: a share of the last-level cache
#endif

// ---- cross_entropy_difference.cu ----
#ifndef ICL_DIFFERENCE_ROWS
#define ICL_DIFFERENCE_ROWS 128  // 32 a warp
#endif
#ifndef ICL_DIFFERENCE_COLUMNS
#define ICL_DIFFERENCE_COLUMNS 128
#endif
#ifndef ICL_DIFFERENCE_WARPS_ACROSS
#define ICL_DIFFERENCE_WARPS_ACROSS 2
#endif

// ---- cross_entropy_difference_sm90.cu ----
#ifndef ICL_DIFFERENCE_SM90_STAGES
#define ICL_DIFFERENCE_SM90_STAGES 8  // of the ring; shared memory has room for 14 slabs, what is left keeps weights
#endif
#ifndef ICL_DIFFERENCE_SM90_UNDER_WAY
#define ICL_DIFFERENCE_SM90_UNDER_WAY 1  // steps of depth whose products are not waited for
#endif
#ifndef ICL_DIFFERENCE_SM90_LEAD
#define ICL_DIFFERENCE_SM90_LEAD 6  // steps of depth that one consumer issues before the other begins
#endif
#ifndef ICL_DIFFERENCE_SM90_ROWS_MIB
#define ICL_DIFFERENCE_SM90_ROWS_MIB 24  // of rows that are multiplied at a time: a share of the last-level cache
#endif

// ---- attention_forward.h, bf16 and fp16: the shape for few columns and the one for many ----
#ifndef ICL_FEW_COLUMNS_ROW_BLOCKS
#define ICL_FEW_COLUMNS_ROW_BLOCKS 2  // of 16 rows, of a warp
#endif
#ifndef ICL_FEW_COLUMNS_WARPS
#define ICL_FEW_COLUMNS_WARPS 4
#endif
#ifndef ICL_FEW_COLUMNS_KEYS
#define ICL_FEW_COLUMNS_KEYS 64  // of a tile
#endif
#ifndef ICL_MANY_COLUMNS_ROW_BLOCKS
#define ICL_MANY_COLUMNS_ROW_BLOCKS 2
#endif
#ifndef ICL_MANY_COLUMNS_WARPS_DOWN
#define ICL_MANY_COLUMNS_WARPS_DOWN 4
#endif
#ifndef ICL_MANY_COLUMNS_WARPS_ACROSS
#define ICL_MANY_COLUMNS_WARPS_ACROSS 2
#endif
#ifndef ICL_MANY_COLUMNS_KEYS
#define ICL_MANY_COLUMNS_KEYS 32  // where the depth is 64; there is no room for more at 128
#endif
#ifndef ICL_MANY_COLUMNS_COLUMNS
#define ICL_MANY_COLUMNS_COLUMNS 256
#endif

// ---- frozen_attention_sm90.cu ----
#ifndef ICL_FROZEN_SM90_KEYS
#define ICL_FROZEN_SM90_KEYS 64  // of a tile: 64 or 128
#endif
#ifndef ICL_FROZEN_SM90_STAGES
#define ICL_FROZEN_SM90_STAGES 4  // at least 3
#endif
#ifndef ICL_FROZEN_SM90_SLABS
#define ICL_FROZEN_SM90_SLABS 4  // at most, of 64 columns, a block
#endif

// ---- smeared_attention_bwd.cu, bf16 and fp16, depth up to 64 ----
#ifndef ICL_BACKWARD_ROW_BLOCKS
#define ICL_BACKWARD_ROW_BLOCKS 2  // of 16 own rows, of a warp
#endif
#ifndef ICL_BACKWARD_WARPS
#define ICL_BACKWARD_WARPS 4
#endif
#ifndef ICL_BACKWARD_OTHERS
#define ICL_BACKWARD_OTHERS 32  // other rows of a tile
#endif
