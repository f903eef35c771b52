// Tensor cores: a warp's fragments are spread over its lanes. The last lane to arrive computes for all lanes and
// checks the requirements of the hardware.
#pragma once

#include "cuda_bf16.h"
#include "cuda_fp16.h"

namespace nvcuda::wmma {

struct matrix_a {};
struct matrix_b {};
struct accumulator {};
struct row_major {};
struct col_major {};
enum layout_t { mem_row_major, mem_col_major };
namespace precision {
struct tf32 {};
} // namespace precision

inline float __float_to_tf32(float x) {
    uint32_t bits = __builtin_bit_cast(uint32_t, x);
    return x != x ? x : __builtin_bit_cast(float, (bits + 0x1000) & ~0x1fffu);
}

// CUDA leaves the element-to-lane mapping undefined: here elements are dealt to lanes row by row.
template <class Use, int m, int n, int k, class T, class Layout = void> struct fragment {
    static constexpr int rows = std::is_same_v<Use, matrix_b> ? k : m;
    static constexpr int cols = std::is_same_v<Use, matrix_a> ? k : n;
    static constexpr int num_elements = rows * cols / 32;
    typedef std::conditional_t<std::is_same_v<T, precision::tf32>, float, T> element;
    element x[num_elements];
};

template <class F, class V> void fill_fragment(F &to, V value) {
    for (auto &x : to.x)
        x = typename F::element(value);
}

// A load or a store.
template <class F, class T> struct Move {
    const char *call;
    F *fragment;
    T *memory;
    unsigned ldm;
    layout_t layout;

    template <class Each> static void all(void **lanes, Each each) {
        auto [call, fragment, memory, ldm, layout] = *(Move *)lanes[0];
        for (int lane = 1; lane < 32; lane++) {
            auto &other = *(Move *)lanes[lane];
            if (other.memory != memory || other.ldm != ldm || other.layout != layout)
                cuda_on_cpu_fail("%s: lane %d has %p, ldm %u, layout %d, and lane 0 has %p, %u, %d", call, lane,
                                 (void *)other.memory, other.ldm, other.layout, (void *)memory, ldm, layout);
        }
        bool by_row = layout == mem_row_major;
        size_t run = by_row ? F::cols : F::rows, runs = by_row ? F::rows : F::cols;
        if (uintptr_t(memory) % 32 || ldm * sizeof(T) % 16 || ldm < run)
            cuda_on_cpu_fail("%s: %p must be aligned to 32 bytes, and ldm %u at least %zu and a multiple of 16 bytes",
                             call, (void *)memory, ldm, run);
        auto *shared = cuda_on_cpu_thread()->shared, *end = shared + cuda_on_cpu_thread()->shared_bytes;
        auto *last = (char *)(memory + (runs - 1) * ldm + run);
        if ((char *)memory >= shared && (char *)memory < end && last > end)
            cuda_on_cpu_fail("%s: ends %zu bytes beyond shared memory", call, size_t(last - end));
        for (int at = 0; at < F::rows * F::cols; at++) {
            int row = at / F::cols, col = at % F::cols;
            each(memory[by_row ? row * ldm + col : col * ldm + row], ((Move *)lanes[at % 32])->fragment->x[at / 32]);
        }
    }
};

template <class F, class T> void load(F &to, const T *from, unsigned ldm, layout_t layout, int line) {
    typedef Move<F, const T> Load;
    Load mine{"load_matrix_sync", &to, from, ldm, layout};
    auto run = [](void **lanes) {
        Load::all(lanes, [](const T &memory, T &element) { element = memory; });
    };
    cuda_on_cpu_warp(mine.call, line, true, run, &mine);
}

template <class Use, int m, int n, int k, class T, class Layout>
void load_matrix_sync(fragment<Use, m, n, k, T, Layout> &to,
                      const typename fragment<Use, m, n, k, T, Layout>::element *from, unsigned ldm,
                      int line = __builtin_LINE()) {
    load(to, from, ldm, std::is_same_v<Layout, row_major> ? mem_row_major : mem_col_major, line);
}
template <int m, int n, int k, class T>
void load_matrix_sync(fragment<accumulator, m, n, k, T> &to, const T *from, unsigned ldm, layout_t layout,
                      int line = __builtin_LINE()) {
    load(to, from, ldm, layout, line);
}

template <int m, int n, int k, class T>
void store_matrix_sync(T *to, const fragment<accumulator, m, n, k, T> &from, unsigned ldm, layout_t layout,
                       int line = __builtin_LINE()) {
    typedef Move<const fragment<accumulator, m, n, k, T>, T> Store;
    Store mine{"store_matrix_sync", &from, to, ldm, layout};
    auto run = [](void **lanes) {
        Store::all(lanes, [](T &memory, const T &element) { memory = element; });
    };
    cuda_on_cpu_warp(mine.call, line, true, run, &mine);
}

template <int m, int n, int k, class T, class LayoutA, class LayoutB, class C, class D>
void mma_sync(fragment<accumulator, m, n, k, D> &d, const fragment<matrix_a, m, n, k, T, LayoutA> &a,
              const fragment<matrix_b, m, n, k, T, LayoutB> &b, const fragment<accumulator, m, n, k, C> &c,
              bool = false, int line = __builtin_LINE()) {
    constexpr bool half = std::is_same_v<T, __half>, brain = std::is_same_v<T, __nv_bfloat16>,
                   tf32 = std::is_same_v<T, precision::tf32>;
    static_assert(half || brain || tf32, "only f16, bf16 and tf32 are multiplied here");
    static_assert((std::is_same_v<C, float> || (half && std::is_same_v<C, __half>)) &&
                      (std::is_same_v<D, float> || (half && std::is_same_v<D, __half>)),
                  "tensor cores sum in f32, and f16 in f16");
    static_assert(m * n == 256 && (tf32 ? k == 8 && m == 16 : k == 16 && (m == 8 || m == 16 || m == 32)));
    struct Mine {
        decltype(&d) to;
        decltype(&a) left;
        decltype(&b) right;
        decltype(&c) with;
    } mine{&d, &a, &b, &c};
    auto run = [](void **lanes) {
        auto all = (Mine **)lanes;
        float a[m][k], b[k][n], sums[m][n];
        for (int at = 0; at < m * k; at++)
            a[at / k][at % k] = all[at % 32]->left->x[at / 32];
        for (int at = 0; at < k * n; at++)
            b[at / n][at % n] = all[at % 32]->right->x[at / 32];
        for (int at = 0; at < m * n; at++)
            sums[at / n][at % n] = all[at % 32]->with->x[at / 32];
        for (int row = 0; row < m; row++)
            for (int at = 0; at < k; at++)
                for (int col = 0; col < n; col++)
                    sums[row][col] += a[row][at] * b[at][col];
        for (int at = 0; at < m * n; at++)
            all[at % 32]->to->x[at / 32] = sums[at / n][at % n];
    };
    cuda_on_cpu_warp("mma_sync", line, true, run, &mine);
}

} // namespace nvcuda::wmma
