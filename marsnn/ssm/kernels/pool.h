// Threads that take pieces of a job which takes microseconds, beside the one that calls.
//
// Who calls works through the pieces itself and waits for nothing but pieces that a helper has begun. OpenMP
// has every thread arrive: where another program holds a processor, that takes a turn of the scheduler,
// milliseconds. A helper looks out for the next job for PATIENCE, then sleeps. One that was waited for too long
// has lost its processor: the next jobs do without, the more of them the more often that happens.
#pragma once
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif
#include "share.h"

static constexpr auto PATIENCE = std::chrono::microseconds(300);
static constexpr auto TOO_LONG = std::chrono::microseconds(30);  // a piece takes two or three
static constexpr long FEWEST = 64, MOST_JOBS = 1 << 13;          // without helpers, after such a wait

static inline void pause_briefly() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

struct Pool {
    std::mutex owner;  // one job at a time
    void (*piece)(void*, long);
    void* data;
    long pieces, threads;
    std::atomic<long> next{0}, inside{0}, sleeping{0};
    std::atomic<unsigned long> number{0};  // of the job; odd while it is open
    std::mutex door;
    std::condition_variable bell;
    long started = 0;  // helpers
    long alone = 0, next_alone = FEWEST, prompt = 0;  // jobs to do without, at the next failure, since it

    void take() {
        for (long i; (i = next.fetch_add(1)) < pieces;) piece(data, i);
    }
    // whether there is a job that this helper has not seen; a closed one has an even number
    bool open(unsigned long seen) {
        const unsigned long now = number.load();
        return now % 2 && now != seen;
    }
    void help(long me) {
        for (unsigned long seen = 0;;) {
            auto until = std::chrono::steady_clock::now() + PATIENCE;
            for (long turn = 1; !open(seen); turn++) {
                pause_briefly();
                if (turn % 64 || std::chrono::steady_clock::now() < until) continue;
                std::unique_lock<std::mutex> lock(door);
                sleeping++;
                bell.wait(lock, [&] { return open(seen); });
                sleeping--;
                break;
            }
            inside++;  // from here on a job that is open stays so
            const unsigned long now = number.load();
            if (now % 2 && me < threads - 1) take();
            seen = now;
            inside--;
        }
    }
    void run(long count, void (*what)(void*, long), void* with, long wanted) {
        std::unique_lock<std::mutex> mine(owner, std::try_to_lock);
        if (!mine || alone > 0) {
            if (mine) alone--;
            for (long i = 0; i < count; i++) what(with, i);
            return;
        }
        while (started < wanted - 1) {
            const long me = started++;
            try {
                std::thread([this, me] { help(me); }).detach();
            } catch (const std::system_error&) {  // there may be no more threads; who calls does it all
            }
        }
        piece = what, data = with, pieces = count, threads = wanted;
        next = 0;
        number++;
        if (sleeping) {
            std::lock_guard<std::mutex> lock(door);
            bell.notify_all();
        }
        take();
        number++;
        if (inside) wait();
    }
    void wait() {
        const auto since = std::chrono::steady_clock::now();
        for (long turn = 1; inside; turn++) turn % 256 ? pause_briefly() : std::this_thread::yield();
        if (std::chrono::steady_clock::now() - since > TOO_LONG) {
            alone = next_alone;
            next_alone = next_alone < MOST_JOBS ? 2 * next_alone : MOST_JOBS;
            prompt = 0;
        } else if (++prompt == MOST_JOBS) {
            next_alone = FEWEST;
        }
    }
};

static Pool* pool = nullptr;  // never destroyed: helpers sleep in it to the end
static std::mutex making;

extern "C" void forward(long pieces, void (*piece)(void*, long), void* data, long threads) {
    {
        std::lock_guard<std::mutex> lock(making);
        if (!pool) {
            pool = new Pool;
#if defined(__unix__) || defined(__APPLE__)
            // no helper follows into a child
            static const int once = pthread_atfork(nullptr, nullptr, [] { pool = nullptr; });
            (void)once;
#endif
        }
    }
    pool->run(pieces, piece, data, threads);
}
