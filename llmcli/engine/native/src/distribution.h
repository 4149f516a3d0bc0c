// What choosing a token needs of the logits or probabilities of a whole vocabulary.
#ifndef LLMCLI_DISTRIBUTION_H
#define LLMCLI_DISTRIBUTION_H

#include <stdint.h>

// Of logits: the largest one, and of e^(logit - largest) the sum, also weighted by (logit - largest).
typedef struct {
    double largest, total, weighted;
} sums;

// Each runs on the caller's thread. Mirrored by distribution.py, which says what each computes.
typedef struct {
    void (*softmax)(const float *logits, int64_t count, float *probs, sums *found);
    float (*probability)(const sums *found, float logit);
    void (*temper)(const float *logits, int64_t count, double temperature, float *tempered);
    void (*leading)(const float *values, int64_t count, int64_t n, uint64_t *ids);
    int64_t (*draw)(const float *probs, int64_t count, double u);
    void (*keep)(const float *logits, const float *values, int64_t count, int64_t last, float *kept);
    int64_t (*rank)(const float *values, int64_t count, int64_t id);
} distribution_functions;

#endif
