// A replacement of CUDA's driver and compiler for tests: g++ compiles the kernels, the CPU runs them.
//
// It is built as libcuda and as libnvrtc, with the functions that CubeCL calls. Launches are synchronous, so
// that streams and events do nothing. Errors that a GPU would not report (accesses out of bounds, missing
// barriers, diverging warps) abort the process with their location. run.sh lists the environment variables.

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

// The limits of an A100.
static const size_t DEFAULT_SHARED = 48 << 10, MOST_SHARED = 163 << 10, MEMORY = size_t(8) << 30;
static const unsigned MOST_THREADS = 1024, WARP = 32;

// Memory that was never written reads as NaN; the guard bytes around an allocation must not change.
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

// Counting: with CUDA_ON_CPU_COUNT=file no kernel runs, and what is asked for is counted: launches of each kernel with the bytes of
// their buffers, and transfers. A line for each: how many, bytes, what.

static const string COUNT_FILE = variable("CUDA_ON_CPU_COUNT");
static const bool COUNTS = !COUNT_FILE.empty();

struct Tally {
    uint64_t times, bytes;
};

static std::map<string, Tally> &tallies() {
    static auto *tallies = new std::map<string, Tally>;
    return *tallies;
}

static void count(const string &what, uint64_t bytes) {
    static std::mutex one;
    if (!COUNTS)
        return;
    std::lock_guard turn(one);
    if (tallies().empty())
        atexit([] {
            std::ofstream file(COUNT_FILE);
            for (auto &[what, tally] : tallies())
                file << tally.times << " " << tally.bytes << " " << what << "\n";
        });
    auto &tally = tallies()[what];
    tally.times++;
    tally.bytes += bytes;
}

// Execution of a block: its threads are fibers, which switch where they wait for each other.

struct Function {
    string name, path;
    void (*run)(void **);
    unsigned threads;
    bool serial;
    uint64_t (*bytes)(void **);
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
    bool whole;
    void (*run)(void **);
};

// A CPU thread, which runs one block at a time.
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
    void arrange(uint64_t block, uint64_t turn);
    void pass_barrier();
    void meet(unsigned warp);
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

static void be_thread(Fiber *self) {
    for (;;) {
        auto &worker = *self->worker;
        worker.launch->function->run(worker.launch->args);
        self->state = Fiber::ENDED;
        worker.live--;
        // A warp does not wait for a thread that has ended.
        auto &warp = worker.warps[self->warp];
        if (--warp.live && warp.waiting == warp.live)
            worker.meet(self->warp);
        worker.wait();
    }
}

// Creates a fiber, which stops before it runs the kernel.
void Worker::add_fiber() {
    void *stack = mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stack == MAP_FAILED || mprotect(stack, GUARD, PROT_NONE))
        cuda_on_cpu_fail("cannot allocate a thread's stack");
    static thread_local Fiber *born;
    static thread_local ucontext_t start, back;
    fibers.push_back(std::make_unique<Fiber>());
    born = fibers.back().get();
    born->worker = this;
    getcontext(&start);
    start.uc_stack.ss_sp = stack;
    start.uc_stack.ss_size = STACK;
    void (*main)() = [] {
        Fiber *self = born;
        if (!_setjmp(self->here))
            setcontext(&back);
        be_thread(self);
    };
    makecontext(&start, main, 0);
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

extern "C" void cuda_on_cpu_sync(int line) {
    auto &fiber = *worker->current;
    fiber.state = Fiber::AT_BARRIER;
    fiber.call = "__syncthreads";
    fiber.line = line;
    worker->wait();
}

extern "C" void cuda_on_cpu_warp(const char *call, int line, bool whole, void (*run)(void **), void *brought) {
    auto &fiber = *worker->current;
    auto &warp = worker->warps[fiber.warp];
    fiber.state = Fiber::AT_WARP;
    fiber.call = call;
    fiber.line = line;
    fiber.brought = brought;
    warp.run = run;
    warp.whole = whole;
    if (++warp.waiting < warp.live)
        worker->wait();
    else
        worker->meet(fiber.warp);
}

