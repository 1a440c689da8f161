// SPDX-License-Identifier: Apache-2.0
// Loops that do nothing but multiply, on registers of one width: the peaks that bound a target's
// kernels. No kernel uses them. Textual, included inside a target's namespace after `Vec` and
// KT_WIDTH, the register class ("ymm" or "zmm"), and on targets that have it after KT_DPBUSD, the
// mnemonic in their encoding. It ends both.
//
// In assembly, because compilers spill some of the sums or compute what does not change once before
// the loop, and then measure themselves.

#define KT_R(n) "%%" KT_WIDTH #n
#define KT_ZERO(n) "vpxor %%xmm" #n ", %%xmm" #n ", %%xmm" #n "\n"  // zeroes all of a wide register
// 12 sums that do not wait for each other: an FMA takes 4 cycles and two start in each (8 sums), a
// VNNI dot product 5 (10 sums). With a product and two operands they fit 16 registers.
#define KT_SUMS(STEP) \
  STEP(0) STEP(1) STEP(2) STEP(3) STEP(4) STEP(5) STEP(6) STEP(7) STEP(8) STEP(9) STEP(10) STEP(11)
inline constexpr int64_t kPeakSums = 12;

// The operand's bits are a normal float below 1, and bytes below 128.
#define KT_PEAK_LOOP(name, STEP)                                                                 \
  inline void name(int64_t steps) {                                                              \
    const uint32_t operand = 0x3f5a7b1d;                                                         \
    __asm__ volatile("vpbroadcastd %[operand], " KT_R(14) "\nvpbroadcastd %[operand], " KT_R(    \
                         15) "\n" KT_SUMS(KT_ZERO) "1:\n" KT_SUMS(STEP) "dec %[steps]\njnz 1b\n" \
                     : [steps] "+r"(steps)                                                       \
                     : [operand] "m"(operand)                                                    \
                     : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7",     \
                       "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm14", "xmm15");             \
  }

#define KT_FMA(n) "vfmadd231ps " KT_R(14) ", " KT_R(15) ", " KT_R(n) "\n"
KT_PEAK_LOOP(peak_fma, KT_FMA)

// An int8 dot product whose every pair of products goes on to int32.
#define KT_MADDUBS "vpmaddubsw " KT_R(14) ", " KT_R(15) ", " KT_R(12) "\n"
#define KT_MADDUBS_MADD(n) \
  KT_MADDUBS "vpmaddwd " KT_R(12) ", " KT_R(14) ", " KT_R(12) "\n"  \
             "vpaddd " KT_R(12) ", " KT_R(n) ", " KT_R(n) "\n"
KT_PEAK_LOOP(peak_maddubs_madd, KT_MADDUBS_MADD)

// The same with sums chained in int16, as 4-bit weights allow.
#define KT_MADDUBS_ADD(n) KT_MADDUBS "vpaddw " KT_R(12) ", " KT_R(n) ", " KT_R(n) "\n"
KT_PEAK_LOOP(peak_maddubs_add, KT_MADDUBS_ADD)

#if defined(KT_DPBUSD)
// Products of four pairs of bytes and their sum with an int32 in one instruction.
#define KT_DOT(n) KT_DPBUSD " " KT_R(14) ", " KT_R(15) ", " KT_R(n) "\n"
KT_PEAK_LOOP(peak_dpbusd, KT_DOT)
#endif

// A multiplication and an addition count 1 each.
inline constexpr PeakLoop kPeaks[] = {
    {"fma", 2 * kPeakSums * sizeof(Vec::F) / 4, &peak_fma},
    {"maddubs_madd", 2 * kPeakSums * sizeof(Vec::I), &peak_maddubs_madd},
    {"maddubs_add", 2 * kPeakSums * sizeof(Vec::I), &peak_maddubs_add},
#if defined(KT_DPBUSD)
    {"dpbusd", 2 * kPeakSums * sizeof(Vec::I), &peak_dpbusd},
#endif
};
constexpr Probes kProbes = {&probe_read, kPeaks, std::size(kPeaks)};

#undef KT_DOT
#undef KT_MADDUBS_ADD
#undef KT_MADDUBS_MADD
#undef KT_MADDUBS
#undef KT_FMA
#undef KT_PEAK_LOOP
#undef KT_SUMS
#undef KT_ZERO
#undef KT_R
#undef KT_DPBUSD
#undef KT_WIDTH
