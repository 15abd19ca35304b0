/*
 * Lets QEMU 7.2 make COLO checkpoints under TCG; loaded with LD_PRELOAD.
 *
 * migration/colo.c saves the live state without holding QEMU's global lock, and TCG's hook for dirty logging waits there on
 * a condition with that very lock: the wait ends with a lock that the thread never took, and the
 * next attempt to take it blocks for ever. A wait with a mutex of another owner is therefore turned into a
 * spurious wakeup, which every user of a condition has to expect.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

typedef int wait_function(pthread_cond_t *condition, pthread_mutex_t *mutex);

static wait_function *wait_in_libc;
static __thread pid_t thread_id;

__attribute__((constructor)) static void find_libc(void)
{
    wait_in_libc = (wait_function *)dlvsym(RTLD_NEXT, "pthread_cond_wait", "GLIBC_2.3.2");
    /* QEMU's own children need no shim. */
    unsetenv("LD_PRELOAD");
}

int pthread_cond_wait(pthread_cond_t *condition, pthread_mutex_t *mutex)
{
    if (thread_id == 0)
        thread_id = gettid();
    if (mutex->__data.__owner == thread_id)
        return wait_in_libc(condition, mutex);
    usleep(50);
    return 0;
}
