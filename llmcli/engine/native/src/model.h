// What Python describes to C: matrices, layers, a model, and the rows of one step. Mirrored by library.py.
#ifndef LLMCLI_MODEL_H
#define LLMCLI_MODEL_H

#include <stdint.h>

enum format { F32, BF16, F16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, IQ4_NL, MXFP4, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_XS };
enum activation { // in the order of `Activation` in model/activations.py
    SILU,
    GELU,
    GELU_TANH,
    GELU_SIGMOID,
    RELU,
    RELU_SQUARED,
    RELU6,
    LEAKY_RELU,
    HARDSWISH,
    MISH,
    SIGMOID,
    TANH,
    LINEAR,
    XIELU,
};
enum { MAX_ROWS = 16 }; // tokens per step

// A matrix [rows, cols], stored by rows of `stride` bytes. A row is a sequence of blocks of 32 or 256 weights; only
// dense formats may end within one, so in products `cols` of the others is a multiple of it. The first `stored` rows
// are here, the others, which may have another format, in `rest`.
typedef struct matrix {
    const uint8_t *data;
    const float *bias; // [stored] or NULL
    const struct matrix *rest;
    int64_t stride;
    int32_t rows, stored, cols, format;
} matrix;

// A norm's weight, its offset included, and its bias; both NULL if the model has no such norm.
typedef struct {
    const float *weight, *bias;
} norm;

typedef struct {
    norm attn, attn_post, mlp, mlp_post, q, k;
    matrix qkv, out;
    matrix up, down;       // of the MLP or, among experts, of the one that serves every token, if there is one
    matrix router;         // a row per expert; one more is the gate of the expert that serves every token
    const matrix *experts; // up and down of each expert, or NULL
    const float *sinks;    // [heads] or NULL
    float curve[2];        // of XIELU: above 0 and below
    int32_t window;        // positions that a query sees, or 0 for all
    int32_t rope;          // which of a row's angles rotate queries and keys, or -1
    int32_t experts_count, experts_per_token;
} layer;

typedef struct {
    const layer *layers;
    matrix embedding, positions, head; // `positions` has no rows if they are rotary
    norm embedded, final;
    float embedding_scale, residual_scale, logit_scale, logit_cap; // a cap or limit of 0 is none
    float attention_scale, attention_cap, norm_eps;
    float qkv_limit, gate_limit, up_offset, query_growth; // queries grow with the logarithm of their context's number
    int32_t query_context;                                // positions
    int32_t layers_count, hidden, heads, kv_heads, head_dim, rotated[2];
    int32_t inner; // the widest MLP
    int32_t cache_format, activation;
    int32_t layer_norm, parallel, shared_norm, gated, norm_experts, qk_norm_full, qk_norm_per_head;
    int32_t norm_after_rope, unused;
} model;

// A layer's keys and values of one text, [kv_heads, capacity, head_dim], from position `first` on.
typedef struct {
    uint8_t *keys, *values;
    int64_t capacity, first;
} buffers;

// One token of a step. Rows of the same text share its buffers and come in the order of their positions.
typedef struct {
    const buffers *layers;
    const float *cos[2], *sin[2]; // the position's angles, [rotated] each
    float *logits;                // where to write the logits after the token, or NULL
    int64_t token, position;
} row;

// The oldest position that a row's query sees.
static inline int64_t oldest(const layer *l, const row *r)
{
    return l->window && r->position >= l->window ? r->position - l->window + 1 : 0;
}

#endif
