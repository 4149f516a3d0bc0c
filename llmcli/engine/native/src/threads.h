// Threads, locks, time and aligned memory of the operating system: POSIX or Windows.
#ifndef LLMCLI_THREADS_H
#define LLMCLI_THREADS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

#if defined(__x86_64__)
static inline void relax(void) { __builtin_ia32_pause(); }
#elif defined(__aarch64__)
static inline void relax(void) { __asm__ __volatile__("isb"); }
#else
static inline void relax(void) {}
#endif

typedef struct {
    void (*run)(void *);
    void *argument;
} start;

#ifdef _WIN32
#include <malloc.h>
#define WIN32_LEAN_AND_MEAN
#include <windows.h>

typedef HANDLE thread;
typedef SRWLOCK lock;
typedef CONDITION_VARIABLE condition;

static inline void lock_create(lock *l) { InitializeSRWLock(l); }
static inline void lock_destroy(lock *l) { (void)l; }
static inline void lock_acquire(lock *l) { AcquireSRWLockExclusive(l); }
static inline void lock_release(lock *l) { ReleaseSRWLockExclusive(l); }
static inline void condition_create(condition *c) { InitializeConditionVariable(c); }
static inline void condition_destroy(condition *c) { (void)c; }
static inline void condition_wait(condition *c, lock *l) { SleepConditionVariableSRW(c, l, INFINITE, 0); }
static inline void condition_wake_all(condition *c) { WakeAllConditionVariable(c); }
static inline void thread_join(thread t) { WaitForSingleObject(t, INFINITE), CloseHandle(t); }
static inline int64_t nanoseconds(void)
{
    LARGE_INTEGER now, per_second;
    QueryPerformanceCounter(&now);
    QueryPerformanceFrequency(&per_second);
    return (int64_t)((double)now.QuadPart / (double)per_second.QuadPart * 1e9);
}
static inline void *aligned_memory(size_t size) { return _aligned_malloc(size, 64); }
static inline void aligned_free(void *p) { _aligned_free(p); }

static DWORD WINAPI begin(void *argument)
{
    start s = *(start *)argument;
    free(argument);
    s.run(s.argument);
    return 0;
}

static inline bool thread_start(thread *t, void (*run)(void *), void *argument)
{
    start *s = malloc(sizeof *s);
    if (!s)
        return false;
    *s = (start){run, argument};
    *t = CreateThread(NULL, 0, begin, s, 0, NULL);
    if (!*t)
        free(s);
    return *t != NULL;
}
#else
#include <pthread.h>
#include <time.h>

typedef pthread_t thread;
typedef pthread_mutex_t lock;
typedef pthread_cond_t condition;

static inline void lock_create(lock *l) { pthread_mutex_init(l, NULL); }
static inline void lock_destroy(lock *l) { pthread_mutex_destroy(l); }
static inline void lock_acquire(lock *l) { pthread_mutex_lock(l); }
static inline void lock_release(lock *l) { pthread_mutex_unlock(l); }
static inline void condition_create(condition *c) { pthread_cond_init(c, NULL); }
static inline void condition_destroy(condition *c) { pthread_cond_destroy(c); }
static inline void condition_wait(condition *c, lock *l) { pthread_cond_wait(c, l); }
static inline void condition_wake_all(condition *c) { pthread_cond_broadcast(c); }
static inline void thread_join(thread t) { pthread_join(t, NULL); }

static inline int64_t nanoseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

static inline void *aligned_memory(size_t size)
{
    void *p = NULL;
    return posix_memalign(&p, 64, size) ? NULL : p;
}
static inline void aligned_free(void *p) { free(p); }

static void *begin(void *argument)
{
    start s = *(start *)argument;
    free(argument);
    s.run(s.argument);
    return NULL;
}

static inline bool thread_start(thread *t, void (*run)(void *), void *argument)
{
    start *s = malloc(sizeof *s);
    if (!s)
        return false;
    *s = (start){run, argument};
    bool started = !pthread_create(t, NULL, begin, s);
    if (!started)
        free(s);
    return started;
}
#endif

#endif
