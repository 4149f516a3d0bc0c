// How stored weights become fp32: the formats of model.h, whose blocks have the layouts of GGUF (llama.cpp).
//
// Weights are restored 32 at a time. A block of 32 begins with its scale in fp16. A block of 256 has 8 or 16 groups,
// whose scales are small integers in units of the block's own scale; it is the product of the two that weights are in
// units of. Some formats also have a least weight, which a code of 0 stands for, stored in the same way.
#ifndef LLMCLI_BLOCKS_H
#define LLMCLI_BLOCKS_H

#include <stdbool.h>

#include "model.h"
#include "simd.h"

enum { UNIT = 32, PARTS = UNIT / LANES, MOST_GROUPS = 16 };

typedef uint8_t v16 __attribute__((vector_size(16)));

// Weights per block. Dense formats have no blocks, so any number would do.
INLINE int block_weights(int format) { return format < Q2_K ? UNIT : 256; }

INLINE int block_bytes(int format)
{
    static const int16_t bytes[] = {
        [F32] = 4 * UNIT, [BF16] = 2 * UNIT, [F16] = 2 * UNIT, [Q8_0] = 34, [Q4_0] = 18, [Q4_1] = 20,
        [Q5_0] = 22,      [Q5_1] = 24,       [IQ4_NL] = 18,    [MXFP4] = 17, [Q2_K] = 84, [Q3_K] = 110,
        [Q4_K] = 144,     [Q5_K] = 176,      [Q6_K] = 210,     [IQ4_XS] = 136,
    };
    return bytes[format];
}

INLINE float one_f16(const uint8_t *p) { return splat_f16(p)[0]; }

// Codes: one byte per weight

// The two halves of 16 bytes: first all lower ones, then all upper ones.
INLINE v32 halves(const uint8_t *p)
{
    const v16 pairs = LOAD(v16, p), low = pairs & 15, high = pairs >> 4;
    v32 both;
    memcpy(&both, &low, sizeof low);
    memcpy((uint8_t *)&both + sizeof low, &high, sizeof high);
    return both;
}

// Where bit i of 4 bytes is set, byte i is `value`.
INLINE v32 spread_bits(const uint8_t *p, uint8_t value)
{
    const v32 bit = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128,
                     1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    const v32 byte = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3};
    int8_t bytes[16] = {0};
    memcpy(bytes, p, 4);
    const v32 own = look_up(bytes, byte);
    return (v32)((own & bit) != 0) & value;
}

