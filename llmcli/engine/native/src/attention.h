// Attention of one query per row, over the keys in its text's cache.
//
// Keys are taken in chunks of fixed positions, whose weighted sums are put together by their maxima (Rabe & Staats
// 2021; Flash-Decoding, Dao et al. 2023). So the result does not depend on the number of threads, and a long context
// is shared out evenly.
#ifndef LLMCLI_ATTENTION_H
#define LLMCLI_ATTENTION_H

#include "elementwise.h"
#include "engine.h"

enum { GROUP = 4 }; // query heads that share the values read

INLINE int value_bytes(int format) { return format == F32 ? 4 : 2; }

// The first `size` values at p in fp32, and zeros; all of a vector if there are more.
INLINE vf cached_part(int format, const uint8_t *p, int size)
{
    uint8_t part[4 * LANES];
    if (size < LANES) {
        memset(part, 0, sizeof part);
        memcpy(part, p, (size_t)(size * value_bytes(format)));
        p = part;
    }
    return format == F32 ? load((const float *)p) : format == BF16 ? from_bf16(p) : from_f16(p);
}

// Scores of `count` keys with the `heads` queries q [heads, width], into scores [heads, CHUNK].
INLINE void score(int format, const uint8_t *keys, int count, int dim, const float *q, int heads, int width,
                  float *scores)
{
    const int bytes = value_bytes(format);
    for (int s = 0; s < count; s++, keys += (int64_t)dim * bytes)
        for (int h = 0; h < heads; h++) {
            vf total = {0};
            for (int d = 0; d < dim; d += LANES)
                total += cached_part(format, keys + d * bytes, dim - d) * load(q + h * width + d);
            scores[h * CHUNK + s] = sum(total);
        }
}

// out [heads, width] = weights [heads, CHUNK] times the values of `count` keys.
INLINE void weigh(int format, const uint8_t *values, int count, int dim, const float *weights, int heads, int width,
                  float *out)
{
    const int bytes = value_bytes(format);
    for (int first = 0; first < heads; first += GROUP)
        for (int d = 0; d < dim; d += LANES) {
            vf total[GROUP] = {0};
            const int used = heads - first < GROUP ? heads - first : GROUP;
            for (int s = 0; s < count; s++) {
                const vf value = cached_part(format, values + ((int64_t)s * dim + d) * bytes, dim - d);
                for (int h = 0; h < GROUP; h++)
                    if (h < used)
                        total[h] += weights[(first + h) * CHUNK + s] * value;
            }
            for (int h = 0; h < used; h++)
                store(out + (first + h) * width + d, total[h]);
        }
}

// Scores to weights, relative to their maximum. Returns the maximum and, in `total`, the sum of the weights.
static float to_weights(float *scores, int count, float *total)
{
    float most = -INFINITY;
    for (int s = 0; s < count; s++)
        most = scores[s] > most || scores[s] != scores[s] ? scores[s] : most;
    vf sums = {0};
    for (int s = count; s % LANES; s++)
        scores[s] = -INFINITY;
    for (int s = 0; s < count; s += LANES) {
        vf weight = exponential(load(scores + s) - most);
        store(scores + s, weight);
        sums += weight;
    }
    *total = sum(sums);
    return most;
}

// The share of keys first .. last-1 of a key head: for each query head of its group the maximum of the scores, the sum
// of the weights, and then the weighted values [width]. q is [heads, width], scaled.
static void attend(const model *m, const buffers *cache, int kv_head, int64_t first, int64_t last, const float *q,
                   int heads, int width, float *scores, float *share)
{
    const int dim = m->head_dim, count = (int)(last - first);
    const int64_t at = (kv_head * cache->capacity + first - cache->first) * dim * value_bytes(m->cache_format);
    const uint8_t *keys = cache->keys + at, *values = cache->values + at;
    switch (m->cache_format) {
    case F32: score(F32, keys, count, dim, q, heads, width, scores); break;
    case BF16: score(BF16, keys, count, dim, q, heads, width, scores); break;
    default: score(F16, keys, count, dim, q, heads, width, scores);
    }
    for (int h = 0; h < heads; h++) {
        if (m->attention_cap > 0)
            soft_cap(scores + h * CHUNK, m->attention_cap, count);
        share[h] = to_weights(scores + h * CHUNK, count, &share[heads + h]);
    }
    float *out = share + 2 * heads;
    switch (m->cache_format) {
    case F32: weigh(F32, values, count, dim, scores, heads, width, out); break;
    case BF16: weigh(BF16, values, count, dim, scores, heads, width, out); break;
    default: weigh(F16, values, count, dim, scores, heads, width, out);
    }
}

// Store `dim` values in the cache, from the element `at` on. Those too large for float16 become its largest number.
static void store_cached(int format, uint8_t *p, int64_t at, const float *x, int dim)
{
    p += at * value_bytes(format);
    for (int d = 0; d < dim; d++)
        if (format == F32)
            memcpy(p + 4 * d, x + d, 4);
        else if (format == BF16) {
            const uint16_t value = to_bf16(x[d]);
            memcpy(p + 2 * d, &value, 2);
        } else {
            const float most = 65504.0f, bounded = x[d] > most ? most : x[d] < -most ? -most : x[d];
            const _Float16 value = (_Float16)bounded;
            memcpy(p + 2 * d, &value, 2);
        }
}

#endif