// Runs a warp's call when all of its live lanes have reached it.
void Worker::meet(unsigned warp) {
    void *lanes[WARP] = {};
    Fiber *first = nullptr;
    unsigned missing = 0;
    for (unsigned lane = 0; lane < WARP; lane++) {
        unsigned at = warp * WARP + lane;
        if (at >= order.size() || fibers[at]->state != Fiber::AT_WARP) {
            missing++;
            continue;
        }
        auto &fiber = *fibers[at];
        first = first ? first : &fiber;
        if (fiber.line != first->line || strcmp(fiber.call, first->call))
            cuda_on_cpu_fail("lanes of a warp diverge: %u at %s, line %d, and %u at %s, line %d", first->lane,
                             first->call, first->line, lane, fiber.call, fiber.line);
        lanes[lane] = fiber.brought ? fiber.brought : &fiber;
        fiber.state = Fiber::READY;
    }
    if (missing && warps[warp].whole)
        cuda_on_cpu_fail("%s needs a whole warp, but %u of its lanes are missing", first->call, missing);
    warps[warp].waiting = 0;
    warps[warp].run(lanes);
}

// No fiber can continue: opens the barrier, if all of them wait at the same one.
void Worker::pass_barrier() {
    std::map<std::pair<string, int>, unsigned> places;
    for (unsigned at = 0; at < order.size(); at++)
        if (fibers[at]->state != Fiber::ENDED)
            places[{fibers[at]->call, fibers[at]->line}]++;
    if (places.size() > 1) {
        string list;
        for (auto &[place, count] : places)
            list += "\n  " + std::to_string(count) + " at " + place.first + ", line " + std::to_string(place.second);
        current = nullptr;
        cuda_on_cpu_fail("deadlock: the threads of a block wait at different places:%s", list.c_str());
    }
    for (unsigned at = 0; at < order.size(); at++)
        if (fibers[at]->state == Fiber::AT_BARRIER)
            fibers[at]->state = Fiber::READY;
}

// The order in which fibers run. Results depend on it only if a barrier is missing.
void Worker::arrange(uint64_t block, uint64_t turn) {
    static const string wanted = variable("CUDA_ON_CPU_ORDER");
    static const uint64_t seed = strtoull(wanted.c_str(), nullptr, 10);
    if (!turn)
        std::iota(order.begin(), order.end(), 0);
    if (wanted == "reverse" && !turn)
        std::reverse(order.begin(), order.end());
    if (wanted == "reverse" || wanted == "forward")
        return;
    uint64_t random = ((seed * 1000003 + launch->number) * 1000003 + block) * 1000003 + turn;
    for (size_t left = order.size(); left > 1; left--) {
        random = random * 6364136223846793005 + 1442695040888963407;
        std::swap(order[left - 1], order[(random >> 33) % left]);
    }
}

void Worker::run_block(uint64_t number) {
    auto [grid, block] = std::pair(launch->grid, launch->block);
    live = block.x * block.y * block.z;
    while (fibers.size() < live)
        add_fiber();
    warps.assign((live + WARP - 1) / WARP, {});
    order.resize(live);
    Dim at{unsigned(number % grid.x), unsigned(number / grid.x % grid.y), unsigned(number / grid.x / grid.y)};
    for (unsigned i = 0; i < live; i++) {
        auto &fiber = *fibers[i];
        (cuda_on_cpu::Thread &)fiber = {
            {i % block.x, i / block.x % block.y, i / block.x / block.y}, at, block, grid, i % WARP, shared, launch->shared};
        fiber.state = Fiber::READY;
        fiber.warp = i / WARP;
        warps[fiber.warp].live++;
    }
    guard(shared - GUARD);
    memset(shared, POISON, launch->shared);
    guard(shared + launch->shared);
    for (uint64_t turn = 0; live; turn++) {
        arrange(number, turn);
        for (bool moved = true; moved;) {
            moved = false;
            for (unsigned i : order)
                if (fibers[i]->state == Fiber::READY) {
                    resume(*fibers[i]);
                    moved = true;
                }
        }
        if (live)
            pass_barrier();
    }
    current = nullptr;
    if (!is_whole(shared - GUARD) || !is_whole(shared + launch->shared))
        cuda_on_cpu_fail("block %u %u %u wrote outside its %zu bytes of shared memory", at.x, at.y, at.z, launch->shared);
}

void Worker::run(Launch &all) {
    worker = this;
    launch = &all;
    for (uint64_t number; (number = all.next++) < uint64_t(all.grid.x) * all.grid.y * all.grid.z;)
        run_block(number);
    launch = nullptr;
    worker = nullptr;
}

