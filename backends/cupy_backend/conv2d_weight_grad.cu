// The gradient with respect to a convolution's filters: a row for each tap (r, s, c), a column for
// each filter o, and k runs over the pixels of g.
//
//     dw[(r, s, c)][o] = sum over (n, ho, wo) of x[n, h, w, c] * g[(n, ho, wo)][o]
//     with h = ho * stride - top + r * dilation, and w likewise
//
// Filters are small and pixels many, so the sum is cut into parts, each for blocks of its own:
//
//     pixels   0 ......... length ......... 2*length ......... rows of g
//              |   part 0   |     part 1     |      part 2     |
//     partial     [0]              [1]               [2]             (part, group, (r, s, c), o)
//                  +----------------+-----------------+------> dw (group, o, c, r, s)
//
// A second kernel adds them in that order. The parts follow from the shapes alone, so the result is
// the same to the last bit in every run.
#include "convolution.cuh"
#include "product.cuh"
#include "tensor_cores.cuh"

template <typename T>
struct Taps {
    static constexpr bool ALONG_K = false;
    static constexpr bool GRADIENT = false;
    struct Place {
        int h, w;   // from the pixel under a filter's corner to the one under this tap
        int c;      // -1 beyond the last row
    };
    const Convolution& at;
    const T* x;  // of this group
    int end;     // of the part
    bool fours;

    __device__ Place place(int row) const {
        int c = row % at.C, tap = row / at.C;
        if (tap >= at.kh * at.kw) return {0, 0, -1};
        return {tap / at.kw * at.dilation_h - at.top, tap % at.kw * at.dilation_w - at.left, c};
    }
    __device__ const T* find(const Place& place, int k) const {
        int wo = k % at.Wo, ho = k / at.Wo % at.Ho, n = k / (at.Wo * at.Ho);
        int h = ho * at.stride_h + place.h, w = wo * at.stride_w + place.w;
        bool inside = 0 <= h && h < at.H && 0 <= w && w < at.W;
        if (place.c < 0 || k >= end || !inside) return nullptr;
        return x + ((n * at.H + h) * at.W + w) * at.groups * at.C + place.c;
    }
};

template <typename T>
struct Gradients {
    static constexpr bool ALONG_K = false;
    static constexpr bool GRADIENT = true;
    struct Place {
        int o;
    };
    const Convolution& at;
    const T* g;  // of this group
    int end;     // of the part
    bool fours;

    __device__ Place place(int o) const { return {o}; }
    __device__ const T* find(const Place& place, int k) const {
        return place.o < at.O && k < end ? g + k * at.groups * at.O + place.o : nullptr;
    }
};

// Grid: tiles of rows, tiles of columns, groups times parts of `length` pixels.
template <typename T, typename Tile>
__global__ void LAUNCHED_AS(Tile)
conv2d_weight_grad(const T* g, const T* x, T* partial, int length, Convolution at) {
    int group = blockIdx.z % at.groups, part = blockIdx.z / at.groups;
    int first_row = blockIdx.x * Tile::ROWS, first_column = blockIdx.y * Tile::COLUMNS;
    int begin = part * length, end = min(begin + length, at.N * at.Ho * at.Wo);
    Taps<T> taps{at, x + group * at.C, end, at.C % 4 == 0 && holds_fours(x)};
    Gradients<T> gradients{at, g + group * at.O, end, at.O % 4 == 0 && holds_fours(g)};
    Tile tile;
    add_products(tile, taps, gradients, first_row, first_column, begin, end);

    int rows = at.kh * at.kw * at.C;
    bool fours = at.O % 4 == 0 && holds_fours(partial);
#pragma unroll
    for (int i = 0; i < Tile::HEIGHT; i++)
#pragma unroll
        for (int j = 0; j < Tile::WIDTH; j += 4) {
            int row = first_row + Tile::row(i), o = first_column + Tile::column(j);
            T* p = partial + (blockIdx.z * rows + row) * at.O + o;
            if (row < rows) store(p, &tile.sums[i][j], at.O - o, fours);
        }
}

// Add the parts; a thread for each weight, in the order of `partial`.
template <typename T>
__global__ void add_parts(const T* partial, T* dw, int parts, Convolution at) {
    int taps = at.kh * at.kw, size = at.groups * taps * at.C * at.O;
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= size) return;
    T sum = 0;
    for (int part = 0; part < parts; part++) sum += partial[part * size + i];
    int o = i % at.O, c = i / at.O % at.C;
    int tap = i / (at.O * at.C) % taps, group = i / (at.O * at.C * taps);
    dw[((group * at.O + o) * at.C + c) * taps + tap] = sum;
}
