// Checks what chooses tokens on random logits and probabilities: with ties, with cut tokens, and with tiny numbers.
#ifndef CHECK_DISTRIBUTION_H
#define CHECK_DISTRIBUTION_H

#include "distribution.h"
#include "random_model.h"

const distribution_functions *engine_distribution(void);

static void fault(const char *what, double size);

// Whether token a comes before token b.
static bool precedes(const float *values, int a, int b)
{
    return values[a] > values[b] || (values[a] == values[b] && a < b);
}

// All ids, the largest value first.
static int *in_order(const float *values, int count)
{
    int *order = make((size_t)count * sizeof *order);
    for (int i = 0; i < count; i++) {
        int place = i;
        for (; place && precedes(values, i, order[place - 1]); place--)
            order[place] = order[place - 1];
        order[place] = i;
    }
    return order;
}

static float *random_logits(int count)
{
    float *logits = random_floats(count, -1, 1);
    const float size = (float)PICK(0, 1, 8, 40, 300);
    const bool ties = chance(30);
    const int cut = PICK(0, 0, 50, 95);
    for (int i = 0; i < count; i++) {
        logits[i] = ties ? roundf(logits[i] * size) : logits[i] * size;
        if (i && chance(cut))
            logits[i] = -INFINITY;
    }
    return logits;
}

static void check_softmax(const distribution_functions *f, const float *logits, int count, float *probs)
{
    sums found;
    double largest = -INFINITY, total = 0, weighted = 0;
    f->softmax(logits, count, probs, &found);
    for (int i = 0; i < count; i++)
        largest = fmax(largest, (double)logits[i]);
    for (int i = 0; i < count; i++) {
        const double lower = (double)(logits[i] - (float)largest);
        total += exp(lower);
        weighted += isinf(lower) ? 0 : exp(lower) * lower;
    }
    if (found.largest != largest || fabs(found.total / total - 1) > 2e-6 ||
        fabs(found.weighted - weighted) > 2e-6 * (total - weighted))
        fault("the sums of logits are wrong", found.total / total - 1);
    for (int i = 0; i < count; i++) {
        const double expected = exp((double)(logits[i] - (float)largest)) / found.total; // the difference is rounded
        if (!(fabs((double)probs[i] - expected) <= 1e-6 * expected + 2e-45) ||
            f->probability(&found, logits[i]) != probs[i])
            fault("a probability is wrong", (double)probs[i] - expected);
    }
}

static void check_draws(const distribution_functions *f, const float *probs, int count, const int *order)
{
    double total = 0, before = 0;
    for (int i = 0; i < count; i++)
        total += (double)probs[i];
    for (int place = 0; place < count; place++) {
        const double p = (double)probs[order[place]];
        const double middle = (before + p / 2) / total;
        if (p > 1e-12 && below(count) < 50 && f->draw(probs, count, middle) != order[place])
            fault("a draw is wrong", middle);
        before += p;
    }
    const int64_t last = f->draw(probs, count, 1 - 0x1p-53);
    if (last < 0 || last >= count || probs[last] <= 0)
        fault("the last draw is wrong", (double)last);
}

static void check_order(const distribution_functions *f, const float *logits, int count, const int *order)
{
    const int n = 1 + below(count), place = below(count), last = order[place];
    uint64_t *ids = make((size_t)n * sizeof *ids);
    float *kept = make((size_t)count * sizeof *kept);
    f->leading(logits, count, n, ids);
    for (int i = 0; i < n; i++)
        if (ids[i] != (uint64_t)order[i])
            fault("a leading token is wrong", i);
    if (f->rank(logits, count, last) != place)
        fault("a rank is wrong", place);
    f->keep(logits, logits, count, last, kept);
    for (int i = 0; i < count; i++)
        if (kept[order[i]] != (i <= place ? logits[order[i]] : -INFINITY))
            fault("a wrong token is kept or cut", i);
}

static void check_temper(const distribution_functions *f, const float *logits, int count, const int *order)
{
    const double temperature = uniform(0.01, 3), largest = (double)logits[order[0]];
    float *tempered = make((size_t)count * sizeof *tempered);
    f->temper(logits, count, temperature, tempered);
    for (int i = 0; i < count; i++) {
        const float expected = (float)(((double)logits[i] - largest) / temperature);
        if (!(fabsf(tempered[i] - expected) <= 1e-6f * fabsf(expected)) && tempered[i] != expected)
            fault("a logit at a temperature is wrong", (double)(tempered[i] - expected));
    }
}

static void check_distribution(void)
{
    const distribution_functions *f = engine_distribution();
    for (int round = 0; round < 4; round++) {
        const int count = chance(5) ? 1300 : PICK(1, 2, 15, 16, 17, 127, 128, 129, 300);
        const float *logits = random_logits(count);
        float *probs = make((size_t)count * sizeof *probs);
        check_softmax(f, logits, count, probs);
        check_draws(f, probs, count, in_order(probs, count));
        const int *order = in_order(logits, count);
        check_order(f, logits, count, order);
        check_temper(f, logits, count, order);
        sums found;
        float *wrong = make((size_t)count * sizeof *wrong);
        memcpy(wrong, logits, (size_t)count * sizeof *wrong);
        wrong[below(count)] = chance(50) ? NAN : INFINITY;
        f->softmax(wrong, count, probs, &found);
        if (isfinite(found.total))
            fault("NaN or infinity does not show in the sum", found.total);
    }
}

#endif
