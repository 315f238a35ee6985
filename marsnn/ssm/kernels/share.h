// How a kernel shares its work out: in pieces, to whoever comes, by the function that `pool.h` is built into.
#pragma once

typedef void (*Run)(long pieces, void (*piece)(void*, long), void* data, long threads);

// work(0), ..., work(pieces - 1), in any order and side by side; run may be null
template <typename Work>
inline void share(Run run, long threads, long pieces, const Work& work) {
    if (!run || threads < 2 || pieces < 2) {
        for (long i = 0; i < pieces; i++) work(i);
        return;
    }
    run(pieces, [](void* data, long i) { (*(const Work*)data)(i); }, (void*)&work, threads);
}
