// Which variant this processor can run.
#ifndef LLMCLI_PROCESSOR_H
#define LLMCLI_PROCESSOR_H

#include "distribution.h"
#include "engine.h"

typedef struct {
    const char *name;
    bool (*runs)(void);
    void (*step)(engine *e, int thread);
    const distribution_functions *distribution;
} variant;

extern const variant variants[]; // the best first; the last runs anywhere

int variant_number(void);
const char *choose_variant(int number);

#endif
