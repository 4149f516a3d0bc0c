// Random models, made of every format and every choice that the engine knows, from a seed.
//
// Arrays are no longer than they must be, and memory not written is NaN, so that sanitizers and results show stray reads.
#ifndef RANDOM_MODEL_H
#define RANDOM_MODEL_H

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine.h"

enum { LONG = 530 };

typedef struct {
    model m;
    int positions; // for which there are angles
    float *cos[2], *sin[2];
    bool fragile; // whether rounding may choose other experts
} setup;

static uint64_t state;
static void *owned[20000]; // until the next model
static int owned_count;

static void *make(size_t size)
{
    void *p = malloc(size ? size : 1);
    if (!p || owned_count == (int)(sizeof owned / sizeof *owned))
        exit(3);
    return owned[owned_count++] = memset(p, 0xff, size); // NaN in every format
}

static void release(void)
{
    while (owned_count)
        free(owned[--owned_count]);
}

static uint64_t bits(void) // splitmix64
{
    uint64_t z = state += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

static int below(int n) { return (int)((bits() >> 33) % (uint64_t)n); }
static bool chance(int percent) { return below(100) < percent; }
static double uniform(double low, double high) { return low + (high - low) * (double)(bits() >> 11) * 0x1p-53; }
#define PICK(...) ((const int[]){__VA_ARGS__})[below((int)(sizeof(int[]){__VA_ARGS__} / sizeof(int)))]

// Formats

static double half(unsigned h)
{
    const int exponent = h >> 10 & 31, fraction = h & 1023;
    const double size = exponent == 31 ? (fraction ? NAN : INFINITY)
                        : exponent     ? ldexp(1024 + fraction, exponent - 25)
                                       : ldexp(fraction, -24);
    return h >> 15 ? -size : size;
}

static unsigned random_half(double size) // at most `size`
{
    const int exponent = 14 + (int)floor(log2(size)) - below(2);
    return (unsigned)below(2) << 15 | (unsigned)(exponent > 0 ? exponent : 0) << 10 | (unsigned)below(1024);
}

static double bfloat(unsigned b)
{
    const uint32_t wide = b << 16;
    float x;
    memcpy(&x, &wide, 4);
    return x;
}

// x rounded to a float with so many bits of fraction, of which the least is worth 2^least.
static double round_to(double x, int fraction_bits, int least)
{
    if (!isfinite(x) || x == 0)
        return x;
    int exponent;
    frexp(x, &exponent);
    const int unit = exponent - 1 - fraction_bits > least ? exponent - 1 - fraction_bits : least;
    return ldexp(nearbyint(ldexp(x, -unit)), unit);
}

static double as_cached(int format, double x)
{
    if (format == F32)
        return (float)x;
    return format == BF16 ? round_to(x, 7, -133) : fmax(fmin(round_to(x, 10, -24), 65504), -65504);
}

// Weights per block and its bytes, and the bytes of its fp16 numbers, by format.
static const struct {
    int weights, bytes, halves[2];
} FORMATS[] = {
    [F32] = {1, 4, {-1, -1}},         [BF16] = {1, 2, {-1, -1}},      [F16] = {1, 2, {-1, -1}},
    [Q8_0] = {32, 34, {0, -1}},       [Q4_0] = {32, 18, {0, -1}},     [Q4_1] = {32, 20, {0, 2}},
    [Q5_0] = {32, 22, {0, -1}},       [Q5_1] = {32, 24, {0, 2}},      [IQ4_NL] = {32, 18, {0, -1}},
    [MXFP4] = {32, 17, {-1, -1}},     [Q2_K] = {256, 84, {80, 82}},   [Q3_K] = {256, 110, {108, -1}},
    [Q4_K] = {256, 144, {0, 2}},      [Q5_K] = {256, 176, {0, 2}},    [Q6_K] = {256, 210, {208, -1}},
    [IQ4_XS] = {256, 136, {0, -1}},
};
enum { KINDS = IQ4_XS + 1 };

static int64_t row_bytes(int format, int cols)
{
    const int size = FORMATS[format].weights;
    return (cols + size - 1) / size * FORMATS[format].bytes;
}

// Only the formats that llmcli writes may have rows that end within a block.
static bool fits_columns(int format, int cols) { return format <= Q4_0 || cols % FORMATS[format].weights == 0; }

// `format` if it is dense, otherwise any format with blocks.
static int format_like(int format, int cols)
{
    while (format >= Q8_0 && !fits_columns(format = Q8_0 + below(KINDS - Q8_0), cols))
        ;
    return format;
}

static unsigned two_bytes(const uint8_t *p) { return p[0] | (unsigned)p[1] << 8; }
static int nibble(const uint8_t *p, int i) { return p[i % 16] >> (i < 16 ? 0 : 4) & 15; }
static int bit(const uint8_t *p, int i) { return p[i / 8] >> i % 8 & 1; }

// The 6-bit number i of 16: 8 scales and 8 least weights (Q4_K, Q5_K).
static int six_bits(const uint8_t *p, int i)
{
    const int column = i % 4, upper = i / 4 % 2, least = i / 8;
    return upper ? (p[8 + column] >> 4 * least & 15) | (p[4 * least + column] >> 6) << 4 : p[4 * least + column] & 63;
}

// Weight i of a block.
static double block_weight(int format, const uint8_t *p, int i)
{
    static const int iq4[] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
    static const double fp4[] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
    const double first = half(two_bytes(p)), second = half(two_bytes(p + 2));
    const int two_bits = i / 128 * 32 + i % 32, pair = i % 128 / 32 * 2, group = i / 32, four_bits = i / 64 * 32 + i % 32;
    int code;
    switch (format) {
    case Q8_0: return (int8_t)p[2 + i] * first;
    case Q4_0: return (nibble(p + 2, i) - 8) * first;
    case Q4_1: return nibble(p + 4, i) * first + second;
    case Q5_0: return ((nibble(p + 6, i) | bit(p + 2, i) << 4) - 16) * first;
    case Q5_1: return (nibble(p + 8, i) | bit(p + 4, i) << 4) * first + second;
    case IQ4_NL: return iq4[nibble(p + 2, i)] * first;
    case MXFP4: code = nibble(p + 1, i); return ldexp(code < 8 ? fp4[code] : -fp4[code - 8], p[0] - 127);
    case Q2_K:
        code = p[16 + two_bits] >> pair & 3;
        return (p[i / 16] & 15) * half(two_bytes(p + 80)) * code - (p[i / 16] >> 4) * half(two_bytes(p + 82));
    case Q3_K: {
        const int number = i / 16, low = number < 8 ? p[96 + number] & 15 : p[88 + number] >> 4;
        const int scale = (low | (p[104 + number % 4] >> number / 4 * 2 & 3) << 4) - 32;
        code = (p[32 + two_bits] >> pair & 3) - (p[i % 32] >> group & 1 ? 0 : 4);
        return half(two_bytes(p + 108)) * scale * code;
    }
    case Q4_K: code = p[16 + four_bits] >> i / 32 % 2 * 4 & 15; break;
    case Q5_K: code = (p[48 + four_bits] >> i / 32 % 2 * 4 & 15) | (p[16 + i % 32] >> group & 1) << 4; break;
    case Q6_K:
        code = p[i / 128 * 64 + i % 64] >> i / 64 % 2 * 4 & 15;
        code |= (p[128 + two_bits] >> pair & 3) << 4;
        return half(two_bytes(p + 208)) * (int8_t)p[192 + i / 16] * (code - 32);
    default: { // IQ4_XS
        const int scale = (p[4 + group / 2] >> group % 2 * 4 & 15) | ((two_bytes(p + 2) >> 2 * group & 3) << 4);
        return first * (scale - 32) * iq4[nibble(p + 8 + 16 * group, i % 32)];
    }
    }
    return six_bits(p + 4, group) * first * code - six_bits(p + 4, 8 + group) * second;
}

static double weight(const matrix *m, int r, int c)
{
    if (r >= m->stored)
        return weight(m->rest, r - m->stored, c);
    const uint8_t *p = m->data + r * m->stride + c / FORMATS[m->format].weights * FORMATS[m->format].bytes;
    float x;
    switch (m->format) {
    case F32: memcpy(&x, p, 4); return x;
    case BF16: return bfloat(two_bytes(p));
    case F16: return half(two_bytes(p));
    default: return (float)block_weight(m->format, p, c % FORMATS[m->format].weights);
    }
}

static double bias(const matrix *m, int r)
{
    return r >= m->stored ? bias(m->rest, r - m->stored) : m->bias ? m->bias[r] : 0;
}

static float *random_floats(int count, double low, double high)
{
    float *x = make((size_t)count * sizeof *x);
    for (int i = 0; i < count; i++)
        x[i] = (float)uniform(low, high);
    return x;
}

// A block of random codes; those of weights from `used` on mean 0.
static void random_block(uint8_t *p, int format, double size, int used)
{
    const int bytes = FORMATS[format].bytes;
    const double largest = format == Q8_0 ? 128 : format < Q2_K ? 32 : format == IQ4_XS ? 4096 : 1024;
    for (int i = 0; i < bytes; i++)
        p[i] = (uint8_t)below(256);
    for (int i = 0; i < 2; i++)
        if (FORMATS[format].halves[i] >= 0) {
            const unsigned scale = random_half(size / largest);
            memcpy(p + FORMATS[format].halves[i], (uint8_t[]){scale & 255, scale >> 8}, 2);
        }
    if (format == MXFP4)
        p[0] = (uint8_t)(120 + below(5));
    for (int i = used; i < 32 && format == Q8_0; i++)
        p[2 + i] = 0;
    for (int i = used; i < 32 && format == Q4_0; i++)
        p[2 + i % 16] = (uint8_t)(i < 16 ? (p[2 + i] & 0xf0) | 8 : (p[2 + i % 16] & 15) | 0x80);
}

static void random_row(uint8_t *p, int format, int cols, double size)
{
    const int weights = FORMATS[format].weights;
    for (int c = 0; c < cols; c += weights, p += FORMATS[format].bytes) {
        const float x = (float)uniform(-size, size);
        const unsigned h = random_half(size);
        if (format == F32)
            memcpy(p, &x, 4);
        else if (format == BF16)
            memcpy(p, (const uint8_t *)&x + 2, 2);
        else if (format == F16)
            memcpy(p, (uint8_t[]){h & 255, h >> 8}, 2);
        else
            random_block(p, format, size, cols - c);
    }
}

// Rows may begin anywhere, and memory ends with the last one.
static matrix random_matrix(int rows, int cols, int format, bool bias)
{
    const int64_t bytes = row_bytes(format, cols), stride = bytes + (chance(30) ? below(9) : 0), offset = below(8);
    uint8_t *data = (uint8_t *)make((size_t)(offset + (rows - 1) * stride + bytes)) + offset;
    for (int r = 0; r < rows; r++)
        random_row(data + r * stride, format, cols, 1.7 / sqrt(cols));
    const int weights = FORMATS[format].weights, stored = (cols + weights - 1) / weights * weights;
    return (matrix){data, bias ? random_floats(rows, -0.3, 0.3) : NULL, NULL, stride, rows, rows, stored, format};
}

// As `random_matrix`, in a format like `format`; rows may be divided among several formats.
static matrix random_rows(int rows, int cols, int format, bool bias)
{
    const int stored = rows > 1 && chance(30) ? 1 + below(rows - 1) : rows;
    matrix m = random_matrix(stored, cols, format_like(format, cols), bias);
    if (stored < rows) {
        matrix *rest = make(sizeof *rest);
        *rest = random_rows(rows - stored, cols, format, bias);
        m.rest = rest, m.rows = rows;
    }
    return m;
}

// Models

static norm random_norm(int size, bool present, bool bias)
{
    if (!present)
        return (norm){0};
    return (norm){random_floats(size, 0.5, 1.5), bias ? random_floats(size, -0.3, 0.3) : NULL};
}

static void random_mlp(const model *m, int wide, int format, bool bias, matrix *up, matrix *down)
{
    *up = random_rows(m->gated ? 2 * wide : wide, m->hidden, format, bias);
    *down = random_rows(m->hidden, wide, format, bias);
}

static const matrix *last_part(const matrix *m) { return m->rest ? last_part(m->rest) : m; }

static layer random_layer(const model *m, int format)
{
    const int q = m->heads * m->head_dim, kv = m->kv_heads * m->head_dim, bias = chance(40), pre = chance(85);
    const bool norm_bias = m->layer_norm && chance(50), qk_norm = m->qk_norm_full || m->qk_norm_per_head || chance(20);
    layer l = {.window = chance(40) ? PICK(1, 2, 7, 20, 255, 256, 300) : 0};
    l.attn = random_norm(m->hidden, pre, norm_bias);
    l.attn_post = random_norm(m->hidden, !pre || chance(20), norm_bias);
    l.mlp = random_norm(m->hidden, pre && !m->shared_norm, norm_bias);
    l.mlp_post = random_norm(m->hidden, !pre || chance(20), norm_bias);
    l.q = random_norm(m->qk_norm_full || m->qk_norm_per_head ? q : m->head_dim, qk_norm, false);
    l.k = random_norm(m->qk_norm_full || m->qk_norm_per_head ? kv : m->head_dim, qk_norm, false);
    l.qkv = random_rows(q + 2 * kv, m->hidden, format, bias);
    if (bias && m->cache_format == F16 && chance(20))
        ((float *)last_part(&l.qkv)->bias)[last_part(&l.qkv)->rows - 1] = 1e5f; // a value beyond float16
    l.out = random_rows(m->hidden, q, format, chance(30));
    l.rope = m->positions.rows || chance(10) ? -1 : below(2);
    l.sinks = chance(20) ? random_floats(m->heads, -1, 2) : NULL;
    l.curve[0] = (float)uniform(0.2, 2);
    l.curve[1] = (float)uniform(0.5, 2);
    const bool mixed = chance(30);
    if (!mixed || chance(30))
        random_mlp(m, mixed ? 1 + below(m->inner) : m->inner, format, bias, &l.up, &l.down);
    if (!mixed)
        return l;
    l.experts_count = 1 + below(6);
    l.experts_per_token = 1 + below(l.experts_count);
    const int routed = m->embedding.format < Q8_0 ? m->embedding.format : F32;
    l.router = random_matrix(l.experts_count, m->hidden, routed, chance(30));
    if (l.up.rows && chance(60)) { // the gate of the expert that serves every token
        matrix *gate = make(sizeof *gate);
        *gate = random_matrix(1, m->hidden, routed, false);
        l.router.rest = gate;
        l.router.rows++;
    }
    matrix *experts = make((size_t)(2 * l.experts_count) * sizeof *experts);
    const int wide = 1 + below(m->inner);
    for (int i = 0; i < l.experts_count; i++)
        random_mlp(m, wide, format, bias, &experts[2 * i], &experts[2 * i + 1]);
    l.experts = experts;
    return l;
}

static double angle(int rope, int rotated, int position, int i)
{
    return position * pow(rope ? 50 : 1e4, -2.0 * i / rotated);
}

static setup random_setup(int positions)
{
    setup s = {.positions = positions};
    model *m = &s.m;
    const bool small = positions > LONG;
    m->hidden = small ? 40 : PICK(16, 32, 40, 57, 64, 96, 130);
    m->head_dim = small ? 20 : PICK(16, 17, 24, 32, 48, 64, 80, 128);
    m->kv_heads = 1 + below(small ? 1 : 3);
    m->heads = m->kv_heads * (small || m->head_dim > 60 ? 1 + below(2) : PICK(1, 2, 3, 4, 5, 8));
    m->inner = small ? 45 : PICK(8, 32, 45, 64, 100);
    if (!small && chance(15)) { // whole blocks of 256
        m->hidden = m->inner = 256;
        m->head_dim = 64;
        m->kv_heads = PICK(1, 2, 4);
        m->heads = 4;
    }
    m->layers_count = 1 + below(2);
    m->activation = below(XIELU + 1);
    m->gated = chance(60);
    m->layer_norm = chance(40);
    m->parallel = chance(30);
    m->shared_norm = m->parallel && chance(50);
    m->norm_experts = chance(50);
    m->qk_norm_full = chance(15);
    m->qk_norm_per_head = !m->qk_norm_full && chance(15);
    m->cache_format = small && chance(60) ? F32 : below(3); // in which a single key among many shows
    m->norm_eps = (float)uniform(1e-6, 1e-2);
    m->attention_scale = (float)uniform(0.05, 0.3);
    m->norm_after_rope = !m->qk_norm_full && chance(30);
    m->qkv_limit = chance(15) ? (float)uniform(0.3, 2) : 0;
    m->gate_limit = chance(15) ? (float)uniform(0.2, 1) : 0;
    m->up_offset = chance(15) ? (float)uniform(-1, 1) : 0;
    m->query_growth = chance(15) ? (float)uniform(0.1, 1) : 0;
    m->query_context = PICK(1, 3, 50);
    m->attention_cap = chance(30) ? (float)uniform(1, 20) : 0;
    m->logit_cap = chance(30) ? (float)uniform(1, 20) : 0;
    m->embedding_scale = chance(50) ? 1 : (float)uniform(0.5, 8);
    m->residual_scale = chance(50) ? 1 : (float)uniform(0.2, 1);
    m->logit_scale = chance(50) ? 1 : (float)uniform(0.2, 2);
    const int format = below(2 * Q8_0), vocabulary = 3 + below(80);
    m->embedding = random_matrix(vocabulary, m->hidden, format_like(format, m->hidden), false);
    m->head = chance(50) ? m->embedding : random_rows(vocabulary, m->hidden, format, false);
    if (chance(20))
        m->positions = random_matrix(positions, m->hidden, below(3), false);
    m->embedded = random_norm(m->hidden, chance(20), m->layer_norm && chance(50));
    m->final = random_norm(m->hidden, true, m->layer_norm && chance(50));
    layer *layers = make((size_t)m->layers_count * sizeof *layers);
    for (int i = 0; i < m->layers_count; i++)
        layers[i] = random_layer(m, format);
    m->layers = layers;
    for (int rope = 0; rope < 2; rope++) {
        const int R = m->rotated[rope] = 2 + 2 * below(m->head_dim / 2);
        s.cos[rope] = make((size_t)(positions * R) * sizeof(float));
        s.sin[rope] = make((size_t)(positions * R) * sizeof(float));
        for (int i = 0; i < positions * R; i++) {
            const double phi = angle(rope, R, i / R, i % R % (R / 2));
            s.cos[rope][i] = (float)cos(phi);
            s.sin[rope][i] = (float)(i % R < R / 2 ? -sin(phi) : sin(phi));
        }
    }
    return s;
}

static void describe(const model *m)
{
    printf("  hidden %d, heads %d/%d of %d, inner %d%s, activation %d, cache %d, rotated %d %d, positions %d\n", m->hidden,
           m->heads, m->kv_heads, m->head_dim, m->inner, m->gated ? " gated" : "", m->activation, m->cache_format,
           m->rotated[0], m->rotated[1], m->positions.rows);
    printf("  layer norm %d, parallel %d, shared norm %d, qk norm full %d, per head %d, caps %g %g, scales %g %g %g\n",
           m->layer_norm, m->parallel, m->shared_norm, m->qk_norm_full, m->qk_norm_per_head, m->attention_cap,
           m->logit_cap, m->embedding_scale, m->residual_scale, m->logit_scale);
    printf("  norm after rope %d, of the embedding %d, limits %g %g, offset %g, queries grow by %g in %d\n",
           m->norm_after_rope, !!m->embedded.weight, m->qkv_limit, m->gate_limit, m->up_offset, m->query_growth,
           m->query_context);
    for (const layer *l = m->layers; l < m->layers + m->layers_count; l++)
        printf("  layer: format %d, window %d, rope %d, sinks %d, norms %d%d%d%d%d, mlp %d, experts %d of %d, gate %d\n",
               l->qkv.format, l->window, l->rope, !!l->sinks, !!l->attn.weight, !!l->attn_post.weight, !!l->mlp.weight,
               !!l->mlp_post.weight, !!l->q.weight, l->up.rows, l->experts_per_token, l->experts_count,
               l->router.rows - l->experts_count);
}

#endif
