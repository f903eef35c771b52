// A stand-in for CUDA's driver and compiler: g++ compiles the kernels, and the CPU runs them, strictly.
//
// It is built as libcuda and as libnvrtc, and has what CubeCL asks of both. A launch is over when it
// returns, so that streams and events have nothing to do. What a GPU would get wrong in silence ends
// the process and says where. run.sh names the variables that it listens to.

#include <dlfcn.h>
#include <setjmp.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <regex>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "include/cuda_on_cpu.h"

using cuda_on_cpu::Dim;
using std::string;

enum Result {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    INVALID_IMAGE = 200,
    NOT_FOUND = 500,
};

// What an A100 has.
static const size_t DEFAULT_SHARED = 48 << 10, MOST_SHARED = 163 << 10, MEMORY = size_t(8) << 30;
static const unsigned MOST_THREADS = 1024, WARP = 32;

// What was never written reads as NaN; what lies around memory must stay as it is.
static const unsigned char POISON = 0xff, GUARDED = 0xfb;
static const size_t GUARD = 4096, STACK = 256 << 10;

static void guard(char *at) { memset(at, GUARDED, GUARD); }

static bool is_whole(const char *guard) {
    return std::all_of(guard, guard + GUARD, [](unsigned char byte) { return byte == GUARDED; });
}

static const char *variable(const char *name) {
    const char *value = getenv(name);
    return value ? value : "";
}

// Running a block: its threads are fibers, which take turns wherever they wait for each other.

struct Function {
    string name, path;
    void (*run)(void **);
    unsigned threads;
    bool serial;
    size_t most_shared = DEFAULT_SHARED;
};

struct Launch {
    Function *function;
    Dim grid, block;
    size_t shared;
    void **args;
    uint64_t number;
    std::atomic<uint64_t> next{0};
};

struct Worker;

struct Fiber : cuda_on_cpu::Thread {
    enum { READY, AT_BARRIER, AT_WARP, ENDED } state;
    Worker *worker;
    jmp_buf here;
    unsigned warp;
    const char *call;
    int line;
    void *brought;
};

struct Warp {
    unsigned live, waiting;
};

// A thread of the CPU, which runs one block at a time.
struct Worker {
    std::vector<std::unique_ptr<Fiber>> fibers;
    std::vector<Warp> warps;
    std::vector<unsigned> order;
    char *shared = (char *)aligned_alloc(GUARD, MOST_SHARED + 2 * GUARD) + GUARD;
    Launch *launch = nullptr;
    Fiber *current = nullptr;
    unsigned live = 0;
    jmp_buf here;

    void run(Launch &all);
    void run_block(uint64_t number);
    void arrange(uint64_t turn);
    void pass_barrier();
    void run_together(Fiber &last, bool whole, void (*run)(void **));
    void add_fiber();
    void resume(Fiber &fiber);
    void wait();
};

static thread_local Worker *worker;

extern "C" cuda_on_cpu::Thread *cuda_on_cpu_thread() { return worker->current; }

extern "C" void cuda_on_cpu_fail(const char *format, ...) {
    fprintf(stderr, "\ncuda_on_cpu: ");
    va_list args;
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    if (worker && worker->launch) {
        fprintf(stderr, "\n  in %s of %s", worker->launch->function->name.c_str(),
                worker->launch->function->path.c_str());
        if (auto *at = worker->current)
            fprintf(stderr, "\n  block %u %u %u, thread %u %u %u", at->blockIdx.x, at->blockIdx.y, at->blockIdx.z,
                    at->threadIdx.x, at->threadIdx.y, at->threadIdx.z);
    }
    fprintf(stderr, "\n");
    abort();
}

static void live(Fiber *self) {
    for (;;) {
        auto &worker = *self->worker;
        worker.launch->function->run(worker.launch->args);
        self->state = Fiber::ENDED;
        worker.live--;
        auto &warp = worker.warps[self->warp];
        // Lanes that have ended are waited for no more.
        if (--warp.live && warp.waiting == warp.live)
            for (auto &fiber : worker.fibers)
                if (fiber->warp == self->warp && fiber->state == Fiber::AT_WARP) {
                    cuda_on_cpu_fail("a lane ended while its warp waits in %s, line %d", fiber->call, fiber->line);
                }
        worker.wait();
    }
}

// A new fiber stops before its first turn.
void Worker::add_fiber() {
    auto *stack = (char *)mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stack == MAP_FAILED || mprotect(stack, GUARD, PROT_NONE))
        cuda_on_cpu_fail("no memory for a thread's stack");
    static thread_local Fiber *born;
    static thread_local ucontext_t start, back;
    fibers.push_back(std::make_unique<Fiber>());
    born = fibers.back().get();
    born->worker = this;
    getcontext(&start);
    start.uc_stack.ss_sp = stack;
    start.uc_stack.ss_size = STACK;
    auto main = [] {
        Fiber *self = born;
        if (!_setjmp(self->here))
            setcontext(&back);
        live(self);
    };
    makecontext(&start, +main, 0);
    swapcontext(&back, &start);
}

__attribute__((noinline)) void Worker::resume(Fiber &fiber) {
    current = &fiber;
    if (!_setjmp(here))
        _longjmp(fiber.here, 1);
}

__attribute__((noinline)) void Worker::wait() {
    if (!_setjmp(current->here))
        _longjmp(here, 1);
}
