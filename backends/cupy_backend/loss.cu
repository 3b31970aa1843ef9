// Softmax and cross-entropy of each row, and its gradient, in one kernel: a warp for each row.
//
//     lane     0   1   2  ...  31   0   1  ...
//     class    0   1   2  ...  31  32  33  ...      the largest, then the sum of exp, then the loss:
//                                                   each lane of its classes, then of all lanes
//
// Lanes exchange what they have by shuffles, without shared memory or barriers: after a step with each
// of 16, 8, 4, 2, 1 places between partners, all lanes have the sum of all, to the same last bit since
// a + b is b + a. Logits are read three times, twice from the cache; 2 passes over memory.
// Label smoothing: Szegedy et al., arXiv 1512.00567, section 7.
#include "device.cuh"

constexpr int LANES = 32;

template <typename T, typename Join>
__device__ T join_lanes(T own, Join join) {
    for (int bits = LANES / 2; bits; bits /= 2) own = join(own, __shfl_xor_sync(0xffffffffu, own, bits));
    return own;
}

// losses (rows), gradient (rows, classes) = softmax(logits) - q, where the distribution q of a row is
// 1 - smoothing + smoothing/classes at its target and smoothing/classes elsewhere.
template <typename T>
__global__ void softmax_cross_entropy(const T* logits, const long long* targets, int rows, int classes,
                                      double smoothing, T* losses, T* gradient) {
    int row = blockIdx.x * (blockDim.x / LANES) + threadIdx.x / LANES, lane = threadIdx.x % LANES;
    if (row >= rows) return;  // the whole warp
    const T* z = logits + row * classes;
    auto larger = [](T a, T b) { return a > b ? a : b; };
    auto sum = [](T a, T b) { return a + b; };

    T largest = z[0];
    for (int k = lane; k < classes; k += LANES) largest = larger(largest, z[k]);
    largest = join_lanes(largest, larger);
    T exponentials = 0;
    for (int k = lane; k < classes; k += LANES) exponentials += exp(z[k] - largest);
    exponentials = join_lanes(exponentials, sum);

    T log_sum = log(exponentials), loss = 0;
    for (int k = lane; k < classes; k += LANES) {
        T q = smoothing / classes + (k == targets[row] ? 1 - smoothing : 0);
        if (q > 0) loss -= q * (z[k] - largest - log_sum);  // a class may be -inf where q is 0
        gradient[row * classes + k] = exp(z[k] - largest) / exponentials - q;
    }
    loss = join_lanes(loss, sum);
    if (lane == 0) losses[row] = loss;
}
