/* A descriptor that becomes readable at a given time: event loops' own timers are as coarse as a millisecond. */
#include <errno.h>
#include <sys/timerfd.h>

#include "kernel.h"

int adapm_timer_open(void) {
    int fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

int adapm_timer_set(int fd, double at) {
    struct itimerspec when = {.it_value.tv_sec = (time_t)at};
    when.it_value.tv_nsec = (long)((at - (double)when.it_value.tv_sec) * 1e9);
    return timerfd_settime(fd, TFD_TIMER_ABSTIME, &when, NULL) ? -errno : 0;
}
