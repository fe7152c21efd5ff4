/* Code objects: shared objects that are loaded from memory files. */
#include "paiton_host.h"

#include <dlfcn.h>
#include <stdio.h>

/* glibc recognises a loaded object by the path it was asked for, so `fd` must stay open until paiton_code_close:
 * otherwise a later code object with the same descriptor number would silently be this one. */
void *paiton_code_open(int fd) {
    char path[32];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    return dlopen(path, RTLD_NOW | RTLD_LOCAL);
}

void *paiton_code_symbol(void *code, const char *name) { return dlsym(code, name); }

int paiton_code_close(void *code) { return dlclose(code); }

const char *paiton_code_error(void) { return dlerror(); }