// Memory

static std::mutex lock;
static std::map<uintptr_t, size_t> allocations;
static size_t allocated;

static void check_guards(const char *after) {
    for (auto [at, size] : allocations)
        if (!is_whole((char *)at - GUARD) || !is_whole((char *)at + size))
            cuda_on_cpu_fail("%s wrote outside the %zu bytes of device memory at %#lx", after, size, at);
}

static void check_range(uintptr_t at, size_t size, const char *call) {
    std::lock_guard hold(lock);
    auto found = allocations.upper_bound(at);
    if (found == allocations.begin() || at + size > std::prev(found)->first + std::prev(found)->second)
        cuda_on_cpu_fail("%s: %zu bytes at %#lx are not within an allocation of device memory", call, size, at);
}

static Result allocate(uintptr_t *at, size_t size) {
    std::lock_guard hold(lock);
    if (!size)
        return INVALID_VALUE;
    if (allocated + size > MEMORY)
        return OUT_OF_MEMORY;
    auto *memory = (char *)aligned_alloc(GUARD, (size + 3 * GUARD - 1) / GUARD * GUARD);
    if (!memory)
        return OUT_OF_MEMORY;
    memory += GUARD;
    guard(memory - GUARD);
    // Where nothing is computed, zeros are numbers at least.
    memset(memory, COUNTS ? 0 : POISON, size);
    guard(memory + size);
    allocations[*at = (uintptr_t)memory] = size;
    allocated += size;
    return SUCCESS;
}

static Result release(uintptr_t at) {
    std::lock_guard hold(lock);
    auto found = allocations.find(at);
    if (found == allocations.end())
        return INVALID_VALUE;
    check_guards("an earlier operation");
    allocated -= found->second;
    allocations.erase(found);
    free((char *)at - GUARD);
    return SUCCESS;
}

struct Copy2D {
    size_t from_x, from_y;
    unsigned from_kind;
    const char *from_host;
    uintptr_t from_device;
    void *from_array;
    size_t from_pitch, to_x, to_y;
    unsigned to_kind;
    char *to_host;
    uintptr_t to_device;
    void *to_array;
    size_t to_pitch, width, height;
};
static const unsigned HOST = 1, DEVICE = 2;

