# A mutex for code that runs without the GIL. Nothing that holds one may take the GIL: a thread that has
# the GIL may be waiting for it.
cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    int mutex_init "pthread_mutex_init"(pthread_mutex_t* mutex, const void* attr)
    int lock "pthread_mutex_lock"(pthread_mutex_t* mutex)
    int unlock "pthread_mutex_unlock"(pthread_mutex_t* mutex)
