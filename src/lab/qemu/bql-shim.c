/*
 * Lets QEMU 7.2 make COLO checkpoints under TCG; loaded with LD_PRELOAD.
 *
 * migration/colo.c saves the live state without holding QEMU's global lock, and TCG's hook for dirty logging waits there on
 * a condition with that very lock: the wait ends with a lock that the thread never took, and the
 * next attempt to take it blocks for ever. A wait with a mutex of another owner is therefore turned into a
 * spurious wakeup, which every user of a condition has to expect.
 *
 * For the same reason that hook wakes the processor's thread without the lock, which may be just between looking for work and
 * going to sleep, and would then sleep for ever. So no wait is longer than WAIT_NS_MAX: a wakeup that was lost costs
 * that much.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define WAIT_NS_MAX 5000000

static __thread pid_t thread_id;

__attribute__((constructor)) static void leave_children_alone(void)
{
    /* QEMU's own children need no shim. */
    unsetenv("LD_PRELOAD");
}

int pthread_cond_wait(pthread_cond_t *condition, pthread_mutex_t *mutex)
{
    struct timespec end;
    if (thread_id == 0)
        thread_id = gettid();
    if (mutex->__data.__owner != thread_id) {
        usleep(50);
        return 0;
    }
    clock_gettime(CLOCK_MONOTONIC, &end);
    end.tv_nsec += WAIT_NS_MAX;
    if (end.tv_nsec >= 1000000000) {
        end.tv_nsec -= 1000000000;
        end.tv_sec++;
    }
    /* By this clock, whichever the condition was made with. */
    pthread_cond_clockwait(condition, mutex, CLOCK_MONOTONIC, &end);
    return 0;
}
