/* For LD_PRELOAD: a file system that cannot sync folders, as some of FUSE and CIFS, while the
   environment has NO_FOLDER_SYNC. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>

int fsync(int descriptor)
{
    static int (*real)(int);
    struct stat status;
    if (getenv("NO_FOLDER_SYNC") && fstat(descriptor, &status) == 0 && S_ISDIR(status.st_mode)) {
        errno = EINVAL;
        return -1;
    }
    if (!real)
        real = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    return real(descriptor);
}
