// Products of a matrix with the vectors of up to MAX_ROWS tokens. A weight is restored to fp32 in registers and
// multiplied with fp32: nothing is rounded but the sums. Each sum has the same order for any number of tokens.
#ifndef LLMCLI_PRODUCT_H
#define LLMCLI_PRODUCT_H

#include "blocks.h"

// So many rows and tokens are multiplied together that their sums, of LANES numbers each, fit into the registers.
enum { ROWS = 4, PAIR = 2, TILE = LANES == 16 ? 8 : 4, AHEAD = 4096 };

// sums[r][t] += the products of 32 weights of each of `rows` rows with 32 numbers of each of `count` vectors.
INLINE void multiply_unit(int format, int rows, int count, const uint8_t *w, int64_t stride, int group, const groups *g,
                          const float *const *x, int64_t at, vf sums[ROWS][TILE])
{
    vf part[ROWS][PARTS];
    for (int r = 0; r < rows; r++)
        restore(format, w + r * stride, group, &g[r], part[r]);
    for (int i = 0; i < PARTS; i++)
        for (int t = 0; t < count; t++) {
            const vf inputs = load(x[t] + at + i * LANES);
            for (int r = 0; r < rows; r++)
                sums[r][t] += part[r][i] * inputs;
        }
}

// y[t][r] = row r of m times x[t], plus the bias, for `rows` rows from `first` on and the first `wanted` of `count`
// vectors.
INLINE void multiply_tile(int format, const matrix *m, int rows, int first, int count, int wanted,
                          const float *const *x, float *const *y)
{
    const int bytes = block_bytes(format), weights = block_weights(format), blocks = m->cols / weights;
    const uint8_t *w = m->data + first * m->stride;
    vf sums[ROWS][TILE] = {0};
    groups g[ROWS];
    for (int b = 0; b < blocks; b++) {
        const uint8_t *block = w + (int64_t)b * bytes;
        for (int r = 0; r < rows; r++) {
            for (int ahead = 0; ahead < bytes; ahead += 64)
                __builtin_prefetch(block + r * m->stride + AHEAD + ahead);
            if (weights > UNIT)
                read_groups(format, block + r * m->stride, &g[r]);
        }
        // Loading a scale into all lanes is faster than moving it there from a register, which compilers prefer.
        __asm__("" : : "r"(g) : "memory");
#pragma GCC unroll 8
        for (int group = 0; group < weights / UNIT; group++)
            multiply_unit(format, rows, count, block, m->stride, group, g, x, (int64_t)b * weights + group * UNIT, sums);
    }
    if (m->cols % weights) { // only in dense formats; x continues with zeros
        const int64_t size = 4 * UNIT, used = m->cols % UNIT * (bytes / UNIT);
        uint8_t last[ROWS * 4 * UNIT] = {0};
        for (int r = 0; r < rows; r++)
            memcpy(last + r * size, w + r * m->stride + (int64_t)blocks * bytes, (size_t)used);
        multiply_unit(format, rows, count, last, size, 0, g, x, (int64_t)blocks * UNIT, sums);
    }
    float results[ROWS][TILE];
    for (int r = 0; r < rows; r++)
        for (int t = 0; t < count; t++)
            results[r][t] = sum(sums[r][t]);
    for (int r = 0; r < rows; r++)
        for (int t = 0; t < wanted; t++)
            y[t][first + r] = results[r][t] + (m->bias ? m->bias[first + r] : 0.0f);
}

// As `multiply_tile`, for a pair of rows and any number of vectors. Restoring blocks takes longer than multiplying, so
// three vectors or more become a whole tile.
INLINE void multiply_pair(int format, const matrix *m, int first, int count, const float *const *x, float *const *y)
{
    for (int t = 0, some; t < count; t += some) {
        const float *tile[TILE];
        some = count - t < TILE ? count - t : TILE;
        for (int i = 0; i < TILE; i++)
            tile[i] = x[t + (i < some ? i : 0)];
        if (format >= Q8_0 ? some > 2 : some > 4)
            multiply_tile(format, m, PAIR, first, TILE, some, tile, y + t);
        else if (format < Q8_0 && some > 1)
            multiply_tile(format, m, PAIR, first, 4, some, tile, y + t);
        else
            some = 1, multiply_tile(format, m, PAIR, first, 1, 1, tile, y + t);
    }
}

// As `multiply_tile`, for rows first .. last-1 and `count` vectors.
INLINE void multiply_as(int format, const matrix *m, int first, int last, int count, const float *const *x,
                        float *const *y)
{
    const int together = count == 1 ? ROWS : PAIR;
    for (; first + together <= last; first += together)
        if (count == 1)
            multiply_tile(format, m, ROWS, first, 1, 1, x, y);
        else
            multiply_pair(format, m, first, count, x, y);
    for (; first < last; first++)
        for (int t = 0; t < count; t++)
            multiply_tile(format, m, 1, first, 1, 1, x + t, y + t);
}

#define FOR_EACH_FORMAT(DO)                                                                                            \
    DO(F32) DO(BF16) DO(F16) DO(Q8_0) DO(Q4_0) DO(Q4_1) DO(Q5_0) DO(Q5_1) DO(IQ4_NL) DO(MXFP4) DO(Q2_K) DO(Q3_K)        \
    DO(Q4_K) DO(Q5_K) DO(Q6_K) DO(IQ4_XS)

// y[t][r] = row r of m times x[t], plus the bias, for rows first .. last-1 and `count` vectors.
static void multiply(const matrix *m, int first, int last, int count, const float *const *x, float *const *y)
{
    const int here = last < m->stored ? last : m->stored;
#define MULTIPLY(FORMAT)                                                                                               \
    case FORMAT: multiply_as(FORMAT, m, first, here, count, x, y); break;
    switch (m->format) {
        FOR_EACH_FORMAT(MULTIPLY)
    }
    if (last > here) {
        float *others[MAX_ROWS];
        for (int t = 0; t < count; t++)
            others[t] = y[t] + m->stored;
        multiply(m->rest, first > here ? first - m->stored : 0, last - m->stored, count, x, others);
    }
}

// Restore row r of m into y, in fp32 or, rounded, in bf16.
INLINE void restore_row_as(int format, const matrix *m, int64_t r, bool narrow, void *y)
{
    const uint8_t *w = m->data + r * m->stride;
    if (!narrow) {
        restore_units(format, w, m->cols, y);
        return;
    }
    for (int c = 0; c < m->cols; c += 256) {
        const int some = m->cols - c < 256 ? m->cols - c : 256;
        float part[256];
        restore_units(format, w + (int64_t)(c / block_weights(format)) * block_bytes(format), some, part);
        for (int i = 0; i < some; i += LANES) {
            vu16 narrowed = all_to_bf16(load(part + i));
            memcpy((uint16_t *)y + c + i, &narrowed, (size_t)(some - i < LANES ? some - i : LANES) * sizeof(uint16_t));
        }
    }
}

static void restore_row(const matrix *m, int64_t r, bool narrow, void *y)
{
#define RESTORE(FORMAT)                                                                                                \
    case FORMAT: restore_row_as(FORMAT, m, r, narrow, y); break;
    switch (m->format) {
        FOR_EACH_FORMAT(RESTORE)
    }
}

#endif
