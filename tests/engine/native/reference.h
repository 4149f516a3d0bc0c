// The logits of a model by its formulas, in double, a whole text at once. Vectors are [tokens, size].
#ifndef REFERENCE_H
#define REFERENCE_H

#include "random_model.h"

static double *vectors(int count, int size) { return make((size_t)count * (size_t)size * sizeof(double)); }

static double *product(const matrix *m, int cols, const double *x, int count)
{
    double *y = vectors(count, m->rows), *w = vectors(1, cols);
    for (int r = 0; r < m->rows; r++) {
        for (int c = 0; c < cols; c++)
            w[c] = weight(m, r, c);
        for (int t = 0; t < count; t++) {
            double sum = bias(m, r);
            for (int c = 0; c < cols; c++)
                sum += w[c] * x[t * cols + c];
            y[t * m->rows + r] = sum;
        }
    }
    return y;
}

static double *normed(const model *m, norm n, const double *x, int count, int size)
{
    double *y = memcpy(vectors(count, size), x, (size_t)(count * size) * sizeof *x);
    for (int t = 0; n.weight && t < count; t++) {
        double mean = 0, variance = 0;
        for (int i = 0; i < size; i++)
            mean += m->layer_norm ? x[t * size + i] / size : 0;
        for (int i = 0; i < size; i++)
            variance += pow(x[t * size + i] - mean, 2) / size;
        for (int i = 0; i < size; i++)
            y[t * size + i] = (x[t * size + i] - mean) / sqrt(variance + m->norm_eps) * n.weight[i] +
                              (n.bias ? n.bias[i] : 0);
    }
    return y;
}

static double activation(int kind, const float *curve, double x)
{
    switch (kind) {
    case SILU: return x / (1 + exp(-x));
    case GELU: return x * (1 + erf(x / sqrt(2))) / 2;
    case GELU_TANH: return x * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x))) / 2;
    case GELU_SIGMOID: return x / (1 + exp(-1.702 * x));
    case RELU: return fmax(x, 0);
    case RELU_SQUARED: return pow(fmax(x, 0), 2);
    case RELU6: return fmin(fmax(x, 0), 6);
    case LEAKY_RELU: return x > 0 ? x : x / 100;
    case HARDSWISH: return x * fmin(fmax(x + 3, 0), 6) / 6;
    case MISH: return x * tanh(log1p(exp(x)));
    case SIGMOID: return 1 / (1 + exp(-x));
    case TANH: return tanh(x);
    case XIELU: return x / 2 + (x > 0 ? curve[0] * x * x : curve[1] * (expm1(x) - x));
    default: return x;
    }
}

static double limited(double x, double limit) { return limit ? fmax(-limit, fmin(x, limit)) : x; }

static double *mlp(const model *m, const layer *l, const matrix *up, const matrix *down, const double *x, int count)
{
    const int wide = m->gated ? up->rows / 2 : up->rows;
    double *y = product(up, m->hidden, x, count), *inside = vectors(count, wide);
    for (int t = 0; t < count; t++)
        for (int i = 0; i < wide; i++) {
            double gate = y[t * up->rows + i];
            if (m->gate_limit)
                gate = fmin(gate, m->gate_limit);
            inside[t * wide + i] = activation(m->activation, l->curve, gate);
            if (m->gated)
                inside[t * wide + i] *= limited(y[t * up->rows + wide + i], m->gate_limit) + m->up_offset;
        }
    return product(down, wide, inside, count);
}

static double *mixture(setup *s, const layer *l, const double *x, int count)
{
    const model *m = &s->m;
    double *out = vectors(count, m->hidden), *scores = product(&l->router, m->hidden, x, count);
    for (int t = 0; t < count; t++) {
        double *p = scores + t * l->router.rows, total = 0, kept = 0, last = INFINITY, weights[8] = {0};
        for (int i = 0; i < l->experts_count; i++)
            total += exp(p[i]);
        for (int k = 0; k <= l->experts_per_token && k < l->experts_count; k++) {
            int best = -1;
            for (int i = 0; i < l->experts_count; i++)
                if (!weights[i] && (best < 0 || p[i] > p[best]))
                    best = i;
            s->fragile |= k == l->experts_per_token && last - p[best] < 1e-2;
            if (k < l->experts_per_token)
                kept += weights[best] = exp(last = p[best]) / total;
        }
        double *y = memset(out + t * m->hidden, 0, (size_t)m->hidden * sizeof *out);
        if (l->up.rows) {
            const double gate = l->router.rows == l->experts_count ? 1 : 1 / (1 + exp(-p[l->experts_count]));
            const double *common = mlp(m, l, &l->up, &l->down, x + t * m->hidden, 1);
            for (int c = 0; c < m->hidden; c++)
                y[c] = gate * common[c];
        }
        for (int i = 0; i < l->experts_count; i++)
            if (weights[i]) {
                const double *each = mlp(m, l, &l->experts[2 * i], &l->experts[2 * i + 1], x + t * m->hidden, 1);
                for (int c = 0; c < m->hidden; c++)
                    y[c] += each[c] * weights[i] / (m->norm_experts ? kept : 1);
            }
    }
    return out;
}

