// What every kernel file needs.

// Shared memory, by macros: tests compile the kernels for the CPU and define these before, so that
// each block finds its memory poisoned and an access beyond the end is noticed.
//     SHARED(T, tile, [16][64]);      T tile[16][64] for all threads of the block
//     DYNAMIC_SHARED(T, window);      T* window, of the size that the launch asks for
// Both begin at a multiple of 16 bytes.
#ifndef SHARED
#define SHARED(type, name, extent) __shared__ __align__(16) type name extent
#define DYNAMIC_SHARED(type, name)                                 \
    extern __shared__ __align__(16) unsigned char dynamic_shared[]; \
    type* name = reinterpret_cast<type*>(dynamic_shared)
#endif

// Four neighbours in memory, which a thread reads or writes with one instruction.
template <typename T>
struct alignas(4 * sizeof(T)) Four {
    T at[4];
};

// Whether a thread may read and write Fours from p on.
template <typename T>
__device__ bool holds_fours(const T* p) {
    return reinterpret_cast<size_t>(p) % sizeof(Four<T>) == 0;
}

// Do use(i, read(i)) for i = first, first + step, ... before end; of every four the thread reads all
// before it uses one. One float each by all threads that an H100 holds would be 1.1 MB on their way,
// and its memory, at 3.35 TB/s and about 0.6 us from asking to getting, wants 2 MB to be busy.
template <typename Read, typename Use>
__device__ void for_each(int first, int step, int end, Read read, Use use) {
    for (int i = first; i < end; i += 4 * step) {
        decltype(read(i)) values[4];
#pragma unroll
        for (int k = 0; k < 4; k++)
            if (k * step < end - i) values[k] = read(i + k * step);
#pragma unroll
        for (int k = 0; k < 4; k++)
            if (k * step < end - i) use(i + k * step, values[k]);
    }
}

template <typename T>
__device__ T minus_infinity() {
    return log(T(0));  // without the C library's headers there is no INFINITY
}
