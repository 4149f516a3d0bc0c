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

// The products of `rows` stored rows with `count` vectors.
INLINE void dot(int format, int rows, int count, const uint8_t *w, int64_t stride, int cols, const float *const *x,
                float results[ROWS][TILE])
{
    const int bytes = block_bytes(format), weights = block_weights(format), blocks = cols / weights;
    vf sums[ROWS][TILE] = {0};
    groups g[ROWS];
    for (int b = 0; b < blocks; b++) {
        const uint8_t *block = w + (int64_t)b * bytes;
        for (int r = 0; r < rows; r++) {
            for (int ahead = 0; ahead < bytes; ahead += 64)
                __builtin_prefetch(block + r * stride + AHEAD + ahead);
            if (weights > UNIT)
                read_groups(format, block + r * stride, &g[r]);
        }
        // Loading a scale into all lanes is faster than moving it there from a register, which compilers prefer.
        __asm__("" : : "r"(g) : "memory");
#pragma GCC unroll 8
        for (int group = 0; group < weights / UNIT; group++)
            multiply_unit(format, rows, count, block, stride, group, g, x, (int64_t)b * weights + group * UNIT, sums);
    }
    if (cols % weights) { // only in dense formats; x continues with zeros
        const int64_t size = 4 * UNIT, used = cols % UNIT * (bytes / UNIT);
        uint8_t last[ROWS * 4 * UNIT] = {0};
        for (int r = 0; r < rows; r++)
            memcpy(last + r * size, w + r * stride + (int64_t)blocks * bytes, (size_t)used);
        multiply_unit(format, rows, count, last, size, 0, g, x, (int64_t)blocks * UNIT, sums);
    }
    for (int r = 0; r < rows; r++)
        for (int t = 0; t < count; t++)
            results[r][t] = sum(sums[r][t]);
}

// y[t][r] = row r of m times x[t], plus the bias, for `rows` rows from `first` on and `count` vectors.
INLINE void multiply_tile(int format, const matrix *m, int rows, int first, int count, const float *const *x,
                          float *const *y)
{
    float results[ROWS][TILE];
    dot(format, rows, count, m->data + first * m->stride, m->stride, m->cols, x, results);
    for (int r = 0; r < rows; r++)
        for (int t = 0; t < count; t++)
            y[t][r] = results[r][t] + (m->bias ? m->bias[first + r] : 0.0f);
}

// As `multiply_tile`, for rows first .. last-1 and any number of vectors.
INLINE void multiply_as(int format, const matrix *m, int first, int last, int count, const float *const *x,
                        float *const *y)
{
    int r = first;
    for (; count == 1 && r + ROWS <= last; r += ROWS)
        multiply_tile(format, m, ROWS, r, 1, x, (float *[]){y[0] + r});
    for (int rows = PAIR; r < last; r += rows) {
        float *out[MAX_ROWS];
        for (int t = 0; t < count; t++)
            out[t] = y[t] + r;
        if (r + rows > last)
            rows = 1;
        for (int t = 0, some = TILE; t < count; t += some) {
            while (some > count - t)
                some /= 2;
            if (rows == 1)
                some = 1, multiply_tile(format, m, 1, r, 1, x + t, out + t);
            else if (some == 1)
                multiply_tile(format, m, PAIR, r, 1, x + t, out + t);
            else if (some == 2)
                multiply_tile(format, m, PAIR, r, 2, x + t, out + t);
            else if (some == 4)
                multiply_tile(format, m, PAIR, r, 4, x + t, out + t);
            else
                multiply_tile(format, m, PAIR, r, TILE, x + t, out + t);
        }
    }
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
    const int bytes = block_bytes(format), weights = block_weights(format), width = narrow ? 2 : 4;
    groups g;
    for (int c = 0; c < m->cols; c += UNIT) {
        const uint8_t *block = m->data + r * m->stride + (int64_t)(c / weights) * bytes;
        const int count = m->cols - c < UNIT ? m->cols - c : UNIT, group = c % weights / UNIT;
        uint8_t last[4 * UNIT] = {0};
        if (format < Q8_0 && count < UNIT)
            block = memcpy(last, block, (size_t)count * (size_t)(bytes / UNIT));
        if (weights > UNIT && group == 0)
            read_groups(format, block, &g);
        vf part[PARTS];
        vu16 narrowed[PARTS];
        restore(format, block, group, &g, part);
        for (int i = 0; narrow && i < PARTS; i++)
            narrowed[i] = all_to_bf16(part[i]);
        memcpy((uint8_t *)y + c * width, narrow ? (void *)narrowed : (void *)part, (size_t)(count * width));
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
