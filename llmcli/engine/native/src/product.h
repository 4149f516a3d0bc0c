// Products of a matrix with the vectors of up to MAX_ROWS tokens. A weight is restored to fp32 in registers and
// multiplied with fp32: nothing is rounded but the sums. Each sum has the same order for any number of tokens.
#ifndef LLMCLI_PRODUCT_H
#define LLMCLI_PRODUCT_H

#include <stdbool.h>

#include "model.h"
#include "simd.h"

// A token has `SUMS` sums of LANES numbers for a row; TILE tokens' sums fit into the registers.
enum { BLOCK = 32, PARTS = BLOCK / LANES, SUMS = PARTS < 4 ? PARTS : 4, AHEAD = 4096 };
enum { TILE = LANES == 16 ? 8 : LANES == 8 ? 2 : 4 };

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

// The products of one stored row with `count` <= TILE vectors.
INLINE void dot(int format, int count, const uint8_t *w, int cols, const float *const *x, float *y)
{
    const int bytes = block_bytes(format), blocks = cols / BLOCK;
    vf sums[TILE][SUMS] = {0}, part[PARTS];
    int b = 0;
#define MULTIPLY(address)                                                                                              \
    do {                                                                                                               \
        restore(format, (address), part);                                                                              \
        for (int t = 0; t < count; t++)                                                                                \
            for (int i = 0; i < PARTS; i++)                                                                            \
                sums[t][i % SUMS] += part[i] * load(x[t] + b * BLOCK + i * LANES);                                     \
        b++;                                                                                                           \
    } while (0)
    while (b + 2 <= blocks) {
        const uint8_t *block = w + (int64_t)b * bytes;
        for (int ahead = 0; ahead < 2 * bytes; ahead += 64)
            __builtin_prefetch(block + AHEAD + ahead);
        MULTIPLY(block);
        MULTIPLY(block + bytes);
    }
    if (b < blocks)
        MULTIPLY(w + (int64_t)b * bytes);
    if (cols % BLOCK) { // only in dense formats; x continues with zeros
        uint8_t last[4 * BLOCK] = {0};
        memcpy(last, w + (int64_t)b * bytes, (size_t)(cols % BLOCK) * (size_t)(bytes / BLOCK));
        MULTIPLY(last);
    }
#undef MULTIPLY
    for (int t = 0; t < count; t++) {
        for (int half = SUMS / 2; half; half /= 2)
            for (int i = 0; i < half; i++)
                sums[t][i] += sums[t][i + half];
        y[t] = sum(sums[t][0]);
    }
}

// y[t][r] = row r of m times x[t], plus the bias, for rows first .. last-1 and `count` vectors of any number.
INLINE void multiply_as(int format, const matrix *m, int first, int last, int count, const float *const *x,
                        float *const *y)
{
    for (int r = first; r < last; r++) {
        const uint8_t *w = m->data + r * m->stride;
        const float bias = m->bias ? m->bias[r] : 0.0f;
        for (int t = 0, some = TILE; t < count; t += some) {
            float result[TILE] = {0};
            while (some > count - t)
                some /= 2;
            switch (some) {
            case 1: dot(format, 1, w, m->cols, x + t, result); break;
            case 2: dot(format, 2, w, m->cols, x + t, result); break;
            case 4: dot(format, TILE < 4 ? TILE : 4, w, m->cols, x + t, result); break;
            default: dot(format, TILE, w, m->cols, x + t, result);
            }
            for (int i = 0; i < some; i++)
                y[t + i][r] = result[i] + bias;
        }
    }
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
