"""What `make gpu-tune` tries: for each kernel its cases and its variants, other values of csrc/cuda/tunables.h.

The first variant is the kernel as it is, and the last one too: their difference is the noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

BFLOAT16 = torch.bfloat16
AS_IS, AGAIN = "as is", "as is, again"

Numbers = dict[str, int | float | bool]  # values by the name of a tunable, without ICL_


@dataclass(frozen=True)
class Tuned:
    """A kernel with its variants, timed in bfloat16.

    Attributes:
        op: the bench that makes the inputs, bench_OP.py.
        sources: what has to be compiled of csrc/cuda; an op's other kernels are not in a variant.
        main: a part of the (mangled) name of the instances whose registers and spills are shown.
        arch: 90: Hopper's own kernel; 80: the one of every GPU.
        cases: the arguments of the bench's `case`, but for the options.
        variants: by name.
    """

    op: str
    name: str
    sources: tuple[str, ...]
    main: str
    arch: int
    cases: tuple[tuple[object, ...], ...]
    variants: dict[str, Numbers]

    def all_variants(self) -> dict[str, Numbers]:
        return {AS_IS: {}, **self.variants, AGAIN: {}}


LOSSES = tuple((shape, BFLOAT16, "forward") for shape in ((8192, 768, 50257), (40960, 768, 50257), (16384, 256, 65536)))
FROZEN = (((16, 16, 8, 512, 64), BFLOAT16), ((16, 8, 8, 1024, 64), BFLOAT16), ((16, 8, 4, 1024, 128), BFLOAT16))
SMEARED = ((32, 8, 512, 64), (8, 8, 2048, 64), (8, 4, 2048, 128))
HEADS = (((4096, 768, 12, 64, 65536), BFLOAT16),)
DIFFERENCES = (((12, 4096, 768, 50257), BFLOAT16),)

# of gemm.h and log_sum_exp.h, the same for every kernel made of them
PIPELINE: dict[str, Numbers] = {
    "2 stages": {"GEMM_STAGES": 2},
    "4 stages": {"GEMM_STAGES": 4},
    "2 stages of 128 bytes": {"GEMM_STAGES": 2, "GEMM_STEP_BYTES": 128},
    "splits for 2 blocks": {"SPLIT_BLOCKS": 2},
    "splits for 8 blocks": {"SPLIT_BLOCKS": 8},
}
# of the forward of attention
FEW: dict[str, Numbers] = {
    "few: 32 keys": {"FEW_COLUMNS_KEYS": 32},
    "few: 8 warps": {"FEW_COLUMNS_WARPS": 8},
    "few: 8 warps of 16 rows": {"FEW_COLUMNS_WARPS": 8, "FEW_COLUMNS_ROW_BLOCKS": 1},
    "few: 4 warps of 16 rows": {"FEW_COLUMNS_ROW_BLOCKS": 1},
}
MANY: dict[str, Numbers] = {
    "many: 128 columns": {"MANY_COLUMNS_COLUMNS": 128},
    "many: 128 columns by one warp": {"MANY_COLUMNS_COLUMNS": 128, "MANY_COLUMNS_WARPS_ACROSS": 1},
    "many: 64 rows": {"MANY_COLUMNS_WARPS_DOWN": 2},
}
MORE_KEYS: dict[str, Numbers] = {
    "many: 128 columns, 64 keys": {"MANY_COLUMNS_COLUMNS": 128, "MANY_COLUMNS_KEYS": 64},
    "many: 64 rows, 64 keys": {"MANY_COLUMNS_WARPS_DOWN": 2, "MANY_COLUMNS_KEYS": 64},
}

KERNELS = (
    Tuned(
        "linear_cross_entropy",
        "forward on Hopper",
        ("linear_cross_entropy_fwd", "linear_cross_entropy_fwd_sm90"),
        "linear_cross_entropy_kernel",
        90,
        LOSSES,
        {
            "3 stages": {"LOSS_SM90_STAGES": 3},
            "192 columns": {"LOSS_SM90_COLUMNS": 192},
            "192 columns, 5 stages": {"LOSS_SM90_COLUMNS": 192, "LOSS_SM90_STAGES": 5},
            "128 columns, 4 stages": {"LOSS_SM90_COLUMNS": 128},
            "128 columns, 6 stages": {"LOSS_SM90_COLUMNS": 128, "LOSS_SM90_STAGES": 6},
            "no stagger": {"LOSS_SM90_STAGGER": False},
            "no stagger, 128 columns, 6 stages": {
                "LOSS_SM90_STAGGER": False,
                "LOSS_SM90_COLUMNS": 128,
                "LOSS_SM90_STAGES": 6,
            },
            "splits as if blocks began at once": {"LOSS_SM90_BLOCK_START": 0.0},
            "splits as if a start took 2 tiles": {"LOSS_SM90_BLOCK_START": 2.0},
        },
    ),
    Tuned(
        "linear_cross_entropy",
        "forward",
        ("linear_cross_entropy_fwd",),
        "forward_kernel",
        80,
        LOSSES[:1],
        {
            **PIPELINE,
            "256 columns, 1 block": {"LOSS_COLUMNS": 256, "GEMM_BLOCKS": 1},
            "256 rows, 1 block": {"LOSS_ROWS": 256, "GEMM_BLOCKS": 1},
            "warps 2 x 4": {"LOSS_WARPS_DOWN": 2, "LOSS_WARPS_ACROSS": 4},
            "4 warps of 64 x 64, 1 block": {"LOSS_WARPS_DOWN": 2, "GEMM_BLOCKS": 1},
            "128 x 64, 4 warps": {"LOSS_COLUMNS": 64, "LOSS_WARPS_ACROSS": 1},
        },
    ),
    Tuned(
        "frozen_attention",
        "on Hopper",
        ("frozen_attention", "frozen_attention_sm90"),
        "frozen_attention_kernel",
        90,
        FROZEN,
        {
            "3 stages": {"FROZEN_SM90_STAGES": 3},
            "3 slabs": {"FROZEN_SM90_SLABS": 3},
            "2 slabs": {"FROZEN_SM90_SLABS": 2},
            "2 slabs, 128 keys, 3 stages": {
                "FROZEN_SM90_SLABS": 2,
                "FROZEN_SM90_KEYS": 128,
                "FROZEN_SM90_STAGES": 3,
            },
        },
    ),
    Tuned(
        "frozen_attention",
        "on every GPU",
        ("frozen_attention",),
        "attention_forward",
        80,
        FROZEN,
        {**MANY, **MORE_KEYS},
    ),
    Tuned(
        "smeared_attention",
        "forward",
        ("smeared_attention_fwd",),
        "attention_forward",
        80,
        tuple((shape, BFLOAT16, "forward") for shape in SMEARED),
        {**FEW, **MANY},
    ),
    Tuned(
        "smeared_attention",
        "backward",
        ("smeared_attention_fwd", "smeared_attention_bwd"),
        "attention_backward",
        80,
        tuple((shape, BFLOAT16, "backward") for shape in SMEARED[:2]),
        {
            "8 warps": {"BACKWARD_WARPS": 8},
            "8 warps of 16 rows": {"BACKWARD_WARPS": 8, "BACKWARD_ROW_BLOCKS": 1},
            "8 warps of 16 rows, 64 others": {
                "BACKWARD_WARPS": 8,
                "BACKWARD_ROW_BLOCKS": 1,
                "BACKWARD_OTHERS": 64,
            },
            "4 warps of 16 rows": {"BACKWARD_ROW_BLOCKS": 1},
            "16 others": {"BACKWARD_OTHERS": 16},
        },
    ),
    Tuned(
        "head_ablation_cross_entropy",
        "on Hopper",
        ("head_ablation_cross_entropy", "head_ablation_cross_entropy_sm90"),
        "head_ablation_kernel",
        90,
        HEADS,
        {
            "4 stages": {"HEADS_SM90_STAGES": 4},
            "7 stages": {"HEADS_SM90_STAGES": 7},
            "no stagger": {"HEADS_SM90_STAGGER": False},
            "24 MiB of rows": {"HEADS_SM90_ROWS_MIB": 24},
            "any number of rows": {"HEADS_SM90_ROWS_MIB": 1 << 20},
            "chunks of 128 KiB": {"HEADS_CHUNK_KIB": 128},
            "chunks of 512 KiB": {"HEADS_CHUNK_KIB": 512},
        },
    ),
    Tuned(
        "head_ablation_cross_entropy",
        "on every GPU",
        ("head_ablation_cross_entropy",),
        "main_kernel",
        80,
        HEADS,
        {
            **PIPELINE,
            "256 rows": {"HEADS_ROWS": 256},
            "128 columns, 1 block": {"HEADS_COLUMNS": 128, "GEMM_BLOCKS": 1},
            "32 columns": {"HEADS_COLUMNS": 32},
            "chunks of 128 KiB": {"HEADS_CHUNK_KIB": 128},
            "chunks of 512 KiB": {"HEADS_CHUNK_KIB": 512},
        },
    ),
    Tuned(
        "cross_entropy_difference",
        "on Hopper",
        ("cross_entropy_difference", "cross_entropy_difference_sm90"),
        "cross_entropy_difference_kernel",
        90,
        (*DIFFERENCES, ((8, 8192, 256, 4096), BFLOAT16)),
        {
            "6 stages": {"DIFFERENCE_SM90_STAGES": 6},
            "10 stages": {"DIFFERENCE_SM90_STAGES": 10},
            "12 stages": {"DIFFERENCE_SM90_STAGES": 12},
            "2 steps under way": {"DIFFERENCE_SM90_UNDER_WAY": 2},
            "1 step's lead": {"DIFFERENCE_SM90_LEAD": 1},
            "3 steps' lead": {"DIFFERENCE_SM90_LEAD": 3},
            "7 steps' lead": {"DIFFERENCE_SM90_LEAD": 7},
            "12 MiB of rows": {"DIFFERENCE_SM90_ROWS_MIB": 12},
            "48 MiB of rows": {"DIFFERENCE_SM90_ROWS_MIB": 48},
            "any number of rows": {"DIFFERENCE_SM90_ROWS_MIB": 1 << 20},
        },
    ),
    Tuned(
        "cross_entropy_difference",
        "on every GPU",
        ("cross_entropy_difference",),
        "main_kernel",
        80,
        DIFFERENCES,
        {
            **PIPELINE,
            "128 x 64, 4 warps": {"DIFFERENCE_COLUMNS": 64, "DIFFERENCE_WARPS_ACROSS": 1},
            "128 x 64, 8 warps": {"DIFFERENCE_COLUMNS": 64},
            "256 x 64, 8 warps": {
                "DIFFERENCE_ROWS": 256,
                "DIFFERENCE_COLUMNS": 64,
                "DIFFERENCE_WARPS_ACROSS": 1,
            },
        },
    ),
)
OPS = tuple(dict.fromkeys(kernel.op for kernel in KERNELS))
