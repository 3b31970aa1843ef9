// The gradient with respect to a convolution's input: a matrix product for each phase of the stride.
//
// With stride 2 a pixel in an even row of x met every other row of the filter, and so did its
// neighbour at h + 2, with the same rows; a pixel at h + 1 met the others:
//
//     h      0 1 2 3 4 5        pixels of one phase (0 2 4, or 1 3 5) have the same taps, and what
//     taps   a b a b a b        they gather from g lies side by side: a dense convolution
//
//     dx[(n, h, w)][c] = sum over (r, s, o) of g[n, ho, wo, o] * w[o, r, s][c]
//     with ho = (h + top - r * dilation) / stride, for those r for which that is an integer
//
// So nothing is multiplied by the zeros that a stride would put between the values of g.
#include "convolution.cuh"
#include "product.cuh"
#include "tensor_cores.cuh"

// One axis of a phase: the pixels first, first + stride, ... and the taps tap, tap + step, ...
struct Phase {
    int pixels, taps, tap, step;
    int under;  // the place in g that pixel 0 met with the first tap
    int back;   // how far before it the one lies that it met with the next

    __device__ Phase(int first, int size, int kernel, int stride, int before, int dilation) {
        pixels = (size - first + stride - 1) / stride;
        step = 1;
        while (step * dilation % stride) step++;
        tap = 0;
        while (tap < step && (first + before - tap * dilation) % stride) tap++;
        taps = tap < step && tap < kernel ? (kernel - tap + step - 1) / step : 0;
        under = (first + before - tap * dilation) / stride;
        back = step * dilation / stride;
    }
};

template <typename T>
struct Gathered {
    static constexpr bool ALONG_K = true;
    static constexpr bool GRADIENT = true;
    struct Place {
        int image;  // where it begins in g; -1 beyond the last row
        int h, w;   // the place in g that the first tap met
    };
    const Convolution& at;
    const Phase &down, &across;
    const T* g;  // of this group
    bool fours;

    __device__ Place place(int row) const {
        int pixels = down.pixels * across.pixels, n = row / pixels, i = row % pixels;
        int image = n < at.N ? n * at.Ho * at.Wo * at.groups * at.O : -1;
        return {image, down.under + i / across.pixels, across.under + i % across.pixels};
    }
    __device__ const T* find(const Place& place, int k) const {
        int o = k % at.O, tap = k / at.O;
        if (place.image < 0 || tap >= down.taps * across.taps) return nullptr;
        int h = place.h - tap / across.taps * down.back;
        int w = place.w - tap % across.taps * across.back;
        bool inside = 0 <= h && h < at.Ho && 0 <= w && w < at.Wo;
        return inside ? g + place.image + (h * at.Wo + w) * at.groups * at.O + o : nullptr;
    }
};

template <typename T>
struct Turned {
    static constexpr bool ALONG_K = false;
    static constexpr bool GRADIENT = false;
    struct Place {
        int c;
    };
    const Convolution& at;
    const Phase &down, &across;
    const T* w;  // of this group
    bool fours;

    __device__ Place place(int c) const { return {c}; }
    __device__ const T* find(const Place& place, int k) const {
        int o = k % at.O, tap = k / at.O;
        if (place.c >= at.C || tap >= down.taps * across.taps) return nullptr;
        int r = down.tap + tap / across.taps * down.step;
        int s = across.tap + tap % across.taps * across.step;
        return w + ((o * at.kh + r) * at.kw + s) * at.C + place.c;
    }
};

// Grid: tiles of the largest phase's rows, tiles of columns, phases times groups. `plus` is added.
template <typename T, typename Tile>
__global__ void LAUNCHED_AS(Tile)
conv2d_input_grad(const T* g, const T* w, const T* plus, T* dx, Convolution at) {
    int group = blockIdx.z % at.groups, phase = blockIdx.z / at.groups;
    int first_h = phase / at.stride_w, first_w = phase % at.stride_w;
    int first_row = blockIdx.x * Tile::ROWS, first_column = blockIdx.y * Tile::COLUMNS;
    Phase down(first_h, at.H, at.kh, at.stride_h, at.top, at.dilation_h);
    Phase across(first_w, at.W, at.kw, at.stride_w, at.left, at.dilation_w);
    int pixels = down.pixels * across.pixels;
    if (first_row >= at.N * pixels) return;  // the whole block does

    Gathered<T> gathered{at, down, across, g + group * at.O, at.O % 4 == 0 && holds_fours(g)};
    const T* own = w + group * at.O * at.kh * at.kw * at.C;
    Turned<T> turned{at, down, across, own, at.C % 4 == 0 && holds_fours(w)};
    Tile tile;
    int end = down.taps * across.taps * at.O;
    add_products(tile, gathered, turned, first_row, first_column, 0, end);

    bool fours = at.C % 4 == 0 && holds_fours(dx);
#pragma unroll
    for (int i = 0; i < Tile::HEIGHT; i++) {
        int row = first_row + Tile::row(i), n = row / pixels, pixel = row % pixels;
        if (n >= at.N) continue;
        int h = first_h + pixel / across.pixels * at.stride_h;
        int x_w = first_w + pixel % across.pixels * at.stride_w;
        int begin = (((n * at.H + h) * at.W + x_w) * at.groups + group) * at.C;
#pragma unroll
        for (int j = 0; j < Tile::WIDTH; j += 4) {
            int c = first_column + Tile::column(j);
            T* sums = &tile.sums[i][j];
            if (plus) add(sums, plus + begin + c, at.C - c);
            store(dx + begin + c, sums, at.C - c, fours);
        }
    }
}