// The codes of 32 weights, `group` from 0 on, of a block; for IQ4 and MXFP4, numbers from their tables.
INLINE v32 codes(int format, const uint8_t *p, int group)
{
    static const int8_t iq4[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
    static const int8_t fp4[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12}; // doubled
    const int half = group / 4, quarter = group % 4; // 128 weights share the 32 bytes of their codes' 2 bits
    switch (format) {
    case Q4_0: return halves(p + 2) - 8;
    case Q4_1: return halves(p + 4);
    case Q5_0: return (halves(p + 6) | spread_bits(p + 2, 16)) - 16;
    case Q5_1: return halves(p + 8) | spread_bits(p + 4, 16);
    case IQ4_NL: return look_up(iq4, halves(p + 2));
    case IQ4_XS: return look_up(iq4, halves(p + 8 + 16 * group));
    case MXFP4: return look_up(fp4, halves(p + 1));
    case Q2_K: return LOAD(v32, p + 16 + 32 * half) >> 2 * quarter & 3;
    case Q3_K: return (LOAD(v32, p + 32 + 32 * half) >> 2 * quarter & 3) + ((LOAD(v32, p) >> group & 1) << 2) - 4;
    case Q4_K: return LOAD(v32, p + 16 + group / 2 * 32) >> group % 2 * 4 & 15;
    case Q5_K: return (LOAD(v32, p + 48 + group / 2 * 32) >> group % 2 * 4 & 15) | (LOAD(v32, p + 16) >> group & 1) << 4;
    default: // Q6_K
        return ((LOAD(v32, p + 64 * half + quarter % 2 * 32) >> quarter / 2 * 4 & 15) |
                (LOAD(v32, p + 128 + 32 * half) >> 2 * quarter & 3) << 4) - 32;
    }
}

// Scales

typedef struct {
    float scale[MOST_GROUPS], least[MOST_GROUPS];
} groups;

INLINE void store_scaled(float out[MOST_GROUPS], v16 integers, float unit)
{
    for (int i = 0; i < MOST_GROUPS; i += LANES)
        store(out + i, from_i8((const uint8_t *)&integers + i) * splat(unit));
}

// The numbers of 6 bits in 12 bytes, by four in each word.
#define LOW4(word) ((word) & 0x0f0f0f0fu)
#define HIGH2(word) ((word) << 4 & 0x30303030u)

// Q4_K and Q5_K: first 8 scales, then 8 least weights. The first two words have four of each in their lower 6 bits.
INLINE v16 eight_and_eight(const uint8_t *p)
{
    const uint32_t a = LOAD(uint32_t, p), b = LOAD(uint32_t, p + 4), c = LOAD(uint32_t, p + 8), six = 0x3f3f3f3f;
    const uint32_t words[] = {a & six, LOW4(c) | HIGH2(a >> 6), b & six, LOW4(c >> 4) | HIGH2(b >> 6)};
    return LOAD(v16, words);
}

// Q3_K: 16 scales, each plus 32. The first two words have their lower 4 bits, the last one the others.
INLINE v16 sixteen(const uint8_t *p)
{
    const uint32_t a = LOAD(uint32_t, p), b = LOAD(uint32_t, p + 4), c = LOAD(uint32_t, p + 8);
    const uint32_t words[] = {LOW4(a) | HIGH2(c), LOW4(b) | HIGH2(c >> 2), LOW4(a >> 4) | HIGH2(c >> 4),
                              LOW4(b >> 4) | HIGH2(c >> 6)};
    return LOAD(v16, words) - 32;
}

// IQ4_XS: 8 scales, each plus 32, of whose bits the lower 4 are in four bytes and the others in two.
INLINE v16 eight(const uint8_t *low, const uint8_t *high)
{
    const uint32_t four = LOAD(uint32_t, low), two = LOAD(uint16_t, high);
    v16 scale = {0};
    for (uint32_t i = 0; i < 8; i++)
        scale[i] = (uint8_t)((four >> 4 * i & 15) | (two >> 2 * i & 3) << 4);
    return scale - 32;
}

// The scales of a block of 256, of which Q4_K, Q5_K and IQ4_XS have 8, one for each group of 32, and others 16.
INLINE void read_groups(int format, const uint8_t *p, groups *g)
{
    if (format == Q4_K || format == Q5_K) {
        const v16 both = eight_and_eight(p + 4);
        store_scaled(g->scale, both, one_f16(p));
        store_scaled(g->least, both, one_f16(p + 2));
    } else if (format == Q2_K) {
        const v16 both = LOAD(v16, p);
        store_scaled(g->scale, both & 15, one_f16(p + 80));
        store_scaled(g->least, both >> 4, one_f16(p + 82));
    } else if (format == Q3_K)
        store_scaled(g->scale, sixteen(p + 96), one_f16(p + 108));
    else if (format == IQ4_XS)
        store_scaled(g->scale, eight(p + 4, p + 2), one_f16(p));
    else // Q6_K
        store_scaled(g->scale, LOAD(v16, p + 192), one_f16(p + 208));
}

// MXFP4: 2 to the power of a byte less 127, and half of it as the table is doubled. The two least are subnormal.
INLINE vf splat_power(uint8_t exponent)
{
    return (vf)((exponent < 2 ? 0x200000u << exponent : (uint32_t)(exponent - 1) << 23) - (vu){0});
}

// Weights

// Restore 32 weights of 4 bits, or of 2, by a table of what each code stands for: the fastest way where `pick` is an
// instruction. A code of 2 bits is chosen by the 4 bits that begin with it, so its table has each weight four times.
#if LANES == 16
INLINE bool has_table(int format)
{
    return format == Q4_0 || format == Q4_1 || format == IQ4_NL || format == IQ4_XS || format == MXFP4 ||
           format == Q5_0 || format == Q5_1 || format == Q2_K || format == Q4_K;
}

INLINE void restore_by_table(int format, const uint8_t *p, int group, const groups *g, vf w[PARTS])
{
    const vf four = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const vf two = {0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3};
    const vf iq4 = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
    const vf fp4 = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
    if (format == Q4_K) {
        const vf table = four * splat(g->scale[group]) - splat(g->least[8 + group]);
        for (int i = 0; i < PARTS; i++)
            w[i] = pick(table, p + 16 + group / 2 * 32 + i * LANES, group % 2 * 4);
        return;
    }
    if (format == Q2_K) {
        for (int i = 0; i < PARTS; i++) {
            const int own = 2 * group + i;
            const vf table = two * splat(g->scale[own]) - splat(g->least[own]);
            w[i] = pick(table, p + 16 + group / 4 * 32 + i * LANES, group % 4 * 2);
        }
        return;
    }
    if (format == Q5_0 || format == Q5_1) {
        const vf scale = splat_f16(p), least = format == Q5_0 ? -16.0f * scale : splat_f16(p + 2);
        const vf low = four * scale + least, high = (four + 16.0f) * scale + least;
        const uint8_t *fifth = p + (format == Q5_0 ? 2 : 4), *pairs = fifth + 4;
        for (int i = 0; i < PARTS; i++)
            w[i] = pick_of_two(low, high, LOAD(uint16_t, fifth + 2 * i), pairs, 4 * i);
        return;
    }
    vf table;
    switch (format) {
    case Q4_0: table = (four - 8.0f) * splat_f16(p), p += 2; break;
    case Q4_1: table = four * splat_f16(p) + splat_f16(p + 2), p += 4; break;
    case MXFP4: table = fp4 * splat_power(*p), p += 1; break;
    case IQ4_NL: table = iq4 * splat_f16(p), p += 2; break;
    default: table = iq4 * splat(g->scale[group]), p += 8 + group * LANES; // IQ4_XS
    }
    for (int i = 0; i < PARTS; i++)
        w[i] = pick(table, p, 4 * i);
}
#else
INLINE bool has_table(int format) { return format < 0; }
INLINE void restore_by_table(int format, const uint8_t *p, int group, const groups *g, vf w[PARTS])
{
    (void)format, (void)p, (void)group, (void)g, (void)w;
}
#endif

// Restore 32 weights of the block at p, the dense ones at p. `g` is what `read_groups` found in a block of 256.
INLINE void restore(int format, const uint8_t *p, int group, const groups *g, vf w[PARTS])
{
    if (format == F32)
        for (int i = 0; i < PARTS; i++)
            w[i] = load((const float *)p + i * LANES);
    else if (format == BF16)
        for (int i = 0; i < PARTS; i++)
            w[i] = from_bf16(p + 2 * i * LANES);
    else if (format == F16)
        for (int i = 0; i < PARTS; i++)
            w[i] = from_f16(p + 2 * i * LANES);
    else if (format == Q8_0) {
        const vf scale = splat_f16(p);
        for (int i = 0; i < PARTS; i++)
            w[i] = from_i8(p + 2 + i * LANES) * scale;
    } else if (has_table(format)) {
        restore_by_table(format, p, group, g, w);
    } else {
        const v32 c = codes(format, p, group);
        for (int i = 0; i < PARTS; i++) {
            const vf code = from_i8((const uint8_t *)&c + i * LANES);
            const bool wide = format == Q4_K || format == Q5_K || format == IQ4_XS;
            const int own = wide ? group : 2 * group + i * LANES / 16, own_least = wide ? 8 + group : own;
            if (format == Q4_1 || format == Q5_1)
                w[i] = code * splat_f16(p) + splat_f16(p + 2);
            else if (format == MXFP4)
                w[i] = code * splat_power(*p);
            else if (format < Q2_K)
                w[i] = code * splat_f16(p);
            else if (format == Q2_K || format == Q4_K || format == Q5_K)
                w[i] = code * splat(g->scale[own]) - splat(g->least[own_least]);
            else
                w[i] = code * splat(g->scale[own]);
        }
    }
}

// Restore `count` weights of a row, from the beginning of a block on.
INLINE void restore_units(int format, const uint8_t *p, int count, float *y)
{
    const int bytes = block_bytes(format), weights = block_weights(format);
    groups g;
    for (int c = 0; c < count; c += UNIT) {
        const uint8_t *block = p + (int64_t)(c / weights) * bytes;
        const int some = count - c < UNIT ? count - c : UNIT, group = c % weights / UNIT;
        uint8_t last[4 * UNIT] = {0};
        if (format < Q8_0 && some < UNIT)
            block = memcpy(last, block, (size_t)some * (size_t)(bytes / UNIT));
        if (weights > UNIT && group == 0)
            read_groups(format, block, &g);
        vf part[PARTS];
        restore(format, block, group, &g, part);
        memcpy(y + c, part, (size_t)some * sizeof *y);
    }
}

#endif
