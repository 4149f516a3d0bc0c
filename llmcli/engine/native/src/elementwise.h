// Norms, rotations and activations of fp32 vectors. 
#ifndef LLMCLI_ELEMENTWISE_H
#define LLMCLI_ELEMENTWISE_H

#include <math.h>

#include "model.h"
#include "simd.h"

INLINE float mean_square(const float *x, int size)
{
    vf squares = {0};
    int i = 0;
    for (; i + LANES <= size; i += LANES)
        squares += load(x + i) * load(x + i);
    float total = sum(squares);
    for (; i < size; i++)
        total += x[i] * x[i];
    return total / (float)size;
}

// RMSNorm or LayerNorm of x [size] into y, which may be x.
static void normalize(const model *m, norm n, const float *x, float *y, int size)
{
    float mean = 0.0f;
    if (m->layer_norm) {
        for (int i = 0; i < size; i++)
            mean += x[i];
        mean /= (float)size;
    }
    for (int i = 0; i < size; i++)
        y[i] = x[i] - mean;
    const float scale = 1.0f / sqrtf(mean_square(y, size) + m->norm_eps);
    for (int i = 0; i < size; i++)
        y[i] = y[i] * scale * n.weight[i] + (n.bias ? n.bias[i] : 0.0f);
}

// Rotate the first `rotated` features of x: feature i is paired with feature i + rotated / 2.
static void rotate(float *x, int rotated, const float *cos, const float *sin)
{
    const int half = rotated / 2;
    for (int i = 0; i < half; i++) {
        const float a = x[i], b = x[i + half];
        x[i] = a * cos[i] + b * sin[i];
        x[i + half] = b * cos[i + half] + a * sin[i + half];
    }
}

INLINE vf activated(int activation, const float *curve, vf x)
{
    const vf zero = {0}, positive = maximum(x, zero);
    switch (activation) {
    case SILU: return x / (1.0f + exponential(-x));
    case GELU:
        for (int i = 0; i < LANES; i++)
            x[i] = 0.5f * x[i] * (1.0f + erff(x[i] * 0.70710678f));
        return x;
    case GELU_TANH: return 0.5f * x * (1.0f + tanh_of(0.7978845608f * (x + 0.044715f * x * x * x)));
    case GELU_SIGMOID: return x / (1.0f + exponential(-1.702f * x));
    case RELU: return positive;
    case RELU_SQUARED: return positive * positive;
    case RELU6: return minimum(positive, splat(6.0f));
    case LEAKY_RELU: return blend(x < zero, 0.01f * x, x);
    case HARDSWISH: return x * minimum(maximum(x + 3.0f, zero), splat(6.0f)) / 6.0f;
    case MISH: {
        // tanh(log(1 + e^x)) is (s - 1) / (s + 1) with s = (1 + e^x)^2. Beyond 20 it is 1.
        const vf e = exponential(minimum(x, splat(20.0f))), n = e * (e + 2.0f);
        return x * n / (n + 2.0f);
    }
    case SIGMOID: return 1.0f / (1.0f + exponential(-x));
    case TANH: return tanh_of(x);
    case XIELU: return 0.5f * x + blend(x > zero, curve[0] * x * x, curve[1] * (exponential(x) - 1.0f - x));
    default: return x;
    }
}

// The first `size` floats at p, and zeros; all of a vector if there are more.
INLINE vf load_some(const float *p, int size)
{
    vf v = {0};
    memcpy(&v, p, (size_t)(size < LANES ? size : LANES) * sizeof *p);
    return v;
}

INLINE void store_some(float *p, vf v, int size)
{
    memcpy(p, &v, (size_t)(size < LANES ? size : LANES) * sizeof *p);
}

INLINE vf limited(vf x, float limit) { return minimum(maximum(x, splat(-limit)), splat(limit)); }

// Bound x to -limit .. limit.
static void limit_all(float *x, float limit, int size)
{
    for (int i = 0; i < size; i += LANES)
        store_some(x + i, limited(load_some(x + i, size - i), limit), size - i);
}

// x = activation(x), times `up` if the MLP is gated.
static void activate(const model *m, const float *curve, float *x, const float *up, int size)
{
    for (int i = 0; i < size; i += LANES) {
        vf gate = load_some(x + i, size - i), other = up ? load_some(up + i, size - i) : splat(1.0f);
        if (m->gate_limit > 0) {
            gate = minimum(gate, splat(m->gate_limit));
            other = limited(other, m->gate_limit);
        }
        const vf y = activated(m->activation, curve, gate);
        store_some(x + i, up ? y * (other + m->up_offset) : y, size - i);
    }
}

// Bound x to cap * tanh(x / cap).
static void soft_cap(float *x, float cap, int size)
{
    for (int i = 0; i < size; i += LANES)
        store_some(x + i, cap * tanh_of(load_some(x + i, size - i) / cap), size - i);
}

#endif
