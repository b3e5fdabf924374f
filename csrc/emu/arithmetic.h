// What the hardware computes otherwise than float32 arithmetic does: products of matrices and 2^x. Which of the two
// runs is `set_arithmetic`'s (control.h).
//
// "float32": products and sums are rounded to nearest, one after the other; 2^x is the C library's.
// "sm_80", "sm_90": the arithmetic of the tensor cores of that architecture (A100; H100 and H200). It is not
// documented. What is known was found by experiment:
//   Fasi, Higham, Mikaitis, Pranesh, "Numerical behavior of NVIDIA tensor cores", PeerJ Computer Science 7:e330 (2021);
//   Xie, Wang, Yang, Yang, "MMA-Sim: Bit-Accurate Reference Model of Tensor Cores and Matrix Cores",
//   arXiv:2511.10909 (2025), whose algorithm T-FDPA this is;
//   Khattak, Mikaitis, "Accurate Models of NVIDIA Tensor Cores", arXiv:2512.07004 (2025), which finds the same.
// The last two report agreement in every bit with the GPUs for random matrices. For a block of k:
//   1. the products of bf16 or fp16 numbers are exact, and subnormal ones count in full;
//   2. the products and the accumulator are shifted to the largest exponent among them and truncated towards zero, to
//      F bits after the point. The exponent of a product is the sum of its factors' (the product of their significands,
//      below 4, is not normalised), of a subnormal factor that of the smallest normal number of its type;
//   3. they are added exactly, in whatever order, and the sum is truncated towards zero to a float32.
// sm_80 takes the 16 products of an instruction in two blocks of 8, with F = 24; sm_90 in one block, with F = 25, in
// mma.sync and wgmma alike. wgmma, which sm_80 has not, is sm_90's in either mode.
// Errors are therefore all towards zero, and grow with the number of instructions that add to one accumulator.
//
// 2^x (ex2.approx.ftz.f32) is off by at most 2 ulp from the correctly rounded result (PTX ISA): here by -2 to 2,
// always the same for the same x. 2^0 is 1, and subnormal arguments and results are zero. The hardware may be better
// than that; a kernel can count on no more. CUDA's mathematical library (logf, expf, expm1f, log1pf) is the C library
// in every mode, and so are the intrinsics that no kernel uses (__expf, rsqrtf, ...). No kernel multiplies in TF32.
#pragma once

namespace emu {

// d + a . b over the 16 k of one instruction, its arguments finite or not. a and b: of bf16 or fp16 numbers.
float mma_sync_sum(const float* a, const float* b, float d, bool bf16);
float wgmma_sum(const float* a, const float* b, float d, bool bf16);

float exp2_approx(float x);

}  // namespace emu
