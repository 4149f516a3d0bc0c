#include "pool.h"

#include <stdatomic.h>
#include <stdlib.h>

#include "threads.h"

// Nanoseconds of waiting awake: most waits within a step are shorter. They are fewer while waits end asleep, since then
// another program probably uses the processor that the awaited thread needs.
enum { MOST_AWAKE = 100000, LEAST_AWAKE = 1000, CHECKS = 16 };

struct pool {
    // Each on a cache line of its own: threads that wait for one should not slow down the others.
    _Alignas(64) atomic_uint generation; // counts the barriers passed
    _Alignas(64) atomic_int arrived;     // threads at the present barrier
    _Alignas(64) atomic_int taken;       // items taken since the last barrier
    _Alignas(64) atomic_uint tasks;      // counts the tasks started
    atomic_int sleepers;
    atomic_int awake; // how long to wait awake
    atomic_bool closing;
    lock mutex;
    condition changed;
    task *work;
    void *argument;
    int threads;
    thread workers[];
};

typedef struct {
    pool *p;
    int number;
} worker;

// Wait until the counter is no longer `old`: awake at first, then asleep.
static void await(pool *p, atomic_uint *counter, unsigned old)
{
    const int awake = atomic_load_explicit(&p->awake, memory_order_relaxed);
    for (const int64_t end = nanoseconds() + awake; nanoseconds() < end;)
        for (int i = 0; i < CHECKS; i++) {
            if (atomic_load_explicit(counter, memory_order_acquire) != old) {
                if (awake < MOST_AWAKE)
                    atomic_store_explicit(&p->awake, awake + awake / 8, memory_order_relaxed);
                return;
            }
            relax();
        }
    atomic_store_explicit(&p->awake, awake > LEAST_AWAKE ? awake / 2 : LEAST_AWAKE, memory_order_relaxed);
    lock_acquire(&p->mutex);
    atomic_fetch_add(&p->sleepers, 1);
    while (atomic_load(counter) == old)
        condition_wait(&p->changed, &p->mutex);
    atomic_fetch_sub(&p->sleepers, 1);
    lock_release(&p->mutex);
}

// Increase a counter that others may await. Sequential consistency makes sure that a thread which falls asleep at the
// same time either sees the new value or is seen among the sleepers.
static void announce(pool *p, atomic_uint *counter)
{
    atomic_fetch_add(counter, 1);
    if (atomic_load(&p->sleepers)) {
        lock_acquire(&p->mutex);
        condition_wake_all(&p->changed);
        lock_release(&p->mutex);
    }
}

static void work_until_closed(void *argument)
{
    worker self = *(worker *)argument;
    free(argument);
    pool *p = self.p;
    for (unsigned seen = 0;; seen++) {
        await(p, &p->tasks, seen);
        if (atomic_load(&p->closing))
            return;
        p->work(p->argument, self.number);
        pool_barrier(p);
    }
}

pool *pool_create(int threads)
{
    pool *p = aligned_memory(sizeof(pool) + (size_t)threads * sizeof(thread));
    if (!p)
        return NULL;
    *p = (pool){.threads = 1, .awake = MOST_AWAKE};
    lock_create(&p->mutex);
    condition_create(&p->changed);
    while (p->threads < threads) {
        worker *each = malloc(sizeof *each);
        if (each)
            *each = (worker){p, p->threads};
        if (!each || !thread_start(&p->workers[p->threads], work_until_closed, each)) {
            free(each);
            pool_destroy(p);
            return NULL;
        }
        p->threads++;
    }
    return p;
}

void pool_destroy(pool *p)
{
    atomic_store(&p->closing, true);
    announce(p, &p->tasks);
    for (int i = 1; i < p->threads; i++)
        thread_join(p->workers[i]);
    condition_destroy(&p->changed);
    lock_destroy(&p->mutex);
    aligned_free(p);
}

int pool_threads(const pool *p) { return p->threads; }

void pool_run(pool *p, task *work, void *argument)
{
    p->work = work;
    p->argument = argument;
    announce(p, &p->tasks);
    work(argument, 0);
    pool_barrier(p);
}

void pool_barrier(pool *p)
{
    unsigned generation = atomic_load(&p->generation);
    if (atomic_fetch_add(&p->arrived, 1) + 1 < p->threads) {
        await(p, &p->generation, generation);
        return;
    }
    atomic_store(&p->arrived, 0);
    atomic_store(&p->taken, 0);
    announce(p, &p->generation);
}

int pool_take(pool *p) { return atomic_fetch_add_explicit(&p->taken, 1, memory_order_relaxed); }
