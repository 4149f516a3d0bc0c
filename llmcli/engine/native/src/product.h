// Products of a matrix with the vectors of up to MAX_ROWS tokens. A weight is restored to fp32 in registers and
// multiplied with fp32: nothing is rounded but the sums. Each sum has the same order for any number of tokens.
#ifndef LLMCLI_PRODUCT_H
#define LLMCLI_PRODUCT_H

#include <stdbool.h>

#include "model.h"
#include "simd.h"

// So many rows and tokens are multiplied together that their sums, of LANES numbers each, fit into the registers.
enum { BLOCK = 32, PARTS = BLOCK / LANES, AHEAD = 4096 };
enum { ROWS = 4, TILE = LANES == 16 ? 8 : 4 };

// Bytes of a block of 32 weights.
INLINE int block_bytes(int format)
{
    switch (format) {
    case F32: return 4 * BLOCK;
    case I8: return 2 + BLOCK;
    case I4: return 2 + BLOCK / 2;
    default: return 2 * BLOCK;
    }
}

// Restore a block of weights. I8 and I4 begin with a scale in fp16; byte i of I4 stores weight i in its lower half and
// weight i + 16 in the upper one, each plus 8 (the layouts of GGUF's Q8_0 and Q4_0).
INLINE void restore(int format, const uint8_t *p, vf w[PARTS])
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
    else if (format == I8) {
        const vf scale = splat_f16(p);
        for (int i = 0; i < PARTS; i++)
            w[i] = from_i8(p + 2 + i * LANES) * scale;
    } else {
        const vf scale = splat_f16(p);
        for (int i = 0; i < PARTS / 2; i++)
            from_nibbles(p + 2 + i * LANES, scale, &w[i], &w[i + PARTS / 2]);
    }
}

// sums[r][t] += the products of a block of each of `rows` rows with 32 numbers of each of `count` vectors.
INLINE void multiply_block(int format, int rows, int count, const uint8_t *w, int64_t stride, const float *const *x,
                           int64_t at, vf sums[ROWS][TILE])
{
    vf part[ROWS][PARTS];
    for (int r = 0; r < rows; r++)
        restore(format, w + r * stride, part[r]);
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
    const int bytes = block_bytes(format), blocks = cols / BLOCK;
    vf sums[ROWS][TILE] = {0};
    for (int b = 0; b < blocks; b++) {
        const uint8_t *block = w + (int64_t)b * bytes;
        for (int r = 0; r < rows; r++)
            for (int ahead = 0; ahead < bytes; ahead += 64)
                __builtin_prefetch(block + r * stride + AHEAD + ahead);
        multiply_block(format, rows, count, block, stride, x, (int64_t)b * BLOCK, sums);
    }
    if (cols % BLOCK) { // only in dense formats; x continues with zeros
        const int64_t size = 4 * BLOCK, used = cols % BLOCK * (bytes / BLOCK);
        uint8_t last[ROWS * 4 * BLOCK] = {0};
        for (int r = 0; r < rows; r++)
            memcpy(last + r * size, w + r * stride + (int64_t)blocks * bytes, (size_t)used);
        multiply_block(format, rows, count, last, size, x, (int64_t)blocks * BLOCK, sums);
    }
    for (int r = 0; r < rows; r++)
        for (int t = 0; t < count; t++)
            results[r][t] = sum(sums[r][t]);
}

// y[t][r] = row r of m times x[t], plus the bias, for `rows` rows from `first` on and `count` vectors of any number.
INLINE void multiply_rows(int format, const matrix *m, int rows, int first, int count, const float *const *x,
                          float *const *y)
{
    const uint8_t *w = m->data + first * m->stride;
    for (int t = 0, some = TILE; t < count; t += some) {
        float results[ROWS][TILE];
        while (some > count - t)
            some /= 2;
        switch (some) {
        case 1: dot(format, rows, 1, w, m->stride, m->cols, x + t, results); break;
        case 2: dot(format, rows, 2, w, m->stride, m->cols, x + t, results); break;
        case 4: dot(format, rows, 4, w, m->stride, m->cols, x + t, results); break;
        default: dot(format, rows, TILE, w, m->stride, m->cols, x + t, results);
        }
        for (int r = 0; r < rows; r++)
            for (int i = 0; i < some; i++)
                y[t + i][first + r] = results[r][i] + (m->bias ? m->bias[first + r] : 0.0f);
    }
}

// For rows first .. last-1.
INLINE void multiply_as(int format, const matrix *m, int first, int last, int count, const float *const *x,
                        float *const *y)
{
    const int together = count == 1 ? ROWS : 2;
    int r = first;
    for (; r + together <= last; r += together)
        if (together == ROWS)
            multiply_rows(format, m, ROWS, r, count, x, y);
        else
            multiply_rows(format, m, 2, r, count, x, y);
    for (; r < last; r++)
        multiply_rows(format, m, 1, r, count, x, y);
}

static void multiply(const matrix *m, int first, int last, int count, const float *const *x, float *const *y)
{
    switch (m->format) {
    case F32: multiply_as(F32, m, first, last, count, x, y); break;
    case BF16: multiply_as(BF16, m, first, last, count, x, y); break;
    case F16: multiply_as(F16, m, first, last, count, x, y); break;
    case I8: multiply_as(I8, m, first, last, count, x, y); break;
    default: multiply_as(I4, m, first, last, count, x, y);
    }
}

// Restore row r of m into y, in fp32 or, rounded, in bf16.
INLINE void restore_row_as(int format, const matrix *m, int64_t r, bool narrow, void *y)
{
    const int bytes = block_bytes(format), width = narrow ? 2 : 4;
    for (int c = 0; c < m->cols; c += BLOCK) {
        const int count = m->cols - c < BLOCK ? m->cols - c : BLOCK;
        uint8_t block[4 * BLOCK] = {0};
        vf part[PARTS];
        memcpy(block, m->data + r * m->stride + (int64_t)(c / BLOCK) * bytes,
               format >= I8 ? (size_t)bytes : (size_t)count * (size_t)(bytes / BLOCK));
        restore(format, block, part);
        vu16 narrowed[PARTS];
        for (int i = 0; narrow && i < PARTS; i++)
            narrowed[i] = all_to_bf16(part[i]);
        memcpy((uint8_t *)y + c * width, narrow ? (void *)narrowed : (void *)part, (size_t)(count * width));
    }
}

static void restore_row(const matrix *m, int64_t r, bool narrow, void *y)
{
    switch (m->format) {
    case F32: restore_row_as(F32, m, r, narrow, y); break;
    case BF16: restore_row_as(BF16, m, r, narrow, y); break;
    case F16: restore_row_as(F16, m, r, narrow, y); break;
    case I8: restore_row_as(I8, m, r, narrow, y); break;
    default: restore_row_as(I4, m, r, narrow, y);
    }
}

#endif
