// Threads that live as long as the model. They wait for a step, run it together, and meet at barriers within it.
#ifndef LLMCLI_POOL_H
#define LLMCLI_POOL_H

#include <stdbool.h>

typedef struct pool pool;
typedef void task(void *argument, int thread);

pool *pool_create(int threads); // NULL if memory or threads run out
void pool_destroy(pool *p);
int pool_threads(const pool *p);

void pool_run(pool *p, task *work, void *argument); // on every thread, the caller's is thread 0
void pool_barrier(pool *p);                         // returns when every thread has called it
int pool_take(pool *p);                             // 0, 1, 2, ...: each once between two barriers, on any thread

#endif
