// Vectors of LANES floats, written once for every processor with the vector extensions of GCC and Clang.
#ifndef LLMCLI_SIMD_H
#define LLMCLI_SIMD_H

#include <stdint.h>
#include <string.h>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif

#define INLINE static inline __attribute__((always_inline))

typedef float vf __attribute__((vector_size(LANES * 4)));
typedef int32_t vi __attribute__((vector_size(LANES * 4)));
typedef uint32_t vu __attribute__((vector_size(LANES * 4)));
typedef uint16_t vu16 __attribute__((vector_size(LANES * 2)));
typedef int8_t vi8 __attribute__((vector_size(LANES)));
typedef uint8_t vu8 __attribute__((vector_size(LANES)));

// The vector at any address. memcpy of a fixed size is a single load.
#define LOAD(type, address)                                                                                            \
    __extension__({                                                                                                    \
        type loaded_;                                                                                                  \
        memcpy(&loaded_, (address), sizeof loaded_);                                                                   \
        loaded_;                                                                                                       \
    })

INLINE vf load(const float *p) { return LOAD(vf, p); }
INLINE void store(float *p, vf v) { memcpy(p, &v, sizeof v); }
INLINE vf splat(float x) { return x - (vf){0}; }

// bfloat16 is the upper half of a float. Compilers vectorize conversions of small numbers badly, so these name the instructions where there
// are any. `splat_f16` is one number in every lane; `pick`, for which
// not all have an instruction, chooses from a table of 16 numbers by 4 bits, from `shift` on, of LANES bytes.
#if defined(__AVX512F__)
INLINE vf from_bf16(const void *p) { return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(LOAD(__m256i, p)), 16); }
INLINE vf from_f16(const void *p) { return (vf)_mm512_cvtph_ps(LOAD(__m256i, p)); }
INLINE vf splat_f16(const void *p) { return (vf)_mm512_cvtph_ps(_mm256_set1_epi16(LOAD(int16_t, p))); }
INLINE vf from_i8(const void *p) { return (vf)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(LOAD(__m128i, p))); }
INLINE vf pick(vf table, const void *p, unsigned shift)
{
    const __m512i bytes = _mm512_cvtepu8_epi32(LOAD(__m128i, p));
    return (vf)_mm512_permutexvar_ps(_mm512_srli_epi32(bytes, shift), (__m512)table);
}
INLINE vf pick_of_two(vf low, vf high, uint16_t where_high, const void *p, unsigned shift)
{
    const __m512i bytes = _mm512_srli_epi32(_mm512_cvtepu8_epi32(LOAD(__m128i, p)), shift);
    const __m512 picked = _mm512_permutexvar_ps(bytes, (__m512)low);
    return (vf)_mm512_mask_permutexvar_ps(picked, where_high, bytes, (__m512)high);
}
#elif defined(__AVX2__)
INLINE vf from_bf16(const void *p) { return (vf)_mm256_slli_epi32(_mm256_cvtepu16_epi32(LOAD(__m128i, p)), 16); }
INLINE vf from_f16(const void *p) { return (vf)_mm256_cvtph_ps(LOAD(__m128i, p)); }
INLINE vf splat_f16(const void *p) { return (vf)_mm256_cvtph_ps(_mm_set1_epi16(LOAD(int16_t, p))); }
INLINE vf from_i8(const void *p) { return (vf)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p))); }
#elif defined(__ARM_NEON) && defined(__aarch64__)
INLINE vf from_bf16(const void *p) { return (vf)vshll_n_u16(LOAD(uint16x4_t, p), 16); }
INLINE vf from_f16(const void *p) { return (vf)vcvt_f32_f16(LOAD(float16x4_t, p)); }
INLINE vf splat_f16(const void *p) { return (vf)vcvt_f32_f16(vdup_n_f16(LOAD(__fp16, p))); }
INLINE vf from_i8(const void *p)
{
    const int8x8_t bytes = vreinterpret_s8_s32(vdup_n_s32(LOAD(int32_t, p)));
    return (vf)vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(bytes))));
}
#else
INLINE vf from_bf16(const void *p) { return (vf)(__builtin_convertvector(LOAD(vu16, p), vu) << 16); }
INLINE vf from_i8(const void *p)
{
    return __builtin_convertvector(__builtin_convertvector(LOAD(vi8, p), vi), vf);
}
// The exponent is moved to a float's place and rebased by a product, which also restores subnormal numbers.
INLINE vf from_f16(const void *p)
{
    const vu half = __builtin_convertvector(LOAD(vu16, p), vu), magnitude = half & 0x7fff;
    const vf finite = (vf)(magnitude << 13) * 0x1p112f;
    const vu special = (vu)(magnitude >= 0x7c00) & 0x7f800000; // infinity or NaN
    return (vf)((vu)finite | special | (half & 0x8000) << 16);
}
INLINE vf splat_f16(const void *p)
{
    uint16_t half[LANES] = {0};
    memcpy(half, p, sizeof *half);
    return from_f16(half)[0] - (vf){0};
}
#endif

