// Tensor cores: a warp's fragments are spread over its lanes, and the last lane to arrive does the
// work for all.
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

template <class T> struct Stored {
    typedef T type;
};
template <> struct Stored<precision::tf32> {
    typedef float type;
};

// Which lane holds which element is nobody's business: here they take turns, row by row.
template <class Use, int m, int n, int k, class T, class Layout = void> struct fragment {
    static constexpr int rows = std::is_same_v<Use, matrix_b> ? k : m;
    static constexpr int cols = std::is_same_v<Use, matrix_a> ? k : n;
    static constexpr int num_elements = rows * cols / 32;
    typedef typename Stored<T>::type type;
    type x[num_elements];

};

template <class F, class V> void fill_fragment(F &to, V value) {
    for (auto &x : to.x)
        x = typename F::type(value);
}

template <class F, class Memory> struct Move {
    F fragment;
    Memory *memory;
    unsigned ldm;
    layout_t layout;
    const char *call;

    // Hardware's rules, and where each element lies.
    template <class Each> static void all(void **lanes, Each each) {
        auto &first = *(Move *)lanes[0];
        for (int lane = 1; lane < 32; lane++) {
            auto &other = *(Move *)lanes[lane];
            if (other.memory != first.memory || other.ldm != first.ldm || other.layout != first.layout)
                cuda_on_cpu_fail("%s: lane %d has %p, ldm %u, layout %d where lane 0 has %p, %u, %d", first.call,
                                 lane, (void *)other.memory, other.ldm, other.layout, (void *)first.memory,
                                 first.ldm, first.layout);
        }
        if (uintptr_t(first.memory) % 32)
            cuda_on_cpu_fail("%s: %p is not aligned to 32 bytes", first.call, (void *)first.memory);
        if (first.ldm * sizeof(Memory) % 16)
            cuda_on_cpu_fail("%s: ldm %u is not a multiple of 16 bytes", first.call, first.ldm);
        bool by_row = first.layout == mem_row_major;
        size_t run = by_row ? F::cols : F::rows, runs = by_row ? F::rows : F::cols;
        if (first.ldm < run)
            cuda_on_cpu_fail("%s: ldm %u is less than %zu", first.call, first.ldm, run);
        auto *thread = cuda_on_cpu_thread();
        auto *begin = (char *)first.memory, *end = (char *)(first.memory + (runs - 1) * first.ldm + run);
        if (begin >= thread->shared && begin < thread->shared + thread->shared_bytes &&
            end > thread->shared + thread->shared_bytes)
            cuda_on_cpu_fail("%s: ends %zu bytes beyond shared memory", first.call,
                             size_t(end - thread->shared - thread->shared_bytes));
        for (int row = 0; row < F::rows; row++)
            for (int col = 0; col < F::cols; col++) {
                auto &one = *(Move *)lanes[(row * F::cols + col) % 32];
                each(first.memory[by_row ? row * first.ldm + col : col * first.ldm + row],
                     one.fragment.x[(row * F::cols + col) / 32]);
            }
    }
};

template <class F, class T> void load(F &to, const T *from, unsigned ldm, layout_t layout, int line) {
    static_assert(std::is_same_v<T, typename F::type>);
    Move<F, const T> mine{to, from, ldm, layout, "load_matrix_sync"};
    auto run = [](void **lanes) {
        Move<F, const T>::all(lanes, [](const T &memory, T &element) { element = memory; });
    };
    cuda_on_cpu_warp(mine.call, line, true, run, &mine);
    to = mine.fragment;
}

template <class Use, int m, int n, int k, class T, class Layout, class M>
void load_matrix_sync(fragment<Use, m, n, k, T, Layout> &to, const M *from, unsigned ldm,
                      int line = __builtin_LINE()) {
    load(to, from, ldm, std::is_same_v<Layout, row_major> ? mem_row_major : mem_col_major, line);
}
template <int m, int n, int k, class T, class M>
void load_matrix_sync(fragment<accumulator, m, n, k, T> &to, const M *from, unsigned ldm, layout_t layout,
                      int line = __builtin_LINE()) {
    load(to, from, ldm, layout, line);
}

template <int m, int n, int k, class T>
void store_matrix_sync(T *to, const fragment<accumulator, m, n, k, T> &from, unsigned ldm, layout_t layout,
                       int line = __builtin_LINE()) {
    typedef Move<fragment<accumulator, m, n, k, T>, T> Mine;
    Mine mine{from, to, ldm, layout, "store_matrix_sync"};
    auto run = [](void **lanes) {
        Mine::all(lanes, [](T &memory, T &element) { memory = element; });
    };
    cuda_on_cpu_warp(mine.call, line, true, run, &mine);
}

// The combinations of types that hardware multiplies.
template <class A, class C, class D> constexpr bool multiplies = false;
template <> inline constexpr bool multiplies<__half, float, float> = true;
template <> inline constexpr bool multiplies<__half, __half, __half> = true;
template <> inline constexpr bool multiplies<__half, float, __half> = true;
template <> inline constexpr bool multiplies<__half, __half, float> = true;
template <> inline constexpr bool multiplies<__nv_bfloat16, float, float> = true;
template <> inline constexpr bool multiplies<precision::tf32, float, float> = true;
template <> inline constexpr bool multiplies<signed char, int, int> = true;
template <> inline constexpr bool multiplies<unsigned char, int, int> = true;

template <int m, int n, int k, class T, class LayoutA, class LayoutB, class C, class D>
void mma_sync(fragment<accumulator, m, n, k, D> &d, const fragment<matrix_a, m, n, k, T, LayoutA> &a,
              const fragment<matrix_b, m, n, k, T, LayoutB> &b, const fragment<accumulator, m, n, k, C> &c,
              bool = false, int line = __builtin_LINE()) {
    static_assert(multiplies<T, C, D>, "no tensor core multiplies these types");
    static_assert(std::is_same_v<T, precision::tf32> ? m == 16 && n == 16 && k == 8
                                                     : k == 16 && m * n == 256 && (m == 8 || m == 16 || m == 32));
    struct Mine {
        fragment<accumulator, m, n, k, D> *d;
        const fragment<matrix_a, m, n, k, T, LayoutA> *a;
        const fragment<matrix_b, m, n, k, T, LayoutB> *b;
        const fragment<accumulator, m, n, k, C> *c;
    } mine{&d, &a, &b, &c};
    auto run = [](void **lanes) {
        typedef std::conditional_t<std::is_same_v<D, int>, int, float> Sum;
        auto all = (Mine **)lanes;
        Sum a[m][k], b[k][n], sums[m][n];
        for (int i = 0; i < m * k; i++)
            a[i / k][i % k] = Sum(all[i % 32]->a->x[i / 32]);
        for (int i = 0; i < k * n; i++)
            b[i / n][i % n] = Sum(all[i % 32]->b->x[i / 32]);
        for (int i = 0; i < m * n; i++)
            sums[i / n][i % n] = Sum(all[i % 32]->c->x[i / 32]);
        for (int row = 0; row < m; row++)
            for (int at = 0; at < k; at++)
                for (int col = 0; col < n; col++)
                    sums[row][col] += a[row][at] * b[at][col];
        for (int i = 0; i < m * n; i++)
            all[i % 32]->d->x[i / 32] = D(sums[i / n][i % n]);
    };
    cuda_on_cpu_warp("mma_sync", line, true, run, &mine);
}

} // namespace nvcuda::wmma