extern "C" {

Result cuInit(unsigned) { return SUCCESS; }
Result cuDeviceGetCount(int *count) { return *count = 1, SUCCESS; }
Result cuDeviceGet(int *device, int number) { return *device = number, number ? INVALID_VALUE : SUCCESS; }
Result cuDeviceTotalMem_v2(size_t *bytes, int) { return *bytes = MEMORY, SUCCESS; }
Result cuDevicePrimaryCtxRetain(void **context, int) { return *context = &allocations, SUCCESS; }
Result cuCtxSetCurrent(void *) { return SUCCESS; }

Result cuDeviceGetAttribute(int *value, int attribute, int) {
    static const std::map<int, int> values{
        {1, MOST_THREADS}, {2, MOST_THREADS}, {3, MOST_THREADS}, {4, 64}, // a block, x, y, z
        {5, 0x7fffffff}, {6, 65535}, {7, 65535},                        // a grid's x, y, z
        {8, DEFAULT_SHARED}, {97, MOST_SHARED}, {10, WARP},
        {16, 108},        // multiprocessors
        {75, 8}, {76, 0}, // compute capability
    };
    auto found = values.find(attribute);
    if (found == values.end())
        cuda_on_cpu_fail("device attribute %d is not supported", attribute);
    return *value = found->second, SUCCESS;
}

Result cuGetErrorName(Result result, const char **name) {
    static const std::map<int, const char *> names{
        {SUCCESS, "CUDA_SUCCESS"},
        {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE"},
        {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY"},
        {INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE"},
        {NOT_FOUND, "CUDA_ERROR_NOT_FOUND"},
    };
    return *name = names.at(result), SUCCESS;
}
Result cuGetErrorString(Result result, const char **text) { return cuGetErrorName(result, text); }

Result cuStreamCreate(void **stream, unsigned) { return *stream = &allocations, SUCCESS; }
Result cuStreamWaitEvent(void *, void *, unsigned) { return SUCCESS; }
Result cuEventCreate(void **event, unsigned) { return *event = &allocations, SUCCESS; }
Result cuEventRecord(void *, void *) { return SUCCESS; }
Result cuEventSynchronize(void *) { return count("synchronisation", 0), SUCCESS; }
Result cuEventDestroy_v2(void *) { return SUCCESS; }

Result cuMemAllocAsync(uintptr_t *at, size_t size, void *) { return count("allocation", size), allocate(at, size); }
Result cuMemAlloc_v2(uintptr_t *at, size_t size) { return count("allocation", size), allocate(at, size); }
Result cuMemFreeAsync(uintptr_t at, void *) { return release(at); }
Result cuMemFree_v2(uintptr_t at) { return release(at); }
Result cuMemAllocHost_v2(void **at, size_t size) { count("allocation on the host", size); return (*at = malloc(size)) ? SUCCESS : OUT_OF_MEMORY; }
Result cuMemFreeHost(void *at) { return free(at), SUCCESS; }

Result cuMemcpyHtoDAsync_v2(uintptr_t to, const void *from, size_t size, void *) {
    check_range(to, size, __func__);
    count("host to device", size);
    return memcpy((void *)to, from, size), SUCCESS;
}
Result cuMemcpyDtoHAsync_v2(void *to, uintptr_t from, size_t size, void *) {
    check_range(from, size, __func__);
    count("device to host", size);
    return memcpy(to, (void *)from, size), SUCCESS;
}
Result cuMemcpy2DAsync_v2(const Copy2D *copy, void *) {
    if (copy->width > copy->from_pitch || copy->width > copy->to_pitch)
        return INVALID_VALUE;
    bool here = copy->from_kind == DEVICE && copy->to_kind == DEVICE;
    count(here ? "device to device" : copy->to_kind == DEVICE ? "host to device" : "device to host", copy->width * copy->height);
    auto *from = copy->from_kind == HOST ? copy->from_host : (const char *)copy->from_device;
    auto *to = copy->to_kind == HOST ? copy->to_host : (char *)copy->to_device;
    for (size_t row = 0; row < copy->height; row++) {
        auto *source = from + (copy->from_y + row) * copy->from_pitch + copy->from_x;
        auto *target = to + (copy->to_y + row) * copy->to_pitch + copy->to_x;
        if (copy->from_kind == DEVICE)
            check_range((uintptr_t)source, copy->width, __func__);
        if (copy->to_kind == DEVICE)
            check_range((uintptr_t)target, copy->width, __func__);
        memcpy(target, source, copy->width);
    }
    return SUCCESS;
}

// Kernels

Result cuModuleLoadData(void **module, const char *image) {
    *module = dlopen(image, RTLD_NOW | RTLD_LOCAL);
    if (!*module)
        fprintf(stderr, "cuda_on_cpu: %s\n", dlerror());
    return *module ? SUCCESS : INVALID_IMAGE;
}

Result cuModuleGetFunction(Function **function, void *module, const char *name) {
    auto find = [&](const char *what) { return dlsym(module, (string(name) + what).c_str()); };
    auto *run = find("__run");
    if (!run)
        return NOT_FOUND;
    Dl_info info;
    dladdr(run, &info);
    string path = info.dli_fname;
    *function = new Function{name, path.substr(0, path.size() - 2) + "cpp", (void (*)(void **))run,
                             *(unsigned *)find("__threads"), *(bool *)find("__serial"),
                             (uint64_t (*)(void **))find("__bytes")};
    return SUCCESS;
}

Result cuFuncSetAttribute(Function *function, int attribute, int value) {
    if (attribute != 8 || value < 0 || size_t(value) > MOST_SHARED) // the most dynamic shared memory
        return INVALID_VALUE;
    return function->most_shared = std::max<size_t>(value, DEFAULT_SHARED), SUCCESS;
}

Result cuLaunchKernel(Function *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned x, unsigned y,
                      unsigned z, unsigned shared, void *, void **args, void **) {
    static std::mutex one;
    static std::vector<std::unique_ptr<Worker>> workers;
    static uint64_t launches;
    static const bool trace = *variable("CUDA_ON_CPU_TRACE");
    std::lock_guard turn(one);
    if (!grid_x || !grid_y || !grid_z || grid_x > 0x7fffffff || grid_y > 65535 || grid_z > 65535 || !x || !y || !z ||
        z > 64 || uint64_t(x) * y * z > std::min(function->threads, MOST_THREADS) || shared > function->most_shared)
        return INVALID_VALUE;
    if (COUNTS)
        return count("kernel " + function->name, function->bytes(args)), SUCCESS;
    Launch launch{function, {grid_x, grid_y, grid_z}, {x, y, z}, shared, args, launches++};
    uint64_t blocks = uint64_t(grid_x) * grid_y * grid_z;
    size_t count = function->serial ? 1 : std::clamp<uint64_t>(blocks, 1, std::thread::hardware_concurrency());
    while (workers.size() < count)
        workers.push_back(std::make_unique<Worker>());
    auto start = std::chrono::steady_clock::now();
    std::vector<std::thread> others;
    for (size_t i = 1; i < count; i++)
        others.emplace_back([&, i] { workers[i]->run(launch); });
    workers[0]->run(launch);
    for (auto &other : others)
        other.join();
    if (trace)
        fprintf(stderr, "cuda_on_cpu: %s, grid %u %u %u, block %u %u %u, %u bytes shared, %.1f ms\n",
                function->name.c_str(), grid_x, grid_y, grid_z, x, y, z, shared,
                std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
    std::lock_guard hold(lock);
    check_guards(function->name.c_str());
    return SUCCESS;
}

} // extern "C"

// The compiler

struct Program {
    string source, log, image;
};

static string file(const string &path) {
    std::stringstream text;
    text << std::ifstream(path).rdbuf();
    return text.str();
}

// CubeCL writes types and shared arrays in varying order. Sorted, equal kernels become equal files.
static string sort_parts(const string &source, const string &begin, const string &end) {
    std::vector<string> parts;
    size_t first = source.find(begin), from = first;
    while (from != string::npos && source.compare(from, begin.size(), begin) == 0) {
        size_t beyond = source.find(end, from) + end.size();
        parts.push_back(source.substr(from, beyond - from));
        from = beyond;
    }
    if (parts.empty())
        return source;
    std::sort(parts.begin(), parts.end());
    return source.substr(0, first) + std::accumulate(parts.begin(), parts.end(), string()) + source.substr(from);
}

// Adds lengths to arrays, and a function that takes the kernel's arguments in the form of the driver.
static string rewrite(const string &source, string &name) {
    static const std::regex kernel(R"(extern "C" __global__ void __launch_bounds__\((\d+)\)\s*(\w+) \(\s*)");
    std::smatch match;
    if (!std::regex_search(source, match, kernel))
        throw string("error: the source has no kernel in the form that CubeCL writes\n");
    string threads = match[1], before = match.prefix(), rest = match.suffix();
    name = match[2];
    bool lengths = before.find(" static_meta[") != string::npos;
    size_t end = rest.find("\n)");
    string body = rest.substr(end), info, taken, given, bytes = "0";
    std::stringstream parameters(rest.substr(0, end));
    int count = 0;
    for (string one; std::getline(parameters, one, ','); count++) {
        one = one.substr(one.find_first_not_of(' '));
        string parameter = one.substr(one.rfind(' ') + 1), type = one.substr(0, one.rfind('*'));
        string at = "args[" + std::to_string(count) + "]";
        if (count) {
            taken += ", ";
            given += ", ";
        }
        if (parameter.rfind("buffer_", 0) == 0) {
            string length = lengths ? "info.static_meta[" + parameter.substr(7) + "]" : "~0ull";
            // A buffer that the kernel does not use costs nothing.
            if (lengths && std::regex_search(body, std::regex("\\b" + parameter + "\\b")))
                bytes += " + " + length + " * sizeof(" + type + ")";
            taken += "cuda_on_cpu::Checked<" + type + "> " + parameter;
            given += "{*(" + type + " **)" + at + ", " + length + ", \"" + parameter + "\"}";
        } else if (parameter == "info") {
            taken += one;
            given += "info";
            info = "    const info_st &info = *(const info_st *)" + at + ";\n";
        } else if (parameter == "dynamic_meta") {
            taken += one;
            given += "*(" + type + " **)" + at;
        } else {
            throw "error: the parameter " + parameter + " is not supported\n";
        }
    }
    static const std::regex shared(R"(extern __shared__ __align__\(\d+\) uint8 dynamic_shared_mem\[\];)");
    body = std::regex_replace(body, shared, "uint8 *const dynamic_shared_mem = (uint8 *)cuda_on_cpu_thread()->shared;");
    static const std::regex array(R"(// Shared array size: (\d+), \d+ bytes\n(\w+) \*(\w+) = ([^;]+);)");
    body = std::regex_replace(body, array, "\ncuda_on_cpu::Checked<$2> $3{$4, $1, \"$3\"};");
    static const std::regex cast(R"((reinterpret_cast<[^<>]*\*>\()((buffer|shared_memory)_\d+\)))");
    body = std::regex_replace(body, cast, "$1+$2");
    const char *serial = body.find("atomic") == string::npos ? "false" : "true";
    string runs = COUNTS ? "" : "    " + name + "(" + given + ");\n";
    if (COUNTS)
        body = "\n) {}";
    return before + "extern \"C\" void " + name + "(" + taken + body + "\n\n" + //
           "extern \"C\" uint64_t " + name + "__bytes(void **args) {\n" + info + "    return " + bytes + ";\n}\n" +
           "extern \"C\" void " + name + "__run(void **args) {\n" + info + runs + "}\n" +
           "extern \"C\" const unsigned " + name + "__threads = " + threads + ";\n" + //
           "extern \"C\" const bool " + name + "__serial = " + serial + ";\n";
}

static void compile(Program &program, const string &include) {
    Dl_info self;
    dladdr((void *)cuInit, &self);
    string library = self.dli_fname, name;
    string folder = library.substr(0, library.rfind('/')) + "/kernels";
    mkdir(folder.c_str(), 0777);
    string source = sort_parts(program.source, "\nstruct __align__(", "\n};");
    source = sort_parts(source, "\n// Shared array size: ", ";");
    string rewritten = rewrite(source, name);
    char number[32];
    snprintf(number, sizeof number, "%016zx", std::hash<string>()(rewritten));
    string path = folder + "/" + name.substr(0, 80) + "_" + number;
    if (string keep = variable("CUDA_ON_CPU_KEEP"); !keep.empty())
        std::ofstream(keep + "/" + name.substr(0, 80) + "_" + number + ".cu") << source;
    program.image = path + ".so";
    if (!access(program.image.c_str(), R_OK))
        return;
    std::ofstream(path + ".cpp") << rewritten;
    // Local variables are filled with a pattern; multiplications and additions are fused, as on a GPU.
    string made = path + "." + std::to_string(getpid());
    string command = "g++ -x c++ -O2 -std=c++20 -march=native -ffp-contract=fast -fno-math-errno -fno-strict-aliasing "
                     "-fno-exceptions -ftrivial-auto-var-init=pattern -w -shared -fPIC -I'" + include + "' '" + path +
                     ".cpp' -x none '" + library + "' -o '" + made + "' 2> '" + made + ".log'";
    if (system(command.c_str()))
        throw file(made + ".log");
    unlink((made + ".log").c_str());
    rename(made.c_str(), program.image.c_str());
}

extern "C" {

// Without a version programs keep no kernels: they are kept here.
int nvrtcVersion(int *, int *) { return 11; } // NVRTC_ERROR_INTERNAL_ERROR

int nvrtcCreateProgram(Program **program, const char *source, const char *, int, const char **, const char **) {
    return *program = new Program{source, "", ""}, 0;
}

int nvrtcCompileProgram(Program *program, int count, const char **options) {
    string include;
    for (int i = 0; i < count; i++)
        if (string option = options[i], flag = "--include-path="; option.rfind(flag, 0) == 0)
            include = option.substr(flag.size());
    try {
        compile(*program, include);
        return 0;
    } catch (const string &log) {
        program->log = log;
        return 6; // NVRTC_ERROR_COMPILATION
    }
}

int nvrtcGetProgramLogSize(Program *program, size_t *size) { return *size = program->log.size() + 1, 0; }
int nvrtcGetProgramLog(Program *program, char *log) { return strcpy(log, program->log.c_str()), 0; }
int nvrtcGetPTXSize(Program *program, size_t *size) { return *size = program->image.size() + 1, 0; }
int nvrtcGetPTX(Program *program, char *image) { return strcpy(image, program->image.c_str()), 0; }
int nvrtcDestroyProgram(Program **program) { return delete *program, *program = nullptr, 0; }

} // extern "C"
