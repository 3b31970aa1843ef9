// Elementwise kernels: each value is read once and written once, and no thread meets another's.
//
// A block of 256 threads has 1,024 values, four a thread, which lie 256 apart:
//
//     thread   0  1  2 ... 255  0  1  2 ... 255  0 ...
//     value    0  1  2 ... 255  256 257 ...      512 ...
//
// so a warp's 32 threads read 32 neighbours, one transaction of 128 bytes. Passes over memory:
//
//     add             3 (x and y read, the sum written)           add_to_channels   2
//     relu            2                                           relu_grad         3
//     sgd_update      5 (p, g and velocity read, p and velocity written)
#include "device.cuh"

constexpr int EACH = 4;

// Do write(i, read(i)) for the thread's values.
template <typename Read, typename Write>
__device__ void for_own_values(int size, Read read, Write write) {
    int begin = blockIdx.x * blockDim.x * EACH, end = min(begin + int(blockDim.x) * EACH, size);
    for_each(begin + threadIdx.x, blockDim.x, end, read, write);
}

// `sum` may be x or y.
template <typename T>
__global__ void add(const T* x, const T* y, T* sum, int size) {
    auto read = [=](int i) { return x[i] + y[i]; };
    for_own_values(size, read, [=](int i, T value) { sum[i] = value; });
}

// sum = x + a value for each of C channels, the fastest of x's axes.
template <typename T>
__global__ void add_to_channels(const T* x, const T* values, T* sum, int size, int C) {
    auto read = [=](int i) { return x[i] + values[i % C]; };
    for_own_values(size, read, [=](int i, T value) { sum[i] = value; });
}

template <typename T>
__global__ void relu(const T* x, T* y, int size) {
    auto read = [=](int i) { return x[i] < 0 ? T(0) : x[i]; };  // a NaN stays one
    for_own_values(size, read, [=](int i, T value) { y[i] = value; });
}

template <typename T>
__global__ void relu_grad(const T* g, const T* y, T* dx, int size) {
    struct Value {
        T g, y;  // both are read, whether g passes or not: to wait for y first takes longer
    };
    auto read = [=](int i) { return Value{g[i], y[i]}; };
    for_own_values(size, read, [=](int i, Value value) { dx[i] = value.y > 0 ? value.g : T(0); });
}

__device__ double value_of(double number) { return number; }
__device__ double value_of(const double* number) { return *number; }

// v <- momentum*v + d and p <- p - lr*v, with d = g + weight_decay*p; with Nesterov's look ahead
// p <- p - lr*(d + momentum*v). Sutskever et al., ICML 2013, section 2, as PyTorch has it.
// A CUDA graph repeats the numbers it was recorded with, but not those in memory: lr may lie there.
template <typename T, typename Rate>
__global__ void sgd_update(const T* g, T* p, T* velocity, int size, Rate lr, double momentum,
                           double weight_decay, int nesterov) {
    struct Value {
        T p, d, v;
    };
    T rate = value_of(lr), keep = momentum, decay = weight_decay;  // in T, as everything else is
    auto read = [=](int i) { return Value{p[i], decay ? g[i] + decay * p[i] : g[i], velocity[i]}; };
    for_own_values(size, read, [=](int i, Value value) {
        T v = keep * value.v + value.d;
        velocity[i] = v;
        p[i] = value.p - rate * (nesterov ? value.d + keep * v : v);
    });
}
