// Pooling: a thread for each value that is written, which gathers what it needs.
//
// Threads follow memory: neighbours have neighbouring channels of a pixel, then the next pixel, so
// whatever a warp reads or writes lies side by side (C = 2, a window of 2 x 2, stride 2):
//
//     y        thread 0: channel 0, 1: channel 1 of pixel (0, 0); 2, 3: pixel (0, 1) ...
//     x        0 1 | 0 1 | 2 3 | 2 3       which thread reads it
//              0 1 | 0 1 | 2 3 | 2 3
//
// Gradients gather too: each pixel of x looks for the windows that it is in. With stride s and a
// window of k, these begin at ceil((h - k + 1) / s) and end at floor(h / s), padding counted in h:
//
//     x  | 0 1 2 3 4 5 6        k = 3, s = 2: pixel 2 is the last of window 0
//     y  | [0 0 0]              and the first of window 1
//        |     [1 1 1]
//        |         [2 2 2]
//
// No two threads write to one place then, so no atomics, and each sum has one order.
//
// Memory traffic, in values of T: the forward passes read x and write y; where windows overlap, x comes
// again from the cache, its neighbours were there a moment ago. The gradients read g and write dx.
// Maximum pooling adds a byte for each value of y: which of the window's positions won.
#include "device.cuh"

// As `_geometry` of pool.py fills it. Images lie (N, H, W, C), results (N, Ho, Wo, C).
struct Pooling {
    int N, H, W, C, Ho, Wo;
    int kh, kw, stride_h, stride_w, top, left;
};

// Where a thread's value lies in an array (N, height, width, C).
struct Place {
    int i, n, h, w, c;  // i: which value of all

    __device__ Place(int height, int width, int C) {
        i = blockIdx.x * blockDim.x + threadIdx.x;
        c = i % C, w = i / C % width, h = i / C / width % height, n = i / C / width / height;
    }
};

// Positions of a window, or windows that a pixel is in: begin ... end - 1.
struct Range {
    int begin, end;
};

// Those positions of a window at `first` that meet pixels, 0 to size - 1, not padding.
__device__ Range positions(int first, int k, int size) {
    return {max(0, -first), min(k, size - first)};
}

// The windows, of `count`, that the pixel h is in; h counts from the padding's edge.
__device__ Range windows(int h, int k, int stride, int count) {
    int begin = h < k ? 0 : (h - k) / stride + 1;
    return {begin, min(h / stride + 1, count)};
}

// y = the largest pixel of each window, argmax = its position there; the first one counts, and a NaN
// is the largest of all.
template <typename T>
__global__ void max_pool2d(const T* x, T* y, unsigned char* argmax, Pooling at) {
    Place p(at.Ho, at.Wo, at.C);
    if (p.n >= at.N) return;
    int h = p.h * at.stride_h - at.top, w = p.w * at.stride_w - at.left;
    Range rows = positions(h, at.kh, at.H), columns = positions(w, at.kw, at.W);
    T best = minus_infinity<T>();
    int winner = 0;
    for (int i = rows.begin; i < rows.end; i++)
        for (int j = columns.begin; j < columns.end; j++) {
            T v = x[((p.n * at.H + h + i) * at.W + w + j) * at.C + p.c];
            if (v > best || v != v) best = v, winner = i * at.kw + j;
        }
    y[p.i] = best;
    argmax[p.i] = winner;
}

// dx = the sum of g of those windows in which the pixel won.
template <typename T>
__global__ void max_pool2d_grad(const T* g, const unsigned char* argmax, T* dx, Pooling at) {
    Place p(at.H, at.W, at.C);
    if (p.n >= at.N) return;
    int h = p.h + at.top, w = p.w + at.left;
    Range rows = windows(h, at.kh, at.stride_h, at.Ho), columns = windows(w, at.kw, at.stride_w, at.Wo);
    T sum = 0;
    for (int i = rows.begin; i < rows.end; i++)
        for (int j = columns.begin; j < columns.end; j++) {
            int window = ((p.n * at.Ho + i) * at.Wo + j) * at.C + p.c;
            int position = (h - i * at.stride_h) * at.kw + w - j * at.stride_w;
            if (argmax[window] == position) sum += g[window];
        }
    dx[p.i] = sum;
}

// y = the pixel that won in each window; the gradient's adjoint.
template <typename T>
__global__ void max_pool2d_gather(const T* x, const unsigned char* argmax, T* y, Pooling at) {
    Place p(at.Ho, at.Wo, at.C);
    if (p.n >= at.N) return;
    int h = p.h * at.stride_h - at.top + argmax[p.i] / at.kw;
    int w = p.w * at.stride_w - at.left + argmax[p.i] % at.kw;
    bool inside = 0 <= h && h < at.H && 0 <= w && w < at.W;
    y[p.i] = inside ? x[((p.n * at.H + h) * at.W + w) * at.C + p.c] : T(0);
}

// y = the mean of each window; zeros of the padding count.
template <typename T>
__global__ void avg_pool2d(const T* x, T* y, Pooling at) {
    Place p(at.Ho, at.Wo, at.C);
    if (p.n >= at.N) return;
    int h = p.h * at.stride_h - at.top, w = p.w * at.stride_w - at.left;
    Range rows = positions(h, at.kh, at.H), columns = positions(w, at.kw, at.W);
    T sum = 0;
    for (int i = rows.begin; i < rows.end; i++)
        for (int j = columns.begin; j < columns.end; j++)
            sum += x[((p.n * at.H + h + i) * at.W + w + j) * at.C + p.c];
    y[p.i] = sum / (at.kh * at.kw);
}

// dx = the sum of g / (kh * kw) of the windows that the pixel is in.
template <typename T>
__global__ void avg_pool2d_grad(const T* g, T* dx, Pooling at) {
    Place p(at.H, at.W, at.C);
    if (p.n >= at.N) return;
    Range rows = windows(p.h + at.top, at.kh, at.stride_h, at.Ho);
    Range columns = windows(p.w + at.left, at.kw, at.stride_w, at.Wo);
    T sum = 0;
    for (int i = rows.begin; i < rows.end; i++)
        for (int j = columns.begin; j < columns.end; j++)
            sum += g[((p.n * at.Ho + i) * at.Wo + j) * at.C + p.c];
    dx[p.i] = sum / (at.kh * at.kw);
}