// Normalize the heads at x.
static void norm_heads(const model *m, norm n, double *x, int heads)
{
    const int D = m->head_dim, size = m->qk_norm_full ? heads * D : D;
    for (int h = 0; n.weight && h < heads * D / size; h++) {
        const norm own = {n.weight + (m->qk_norm_per_head ? h * D : 0), NULL};
        memcpy(x + h * size, normed(m, own, x + h * size, 1, size), (size_t)size * sizeof *x);
    }
}

// Normalize, limit and rotate `heads` queries or keys, the first one at x; vectors are `width` apart.
static void prepare(const model *m, const layer *l, norm n, double *x, int heads, int width, int count)
{
    const int D = m->head_dim;
    for (int t = 0; t < count; t++, x += width) {
        if (!m->norm_after_rope)
            norm_heads(m, n, x, heads);
        for (int i = 0; i < heads * D; i++)
            x[i] = limited(x[i], m->qkv_limit);
        const int R = l->rope < 0 ? 0 : m->rotated[l->rope];
        for (int h = 0; h < heads; h++)
            for (int i = 0; i < R / 2; i++) {
                const double phi = angle(l->rope, R, t, i), a = x[h * D + i], b = x[h * D + i + R / 2];
                x[h * D + i] = a * cos(phi) - b * sin(phi);
                x[h * D + i + R / 2] = b * cos(phi) + a * sin(phi);
            }
        if (m->norm_after_rope)
            norm_heads(m, n, x, heads);
    }
}

static double *attention(const model *m, const layer *l, const double *x, int count)
{
    const int D = m->head_dim, width = l->qkv.rows, H = m->heads, K = m->kv_heads;
    double *qkv = product(&l->qkv, m->hidden, x, count), *out = vectors(count, H * D), *scores = vectors(1, count);
    prepare(m, l, l->q, qkv, H, width, count);
    prepare(m, l, l->k, qkv + H * D, K, width, count);
    for (int t = 0; t < count; t++)
        for (int i = H * D; i < width; i++)
            qkv[t * width + i] = as_cached(m->cache_format, i < (H + K) * D ? qkv[t * width + i]
                                                                            : limited(qkv[t * width + i], m->qkv_limit));
    for (int t = 0; t < count; t++)
        for (int h = 0; h < H; h++) {
            const int first = l->window && t >= l->window ? t - l->window + 1 : 0, at = H * D + h / (H / K) * D;
            const double scale = m->attention_scale * (1 + m->query_growth * log(1 + t / m->query_context));
            double total, most = l->sinks ? l->sinks[h] : -INFINITY, *y = memset(out + (t * H + h) * D, 0, (size_t)D * sizeof *y);
            for (int j = first; j <= t; j++) {
                double score = 0;
                for (int d = 0; d < D; d++)
                    score += qkv[t * width + h * D + d] * qkv[j * width + at + d] * scale;
                scores[j] = m->attention_cap ? m->attention_cap * tanh(score / m->attention_cap) : score;
                most = fmax(most, scores[j]);
            }
            total = l->sinks ? exp(l->sinks[h] - most) : 0;
            for (int j = first; j <= t; j++)
                total += scores[j] = exp(scores[j] - most);
            for (int j = first; j <= t; j++)
                for (int d = 0; d < D; d++)
                    y[d] += scores[j] / total * qkv[j * width + at + K * D + d];
        }
    return product(&l->out, H * D, out, count);
}

static void contribute(const model *m, norm post, double *residual, const double *x, int count)
{
    x = normed(m, post, x, count, m->hidden);
    for (int i = 0; i < count * m->hidden; i++)
        residual[i] += m->residual_scale * x[i];
}

static double *unembed(const model *m, const double *residual, int count)
{
    double *logits = product(&m->head, m->hidden, normed(m, m->final, residual, count, m->hidden), count);
    for (int i = 0; i < count * m->head.rows; i++) {
        logits[i] *= m->logit_scale;
        logits[i] = m->logit_cap ? m->logit_cap * tanh(logits[i] / m->logit_cap) : logits[i];
    }
    return logits;
}

static double *reference(setup *s, const int *tokens, int count)
{
    const model *m = &s->m;
    double *x = vectors(count, m->hidden);
    for (int i = 0; i < count * m->hidden; i++) {
        const int t = i / m->hidden, c = i % m->hidden;
        x[i] = weight(&m->embedding, tokens[t], c) * m->embedding_scale;
    }
    x = normed(m, m->embedded, x, count, m->hidden);
    for (int i = 0; m->positions.rows && i < count * m->hidden; i++)
        x[i] += weight(&m->positions, i / m->hidden, i % m->hidden);
    for (const layer *l = m->layers; l < m->layers + m->layers_count; l++) {
        const double *attention_in = normed(m, l->attn, x, count, m->hidden);
        const double *mlp_in = normed(m, m->shared_norm ? l->attn : l->mlp, x, count, m->hidden);
        contribute(m, l->attn_post, x, attention(m, l, attention_in, count), count);
        mlp_in = m->parallel ? mlp_in : normed(m, l->mlp, x, count, m->hidden);
        contribute(m, l->mlp_post, x,
                   l->experts ? mixture(s, l, mlp_in, count) : mlp(m, l, &l->up, &l->down, mlp_in, count), count);
    }
    return unembed(m, x, count);
}

#endif
