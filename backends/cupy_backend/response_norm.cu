// Local response normalisation: each value is divided by what its neighbours in the channels, at the
// same pixel, amount to. Krizhevsky et al., NIPS 2012, section 3.3; alpha divided by size, as PyTorch.
//
//     y = x / scale^beta,   scale = k + alpha/size * (sum of x^2 over `size` channels around)
//
// Neighbouring channels are neighbours in memory. A block of 256 threads has 256 values in a row and
// brings into shared memory what is to be summed, and what sticks out at both ends, once each:
//
//     shared      | before |          256 values          | after |
//     thread t    sums tile[t] ... tile[t + before + after], those of its own pixel
//
// With size 5 that is 1.02 reads of x and 1.02 powers a value, not 5. Forward 3 passes over memory (x, y,
// scale), backward 4 (g, x, scale, dx).
#include "device.cuh"

// Sum term(i) over the channels c - before ... c + after of the thread's pixel, c being its value's.
template <typename T, typename Term>
__device__ T window_sum(int size, int C, int before, int after, Term term) {
    DYNAMIC_SHARED(T, tile);
    int first = blockIdx.x * blockDim.x, t = threadIdx.x, c = (first + t) % C;
    for (int j = t; j < blockDim.x + before + after; j += blockDim.x) {
        int i = first - before + j;
        tile[j] = 0 <= i && i < size ? term(i) : T(0);
    }
    __syncthreads();
    T sum = 0;
    for (int d = -min(before, c); d <= min(after, C - 1 - c); d++) sum += tile[t + before + d];
    return sum;
}

template <typename T>
__global__ void local_response_norm(const T* x, int size, int C, int before, int after, double alpha,
                                    double beta, double k, T* y, T* scale) {
    T sum = window_sum<T>(size, C, before, after, [=](int i) { return x[i] * x[i]; });
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= size) return;
    T s = T(k) + T(alpha) * sum;
    scale[i] = s;
    y[i] = x[i] * pow(s, T(-beta));
}

// dx = g / scale^beta - 2 * alpha * beta * x * (sum of g * x / scale^(beta + 1)): channel c is in the
// windows of the channels whose windows reach back to c, so before and after change places.
template <typename T>
__global__ void local_response_norm_grad(const T* x, int size, int C, int before, int after,
                                         double alpha, double beta, const T* g, const T* scale, T* dx) {
    auto term = [=](int i) { return g[i] * x[i] * pow(scale[i], T(-beta - 1)); };
    T sum = window_sum<T>(size, C, before, after, term);
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < size) dx[i] = g[i] * pow(scale[i], T(-beta)) - T(2 * alpha * beta) * x[i] * sum;
}
