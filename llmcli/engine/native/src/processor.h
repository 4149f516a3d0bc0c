// Which variant of the step this processor can run.
#ifndef LLMCLI_PROCESSOR_H
#define LLMCLI_PROCESSOR_H

#include "engine.h"

typedef struct {
    const char *name;
    step_function *step;
    bool (*runs)(void);
} variant;

extern const variant variants[]; // the best first; the last runs anywhere

int variant_number(void);
const char *choose_variant(int number);

#endif
