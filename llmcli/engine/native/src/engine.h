// A model with its threads and working memory, and the step in one variant per kind of processor.
#ifndef LLMCLI_ENGINE_H
#define LLMCLI_ENGINE_H

#include "model.h"
#include "pool.h"

enum { CHUNK = 256 }; // positions of keys that attention takes together

// What a thread computes for itself, and temporary memory. Vectors of one row are `hidden_width` floats apart.
typedef struct {
    float *residual; // the residual stream
    float *normed;   // the input of attention
    float *mixed;    // the input of the MLP
    float *heads;    // the output of attention's heads
    float *scratch;
    float *query, *scores; // of one group of query heads
    float *chances;        // of the experts chosen for each row
    int32_t *chosen, *used;
} private_memory;

typedef struct {
    model m;
    pool *threads;
    void *memory; // everything below but `shares`
    private_memory *private;
    float *qkv, *inner, *outer, *router;       // shared between threads, one vector per row
    int64_t hidden_width, qkv_width, inner_width, heads_width, head_width, router_width;
    float *shares; // what each chunk of keys contributes to attention
    int64_t shares_size;
    // The present step.
    const row *rows;
    const float *residual; // of every row after the last layer, or NULL to compute it
    int count;
    int64_t chunks; // the most that any row sees
    // A matrix to restore instead of a step, or NULL; where to; and whether to bf16.
    const matrix *restored;
    uint8_t *output;
    bool narrow;
    // A matrix to multiply with `count` vectors instead of a step, or NULL; from where, and where to.
    const matrix *factor;
    const float *vectors[MAX_ROWS];
    float *products[MAX_ROWS];
} engine;

// Vectors are whole blocks of 32 numbers: zeros follow those that a matrix multiplies.
static inline int64_t padded(int64_t floats) { return (floats + 31) / 32 * 32; }

#endif