typedef uint8_t v32 __attribute__((vector_size(32)));

// The numbers of a table of 16 at 32 indices.
INLINE v32 look_up(const int8_t table[16], v32 indices)
{
#if defined(__AVX2__)
    const __m256i numbers = _mm256_broadcastsi128_si256(LOAD(__m128i, table));
    return (v32)_mm256_shuffle_epi8(numbers, (__m256i)indices);
#elif defined(__ARM_NEON) && defined(__aarch64__)
    const int8x16_t numbers = vld1q_s8(table);
    uint8x16_t part[2];
    memcpy(part, &indices, sizeof indices);
    for (int i = 0; i < 2; i++)
        part[i] = vreinterpretq_u8_s8(vqtbl1q_s8(numbers, part[i]));
    memcpy(&indices, part, sizeof indices);
    return indices;
#else
    for (int i = 0; i < 32; i++)
        indices[i] = (uint8_t)table[indices[i]];
    return indices;
#endif
}

// The sum of all lanes, always in the same order: halves are added until four lanes are left.
typedef float v4 __attribute__((vector_size(16)));
INLINE float sum(vf v)
{
    v4 part[LANES / 4];
    memcpy(part, &v, sizeof v);
    for (int half = LANES / 8; half; half /= 2)
        for (int i = 0; i < half; i++)
            part[i] += part[i + half];
    return (part[0][0] + part[0][2]) + (part[0][1] + part[0][3]);
}

INLINE vf blend(vi mask, vf a, vf b) { return (vf)((mask & (vi)a) | (~mask & (vi)b)); }
// NaN if a is NaN.
INLINE vf maximum(vf a, vf b) { return blend(a <= b, b, a); }
INLINE vf minimum(vf a, vf b) { return blend(a >= b, b, a); }

// e^x to 2 units in the last place (Cephes' polynomial): 2^n times e^r with |r| <= log(2)/2. Below -104 it is 0; NaN stays NaN.
INLINE vf exponential(vf x)
{
    vf clamped = minimum(maximum(x, splat(-104.0f)), splat(88.37f));
    vf n = clamped * 1.44269504f + 12582912.0f; // adding 1.5 * 2^23 rounds to an integer
    n -= 12582912.0f;
    vf r = clamped - n * 0.693359375f;
    r -= n * -2.12194440e-4f;
    vf y = splat(1.9875691500e-4f);
    y = y * r + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * (r * r) + r + 1.0f;
    const vi all = __builtin_convertvector(n, vi), half = all >> 1; // two steps, as 2^n may be subnormal
    return y * (vf)((half + 127) << 23) * (vf)((all - half + 127) << 23);
}

INLINE vf tanh_of(vf x) { return 1.0f - 2.0f / (exponential(x * 2.0f) + 1.0f); }

// Finite numbers rounded to the nearest, ties to even.
INLINE vu16 all_to_bf16(vf x)
{
    const vu bits = (vu)x;
    return __builtin_convertvector((bits + 0x7fff + (bits >> 16 & 1)) >> 16, vu16);
}

INLINE uint16_t to_bf16(float x) // rounded to the nearest, ties to even
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if (x != x)
        return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

#endif
