// Elementwise kernels: a thread per value.
#include "device.cuh"

template <typename T>
__global__ void add(const T* x, const T* y, T* sum, int size) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < size) sum[i] = x[i] + y[i];
}
