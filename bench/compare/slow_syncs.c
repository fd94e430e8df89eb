/* Makes each fdatasync of a program longer, by SYNC_DELAY_US microseconds: loaded with LD_PRELOAD.
 * strace can inject a delay too, but from the first one on it stops the thread at each system call. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <unistd.h>

static int (*real_fdatasync)(int);
static useconds_t delay_us;

__attribute__((constructor)) static void find(void) {
    const char *given = getenv("SYNC_DELAY_US");
    delay_us = given ? (useconds_t)atol(given) : 0;
    real_fdatasync = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
}

int fdatasync(int file) {
    int result = real_fdatasync(file);
    usleep(delay_us);
    return result;
}
