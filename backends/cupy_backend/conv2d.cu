// Convolution as one matrix product: a row for each pixel of y, a column for each filter, and k
// runs over the filter's taps (r, s, c), the channel c fastest, as pixels lie in memory.
//
//     y[(n, ho, wo)][o] = sum over (r, s, c) of x[n, h, w, c] * w[o][(r, s, c)]
//     with h = ho * stride - top + r * dilation, and w likewise
//
// The matrix of shifted pixels (im2col) is nowhere in memory: a block finds each tile of it in x.
#include "convolution.cuh"
#include "product.cuh"
#include "tensor_cores.cuh"

template <typename T>
struct Pixels {
    static constexpr bool ALONG_K = true;
    static constexpr bool GRADIENT = false;
    struct Place {
        int image;  // where it begins in x; -1 beyond the last row
        int h, w;   // the pixel under the filter's first tap
    };
    const Convolution& at;
    const T* x;  // of this group
    bool fours;

    __device__ Place place(int row) const {
        int wo = row % at.Wo, ho = row / at.Wo % at.Ho, n = row / (at.Wo * at.Ho);
        int image = n < at.N ? n * at.H * at.W * at.groups * at.C : -1;
        return {image, ho * at.stride_h - at.top, wo * at.stride_w - at.left};
    }
    __device__ const T* find(const Place& place, int k) const {
        int c = k % at.C, tap = k / at.C;
        int h = place.h + tap / at.kw * at.dilation_h, w = place.w + tap % at.kw * at.dilation_w;
        bool inside = 0 <= h && h < at.H && 0 <= w && w < at.W;
        if (place.image < 0 || tap >= at.kh * at.kw || !inside) return nullptr;
        return x + place.image + (h * at.W + w) * at.groups * at.C + c;
    }
};

template <typename T>
struct Filters {
    static constexpr bool ALONG_K = true;
    static constexpr bool GRADIENT = false;
    struct Place {
        const T* filter;  // null beyond the last
    };
    const Convolution& at;
    const T* w;  // of this group
    int size;    // of a filter
    bool fours;

    __device__ Place place(int o) const { return {o < at.O ? w + o * size : nullptr}; }
    __device__ const T* find(const Place& place, int k) const {
        return place.filter && k < size ? place.filter + k : nullptr;
    }
};

// Grid: tiles of rows, tiles of columns, groups. Added are bias and residual, which may be null.
template <typename T, typename Tile>
__global__ void LAUNCHED_AS(Tile)
conv2d(const T* x, const T* w, const T* bias, const T* residual, int relu, T* y, Convolution at) {
    int group = blockIdx.z;
    int first_row = blockIdx.x * Tile::ROWS, first_column = blockIdx.y * Tile::COLUMNS;
    int size = at.kh * at.kw * at.C, rows = at.N * at.Ho * at.Wo;
    Pixels<T> pixels{at, x + group * at.C, at.C % 4 == 0 && holds_fours(x)};
    Filters<T> filters{at, w + group * at.O * size, size, size % 4 == 0 && holds_fours(w)};
    Tile tile;
    add_products(tile, pixels, filters, first_row, first_column, 0, size);
    bool fours = at.O % 4 == 0 && holds_fours(y);
#pragma unroll
    for (int i = 0; i < Tile::HEIGHT; i++)
#pragma unroll
        for (int j = 0; j < Tile::WIDTH; j += 4) {
            int row = first_row + Tile::row(i), o = first_column + Tile::column(j);
            if (row >= rows) continue;
            T* sums = &tile.sums[i][j];
            int channel = group * at.O + o, place = row * at.groups * at.O + channel;
            if (bias) add(sums, bias + channel, at.O - o);
            if (residual) add(sums, residual + place, at.O - o);
            if (relu) keep_positive(sums);
            store(y + place, sums, at.O - o, fours);
        }
}
