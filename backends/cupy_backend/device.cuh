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
